"""PCI bus 0: both ways to configuration space, slots, and the chipset as SeaBIOS and Linux use it."""

from __future__ import annotations

import pytest

from appliance.errors import Conflict, NotFound, Unsupported
from appliance.vmm import layout
from appliance.vmm.device import MachineRequest
from appliance.vmm.pci.bus import PciBus, PciBusState
from tests.fakes.machine import FakeMachine
from tests.vmm.pci_software import ONES, Card, Cf8, Config, Ecam, place_bars

BASES = {0x10: 0xC000, 0x14: 0xC000_0000, 0x20: 0x8_0000_0000}
MCH, LPC = 0, 31


@pytest.fixture
def bus(machine: FakeMachine) -> PciBus:
    return PciBus("pci", machine.context)


@pytest.fixture(params=["ports", "ECAM"])
def config(request: pytest.FixtureRequest, machine: FakeMachine) -> Config:
    return Cf8(machine.ports) if request.param == "ports" else Ecam(machine.mmio)


# --- the two mechanisms ---------------------------------------------------------------------------------------------


def test_the_chipset_is_a_q35(bus: PciBus, config: Config) -> None:
    assert config.read(MCH, 0, 4) == 0x29C0_8086
    assert config.read(LPC, 0, 4) == 0x2918_8086
    assert (config.read(MCH, 0xA, 2), config.read(LPC, 0xA, 2)) == (0x0600, 0x0601)
    assert config.read(MCH, 0xE, 1) == config.read(LPC, 0xE, 1) == 0  # no other functions


def test_what_does_not_exist_reads_as_ones_and_ignores_writes(bus: PciBus, config: Config) -> None:
    for size in (1, 2, 4):
        assert config.read(5, 0, size) == (1 << 8 * size) - 1
    config.write(5, 4, 2, 7)


def test_a_scan_of_every_function_finds_those_that_are_there(machine: FakeMachine, bus: PciBus) -> None:
    bus.plug(Card(machine.context), 7)
    found = []
    for number in range(1 << 16):  # all buses, by ECAM
        if machine.mmio.read(layout.ECAM + (number << 12), 4) != ONES:
            found.append(number)
    assert found == [0, 7 << 3, 31 << 3]


def test_probing_for_the_ports_as_linux_does(machine: FakeMachine, bus: PciBus) -> None:
    ports = machine.ports  # pci_check_type1
    ports.write(0xCFB, 1, 1)
    before = ports.read(0xCF8, 4)
    ports.write(0xCF8, 4, 0x8000_0000)
    assert ports.read(0xCF8, 4) == 0x8000_0000
    ports.write(0xCF8, 4, before)
    assert ports.read(0xCF8, 4) == 0


def test_config_address_takes_doublewords_only_and_keeps_no_reserved_bits(machine: FakeMachine, bus: PciBus) -> None:
    ports = machine.ports
    ports.write(0xCF8, 4, ONES)
    assert ports.read(0xCF8, 4) == 0x80FF_FFFC
    for offset, size in [(0xCF8, 2), (0xCF8, 1), (0xCFA, 2), (0xCFB, 1), (0xCFA, 4)]:
        ports.write(offset, size, 0)
        assert ports.read(offset, size) == (1 << 8 * size) - 1
    assert ports.read(0xCF8, 4) == 0x80FF_FFFC


def test_config_data_is_nothing_while_the_enable_bit_is_clear(machine: FakeMachine, bus: PciBus) -> None:
    machine.ports.write(0xCF8, 4, 0)
    assert machine.ports.read(0xCFC, 4) == ONES
    machine.ports.write(0xCFC, 4, ONES)


def test_parts_of_config_data_are_parts_of_the_register(machine: FakeMachine, bus: PciBus) -> None:
    machine.ports.write(0xCF8, 4, 0x8000_0000)
    assert [machine.ports.read(0xCFC + part, 1) for part in range(4)] == [0x86, 0x80, 0xC0, 0x29]
    assert machine.ports.read(0xCFE, 2) == 0x29C0
    assert machine.ports.read(0xCFD, 2) == 0xC080
    assert machine.ports.read(0xCFE, 4) == ONES  # beyond the ports
    machine.ports.write(0xCF8, 4, 0x8001_0000)  # another bus
    assert machine.ports.read(0xCFC, 4) == ONES
    machine.ports.write(0xCF8, 4, 0x8000_0100)  # another function
    assert machine.ports.read(0xCFC, 4) == ONES


