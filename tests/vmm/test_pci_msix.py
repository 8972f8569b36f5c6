"""MSI-X: what reaches KVM when, what stays pending, and where."""

from __future__ import annotations

import pytest

from appliance.errors import HostError, Unsupported
from appliance.vmm.irq import MAX_MESSAGES
from appliance.vmm.pci import config_space as cs
from appliance.vmm.pci.bar import BarKind
from appliance.vmm.pci.bus import PciBus
from appliance.vmm.pci.function import PciFunctionState
from tests.fakes.machine import FakeMachine
from tests.vmm.pci_software import Card, Ecam, enable_msix_as_linux, find_capability, place_bars

BASES = {0x10: 0xC000, 0x14: 0xC000_0000, 0x20: 0x8_0000_0000}
TABLE, PBA = 0xC000_0800, 0xC000_0C00
MESSAGES = [(0xFEE0_0000 | number << 12, 0x4030 + number) for number in range(4)]


@pytest.fixture
def card(machine: FakeMachine) -> Card:
    made = Card(machine.context).with_bars()
    PciBus("pci", machine.context).plug(made, 3)
    place_bars(Ecam(machine.mmio), 3, BASES)
    return made


@pytest.fixture
def config(machine: FakeMachine) -> Ecam:
    return Ecam(machine.mmio)


def pending(machine: FakeMachine) -> int:
    return machine.mmio.read(PBA, 8)


def signal(card: Card, number: int) -> None:
    assert card.msix is not None
    card.msix.signal(number)


def messages(machine: FakeMachine) -> list[tuple[int, int]]:
    """What KVM would send for each vector that is bound."""
    return [machine.controller.messages()[gsi] for gsi in sorted(machine.controller.bound)]


def test_the_capability_tells_size_and_places(machine: FakeMachine, card: Card, config: Ecam) -> None:
    offset = find_capability(config, 3, 0x11)
    assert offset == 0x40
    assert config.read(3, offset + 2, 2) == 3
    assert config.read(3, offset + 4, 4) == 0x800 | 1
    assert config.read(3, offset + 8, 4) == 0xC00 | 1
    config.write(3, offset, 8, 2**64 - 1)  # enable and mask all can be written, the rest cannot
    assert config.read(3, offset, 8) == 0x0000_0801_C003_0011


def test_all_vectors_work_after_linux_has_enabled_them(machine: FakeMachine, card: Card, config: Ecam) -> None:
    capability = enable_msix_as_linux(config, machine.mmio, 3, TABLE, MESSAGES)
    assert card.msix is not None
    assert card.msix.enabled
    assert config.read(3, capability + 2, 2) == 0x8003
    assert messages(machine) == MESSAGES
    signal(card, 2)
    vector = card.msix.vector(2)
    assert vector is not None
    assert machine.controller.bound[vector.gsi] is vector.event
    assert vector.event.drain() == 1
    assert pending(machine) == 0


def test_nothing_is_published_before_a_vector_is_unmasked(machine: FakeMachine, card: Card, config: Ecam) -> None:
    before = machine.controller.routes
    config.write(3, 0x42, 2, 0xC000)
    for number in range(4):
        machine.mmio.write(TABLE + 16 * number, 8, 0xFEE0_0000)
        machine.mmio.write(TABLE + 16 * number + 8, 8, 0x4000)
    assert machine.controller.routes == before
    assert machine.controller.bound == {}
    config.write(3, 0x42, 2, 0x8000)
    assert len(machine.controller.bound) == 4


def test_a_masked_vector_is_pending_and_comes_when_unmasked(machine: FakeMachine, card: Card, config: Ecam) -> None:
    enable_msix_as_linux(config, machine.mmio, 3, TABLE, MESSAGES)
    machine.mmio.write(TABLE + 16 + 12, 4, 1)
    assert len(machine.controller.bound) == 3
    signal(card, 1)
    assert pending(machine) == 0b10
    assert machine.mmio.read(PBA, 1) == 0b10
    machine.mmio.write(PBA, 8, 0)  # read-only
    assert pending(machine) == 0b10
    machine.mmio.write(TABLE + 16 + 12, 4, 0)
    assert len(machine.controller.bound) == 4  # with its counter: KVM delivers as it binds
    assert card.msix is not None
    vector = card.msix.vector(1)
    assert vector is not None
    assert vector.event.drain() == 1
    assert pending(machine) == 0


