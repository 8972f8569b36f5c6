"""The states of a machine and the moves between them, what ends it, and what it starts from. Pure; see `machine`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from appliance.kernel.kvm_vcpu import Vcpu as KvmVcpu
from appliance.model.guest import ExitReason
from appliance.vmm.device import MachineRequest


class MachineState(StrEnum):
    """The life of a machine."""

    BUILT = "built"  # devices are added; nothing has run
    RUNNING = "running"  # vCPUs run
    PAUSED = "paused"  # vCPUs are parked and devices quiet: may be saved and restored
    STOPPED = "stopped"  # nothing is left


MOVES = {
    MachineState.BUILT: {MachineState.RUNNING, MachineState.PAUSED, MachineState.STOPPED},
    MachineState.RUNNING: {MachineState.PAUSED, MachineState.STOPPED},
    MachineState.PAUSED: {MachineState.RUNNING, MachineState.STOPPED},
    MachineState.STOPPED: set[MachineState](),
}

ENDINGS = {
    MachineRequest.POWER_OFF: ExitReason(kind="shutdown", detail="the guest powered off"),
    MachineRequest.PANIC: ExitReason(kind="crashed", detail="the guest's kernel panicked"),
    MachineRequest.RESET: ExitReason(kind="reset", detail="the guest asked for a restart"),
    MachineRequest.WATCHDOG: ExitReason(kind="reset", detail="the guest's watchdog expired"),
}
RESETS = frozenset({MachineRequest.RESET, MachineRequest.WATCHDOG})


def _no_memory() -> None:
    """A `load` that puts nothing into memory."""


def _no_vcpu(vcpu: KvmVcpu) -> None:
    """A vCPU as KVM makes it: at the reset vector (SDM vol.3 §9.1.4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What a machine starts from. All raise `HostError` or `GuestFault`."""

    configure_vcpu: Callable[[KvmVcpu], None] = _no_vcpu  # once, in its thread: CPUID, TSC frequency
    prepare_vcpu: Callable[[KvmVcpu], None] = _no_vcpu  # at start and each reset, in its thread: registers
    load: Callable[[], None] = _no_memory  # at start and each reset, in a thread: firmware or kernel into RAM
