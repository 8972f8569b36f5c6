"""Whether a guest that has ended is started again, and when. Pure.

A guest that asked for its own restart gets it; one that somebody stopped or shut down here, never. For the rest its
`restart` key decides: `no`, `on-failure` (it crashed), `always` (also after its own shutdown), at most `max` times in a
row. A run of `LASTING_S` shows that it works, and begins the count anew; each attempt waits twice as long as the one
before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from appliance.model.guest import ExitReason

INTERVAL_S = 5.0
"""A guest that ends at once must not occupy the host."""
LONGEST_S = 300.0
LASTING_S = 600.0
ASKED_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """The `restart` key. `most` 0: no limit."""

    when: str = "no"
    most: int = 0


def policy(config: Mapping[str, str]) -> RestartPolicy:
    """Of a stored configuration, whose texts were checked when they were written."""
    parts = dict(part.partition("=")[::2] for part in config.get("restart", "no").split(","))
    when = parts.get("when") or next((name for name, value in parts.items() if not value), "no")
    return RestartPolicy(when=when, most=int(parts.get("max", "0") or 0))


def failures_after(failures: int, reason: ExitReason, *, ran_s: float) -> int:
    """How many ends in a row there have been, with this one."""
    if reason.kind == "reset":
        return 0
    return 1 if ran_s >= LASTING_S else failures + 1


def counts_as_asked(asked_at: float | None, now: float) -> bool:
    """Whether an end is the one somebody asked for: a guest may take its time, but not for ever."""
    return asked_at is not None and now - asked_at < ASKED_S


def delay_s(policy: RestartPolicy, reason: ExitReason, *, asked: bool, ran_s: float, failures: int) -> float | None:
    """How long to wait before it starts again; None: it stays stopped. `failures` as of `failures_after`."""
    if reason.kind == "reset":
        return max(INTERVAL_S - ran_s, 0.0)
    if asked:
        return None
    wanted = policy.when in ("always", "unless-stopped") or (policy.when == "on-failure" and reason.kind == "crashed")
    return _attempt(policy, failures) if wanted else None


def delay_after_failed_start(policy: RestartPolicy, *, failures: int) -> float | None:
    """How long to wait once an attempt to start it again has failed; without a policy there is one attempt only."""
    return None if policy.when == "no" else _attempt(policy, failures)


def _attempt(policy: RestartPolicy, failures: int) -> float | None:
    if policy.most and failures > policy.most:
        return None
    return min(INTERVAL_S * (1 << min(failures - 1, 10)), LONGEST_S)