def test_the_function_mask_masks_all(machine: FakeMachine, card: Card, config: Ecam) -> None:
    capability = enable_msix_as_linux(config, machine.mmio, 3, TABLE, MESSAGES)
    config.write(3, capability + 3, 1, 0xC0)  # a byte
    assert machine.controller.bound == {}
    for number in (0, 3):
        signal(card, number)
    assert pending(machine) == 0b1001
    config.write(3, capability + 3, 1, 0x80)
    assert len(machine.controller.bound) == 4


def test_while_msix_is_off_signals_go_nowhere(machine: FakeMachine, card: Card, config: Ecam) -> None:
    signal(card, 0)
    assert pending(machine) == 0
    capability = enable_msix_as_linux(config, machine.mmio, 3, TABLE, MESSAGES)
    config.write(3, capability + 2, 2, 0)
    assert machine.controller.bound == {}
    signal(card, 0)
    assert pending(machine) == 0
    config.write(3, capability + 2, 2, 0x8000)
    assert messages(machine) == MESSAGES


def test_a_vector_moved_to_another_processor_keeps_its_descriptor(
    machine: FakeMachine, card: Card, config: Ecam
) -> None:
    enable_msix_as_linux(config, machine.mmio, 3, TABLE, MESSAGES)
    bound = dict(machine.controller.bound)
    machine.mmio.write(TABLE + 12, 4, 1)  # as irq_set_affinity: masked, changed, unmasked
    machine.mmio.write(TABLE, 4, 0xFEE0_7000)
    machine.mmio.write(TABLE + 12, 4, 0)
    assert messages(machine)[0] == (0xFEE0_7000, 0x4030)
    machine.mmio.write(TABLE + 8, 4, 0x4077)  # and unmasked all the time
    assert messages(machine)[0] == (0xFEE0_7000, 0x4077)
    assert machine.controller.bound == bound


@pytest.mark.parametrize("address", [0, 0x1000, 0xFED0_0000, 0xFEF0_0000, 0x1_FEE0_0000, 0x80_FEE0_0000])
def test_a_message_to_no_local_apic_is_never_sent(machine: FakeMachine, card: Card, config: Ecam, address: int) -> None:
    enable_msix_as_linux(config, machine.mmio, 3, TABLE, [(address, 0x30), *MESSAGES[1:]])
    assert messages(machine) == MESSAGES[1:]
    machine.mmio.write(TABLE, 8, 0x100_FEE0_0000)  # an extended destination, bits 63:40
    assert len(machine.controller.bound) == 4


def test_table_accesses_of_any_width_and_alignment_are_its_bytes(machine: FakeMachine, card: Card) -> None:
    machine.mmio.write(TABLE, 8, 0x1122_3344_FEE0_1003)
    assert machine.mmio.read(TABLE, 8) == 0x1122_3344_FEE0_1000  # a doubleword's address
    machine.mmio.write(TABLE + 9, 2, 0xBEEF)
    assert machine.mmio.read(TABLE + 8, 4) == 0xBEEF00
    machine.mmio.write(TABLE + 12, 8, 2**64 - 1)  # over two entries
    assert machine.mmio.read(TABLE + 12, 8) == 0xFFFF_FFFC_0000_0001
    machine.mmio.write(TABLE + 62, 4, 0xFFFF_FFFF)  # past the end: nobody's
    assert machine.mmio.read(TABLE + 62, 4) == 0
    assert machine.mmio.read(PBA - 4, 8) == 0
    assert card.registers.writes == []


def test_around_the_areas_are_the_devices_registers(machine: FakeMachine, card: Card) -> None:
    machine.mmio.write(0xC000_07F8, 8, 5)
    machine.mmio.write(0xC000_0840, 1, 6)
    assert card.registers.writes == [(0x7F8, 8, 5), (0x840, 1, 6)]


