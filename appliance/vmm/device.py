"""What every device of the native machine is, and what it may use of its machine.

Threads. vCPU threads enter through the buses; the loop through what a device has `watch`ed, `post`ed or timed; the
machine's pool through what it `submit`ted. So each device has one lock of its own, `self.lock`, taken at each of these
doors and held shortly: never over blocking I/O, never while waiting for another thread. Where two locks are needed the
order is: PCI bus, device, queue, interrupts and memory.

Life. Made by the builder; `reset` brings it to power-on state (also the guest's warm reset); `pause` makes it quiet: when
it has returned and the bridge's pool is idle it touches neither guest memory nor interrupts until `resume`; `save` and
`restore` are called in between only; `close` gives back all it has, and is idempotent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import msgspec

from appliance.clock import Clock
from appliance.errors import GuestFault
from appliance.kernel.eventfd import EventFd
from appliance.vmm.bus import Bus
from appliance.vmm.irq import Interrupts
from appliance.vmm.loopbridge import Bridge
from appliance.vmm.memory import GuestMemory


class MachineRequest(StrEnum):
    """What a guest's action, seen by a device, asks of its machine."""

    RESET = "reset"  # 0xcf9, i8042, triple fault
    POWER_OFF = "power off"  # ACPI S5
    PANIC = "panic"  # pvpanic
    WATCHDOG = "watchdog"  # it expired


class State(msgspec.Struct, forbid_unknown_fields=True):
    """Base of what components save. Subclasses begin with `version: int = N`; fields are only ever appended, each with a
    default, and `restore` refuses a newer version by name (STYLE 14)."""


class Doorbells(Protocol):
    """KVM's ioeventfds, as `kernel.kvm_vm.Vm.ioeventfd` has them."""

    def ioeventfd(
        self,
        event: EventFd,
        address: int,
        *,
        length: int,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        """A write there signals `event` and causes no exit. Raises `HostError` when KVM refuses."""


class MappedMemory(Protocol):
    """A memory slot of a device's own."""

    def take_dirty(self) -> bytes:
        """What the guest has written since the last time, bit n of byte n // 8 for page n; all zeros without a log."""

    def unmap(self) -> None:
        """The guest sees it no more; harmless when done twice. Before the host's memory goes."""


class MemorySlots(Protocol):
    """KVM's memory slots: the host's memory where the guest reaches it without an exit (a frame buffer, a ROM)."""

    def map(
        self, base: int, length: int, host_address: int, *, name: str, read_only: bool = False, log_dirty: bool = False
    ) -> MappedMemory:
        """Whole pages, where no other slot is. Writes to what is `read_only` are MMIO. Raises `HostError`, `Conflict`."""


@dataclass(frozen=True, slots=True)
class DeviceContext:
    """The machine as a device sees it. `doorbells` and `slots` are KVM's, or None where there is none (tests)."""

    label: str  # "vm 101"
    memory: GuestMemory
    ports: Bus
    mmio: Bus
    interrupts: Interrupts
    bridge: Bridge
    clock: Clock
    request: Callable[[MachineRequest, str], None]  # any thread; the text says why, for the task log
    fault: Callable[[GuestFault], None]  # any thread; ends this guest
    note: Callable[[str], None]  # any thread; a rate-limited line in the guest's log
    doorbells: Doorbells | None = None
    slots: MemorySlots | None = None


class Device:
    """Base of all devices. `name` is unique in a machine and stable over save and restore: "serial0", "virtio-blk0"."""

    def __init__(self, name: str, context: DeviceContext) -> None:
        self.name = name
        self.context = context
        self.lock = threading.RLock()

    @property
    def label(self) -> str:
        """For messages: "vm 101: serial0"."""
        return f"{self.context.label}: {self.name}"

    def reset(self) -> None:
        """Power-on state. vCPUs are stopped."""

    def pause(self) -> None:
        """Become quiet; vCPUs are stopped. On the loop."""

    def resume(self) -> None:
        """Go on; vCPUs are still stopped. On the loop."""

    def save(self) -> State | None:
        """Its state, while paused; None when there is none worth keeping."""
        return None

    def restore(self, state: State) -> None:
        """The state that `save` told, into a device just made, while paused. Raises `Unsupported` for what it cannot
        be: another version, another shape."""

    @property
    def state_type(self) -> type[State] | None:
        """What `save` returns, for decoding."""
        return None

    def close(self) -> None:
        """On the loop: touch nothing any more, and give back what it holds on the host, as far as that does not block;
        harmless when done twice."""

    def give_back(self) -> None:
        """The rest of `close`, which comes first: in a thread, for it may block. Harmless when done twice."""


def close_wholly(device: Device) -> None:
    """`close` and `give_back` of one that no machine has yet. Blocking."""
    device.close()
    device.give_back()
