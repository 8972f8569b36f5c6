"""Interrupts of a machine: ISA and INTx lines, and message-signalled ones through irqfds. Any thread may enter.

A message vector is an eventfd bound to a GSI of its own, whose route carries (address, data). Who raises it just signals
the eventfd: a device here, or vhost in the kernel, with no exit and no help of ours. A masked vector has its irqfd taken
away: what is signalled meanwhile stays in the eventfd's counter, which is the pending bit, and the kernel delivers it
when the irqfd comes back (KVM polls the eventfd as it is assigned: virt/kvm/eventfd.c, kvm_irqfd_assign).
"""

from __future__ import annotations

import select
import threading
from collections.abc import Sequence
from typing import Protocol

from appliance.errors import HostError
from appliance.kernel import kvm_abi as abi
from appliance.kernel.eventfd import EventFd
from appliance.vmm import layout

MAX_MESSAGES = 1024  # for one machine; KVM itself allows 4096 routes


class InterruptController(Protocol):
    """The part of `kernel.kvm_vm.Vm` that is used here; tests have a fake."""

    def irq_line(self, gsi: int, level: int) -> None: ...
    def irqfd(self, event: EventFd, gsi: int, *, resample: EventFd | None = None, deassign: bool = False) -> None: ...
    def set_gsi_routing(self, routes: Sequence[abi.KvmIrqRoutingEntry]) -> None: ...


class IrqLine:
    """One device's share of a line. Lines are shared: the pin is up while anybody asserts it (level-triggered)."""

    def __init__(self, owner: Interrupts, gsi: int) -> None:
        self.gsi = gsi
        self._owner = owner

    def set(self, *, asserted: bool) -> None:
        """Assert or withdraw; saying the same twice does nothing."""
        self._owner._assert_line(self, asserted)

    def pulse(self) -> None:
        """An edge, for the ISA lines that are edge-triggered."""
        self.set(asserted=True)
        self.set(asserted=False)


class MessageVector:
    """A message-signalled interrupt. Starts masked and without a message. Owned by who asked for it: `close` it."""

    def __init__(self, owner: Interrupts, gsi: int) -> None:
        self.gsi = gsi
        self.event = EventFd()
        self._owner = owner
        self.address = self.data = 0
        self.masked = True
        self._routed = (0, 0)  # what KVM's table has

    def fileno(self) -> int:
        """For vhost: who writes to it raises the interrupt."""
        return self.event.fileno()

    def signal(self) -> None:
        """Raise it; while masked it becomes pending. Never blocks."""
        self.event.signal()

    def set(self, *, address: int, data: int, masked: bool) -> None:
        """What the guest has programmed. Raises `HostError` when KVM refuses."""
        self._owner._program(self, address, data, masked=masked)

    @property
    def pending(self) -> bool:
        """Whether it was signalled while masked."""
        poll = select.poll()  # not select(2), which knows descriptors below 1024 only
        poll.register(self.event.fileno(), select.POLLIN)
        return self.masked and bool(poll.poll(0))

    def clear(self) -> None:
        """Forget what is pending (reset)."""
        if self.masked:
            self.event.drain()

    def close(self) -> None:
        """Give it up; harmless when done twice."""
        self._owner._give_up(self)


class Interrupts:
    """All lines and messages of one machine."""

    def __init__(self, controller: InterruptController, *, label: str) -> None:
        self._controller = controller
        self._label = label
        self._lock = threading.RLock()
        self._asserting: dict[int, set[IrqLine]] = {}
        self._vectors: dict[int, MessageVector] = {}
        self._publish()

    def line(self, gsi: int) -> IrqLine:
        """A new share of the line `gsi` (0-23)."""
        return IrqLine(self, gsi)

    def message(self) -> MessageVector:
        """A new vector. Raises `HostError` when the machine has too many."""
        with self._lock:
            if len(self._vectors) >= MAX_MESSAGES:
                raise HostError(f"{self._label}: more than {MAX_MESSAGES} interrupt vectors")
            gsi = next(each for each in range(layout.GSI_FIRST_MESSAGE, 1 << 16) if each not in self._vectors)
            vector = self._vectors[gsi] = MessageVector(self, gsi)
            return vector

    def close(self) -> None:
        """Close every vector that is left."""
        for vector in list(self._vectors.values()):
            vector.close()

    def asserted(self, gsi: int) -> bool:
        """Whether anybody asserts the line: for saving and tests."""
        return bool(self._asserting.get(gsi))

    # --- for lines and vectors -----------------------------------------------------------------------------------

    def _assert_line(self, line: IrqLine, asserted: bool) -> None:
        with self._lock:
            asserting = self._asserting.setdefault(line.gsi, set())
            before = bool(asserting)
            if asserted:
                asserting.add(line)
            else:
                asserting.discard(line)
            if bool(asserting) != before:
                try:
                    self._controller.irq_line(line.gsi, int(not before))
                except OSError as error:
                    raise HostError.from_os_error(error, f"{self._label}: interrupt line {line.gsi}") from error

    def _program(self, vector: MessageVector, address: int, data: int, *, masked: bool) -> None:
        """The table is told when the vector is unmasked, not at each of the three writes that program it."""
        with self._lock:
            if self._vectors.get(vector.gsi) is not vector:
                return  # closed; its number may be another's by now
            vector.address, vector.data = address, data
            changed = vector._routed != (address, data)
            try:
                if (masked or changed) and not vector.masked:
                    self._controller.irqfd(vector.event, vector.gsi, deassign=True)
                    vector.masked = True
                if changed and not masked:
                    self._publish()
                if not masked and vector.masked:
                    self._controller.irqfd(vector.event, vector.gsi)
                    vector.masked = False
            except OSError as error:
                raise HostError.from_os_error(error, f"{self._label}: interrupt vector {vector.gsi}") from error

    def _give_up(self, vector: MessageVector) -> None:
        with self._lock:
            if self._vectors.get(vector.gsi) is not vector:
                return
            del self._vectors[vector.gsi]
            try:
                if not vector.masked:
                    self._controller.irqfd(vector.event, vector.gsi, deassign=True)
            except OSError as error:
                raise HostError.from_os_error(error, f"{self._label}: interrupt vector {vector.gsi}") from error
            finally:
                vector.event.close()  # its route goes with the next table: nobody can raise it any more

    def _publish(self) -> None:
        """The whole routing table: the lines as KVM has them by default, and each vector's message."""
        pics = (abi.KVM_IRQCHIP_PIC_MASTER, abi.KVM_IRQCHIP_PIC_SLAVE)
        routes = [abi.irqchip_route(gsi, pics[gsi // 8], gsi % 8) for gsi in range(16)]
        # the timer is wired to pin 2, which nothing else uses (MADT: interrupt source override)
        pins = [gsi for gsi in range(abi.KVM_IOAPIC_NUM_PINS) if gsi != 2]
        routes += [abi.irqchip_route(gsi, abi.KVM_IRQCHIP_IOAPIC, gsi or 2) for gsi in pins]
        routes += [abi.msi_route(each.gsi, each.address, each.data) for each in self._vectors.values() if each.address]
        self._controller.set_gsi_routing(routes)
        for each in self._vectors.values():
            each._routed = (each.address, each.data) if each.address else (0, 0)
