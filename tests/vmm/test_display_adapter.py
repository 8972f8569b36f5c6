"""The adapter as its drivers see it: SeaBIOS's option ROM and Linux's bochs driver; and its frame buffer's places."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from appliance.errors import HostError, Unsupported
from appliance.vmm.display.bochs_display import FRAMEBUFFER_BYTES, BochsDisplay, BochsDisplayState
from appliance.vmm.display.edid import edid
from appliance.vmm.display.pixels import SourceFormat
from appliance.vmm.display.surface import Mode
from appliance.vmm.pci import config_space as cs
from appliance.vmm.pci.bar import ROM
from appliance.vmm.pci.bus import PciBus
from appliance.vmm.pci.function import PciFunctionState
from tests.fakes.machine import FakeMachine
from tests.vmm.pci_software import Cf8, place_bars

FRAMES, REGISTERS, ROM_AT = 0xFD00_0000, 0xFEB0_0000, 0xFEB1_0000
SLOT = 1
CONTENT = b"\x55\xaa" + bytes(range(256)) * 100


@dataclass
class FakeSlot:
    owner: FakeSlots
    base: int
    length: int
    read_only: bool
    written: set[int] = field(default_factory=set)

    def take_dirty(self) -> bytes:
        taken, self.written = sum(1 << page for page in self.written), set()
        return taken.to_bytes(self.length // 4096 // 8, "little")

    def unmap(self) -> None:
        self.owner.slots = [each for each in self.owner.slots if each is not self]


@dataclass
class FakeSlots:
    slots: list[FakeSlot] = field(default_factory=list)
    full: bool = False

    def map(
        self, base: int, length: int, host_address: int, *, name: str, read_only: bool = False, log_dirty: bool = False
    ) -> FakeSlot:
        if self.full:
            raise HostError("vm 101: all slots are in use")
        assert log_dirty != read_only
        assert not host_address % 4096
        self.slots.append(FakeSlot(self, base, length, read_only))
        return self.slots[-1]


@pytest.fixture
def slots() -> FakeSlots:
    return FakeSlots()


@pytest.fixture
def display(machine: FakeMachine, slots: FakeSlots) -> Iterator[BochsDisplay]:
    bus = PciBus("pci", machine.context)
    made = BochsDisplay("display", dataclasses.replace(machine.context, slots=slots), rom=CONTENT)
    bus.plug(made, SLOT)
    place_bars(Cf8(machine.ports), SLOT, {0x10: FRAMES, 0x18: REGISTERS})
    yield made
    made.close()
    assert slots.slots == []
    bus.close()


@pytest.fixture
def bare(machine: FakeMachine) -> Iterator[BochsDisplay]:
    """Without memory slots: every access is an exit."""
    bus = PciBus("pci", machine.context)
    made = BochsDisplay("display", machine.context)
    bus.plug(made, SLOT)
    place_bars(Cf8(machine.ports), SLOT, {0x10: FRAMES, 0x18: REGISTERS})
    yield made
    made.close()
    bus.close()


def dispi(machine: FakeMachine, index: int, value: int | None = None) -> int:
    address = REGISTERS + 0x500 + 2 * index
    if value is not None:
        machine.mmio.write(address, 2, value)
    return machine.mmio.read(address, 2)


def seen(display: BochsDisplay) -> Mode | None:
    return display.mode


def set_mode(machine: FakeMachine, width: int, height: int, depth: int = 32) -> None:
    for index, value in ((4, 0), (3, depth), (1, width), (2, height), (4, 0x41)):
        dispi(machine, index, value)


def test_it_is_what_linux_and_seabios_look_for(machine: FakeMachine, display: BochsDisplay) -> None:
    config = Cf8(machine.ports)
    assert config.read(SLOT, cs.VENDOR_ID, 4) == 0x1111_1234
    assert config.read(SLOT, cs.REVISION, 4) == 0x0380_0002
    assert config.read(SLOT, cs.SUBSYSTEM_VENDOR, 4) == 0x1100_1AF4
    assert dispi(machine, 0) == 0xB0C5
    assert dispi(machine, 10) * 65536 == FRAMEBUFFER_BYTES
    assert machine.mmio.read(REGISTERS + 0x600, 4) == 8
    assert bytes(machine.mmio.read(REGISTERS + at, 1) for at in range(128)) == edid("Appliance")
    assert machine.mmio.read(REGISTERS + 0x80, 4) == 0


def test_a_mode_is_what_the_registers_say(machine: FakeMachine, display: BochsDisplay) -> None:
    assert seen(display) is None
    set_mode(machine, 800, 600)
    assert seen(display) == Mode(800, 600, SourceFormat.XRGB32, 3200, 0)
    machine.mmio.write(REGISTERS + 0x604, 4, 0xBEBEBEBE)
    dispi(machine, 6, 1024)
    dispi(machine, 9, 7)
    assert seen(display) == Mode(800, 600, SourceFormat.BGRX32, 4096, 7 * 4096)
    machine.mmio.write(REGISTERS + 0x604, 4, 0x12345678)
    assert machine.mmio.read(REGISTERS + 0x604, 4) == 0xBEBEBEBE
    display.reset()
    place_bars(Cf8(machine.ports), SLOT, {0x10: FRAMES, 0x18: REGISTERS})
    assert seen(display) is None
    assert machine.mmio.read(REGISTERS + 0x604, 4) == 0x1E1E1E1E


def test_registers_may_be_written_by_any_width_and_the_fixed_ones_keep_their_value(
    machine: FakeMachine, display: BochsDisplay
) -> None:
    machine.mmio.write(REGISTERS + 0x502, 4, 0x0300_0400)  # width and height at once
    machine.mmio.write(REGISTERS + 0x507, 1, 0xAB)
    machine.mmio.write(REGISTERS + 0x506, 1, 0xCD)
    assert [dispi(machine, index) for index in (1, 2, 3)] == [0x400, 0x300, 0xABCD]
    dispi(machine, 0, 0xB0C0)
    dispi(machine, 10, 1)
    assert (dispi(machine, 0), dispi(machine, 10)) == (0xB0C5, FRAMEBUFFER_BYTES >> 16)
    for address in (0x400, 0x516, 0x5FC, 0x608, 0xFF8):
        machine.mmio.write(REGISTERS + address, 8, (1 << 64) - 1)
        assert machine.mmio.read(REGISTERS + address, 1) in (0, 8)


def test_the_frame_buffer_and_the_rom_are_slots_where_their_bars_are(
    machine: FakeMachine, display: BochsDisplay, slots: FakeSlots
) -> None:
    config = Cf8(machine.ports)
    assert [(each.base, each.length, each.read_only) for each in slots.slots] == [(FRAMES, FRAMEBUFFER_BYTES, False)]
    config.write(SLOT, cs.ROM_BAR, 4, ROM_AT | 1)
    assert (slots.slots[1].base, slots.slots[1].length, slots.slots[1].read_only) == (ROM_AT, 0x8000, True)
    assert display.bars[ROM].mapped is not None
    assert bytes(machine.mmio.read(ROM_AT + at, 1) for at in range(4)) == CONTENT[:4]
    machine.mmio.write(ROM_AT, 4, 0)
    assert machine.mmio.read(ROM_AT, 2) == 0xAA55
    config.write(SLOT, cs.ROM_BAR, 4, 0)
    assert len(slots.slots) == 1
    config.write(SLOT, cs.COMMAND, 2, 0)
    assert slots.slots == []


def test_what_was_written_is_not_forgotten_when_the_frame_buffer_moves(
    machine: FakeMachine, display: BochsDisplay, slots: FakeSlots
) -> None:
    slots.slots[0].written = {3, 4000}
    Cf8(machine.ports).write(SLOT, 0x10, 4, 0xFC00_0000)
    assert slots.slots[0].base == 0xFC00_0000
    slots.slots[0].written = {5}
    assert display.take_dirty() == 1 << 3 | 1 << 4000 | 1 << 5
    assert display.take_dirty() == 0


def test_without_a_slot_every_access_is_an_exit_and_works(
    machine: FakeMachine, display: BochsDisplay, slots: FakeSlots
) -> None:
    slots.full = True
    Cf8(machine.ports).write(SLOT, 0x10, 4, 0xFC00_0000)
    assert "every access at 0xfc000000 is an exit" in machine.notes[0]
    machine.mmio.write(0xFC00_0FFE, 4, 0x11223344)
    assert display.take_dirty() == 0b11
    assert machine.mmio.read(0xFC00_0FFE, 4) == 0x11223344
    assert display.bytes_at(0xFFE, 4) == bytes([0x44, 0x33, 0x22, 0x11])


def test_the_last_byte_of_the_frame_buffer_is_there(machine: FakeMachine, bare: BochsDisplay) -> None:
    machine.mmio.write(FRAMES + FRAMEBUFFER_BYTES - 8, 8, 1 << 63)
    assert bare.take_dirty() == 1 << 4095
    assert machine.mmio.read(FRAMES + FRAMEBUFFER_BYTES - 1, 1) == 0x80


def test_registers_and_content_are_saved_and_what_has_another_shape_is_refused(
    machine: FakeMachine, bare: BochsDisplay
) -> None:
    set_mode(machine, 640, 480, 16)
    machine.mmio.write(FRAMES + 5 * 4096, 8, 0x1122334455667788)
    machine.mmio.write(FRAMES + FRAMEBUFFER_BYTES - 8, 8, 9)
    state = bare.save()
    assert isinstance(state, BochsDisplayState)
    assert [(page, len(content)) for page, content in state.pixels] == [(5, 4096), (4095, 4096)]
    mode = seen(bare)
    other = BochsDisplay("display", machine.context)
    try:
        other.memory.store(0, b"gone")
        other.restore(state)
        assert seen(other) == mode
        assert other.bytes_at(5 * 4096, 1) == b"\x88"
        assert other.bytes_at(0, 4) == bytes(4)
        assert other.take_dirty() == 1 | 1 << 5 | 1 << 4095
        for wrong in (
            BochsDisplayState(version=2, registers=[0] * 11),
            BochsDisplayState(registers=[0]),
            BochsDisplayState(registers=[0] * 11, pixels=[(4096, b"x")]),
            BochsDisplayState(registers=[0] * 11, pixels=[(-1, b"x")]),
            PciFunctionState(),
        ):
            with pytest.raises(Unsupported):
                other.restore(wrong)
    finally:
        other.close()


def test_a_rom_that_no_firmware_has_room_for_is_refused(machine: FakeMachine) -> None:
    with pytest.raises(Unsupported, match="option ROM of"):
        BochsDisplay("display", machine.context, rom=bytes(65537))