def test_ecam_reaches_extended_configuration_space_and_ends_with_it(machine: FakeMachine, bus: PciBus) -> None:
    ecam = Ecam(machine.mmio)
    assert ecam.read(MCH, 0, 8) == 0x29C0_8086
    assert ecam.read(MCH, 0x100, 4) == 0  # no extended capability
    assert ecam.read(MCH, 0xFFE, 4) == 0xFFFF_0000


# --- slots ----------------------------------------------------------------------------------------------------------


def test_functions_get_the_lowest_free_slot(machine: FakeMachine, bus: PciBus) -> None:
    cards = [Card(machine.context, f"card{number}") for number in range(31)]
    assert [bus.plug(card) for card in cards[:3]] == [1, 2, 3]
    bus.unplug(2)
    assert bus.plug(cards[3]) == 2
    assert bus.functions[2] is cards[3]
    for card in cards[4:]:
        bus.plug(card)
    assert sorted(bus.functions) == list(range(32))
    with pytest.raises(Conflict, match="vm 101: pci: no free slot for card1"):
        bus.plug(cards[1])


def test_a_slot_has_one_function_and_a_function_one_slot(machine: FakeMachine, bus: PciBus) -> None:
    card = Card(machine.context)
    with pytest.raises(Conflict, match="slot 31 has pci-lpc"):
        bus.plug(card, 31)
    with pytest.raises(ValueError, match="slot 32"):
        bus.plug(card, 32)
    bus.plug(card, 4)
    with pytest.raises(Conflict, match="it is in slot 4"):
        bus.plug(card)


def test_what_is_unplugged_answers_nowhere(machine: FakeMachine, bus: PciBus, config: Config) -> None:
    card = Card(machine.context).with_bars()
    bus.plug(card, 4)
    place_bars(config, 4, BASES)
    card.set_intx(True)
    assert bus.unplug(4) is card
    assert config.read(4, 0, 4) == ONES
    assert machine.mmio.read(0xC000_0000, 4) == ONES
    assert machine.controller.levels[16] == 0
    assert (card.slot, card.intx) == (None, None)
    with pytest.raises(NotFound, match="slot 4 does not exist"):
        bus.unplug(4)
    for slot in (0, 31):
        with pytest.raises(Conflict, match="the chipset"):
            bus.unplug(slot)
    assert bus.plug(card) == 1  # and it may be used again
    place_bars(config, 1, BASES)
    assert machine.mmio.read(0xC000_0010, 4) == 0x10


# --- the chipset ----------------------------------------------------------------------------------------------------


def test_ecam_is_there_from_power_on_where_the_mcfg_table_says(machine: FakeMachine, bus: PciBus) -> None:
    assert bus.host_bridge.ecam_base == layout.ECAM
    assert Cf8(machine.ports).read(MCH, 0x60, 4) == layout.ECAM | 1


def test_seabios_sets_ecam_up(machine: FakeMachine, bus: PciBus) -> None:
    config = Cf8(machine.ports)  # mch_mmconfig_setup
    config.write(MCH, 0x60, 4, 0)
    assert bus.host_bridge.ecam_base is None
    assert machine.mmio.read(0xB000_0000, 4) == ONES
    config.write(MCH, 0x64, 4, 0)
    config.write(MCH, 0x60, 4, 0xB000_0001)
    assert machine.mmio.read(0xB000_0000, 4) == 0x29C0_8086


@pytest.mark.parametrize(("code", "mib"), [(0, 256), (1, 128), (2, 64)])
def test_ecam_moves_and_has_the_length_asked_for(machine: FakeMachine, bus: PciBus, code: int, mib: int) -> None:
    Cf8(machine.ports).write(MCH, 0x60, 4, 0xD000_0001 | code << 1)
    (window,) = [each for each in machine.mmio.ranges() if each.name == "pci ECAM"]
    assert (window.base, window.length) == (0xD000_0000, mib << 20)
    assert Ecam(machine.mmio, 0xD000_0000).read(MCH, 0, 4) == 0x29C0_8086


