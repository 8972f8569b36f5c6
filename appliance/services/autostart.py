"""Start order: which guests start with the host, in what order, with which delays. Pure.

PVE's rules: `startup: order=N,up=SECONDS,down=SECONDS`; guests without an order come last; equal orders go by VMID;
stopping is the same list backwards. `up` is waited after a start before the next order begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from appliance.model.guest import GuestId

DEFAULT_SHUTDOWN_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRule:
    """One guest's place. Delays in seconds; `down_s` is how long its orderly shutdown may take."""

    guest_id: GuestId
    order: int | None = None
    up_s: float = 0.0
    down_s: float = DEFAULT_SHUTDOWN_S


def rule(guest_id: GuestId, config: Mapping[str, str]) -> StartRule:
    """Read the `startup` property; parts that are no numbers count as absent (they are refused when written)."""
    parts: dict[str, str] = {}
    for item in config.get("startup", "").split(","):
        name, equals, value = item.partition("=")
        parts[name.strip() if equals else "order"] = (value if equals else name).strip()
    return StartRule(
        guest_id=guest_id,
        order=int(parts["order"]) if parts.get("order", "").isdigit() else None,
        up_s=float(parts["up"]) if parts.get("up", "").isdigit() else 0.0,
        down_s=float(parts["down"]) if parts.get("down", "").isdigit() else DEFAULT_SHUTDOWN_S,
    )


def start_order(rules: Iterable[StartRule]) -> Sequence[Sequence[StartRule]]:
    """Groups that start together, first group first."""
    groups: dict[int | None, list[StartRule]] = {}
    for item in rules:
        groups.setdefault(item.order, []).append(item)
    ordered = sorted(groups, key=lambda order: (order is None, order or 0))
    return [sorted(groups[order], key=lambda item: item.guest_id) for order in ordered]


def stop_order(rules: Iterable[StartRule]) -> Sequence[Sequence[StartRule]]:
    """Groups that stop together: the start order backwards."""
    return list(reversed(start_order(rules)))
