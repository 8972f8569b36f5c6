"""The guest's state machine: pure tables, no effects. Whoever changes a state asks `can_move`.

STOPPED -> STARTING -> RUNNING <-> PAUSED
   ^          |           |          |
   +----------+-----------+----------+   (it ended by itself, or a start failed)
   ^                      v          v
   +---------------------STOPPING<---+
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from appliance.errors import Conflict
from appliance.model.guest import GuestId, GuestKind, GuestState

_MOVES: dict[GuestState, frozenset[GuestState]] = {
    GuestState.STOPPED: frozenset(
        {GuestState.STARTING, GuestState.RUNNING, GuestState.PAUSED}
    ),  # the latter two: adopted
    GuestState.STARTING: frozenset({GuestState.RUNNING, GuestState.PAUSED, GuestState.STOPPING, GuestState.STOPPED}),
    GuestState.RUNNING: frozenset({GuestState.PAUSED, GuestState.STOPPING, GuestState.STOPPED}),
    GuestState.PAUSED: frozenset({GuestState.RUNNING, GuestState.STOPPING, GuestState.STOPPED}),
    GuestState.STOPPING: frozenset({GuestState.STOPPED}),
}


class Action(StrEnum):
    """What a user may ask of a guest; the value is PVE's task word after "qm" or "vz"."""

    START = "start"
    STOP = "stop"
    SHUTDOWN = "shutdown"
    REBOOT = "reboot"
    RESET = "reset"
    SUSPEND = "suspend"
    RESUME = "resume"
    DESTROY = "destroy"


_ALLOWED: dict[Action, frozenset[GuestState]] = {
    Action.START: frozenset({GuestState.STOPPED}),
    Action.STOP: frozenset(GuestState),  # stopping what is stopped is no error: the caller has what they wanted
    Action.SHUTDOWN: frozenset({GuestState.RUNNING, GuestState.PAUSED}),
    Action.REBOOT: frozenset({GuestState.RUNNING, GuestState.PAUSED}),
    Action.RESET: frozenset({GuestState.RUNNING, GuestState.PAUSED}),
    Action.SUSPEND: frozenset({GuestState.RUNNING}),
    Action.RESUME: frozenset({GuestState.PAUSED, GuestState.RUNNING}),
    Action.DESTROY: frozenset({GuestState.STOPPED}),
}


def can_move(old: GuestState, new: GuestState) -> bool:
    """Whether the state machine allows `old -> new`."""
    return new in _MOVES[old]


def require(action: Action, kind: GuestKind, guest_id: GuestId, state: GuestState) -> None:
    """Raises `Conflict`, in the words clients of PVE look for, when `action` makes no sense in `state`."""
    if state in _ALLOWED[action]:
        return
    subject = f"{kind.prefix.upper()} {guest_id}"
    if action is Action.START:
        raise Conflict(f"{subject} already running" if state is not GuestState.STOPPING else f"{subject} is stopping")
    if state is GuestState.STOPPED:
        raise Conflict(f"{subject} not running")
    if action is Action.DESTROY:
        raise Conflict(f"{subject} is running - destroy failed")
    raise Conflict(f"{subject} cannot {action.value} while it is {state.value}")


def require_unlocked(kind: GuestKind, guest_id: GuestId, config: Mapping[str, str], *, skip: bool = False) -> None:
    """Raises `Conflict`, in PVE's words, while the configuration's `lock` marks an operation under way, unless `skip`."""
    lock = config.get("lock")
    if lock and not skip:
        raise Conflict(f"{kind.prefix.upper()} {guest_id} is locked ({lock})")


def task_type(word: str, kind: GuestKind) -> str:
    """PVE's task type of an action or another operation: "qmstart", "vzshutdown", "qmcreate" …"""
    return ("qm" if kind is GuestKind.QEMU else "vz") + word