@pytest.mark.parametrize("register", [0x0000_0001, 0xF000_0001, 0xB000_0007, 0xC000_0001])
def test_ecam_where_it_cannot_be_is_nowhere(machine: FakeMachine, bus: PciBus, register: int) -> None:
    config = Cf8(machine.ports)
    bus.plug(Card(machine.context).with_bars(), 1)
    place_bars(config, 1, BASES)
    config.write(MCH, 0x60, 4, register)
    assert bus.host_bridge.ecam_base is None
    config.write(1, 0x14, 4, 0)
    assert (bus.host_bridge.ecam_base == 0xC000_0000) == (register == 0xC000_0001)  # the room is free now
    bus.reset()
    assert bus.host_bridge.ecam_base == layout.ECAM


def test_seabios_opens_and_closes_the_shadow(bus: PciBus, config: Config) -> None:
    assert config.read(MCH, 0x90, 1) & 0x10 == 0  # so it copies itself from below 4 GiB
    config.write(MCH, 0x90, 4, 0x3333_3330)
    config.write(MCH, 0x94, 4, 0x3333_3333)  # the last byte is no PAM register
    assert [config.read(MCH, 0x90 + number, 1) for number in range(8)] == [0x30, *[0x33] * 6, 0]
    config.write(MCH, 0x90, 4, 0x1111_1110)
    assert config.read(MCH, 0x90, 4) == 0x1111_1110
    config.write(MCH, 0x9D, 1, 0x4A)
    assert config.read(MCH, 0x9D, 1) == 0x4A


def test_seabios_sets_the_isa_bridge_up(machine: FakeMachine, bus: PciBus, config: Config) -> None:
    for number, irq in enumerate((10, 10, 11, 11)):  # mch_isa_bridge_setup
        config.write(LPC, 0x60 + number, 1, irq)
        config.write(LPC, 0x68 + number, 1, irq)
    config.write(LPC, 0x40, 4, 0x601)
    config.write(LPC, 0x44, 1, 0x80)
    config.write(LPC, 0xF0, 4, 0xFED1_C001)
    assert config.read(LPC, 0x40, 4) == layout.PORT_PM_BASE | 1
    assert config.read(LPC, 0x60, 4) == config.read(LPC, 0x68, 4) == 0x0B0B_0A0A
    assert config.read(LPC, 0x44, 1) == 0x80
    assert machine.mmio.read(0xFED1_C000 + 0x3410, 4) == 0x20  # NO_REBOOT: Linux's iTCO_wdt leaves it alone
    machine.mmio.write(0xFED1_C000 + 0x3410, 4, 0)
    assert machine.mmio.read(0xFED1_C000 + 0x3410, 1) == 0x20
    assert machine.mmio.read(0xFED1_C000 + 0x340C, 8) == 0x20 << 32
    assert machine.mmio.read(0xFED1_C000 + 0x3404, 4) == 0
    config.write(LPC, 0xF0, 4, 0)
    assert machine.mmio.read(0xFED1_C000 + 0x3410, 4) == ONES


def test_the_pm_ports_and_rcba_do_not_move(bus: PciBus, config: Config) -> None:
    config.write(LPC, 0x40, 4, 0xB001)
    config.write(LPC, 0xF0, 4, 0xD000_0001)
    assert config.read(LPC, 0x40, 4) == 0x601
    assert config.read(LPC, 0xF0, 4) == 0xFED1_C001


def test_pirq_routing_leads_intx_to_the_pic_as_well(machine: FakeMachine, bus: PciBus) -> None:
    card, config = Card(machine.context), Cf8(machine.ports)
    bus.plug(card, 2)
    card.set_intx(True)
    assert machine.controller.levels == {18: 1}
    config.write(LPC, 0x62, 1, 11)
    assert machine.controller.levels == {18: 1, 11: 1}
    config.write(LPC, 0x62, 1, 10)
    assert machine.controller.levels == {18: 1, 11: 0, 10: 1}
    config.write(LPC, 0x62, 1, 0x8A)
    assert machine.controller.levels == {18: 1, 11: 0, 10: 0}


