"""BARs: sizing, decoding, moving, and addresses where none can be."""

from __future__ import annotations

import pytest

from appliance.vmm import layout
from appliance.vmm.bus import Bus
from appliance.vmm.pci import config_space as cs
from appliance.vmm.pci.bar import ROM, Bar, BarKind
from appliance.vmm.pci.bus import PciBus
from tests.fakes.machine import FakeMachine
from tests.vmm.pci_software import Card, Cf8, Ecam, Found, Scratch, place_bars, size_bars_as_seabios

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
def config(machine: FakeMachine) -> Cf8:
    return Cf8(machine.ports)


def decoded(bus: Bus) -> dict[str, int]:
    """Where BARs are."""
    return {each.name: each.base for each in bus.ranges() if "BAR" in each.name}


@pytest.mark.parametrize("by", [Cf8, Ecam])
def test_bars_tell_their_sizes_as_seabios_asks(machine: FakeMachine, card: Card, by: type[Cf8 | Ecam]) -> None:
    config = Cf8(machine.ports) if by is Cf8 else Ecam(machine.mmio)
    assert size_bars_as_seabios(config, 3) == [
        Found(0x10, 0x40, io=True, is64=False, prefetchable=False),
        Found(0x14, 0x1000, io=False, is64=False, prefetchable=False),
        Found(0x20, 0x4000, io=False, is64=True, prefetchable=True),
    ]
    assert [card.config.read(register, 4) for register in (0x10, 0x14, 0x18, 0x20, 0x24)] == [1, 0, 0, 0xC, 0]
    assert config.read(3, cs.ROM_BAR, 4) == 0


def test_bars_are_decoded_once_placed_and_enabled(machine: FakeMachine, card: Card, config: Cf8) -> None:
    place_bars(config, 3, BASES)
    assert decoded(machine.ports) == {"card0 BAR 0": 0xC000}
    assert decoded(machine.mmio) == {"card0 BAR 1": 0xC000_0000, "card0 BAR 4": 0x8_0000_0000}
    assert dict(card.moves) == {0: 0xC000, 1: 0xC000_0000, 4: 0x8_0000_0000}
    machine.ports.write(0xC004, 2, 7)
    machine.mmio.write(0x8_0000_3FF8, 8, 9)
    assert card.registers.writes == [(4, 2, 7), (0x3FF8, 8, 9)]
    assert machine.mmio.read(0xC000_0123, 1) == 0x23
    assert machine.notes == []


def test_a_rom_is_decoded_while_it_and_memory_are_enabled(machine: FakeMachine, bus: PciBus, config: Cf8) -> None:
    card = Card(machine.context)
    card.add_rom(0x8000, card.registers)
    bus.plug(card, 3)
    config.write(3, cs.ROM_BAR, 4, 0xFFFF_FFFE)  # as SeaBIOS's map_pcirom
    assert config.read(3, cs.ROM_BAR, 4) == 0xFFFF_8000
    config.write(3, cs.COMMAND, 2, cs.COMMAND_MEMORY)
    config.write(3, cs.ROM_BAR, 4, 0xC000_0000)
    assert decoded(machine.mmio) == {}
    config.write(3, cs.ROM_BAR, 4, 0xC000_0001)
    assert decoded(machine.mmio) == {"card0 BAR 6": 0xC000_0000}
    assert card.moves == [(ROM, 0xC000_0000)]
    assert machine.mmio.read(0xC000_0123, 1) == 0x23
    config.write(3, cs.ROM_BAR, 4, 0xC000_0000)
    assert decoded(machine.mmio) == {}


@pytest.mark.parametrize(
    ("command", "expected"),
    [(0, set()), (cs.COMMAND_IO, {"card0 BAR 0"}), (cs.COMMAND_MEMORY, {"card0 BAR 1", "card0 BAR 4"})],
)
def test_the_command_register_enables_each_space(
    machine: FakeMachine, card: Card, config: Cf8, command: int, expected: set[str]
) -> None:
    place_bars(config, 3, BASES)
    config.write(3, cs.COMMAND, 2, command)
    assert decoded(machine.ports).keys() | decoded(machine.mmio).keys() == expected


