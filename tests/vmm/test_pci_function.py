"""A PCI function: its header, INTx, capabilities, and its life."""

from __future__ import annotations

import pytest

from appliance.errors import Unsupported
from appliance.vmm.pci import config_space as cs
from appliance.vmm.pci.bus import PciBus
from appliance.vmm.pci.function import PciFunctionState
from tests.fakes.machine import FakeMachine
from tests.vmm.pci_software import Card, Ecam, find_capability, place_bars

BASES = {0x10: 0xC000, 0x14: 0xC000_0000, 0x20: 0x8_0000_0000}


@pytest.fixture
def bus(machine: FakeMachine) -> PciBus:
    return PciBus("pci", machine.context)


@pytest.fixture
def card(machine: FakeMachine, bus: PciBus) -> Card:
    made = Card(machine.context).with_bars()
    bus.plug(made, 3)
    return made


@pytest.fixture
def config(machine: FakeMachine) -> Ecam:
    return Ecam(machine.mmio)


def test_the_header_is_that_of_an_ordinary_function(card: Card, config: Ecam) -> None:
    assert config.read(3, cs.VENDOR_ID, 4) == 0x1042_1AF4
    assert config.read(3, cs.REVISION, 4) == 0x0180_0001
    assert config.read(3, cs.HEADER_TYPE, 1) == 0
    assert config.read(3, cs.SUBSYSTEM_VENDOR, 4) == 0x1100_1AF4
    assert config.read(3, cs.INTERRUPT_LINE, 2) == 0x0100
    for register in (cs.CACHE_LINE, cs.INTERRUPT_LINE):
        config.write(3, register, 1, 0x5A)
        assert config.read(3, register, 1) == 0x5A


def test_what_no_guest_may_change(card: Card, config: Ecam) -> None:
    before = [config.read(3, offset, 4) for offset in (0, 8, 0x18, 0x28, 0x2C, 0x30, 0x34, 0x38, 0x100, 0xFFC)]
    for offset in (0, 8, 0x18, 0x28, 0x2C, 0x30, 0x34, 0x38, 0x100, 0xFFC):
        config.write(3, offset, 4, 0xFFFF_FFFF)
    assert before == [config.read(3, offset, 4) for offset in (0, 8, 0x18, 0x28, 0x2C, 0x30, 0x34, 0x38, 0x100, 0xFFC)]
    config.write(3, cs.COMMAND, 2, 0xFFFF)
    assert config.read(3, cs.COMMAND, 2) == 0x0547


@pytest.mark.parametrize("slot", [1, 2, 3, 4, 24, 30])
def test_inta_of_a_slot_is_its_pin(machine: FakeMachine, bus: PciBus, slot: int) -> None:
    card = Card(machine.context)
    bus.plug(card, slot)
    assert card.intx is not None
    card.set_intx(True)
    assert machine.controller.levels == {16 + slot % 4: 1}


def test_the_command_register_disables_intx_and_status_tells_it_all_the_same(
    machine: FakeMachine, card: Card, config: Ecam
) -> None:
    card.set_intx(True)
    assert config.read(3, cs.STATUS, 2) & cs.STATUS_INTX
    config.write(3, cs.COMMAND + 1, 1, 4)
    assert machine.controller.levels[19] == 0
    assert config.read(3, cs.STATUS, 2) & cs.STATUS_INTX
    config.write(3, cs.STATUS, 2, 0xFFFF)  # no write clears it
    assert config.read(3, cs.STATUS, 2) & cs.STATUS_INTX
    config.write(3, cs.COMMAND, 2, 0)
    assert machine.controller.levels[19] == 1
    card.set_intx(False)
    assert machine.controller.levels[19] == 0
    assert not config.read(3, cs.STATUS, 2) & cs.STATUS_INTX


def test_two_functions_share_a_pin(machine: FakeMachine, bus: PciBus) -> None:
    cards = [Card(machine.context, f"card{slot}") for slot in (1, 5)]
    for card, slot in zip(cards, (1, 5), strict=True):
        bus.plug(card, slot)
        card.set_intx(True)
    cards[0].set_intx(False)
    assert machine.controller.levels[17] == 1
    cards[1].set_intx(False)
    assert machine.controller.levels[17] == 0