@pytest.mark.parametrize("irq", [0, 1, 2, 8, 13])
def test_pirq_routing_to_a_reserved_line_leads_nowhere(machine: FakeMachine, bus: PciBus, irq: int) -> None:
    card = Card(machine.context)
    Cf8(machine.ports).write(LPC, 0x60, 4, 0x0101_0101 * irq)
    bus.plug(card, 2)
    card.set_intx(True)
    assert machine.controller.levels == {18: 1}


@pytest.mark.parametrize(("slot", "irq"), [(1, 10), (2, 11), (3, 11), (4, 10), (24, 10), (25, 10), (26, 10), (27, 10)])
def test_pirq_wiring_is_what_seabios_puts_into_the_interrupt_line(
    machine: FakeMachine, bus: PciBus, slot: int, irq: int
) -> None:
    Cf8(machine.ports).write(LPC, 0x60, 4, 0x0B0B_0A0A)
    card = Card(machine.context)
    bus.plug(card, slot)
    card.set_intx(True)
    assert machine.controller.levels == {16 + slot % 4: 1, irq: 1}


def test_a_guest_resets_the_machine_by_port_cf9(machine: FakeMachine, bus: PciBus) -> None:
    ports = machine.ports  # pci_reboot
    ports.write(0xCF9, 1, ports.read(0xCF9, 1) & ~6 | 2)
    assert machine.requests == []
    ports.write(0xCF9, 1, 6)
    ports.write(0xCF9, 1, 6)
    assert [request for request, _ in machine.requests] == [MachineRequest.RESET]
    bus.reset()
    assert ports.read(0xCF9, 1) == 0
    ports.write(0xCF8, 4, 0x8000_0600)
    assert len(machine.requests) == 1


# --- life -----------------------------------------------------------------------------------------------------------


def test_reset_brings_the_chipset_to_power_on(machine: FakeMachine, bus: PciBus) -> None:
    card = Card(machine.context)
    bus.plug(card, 1)
    config = Cf8(machine.ports)
    before = [config.read(slot, offset, 4) for slot in (MCH, LPC) for offset in range(0, 256, 4)]
    for slot in (MCH, LPC):
        for offset in range(0, 256, 4):
            config.write(slot, offset, 4, 0x0A0A_0A0A)
    card.set_intx(True)
    bus.reset()
    assert machine.ports.read(0xCF8, 4) == 0
    assert before == [config.read(slot, offset, 4) for slot in (MCH, LPC) for offset in range(0, 256, 4)]
    assert machine.controller.levels == {17: 1, 10: 0}


def test_a_restored_bus_goes_on_where_it_was(machine: FakeMachine, bus: PciBus) -> None:
    config = Cf8(machine.ports)
    config.write(MCH, 0x60, 4, 0xC000_0001)
    config.write(LPC, 0x60, 4, 0x0B0B_0A0A)
    config.write(LPC, 0xF0, 1, 1)
    card = Card(machine.context).with_bars()
    bus.plug(card, 1)
    place_bars(config, 1, {**BASES, 0x14: layout.ECAM})  # where ECAM was
    card.set_intx(True)
    machine.ports.write(0xCF8, 4, 0x8000_F8F0)
    bus_state, card_state = bus.save(), card.save()
    assert bus_state is not None
    assert card_state is not None
    other = FakeMachine()
    try:
        made, made_card = PciBus("pci", other.context), Card(other.context).with_bars()
        made.plug(made_card, 1)
        made_card.restore(card_state)  # the order is the machine's affair
        made.restore(bus_state)
        made.resume()
        assert [(each.name, each.base) for each in other.mmio.ranges()] == [
            (each.name, each.base) for each in machine.mmio.ranges()
        ]
        assert other.ports.read(0xCF8, 4) == 0x8000_F8F0
        assert other.ports.read(0xCFC, 4) == 0xFED1_C001
        assert other.controller.levels[10] == 1
    finally:
        other.close()


def test_a_newer_state_is_refused(bus: PciBus) -> None:
    with pytest.raises(Unsupported, match="vm 101: pci: state version 2"):
        bus.restore(PciBusState(version=2))


def test_a_closed_bus_leaves_the_buses_empty(machine: FakeMachine, bus: PciBus) -> None:
    Cf8(machine.ports).write(LPC, 0xF0, 1, 1)
    bus.close()
    bus.close()
    assert machine.ports.ranges() == machine.mmio.ranges() == []