def test_linux_sizes_with_decoding_off_and_finds_all_as_it_was(machine: FakeMachine, card: Card, config: Cf8) -> None:
    place_bars(config, 3, BASES)
    before = decoded(machine.mmio), decoded(machine.ports)
    command = config.read(3, cs.COMMAND, 2)  # __pci_size_stdbars: decoding off, all ones, back, on
    config.write(3, cs.COMMAND, 2, command & ~3)
    assert len(size_bars_as_seabios(config, 3)) == 3
    config.write(3, cs.COMMAND, 2, command)
    assert (decoded(machine.mmio), decoded(machine.ports)) == before


def test_sizing_with_decoding_on_notes_nothing(machine: FakeMachine, card: Card, config: Cf8) -> None:
    place_bars(config, 3, {**BASES, 0x20: 0xC010_0000})
    before = decoded(machine.mmio)
    assert len(size_bars_as_seabios(config, 3)) == 3
    assert decoded(machine.mmio) == before
    assert machine.notes == []


def test_a_bar_moves_while_it_is_decoded(machine: FakeMachine, card: Card, config: Cf8) -> None:
    place_bars(config, 3, BASES)
    card.moves.clear()
    config.write(3, 0x14, 4, 0xD000_0000)
    assert decoded(machine.mmio)["card0 BAR 1"] == 0xD000_0000
    assert card.moves == [(1, None), (1, 0xD000_0000)]
    assert machine.mmio.read(0xC000_0000, 4) == 0xFFFF_FFFF
    config.write(3, 0x24, 1, 9)  # a byte of the high half
    assert decoded(machine.mmio)["card0 BAR 4"] == 0x9_0000_0000
    card.moves.clear()
    config.write(3, 0x14, 4, 0xD000_0000)
    config.write(3, 0x3C, 1, 5)
    assert card.moves == []


RAM_TOP = 16 << 20


@pytest.mark.parametrize(
    ("base", "why"),
    [
        (0x0010_0000, "is RAM"),
        (RAM_TOP - 0x1000, "is RAM"),
        (0x000A_0000, "is not memory for PCI"),
        (layout.ECAM, "is taken"),
        (layout.ECAM + layout.ECAM_BYTES - 0x1000, "is taken"),
        (layout.IOAPIC, "interrupt controllers"),
        (layout.LOCAL_APIC, "interrupt controllers"),
        (layout.KVM_TSS, "interrupt controllers"),
        (0xFFFC_0000, "firmware"),
    ],
)
def test_a_bar_where_it_cannot_be_is_just_not_decoded(
    machine: FakeMachine, card: Card, config: Cf8, base: int, why: str
) -> None:
    place_bars(config, 3, {**BASES, 0x14: base})
    assert decoded(machine.mmio) == {"card0 BAR 4": 0x8_0000_0000}
    assert config.read(3, 0x14, 4) == base
    assert len(machine.notes) == 1
    assert why in machine.notes[0]
    config.write(3, 0x14, 4, layout.LOCAL_APIC + 0x1000)  # noted once
    assert len(machine.notes) == 1
    config.write(3, 0x14, 4, RAM_TOP)  # and harmless
    assert decoded(machine.mmio)["card0 BAR 1"] == RAM_TOP


@pytest.mark.parametrize("base", [0x60, 0x3C0, 0xFC0, 0xAE00, 0xFFFF_0000, 0x1_0000])
def test_an_io_bar_stays_among_the_ports_for_pci(machine: FakeMachine, card: Card, config: Cf8, base: int) -> None:
    machine.ports.add(0xAE00, 20, Scratch(), name="pci hot-plug")
    place_bars(config, 3, {**BASES, 0x10: base})
    assert decoded(machine.ports) == {}
    assert len(machine.notes) == 1


def test_a_bar_beyond_every_physical_address_is_not_decoded(machine: FakeMachine, card: Card, config: Cf8) -> None:
    place_bars(config, 3, {**BASES, 0x20: 1 << 52})
    assert "card0 BAR 4" not in decoded(machine.mmio)


def test_a_64_bit_bar_over_high_ram_is_not_decoded() -> None:
    memory_mib = (layout.LOW_RAM_END >> 20) + 64
    machine = FakeMachine(memory_mib=memory_mib)
    try:
        PciBus("pci", machine.context).plug(Card(machine.context).with_bars(), 3)
        place_bars(Cf8(machine.ports), 3, {**BASES, 0x20: layout.HIGH_RAM + (64 << 20) - 0x4000})
        assert "card0 BAR 4" not in decoded(machine.mmio)
        Cf8(machine.ports).write(3, 0x20, 4, 64 << 20)
        assert decoded(machine.mmio)["card0 BAR 4"] == layout.HIGH_RAM + (64 << 20)
    finally:
        machine.close()


