"""Whether and when an application container that has ended is started again. Pure.

The back-off is Docker's: a tenth of a second, doubled at each end that comes soon, to a minute; a run of ten seconds counts as
a success and begins anew.
"""

from __future__ import annotations

from appliance.model.application import RestartMode, RestartPolicy

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 60.0
GOOD_RUN_S = 10.0


def restarts_in_a_row(before: int, *, ran_s: float) -> int:
    """How many restarts there have been without a good run, this end included."""
    return 1 if ran_s >= GOOD_RUN_S else before + 1


def delay_s(policy: RestartPolicy, *, asked: bool, exit_code: int | None, in_a_row: int) -> float | None:
    """Seconds until the next start; None when there is none. `asked`: somebody stopped it or asked it to end.

    `exit_code` None means that nobody saw how it ended, which counts as a failure.
    """
    match policy.mode:
        case RestartMode.NO:
            return None
        case RestartMode.ON_FAILURE if exit_code == 0 or (policy.attempts and in_a_row > policy.attempts):
            return None
    if asked:
        return None
    return min(FIRST_DELAY_S * float(1 << min(in_a_row - 1, 20)), LONGEST_DELAY_S)


def starts_with_appliance(policy: RestartPolicy, *, was_running: bool, stopped_by_hand: bool) -> bool:
    """Whether a container that does not run is started when the appliance starts. `was_running`: when it was last seen."""
    match policy.mode:
        case RestartMode.ALWAYS:
            return True
        case RestartMode.UNLESS_STOPPED:
            return not stopped_by_hand
        case RestartMode.ON_FAILURE:
            return was_running
    return False
