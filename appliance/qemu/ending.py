"""Why a VM's process ended, from what was seen of it. Pure."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.model.guest import ExitReason


@dataclass(slots=True)
class LastWords:
    """What was seen before the end. `heard`: the monitor was connected to the end, so
    that a missing event means something."""

    stop_asked: bool = False
    shutdown_reason: str = ""
    panicked: bool = False
    heard: bool = False


def exit_reason(words: LastWords, status: int | None, complaints: Sequence[str]) -> ExitReason:
    """`shutdown_reason` is qapi/run-state.json's ShutdownCause; `status` the exit status (None: not our child)."""
    match words.shutdown_reason:
        case "guest-shutdown":
            return ExitReason(kind="shutdown", detail="the guest powered off")
        case "guest-panic":
            return ExitReason(kind="crashed", detail="the guest's kernel panicked")
        case "guest-reset" | "host-qmp-system-reset" | "subsystem-reset":
            return ExitReason(kind="reset", detail="the guest asked for a restart")
        case "host-error":
            return ExitReason(kind="crashed", detail=_last(complaints, "QEMU met an error of the host"))
    if words.stop_asked:
        return ExitReason(kind="stopped", detail="stopped")
    if words.panicked:
        return ExitReason(kind="crashed", detail="QEMU was ended after the guest's kernel had panicked")
    if words.shutdown_reason:  # host-qmp-quit, host-signal, host-ui: somebody else ended it, in order
        return ExitReason(kind="stopped", detail=f"QEMU was ended from outside ({words.shutdown_reason})")
    if status is not None and status < 0:
        return ExitReason(kind="crashed", detail=f"QEMU was killed by {_signal_name(-status)}")
    if status or words.heard:
        text = f"QEMU ended with status {status}" if status is not None else "QEMU ended without a word"
        return ExitReason(kind="crashed", detail=_last(complaints, text))
    return ExitReason(kind="stopped", detail="QEMU ended while nobody listened to it")


def _last(complaints: Sequence[str], otherwise: str) -> str:
    return f"{otherwise}: {complaints[-1]}" if complaints else otherwise


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