def test_who_waited_gets_the_room_that_another_bar_leaves(machine: FakeMachine, bus: PciBus, config: Cf8) -> None:
    cards = [Card(machine.context, f"card{number}").with_bars() for number in (1, 2)]
    for slot, card in enumerate(cards, 1):
        bus.plug(card, slot)
        place_bars(config, slot, BASES)
    assert set(decoded(machine.mmio)) == {"card1 BAR 1", "card1 BAR 4"}
    config.write(1, 0x14, 4, 0xC100_0000)
    assert decoded(machine.mmio) == {
        "card1 BAR 1": 0xC100_0000,
        "card1 BAR 4": 0x8_0000_0000,
        "card2 BAR 1": 0xC000_0000,
    }
    bus.unplug(1)
    assert decoded(machine.mmio) == {"card2 BAR 1": 0xC000_0000, "card2 BAR 4": 0x8_0000_0000}


def test_two_bars_of_a_function_may_change_places(machine: FakeMachine, bus: PciBus) -> None:
    card = Card(machine.context)
    for index in (0, 1):
        card.add_bar(index, 0x1000, BarKind.MEM32, card.registers)
    bus.plug(card, 1)
    config = Ecam(machine.mmio)
    config.write(1, 0x10, 8, 0xC000_1000 << 32 | 0xC000_0000)
    config.write(1, cs.COMMAND, 2, cs.COMMAND_MEMORY)
    config.write(1, 0x10, 8, 0xC000_0000 << 32 | 0xC000_1000)
    assert decoded(machine.mmio) == {"card0 BAR 0": 0xC000_1000, "card0 BAR 1": 0xC000_0000}


def test_bars_leave_at_reset_and_the_registers_are_as_at_power_on(
    machine: FakeMachine, card: Card, config: Cf8
) -> None:
    place_bars(config, 3, BASES)
    card.reset()
    assert decoded(machine.mmio) == decoded(machine.ports) == {}
    assert [card.config.read(offset, 4) for offset in (4, 0x10, 0x14, 0x20, 0x24)] == [0x0010_0000, 1, 0, 0xC, 0]
    place_bars(config, 3, BASES)
    assert len(decoded(machine.mmio)) == 2


def test_a_closed_function_decodes_nothing(machine: FakeMachine, card: Card, config: Cf8) -> None:
    place_bars(config, 3, BASES)
    card.close()
    card.close()
    config.write(3, 0x14, 4, 0xC200_0000)
    assert decoded(machine.mmio) == decoded(machine.ports) == {}


@pytest.mark.parametrize(
    ("size", "kind"),
    [(0x30, BarKind.MEM32), (8, BarKind.MEM32), (512, BarKind.IO), (2, BarKind.IO), (4 << 30, BarKind.MEM32)],
)
def test_a_size_that_no_register_can_say_is_a_mistake_of_ours(size: int, kind: BarKind) -> None:
    with pytest.raises(ValueError, match="BAR 0"):
        Bar(0, size, kind, Scratch())


def test_bars_do_not_share_registers(machine: FakeMachine) -> None:
    card = Card(machine.context)
    card.add_bar(0, 0x1000, BarKind.MEM64, card.registers)
    for index, kind in [(1, BarKind.MEM32), (5, BarKind.MEM64), (6, BarKind.IO), (-1, BarKind.IO)]:
        with pytest.raises(ValueError, match="no room for BAR"):
            card.add_bar(index, 0x10, kind, card.registers)


def test_a_bar_of_more_than_4_gib_is_sized_and_decoded(machine: FakeMachine, bus: PciBus, config: Cf8) -> None:
    card = Card(machine.context)
    card.add_bar(0, 8 << 30, BarKind.MEM64, card.registers)
    bus.plug(card, 1)
    place_bars(config, 1, {0x10: 0x8_0000_0000})
    assert decoded(machine.mmio) == {"card0 BAR 0": 0x8_0000_0000}
    assert size_bars_as_seabios(config, 1)[0].size == 8 << 30
