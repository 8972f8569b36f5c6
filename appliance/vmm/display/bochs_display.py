"""The display adapter, as QEMU's bochs-display (docs/specs/standard-vga.txt): a frame buffer and registers, and no VGA.

BAR 0, 16 MiB, 32-bit memory, prefetchable: the frame buffer. BAR 2, 4 KiB, 32-bit memory:

    0x000  EDID                                     read only
    0x400  VGA's ports 0x3c0-0x3df                  there are none: reads zero, writes ignored
    0x500  the Bochs DISPI registers, 16 bits each  0 id, 1 width, 2 height, 3 bits a pixel, 4 enable, 5 bank,
                                                    6 virtual width, 7 virtual height, 8 x offset, 9 y offset, 10 memory
    0x600  size of what follows here, 8             32 bits
    0x604  byte order: 0x1e1e1e1e little, 0xbebebebe big

Its class is "other display": there is no VGA text mode, no window at 0xa0000 and no port to claim (SeaBIOS's ROM for it
and Linux's bochs driver use BAR 2 only). SeaBIOS runs the option ROM of such a device when there is no VGA
(optionroms.c, try_setup_display_other), from the expansion ROM only; `vgabios-bochs-display.bin` then draws the BIOS's
text screen into the frame buffer and offers it as a VBE mode, from which GRUB and Linux's boot framebuffer take it.

Registers keep whatever the guest writes; what is wrong with them shows when somebody looks: `mode` is None then.
Threads: vCPUs; `mode` and `memory` from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from appliance.errors import Unsupported
from appliance.vmm import layout
from appliance.vmm.bus import Bytewise
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.display.edid import edid
from appliance.vmm.display.framebuffer import SlotMemory
from appliance.vmm.display.surface import Mode, mode_of
from appliance.vmm.pci.bar import ROM
from appliance.vmm.pci.function import BarKind, PciFunction, PciFunctionState

VENDOR, DEVICE, CLASS_OTHER_DISPLAY, REVISION = 0x1234, 0x1111, 0x038000, 2
SUBSYSTEM: Final = (0x1AF4, 0x1100)
FRAMEBUFFER_BAR, REGISTERS_BAR = 0, 2
FRAMEBUFFER_BYTES: Final = 16 * layout.MIB
REGISTERS_BYTES: Final = 4 * layout.KIB
ROM_MOST_BYTES: Final = 64 * layout.KIB  # of all option ROMs together there is little more room below 1 MiB

DISPI, DISPI_END, EXTENDED, EXTENDED_BYTES = 0x500, 0x516, 0x600, 8
ID, WIDTH, HEIGHT, DEPTH, ENABLE, BANK, VIRTUAL_WIDTH, VIRTUAL_HEIGHT, X_OFFSET, Y_OFFSET, MEMORY_64K = range(11)
DISPI_ID5: Final = 0xB0C5
LITTLE_ENDIAN, BIG_ENDIAN = 0x1E1E_1E1E, 0xBEBE_BEBE
STATE_VERSION: Final = 1


class BochsDisplayState(State):
    """`pixels`: (page, content) of what is not zero."""

    version: int = STATE_VERSION
    function: PciFunctionState = msgspec.field(default_factory=PciFunctionState)
    registers: list[int] = []  # noqa: RUF012 - msgspec copies it
    big_endian: bool = False
    pixels: list[tuple[int, bytes]] = []  # noqa: RUF012


class BochsDisplay(PciFunction):
    """`rom`: the option ROM's content, or nothing."""

    def __init__(self, name: str, context: DeviceContext, *, rom: bytes = b"") -> None:
        """Raises `HostError` without memory, `Unsupported` for a ROM that is too large."""
        super().__init__(
            name,
            context,
            vendor=VENDOR,
            device=DEVICE,
            class_code=CLASS_OTHER_DISPLAY,
            revision=REVISION,
            subsystem=SUBSYSTEM,
        )
        if len(rom) > ROM_MOST_BYTES:
            raise Unsupported(f"{self.label}: an option ROM of {len(rom)} bytes; {ROM_MOST_BYTES} at most")
        self.memory = SlotMemory(f"{self.label}: frame buffer", context, FRAMEBUFFER_BYTES)
        self._rom = SlotMemory(f"{self.label}: option ROM", context, _rom_size(rom), read_only=True)
        self._rom.store(0, rom)
        self._registers = [0] * (MEMORY_64K + 1)
        self._big_endian = False
        self.on_close: Callable[[], None] = lambda: None
        self.add_bar(FRAMEBUFFER_BAR, FRAMEBUFFER_BYTES, BarKind.MEM32, self.memory, prefetchable=True)
        self.add_bar(REGISTERS_BAR, REGISTERS_BYTES, BarKind.MEM32, _Registers(self, edid("Appliance")))
        if rom:
            self.add_rom(self._rom.size, self._rom)

    @property
    def mode(self) -> Mode | None:
        """What the registers say is to be seen; None when that is nothing, or cannot be."""
        with self.lock:
            at = self._registers
            return mode_of(
                self.memory.size,
                enabled=bool(at[ENABLE] & 1),
                width=at[WIDTH],
                height=at[HEIGHT],
                depth=at[DEPTH],
                virtual_width=at[VIRTUAL_WIDTH],
                offset=(at[X_OFFSET], at[Y_OFFSET]),
                big_endian=self._big_endian,
            )

    def take_dirty(self) -> int:
        """The frame buffer's pages written since the last time, as `SlotMemory` has it."""
        return self.memory.take_dirty()

    def bytes_at(self, offset: int, length: int) -> bytes:
        """Of the frame buffer."""
        return self.memory.bytes_at(offset, length)

    # --- registers: `_Registers` has the lock -----------------------------------------------------------------------

    def read_register(self, index: int) -> int:
        """A DISPI register."""
        match index:
            case 0:
                return DISPI_ID5
            case 10:
                return self.memory.size // (64 * layout.KIB)
            case _:
                return self._registers[index]

    def write_register(self, index: int, value: int) -> None:
        """The same; all sixteen bits are kept, as QEMU does it."""
        self._registers[index] = value

    def read_extended(self) -> bytes:
        """Size and byte order."""
        order = BIG_ENDIAN if self._big_endian else LITTLE_ENDIAN
        return EXTENDED_BYTES.to_bytes(4, "little") + order.to_bytes(4, "little")

    def write_byte_order(self, value: int) -> None:
        """Only the two values that mean something do."""
        if value in (LITTLE_ENDIAN, BIG_ENDIAN):
            self._big_endian = value == BIG_ENDIAN

    # --- PCI ----------------------------------------------------------------------------------------------------------

    def bar_moved(self, index: int, base: int | None) -> None:
        memory = {FRAMEBUFFER_BAR: self.memory, ROM: self._rom}.get(index)
        if memory is None:
            return
        if base is None:
            memory.hide()
        else:
            memory.show(base)

    # --- life ---------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Nothing is shown; the frame buffer keeps its content, as a card's memory does over a warm reset."""
        with self.lock:
            super().reset()
            self._registers = [0] * len(self._registers)
            self._big_endian = False

    @property
    def state_type(self) -> type[State] | None:
        return BochsDisplayState

    def save(self) -> State | None:
        with self.lock:
            return BochsDisplayState(
                function=self.save_function(),
                registers=list(self._registers),
                big_endian=self._big_endian,
                pixels=self.memory.runs(),
            )

    def restore(self, state: State) -> None:
        if not isinstance(state, BochsDisplayState) or state.version > STATE_VERSION:
            raise Unsupported(f"{self.label}: saved state of another version")
        if len(state.registers) != len(self._registers) or not self.memory.fits(state.pixels):
            raise Unsupported(f"{self.label}: saved state of another adapter")
        with self.lock:
            self.restore_function(state.function)
            self._registers = [value & 0xFFFF for value in state.registers]
            self._big_endian = state.big_endian
            self.memory.fill(state.pixels)

    def close(self) -> None:
        super().close()
        self.on_close()


