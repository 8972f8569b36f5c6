"""A machine without KVM for device tests: real guest memory and buses; interrupts and the loop as values to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from appliance.errors import GuestFault
from appliance.kernel import kvm_abi as abi
from appliance.kernel.eventfd import EventFd
from appliance.vmm.bus import Bus
from appliance.vmm.device import DeviceContext, MachineRequest
from appliance.vmm.irq import Interrupts
from appliance.vmm.memory import GuestMemory
from tests.fakes.clock import FakeClock


class FakeController:
    """KVM's interrupt side: line levels, and which eventfd is bound to which GSI."""

    def __init__(self) -> None:
        self.levels: dict[int, int] = {}
        self.edges: list[int] = []
        self.bound: dict[int, EventFd] = {}
        self.routes: list[abi.KvmIrqRoutingEntry] = []

    def irq_line(self, gsi: int, level: int) -> None:
        self.levels[gsi] = level
        if level:
            self.edges.append(gsi)

    def irqfd(self, event: EventFd, gsi: int, *, resample: EventFd | None = None, deassign: bool = False) -> None:
        if deassign:
            del self.bound[gsi]
        else:
            self.bound[gsi] = event

    def set_gsi_routing(self, routes: Sequence[abi.KvmIrqRoutingEntry]) -> None:
        self.routes = list(routes)

    def messages(self) -> dict[int, tuple[int, int]]:
        """(address, data) by GSI."""
        return {
            route.gsi: (route.u.msi.address_hi << 32 | route.u.msi.address_lo, route.u.msi.data)
            for route in self.routes
            if route.type == abi.KVM_IRQ_ROUTING_MSI
        }


class FakeTimer:
    def __init__(self, due_s: float, callback: Callable[[], None]) -> None:
        self.due_s, self.callback, self.cancelled = due_s, callback, False

    def cancel(self) -> None:
        self.cancelled = True


class FakeBridge:
    """Does at once what the real one does soon. Watched descriptors are called by `ready`, timers by `advance`."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}
        self.timers: list[FakeTimer] = []
        self.now_s = 0.0

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self.watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def post(self, callback: Callable[[], None]) -> None:
        callback()

    def submit(self, work: Callable[[], None]) -> None:
        work()

    crowded = False

    def linger(self, fds: Iterable[int], timeout_s: float) -> bool:
        return False

    def later(self, delay_s: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self.now_s + delay_s, callback)
        self.timers.append(timer)
        return timer

    def ready(self, fd: int) -> None:
        self.watched[fd]()

    def advance(self, seconds: float) -> None:
        """Time passes; what is due runs, in order, also what is armed meanwhile."""
        self.now_s += seconds
        while due := [each for each in self.timers if not each.cancelled and each.due_s <= self.now_s]:
            first = min(due, key=lambda each: each.due_s)
            self.timers.remove(first)
            first.callback()


@dataclass
class FakeMachine:
    """`context` is what a device takes. `close` it (a fixture `machine` in tests/vmm/conftest.py does)."""

    memory_mib: int = 16
    controller: FakeController = field(default_factory=FakeController)
    bridge: FakeBridge = field(default_factory=FakeBridge)
    clock: FakeClock = field(default_factory=FakeClock)
    requests: list[tuple[MachineRequest, str]] = field(default_factory=list)
    faults: list[GuestFault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = GuestMemory(self.memory_mib << 20, name="vm 101")
        self.ports, self.mmio = Bus("port"), Bus("address")
        self.interrupts = Interrupts(self.controller, label="vm 101")
        self.context = DeviceContext(
            label="vm 101",
            memory=self.memory,
            ports=self.ports,
            mmio=self.mmio,
            interrupts=self.interrupts,
            bridge=self.bridge,
            clock=self.clock,
            request=lambda request, why: self.requests.append((request, why)),
            fault=self.faults.append,
            note=self.notes.append,
        )

    def close(self) -> None:
        self.interrupts.close()
        self.memory.close()