def test_a_function_without_a_pin_asserts_nothing(machine: FakeMachine, bus: PciBus) -> None:
    card = Card(machine.context, pin=False)
    bus.plug(card, 1)
    assert card.intx is None
    card.set_intx(True)
    assert machine.controller.levels == {}
    assert card.config.read(cs.INTERRUPT_PIN, 1) == 0
    assert not card.config.read(cs.STATUS, 2) & cs.STATUS_INTX


def test_capabilities_are_a_list_in_the_order_they_were_added(machine: FakeMachine, bus: PciBus) -> None:
    card = Card(machine.context)
    assert card.config.read(cs.STATUS, 2) & cs.STATUS_CAPABILITIES == 0
    first = card.add_capability(0x09, b"\x10abcdefghijk")
    second = card.add_capability(0x05, b"\x11\x22\x33\x44", b"\xff\x00\x0f")
    bus.plug(card, 1)
    config = Ecam(machine.mmio)
    assert (first, second) == (0x40, 0x50)
    assert find_capability(config, 1, 0x09) == first
    assert find_capability(config, 1, 0x05) == second
    assert find_capability(config, 1, 0x11) is None
    config.write(1, second, 8, 0)
    assert config.read(1, second, 2) == 0x0005
    assert config.read(1, second + 2, 4) == 0x4430_2200


def test_capabilities_stay_within_256_bytes(machine: FakeMachine) -> None:
    card = Card(machine.context)
    card.add_capability(0x09, bytes(0xC0 - 2 - 4))
    card.add_capability(0x09, bytes(2))
    with pytest.raises(ValueError, match="no room for capability 0x9"):
        card.add_capability(0x09, b"")


def test_reset_withdraws_the_interrupt_and_keeps_the_slot(machine: FakeMachine, card: Card, config: Ecam) -> None:
    config.write(3, cs.INTERRUPT_LINE, 1, 10)
    card.set_intx(True)
    card.reset()
    assert machine.controller.levels[19] == 0
    assert (card.slot, config.read(3, cs.STATUS, 2), config.read(3, cs.INTERRUPT_LINE, 1)) == (3, 0x10, 0)
    card.set_intx(True)
    assert machine.controller.levels[19] == 1


def test_a_restored_function_goes_on_where_it_was(machine: FakeMachine, card: Card, config: Ecam) -> None:
    place_bars(config, 3, BASES)
    config.write(3, cs.INTERRUPT_LINE, 1, 11)
    card.set_intx(True)
    state = card.save()
    other = FakeMachine()
    try:
        made = Card(other.context).with_bars()
        PciBus("pci", other.context).plug(made, 3)
        assert state is not None
        made.restore(state)
        assert made.config.save() == card.config.save()
        assert dict(made.moves) == BASES_BY_BAR
        assert other.controller.levels[19] == 1
    finally:
        other.close()


BASES_BY_BAR = {0: 0xC000, 1: 0xC000_0000, 4: 0x8_0000_0000}


def test_states_that_are_not_this_devices_are_refused_and_change_nothing(machine: FakeMachine, card: Card) -> None:
    good = card.save()
    assert isinstance(good, PciFunctionState)
    other = Card(machine.context, "card1", device=0x1041).with_bars().save()
    plain = Card(machine.context, "card2").save()
    short = PciFunctionState(config=good.config[:256], msix=good.msix)
    newer = PciFunctionState(version=2, config=good.config, msix=good.msix)
    assert isinstance(other, PciFunctionState)
    assert isinstance(plain, PciFunctionState)
    for state in (other, plain, short, newer):
        with pytest.raises(Unsupported, match="vm 101: card0: "):
            card.restore(state)
    assert card.save() == good


def test_a_forged_state_puts_no_bar_over_ram(machine: FakeMachine, card: Card) -> None:
    state = card.save()
    assert isinstance(state, PciFunctionState)
    forged = bytearray(state.config)
    forged[4:6], forged[0x14:0x18] = b"\x07\x00", (0x0010_0000).to_bytes(4, "little")
    state.config = bytes(forged)
    card.restore(state)
    assert [each for each in machine.mmio.ranges() if "card0" in each.name] == []
