"""Lines are shared; a masked message waits; KVM is told no more than it needs."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from appliance.errors import HostError
from appliance.kernel import kvm_abi as abi
from appliance.vmm import irq
from appliance.vmm.irq import Interrupts
from tests.fakes.machine import FakeController, FakeMachine

MSI = 0xFEE0_0000


def test_a_line_is_up_while_anybody_asserts_it(machine: FakeMachine) -> None:
    one, other = machine.interrupts.line(16), machine.interrupts.line(16)
    one.set(asserted=True)
    other.set(asserted=True)
    one.set(asserted=True)
    assert machine.controller.edges == [16]
    one.set(asserted=False)
    assert machine.controller.levels[16] == 1
    assert machine.interrupts.asserted(16)
    other.set(asserted=False)
    assert machine.controller.levels[16] == 0
    assert not machine.interrupts.asserted(16)


def test_a_pulse_is_an_edge(machine: FakeMachine) -> None:
    line = machine.interrupts.line(8)
    line.pulse()
    line.pulse()
    assert machine.controller.edges == [8, 8]
    assert machine.controller.levels[8] == 0


def test_the_timer_is_wired_to_pin_2_and_the_isa_lines_to_both_controllers(machine: FakeMachine) -> None:
    routes = {(each.gsi, each.u.irqchip.irqchip): each.u.irqchip.pin for each in machine.controller.routes}
    assert routes[0, abi.KVM_IRQCHIP_IOAPIC] == 2
    assert (2, abi.KVM_IRQCHIP_IOAPIC) not in routes
    assert routes[12, abi.KVM_IRQCHIP_PIC_SLAVE] == 4
    assert routes[23, abi.KVM_IRQCHIP_IOAPIC] == 23


def test_a_vector_has_its_irqfd_while_it_is_unmasked_only(machine: FakeMachine) -> None:
    vector = machine.interrupts.message()
    vector.set(address=MSI, data=0x41, masked=True)
    assert machine.controller.bound == {}
    vector.set(address=MSI, data=0x41, masked=False)
    assert machine.controller.bound == {vector.gsi: vector.event}
    assert machine.controller.messages() == {vector.gsi: (MSI, 0x41)}
    vector.set(address=MSI, data=0x41, masked=True)
    assert machine.controller.bound == {}


def test_what_is_signalled_while_masked_is_pending(machine: FakeMachine) -> None:
    vector = machine.interrupts.message()
    pending = [vector.pending]
    vector.signal()
    pending.append(vector.pending)
    vector.clear()
    pending.append(vector.pending)
    vector.signal()
    vector.set(address=MSI, data=1, masked=False)
    pending.append(vector.pending)
    assert pending == [False, True, False, False]


def test_the_table_is_published_when_it_matters_not_at_each_write(machine: FakeMachine) -> None:
    published = 0

    def count(routes: object) -> None:
        nonlocal published
        published += 1

    machine.controller.set_gsi_routing = count  # type: ignore[method-assign]
    vector = machine.interrupts.message()
    vector.set(address=MSI, data=0, masked=True)  # address, data and mask are three writes of a driver
    vector.set(address=MSI, data=0x41, masked=True)
    assert published == 0
    vector.set(address=MSI, data=0x41, masked=False)
    vector.set(address=MSI, data=0x41, masked=True)
    vector.set(address=MSI, data=0x41, masked=False)
    assert published == 1


def test_a_route_that_was_taken_away_is_published_again(machine: FakeMachine) -> None:
    vector = machine.interrupts.message()
    vector.set(address=MSI, data=0x41, masked=False)
    vector.set(address=0, data=0, masked=False)
    assert machine.controller.messages() == {}
    vector.set(address=MSI, data=0x41, masked=False)
    assert machine.controller.messages() == {vector.gsi: (MSI, 0x41)}


def test_numbers_of_closed_vectors_are_used_again_and_their_routes_go(machine: FakeMachine) -> None:
    first, second = machine.interrupts.message(), machine.interrupts.message()
    first.set(address=MSI, data=1, masked=False)
    first.close()
    first.close()
    assert machine.controller.bound == {}
    third = machine.interrupts.message()
    assert third.gsi == first.gsi
    second.set(address=MSI, data=2, masked=False)
    assert machine.controller.messages() == {second.gsi: (MSI, 2)}
    first.set(address=MSI, data=9, masked=False)  # closed: nothing
    assert machine.controller.messages() == {second.gsi: (MSI, 2)}


def test_a_machine_has_only_so_many_vectors(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(irq, "MAX_MESSAGES", 3)
    for _ in range(3):
        machine.interrupts.message()
    with pytest.raises(HostError, match="vm 101: more than 3 interrupt vectors"):
        machine.interrupts.message()


def test_a_pending_vector_is_seen_with_any_descriptor_number(machine: FakeMachine) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip(f"only {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    vector = machine.interrupts.message()
    before = vector.event._fd
    vector.event._fd = os.dup2(before, 1100, inheritable=False)
    try:
        vector.signal()
        assert vector.pending
    finally:
        os.close(before)
        vector.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Refusing(FakeController):
    """KVM that has gone."""

    def irq_line(self, gsi: int, level: int) -> None:
        raise OSError(errno.EBADF, "KVM_IRQ_LINE")

    def irqfd(self, *arguments: object, **options: object) -> None:
        raise OSError(errno.EBADF, "KVM_IRQFD")


def test_what_kvm_refuses_is_a_host_error_and_leaks_nothing() -> None:
    interrupts = Interrupts(Refusing(), label="vm 101")
    with pytest.raises(HostError, match="vm 101: interrupt line 4"):
        interrupts.line(4).set(asserted=True)
    vector = interrupts.message()
    with pytest.raises(HostError, match=f"vm 101: interrupt vector {vector.gsi}"):
        vector.set(address=MSI, data=1, masked=False)
    interrupts.close()