class _Registers(Bytewise):
    """BAR 2. Bytes and all else that is not the registers' own width go by pairs and fours of bytes."""

    def __init__(self, display: BochsDisplay, edid_block: bytes) -> None:
        self._display, self._edid = display, edid_block

    def read(self, offset: int, size: int) -> int:
        with self._display.lock:
            return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A register changes whole: accesses of its width or wider; a byte changes half of it."""
        with self._display.lock:
            if offset == EXTENDED + 4 and size == 4:
                self._display.write_byte_order(value)
            else:
                super().write(offset, size, value)

    def read_byte(self, offset: int) -> int:
        if offset < len(self._edid):
            return self._edid[offset]
        if DISPI <= offset < DISPI_END:
            index, high = divmod(offset - DISPI, 2)
            return self._display.read_register(index) >> 8 * high & 0xFF
        if EXTENDED <= offset < EXTENDED + EXTENDED_BYTES:
            return self._display.read_extended()[offset - EXTENDED]
        return 0

    def write_byte(self, offset: int, value: int) -> None:
        if DISPI <= offset < DISPI_END:
            index, high = divmod(offset - DISPI, 2)
            kept = self._display.read_register(index) & (0x00FF if high else 0xFF00)
            self._display.write_register(index, kept | value << 8 * high)


def _rom_size(rom: bytes) -> int:
    """A power of two, whole pages."""
    return 1 << (max(len(rom), layout.PAGE) - 1).bit_length()