def test_reset_masks_disables_and_forgets(machine: FakeMachine, card: Card, config: Ecam) -> None:
    enable_msix_as_linux(config, machine.mmio, 3, TABLE, MESSAGES)
    machine.mmio.write(TABLE + 12, 4, 1)
    signal(card, 0)
    card.reset()
    assert card.msix is not None
    assert not card.msix.enabled
    assert machine.controller.bound == {}
    place_bars(config, 3, BASES)
    assert [machine.mmio.read(TABLE + 4 * each, 4) for each in range(4)] == [0, 0, 0, 1]
    config.write(3, 0x42, 2, 0xC000)
    assert pending(machine) == 0


def test_saved_vectors_come_back_with_what_is_pending(machine: FakeMachine, card: Card, config: Ecam) -> None:
    enable_msix_as_linux(config, machine.mmio, 3, TABLE, MESSAGES)
    machine.mmio.write(TABLE + 48 + 12, 4, 1)
    signal(card, 3)
    state = card.save()
    other = FakeMachine()
    try:
        made = Card(other.context).with_bars()
        PciBus("pci", other.context).plug(made, 3)
        assert state is not None
        made.restore(state)
        assert messages(other) == MESSAGES[:3]
        assert pending(other) == 0b1000
        assert made.msix is not None
        assert made.msix.enabled
        other.mmio.write(TABLE + 48 + 12, 4, 0)
        assert messages(other) == MESSAGES
    finally:
        other.close()


def test_a_saved_table_of_another_size_is_refused(machine: FakeMachine, card: Card) -> None:
    state = card.save()
    assert isinstance(state, PciFunctionState)
    assert state.msix is not None
    state.msix.table += bytes(16)
    with pytest.raises(Unsupported, match="vm 101: card0: MSI-X state"):
        card.restore(state)


def test_vectors_that_are_not_there(machine: FakeMachine, card: Card) -> None:
    assert card.msix is not None
    assert card.msix.vector(3) is not None
    for number in (4, -1, 0xFFFF):
        assert card.msix.vector(number) is None
        card.msix.signal(number)


def test_a_closed_table_gives_its_vectors_back_and_signals_go_nowhere(
    machine: FakeMachine, card: Card, config: Ecam
) -> None:
    enable_msix_as_linux(config, machine.mmio, 3, TABLE, MESSAGES)
    card.close()
    assert machine.controller.bound == {}
    signal(card, 0)
    config.write(3, 0x42, 2, 0x8000)


def test_a_machine_with_too_many_vectors_says_so_and_keeps_none(machine: FakeMachine) -> None:
    first = Card(machine.context)
    first.add_msix(MAX_MESSAGES, bar=0, table_offset=0, pba_offset=0x8000)
    assert first.bars[0].size == 0x10000
    with pytest.raises(HostError, match="more than 1024 interrupt vectors"):
        Card(machine.context, "card1").add_msix(1, bar=0, table_offset=0, pba_offset=0x800)
    first.close()
    second = Card(machine.context, "card2")
    second.add_msix(1, bar=0, table_offset=0, pba_offset=0x800)


@pytest.mark.parametrize(
    ("vectors", "table", "pba"), [(64, 0, 0x200), (1, 4, 0x800), (1, 0, 0x2000), (257, 0, 0x10), (65, 0x0, 0xFF8)]
)
def test_areas_that_do_not_fit_are_a_mistake_of_ours(machine: FakeMachine, vectors: int, table: int, pba: int) -> None:
    card = Card(machine.context)
    card.add_bar(0, 0x1000, BarKind.MEM32, card.registers)
    with pytest.raises(ValueError, match="MSI-X"):
        card.add_msix(vectors, bar=0, table_offset=table, pba_offset=pba)


def test_intx_is_not_used_while_msix_is_enabled(machine: FakeMachine, card: Card, config: Ecam) -> None:
    card.set_intx(True)
    assert machine.controller.levels[19] == 1
    config.write(3, 0x42, 2, 0xC000)
    assert machine.controller.levels[19] == 0
    assert config.read(3, cs.STATUS, 2) & cs.STATUS_INTX
    config.write(3, 0x42, 2, 0)
    assert machine.controller.levels[19] == 1
