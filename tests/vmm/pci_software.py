"""What firmware and kernels do with PCI, and a function to do it to."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.vmm import layout
from appliance.vmm.bus import Bus
from appliance.vmm.device import DeviceContext
from appliance.vmm.pci import config_space as cs
from appliance.vmm.pci.function import BarKind, PciFunction

ONES = 0xFFFF_FFFF


@dataclass
class Scratch:
    """Registers that remember what was done to them."""

    reads: list[tuple[int, int]] = field(default_factory=list)
    writes: list[tuple[int, int, int]] = field(default_factory=list)

    def read(self, offset: int, size: int) -> int:
        self.reads.append((offset, size))
        return offset & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


class Card(PciFunction):
    """A function with nothing behind it, which remembers where its BARs went."""

    def __init__(self, context: DeviceContext, name: str = "card0", *, device: int = 0x1042, pin: bool = True) -> None:
        super().__init__(
            name,
            context,
            vendor=0x1AF4,
            device=device,
            class_code=0x018000,
            revision=1,
            subsystem=(0x1AF4, 0x1100),
            interrupt_pin=pin,
        )
        self.registers = Scratch()
        self.moves: list[tuple[int, int | None]] = []

    def with_bars(self) -> Card:
        """One of each kind: 0 I/O, 1 32-bit with MSI-X, 2-3 (not there), 4-5 64-bit prefetchable."""
        self.add_bar(0, 0x40, BarKind.IO, self.registers)
        self.add_bar(1, 0x1000, BarKind.MEM32, self.registers)
        self.add_bar(4, 0x4000, BarKind.MEM64, self.registers, prefetchable=True)
        self.add_msix(4, bar=1, table_offset=0x800, pba_offset=0xC00)
        return self

    def bar_moved(self, index: int, base: int | None) -> None:
        self.moves.append((index, base))


class Cf8:
    """Configuration space by the ports, as SeaBIOS's pci_ioconfig_* and Linux's pci_conf1_* use them."""

    def __init__(self, ports: Bus) -> None:
        self._ports = ports

    def read(self, slot: int, offset: int, size: int) -> int:
        self._ports.write(0xCF8, 4, 1 << 31 | slot << 11 | offset & 0xFC)
        return self._ports.read(0xCFC + (offset & 3), size)

    def write(self, slot: int, offset: int, size: int, value: int) -> None:
        self._ports.write(0xCF8, 4, 1 << 31 | slot << 11 | offset & 0xFC)
        self._ports.write(0xCFC + (offset & 3), size, value)


class Ecam:
    """Configuration space by memory, as Linux's pci_mmcfg_* use it."""

    def __init__(self, mmio: Bus, base: int = layout.ECAM) -> None:
        self._mmio, self._base = mmio, base

    def read(self, slot: int, offset: int, size: int) -> int:
        return self._mmio.read(self._base + (slot << 15) + offset, size)

    def write(self, slot: int, offset: int, size: int, value: int) -> None:
        self._mmio.write(self._base + (slot << 15) + offset, size, value)


Config = Cf8 | Ecam


@dataclass(frozen=True)
class Found:
    """A BAR as software sees it."""

    register: int
    size: int
    io: bool
    is64: bool
    prefetchable: bool


def size_bars_as_seabios(config: Config, slot: int) -> list[Found]:
    """Write all ones, read back, write what was there: each register, the high half after the low (pci_bios_get_bar)."""
    found: list[Found] = []
    register = cs.BAR0
    while register < cs.BAR0 + 4 * cs.BARS:
        bar = _size_one(config, slot, register)
        if bar is not None:
            found.append(bar)
        register += 8 if bar is not None and bar.is64 else 4
    return found


def _size_one(config: Config, slot: int, register: int) -> Found | None:
    old = config.read(slot, register, 4)
    io, is64 = bool(old & 1), old & 7 == 4
    mask = ~3 if io else ~0xF
    config.write(slot, register, 4, ONES)
    value = config.read(slot, register, 4) & mask & ONES
    config.write(slot, register, 4, old)
    width = 32
    if is64:
        high = config.read(slot, register + 4, 4)
        config.write(slot, register + 4, 4, ONES)
        value |= config.read(slot, register + 4, 4) << 32
        config.write(slot, register + 4, 4, high)
        width = 64
    size = -value & ((1 << width) - 1)
    return Found(register, size, io, is64, bool(old & 8) and not io) if size else None


def place_bars(config: Config, slot: int, bases: dict[int, int]) -> None:
    """Give each BAR register its address, then enable decoding (pci_region_map_one_entry, pci_bios_init_device)."""
    for bar in size_bars_as_seabios(config, slot):
        base = bases[bar.register]
        config.write(slot, bar.register, 4, base & ONES)
        if bar.is64:
            config.write(slot, bar.register + 4, 4, base >> 32)
    command = config.read(slot, cs.COMMAND, 2)
    config.write(slot, cs.COMMAND, 2, command | cs.COMMAND_IO | cs.COMMAND_MEMORY | cs.COMMAND_SERR)


def find_capability(config: Config, slot: int, cap_id: int) -> int | None:
    """The offset of a capability, by the list (pci_find_capability)."""
    if not config.read(slot, cs.STATUS, 2) & cs.STATUS_CAPABILITIES:
        return None
    offset = config.read(slot, cs.CAPABILITIES, 1)
    for _ in range(48):
        if not offset:
            return None
        if config.read(slot, offset, 1) == cap_id:
            return offset
        offset = config.read(slot, offset + 1, 1)
    raise AssertionError("the capability list has no end")


def enable_msix_as_linux(config: Config, mmio: Bus, slot: int, table: int, messages: list[tuple[int, int]]) -> int:
    """msix_capability_init and irq_startup: enabled with all masked, messages written into masked entries, INTx off, every
    entry masked, function mask off, then each vector unmasked. Returns the capability's offset."""
    capability = find_capability(config, slot, 0x11)
    assert capability is not None
    control = config.read(slot, capability + 2, 2)
    config.write(slot, capability + 2, 2, control | 0xC000)
    for number, (address, data) in enumerate(messages):
        entry = table + 16 * number
        mmio.write(entry + 12, 4, 1)
        mmio.write(entry, 4, address & ONES)
        mmio.write(entry + 4, 4, address >> 32)
        mmio.write(entry + 8, 4, data)
        mmio.read(entry + 8, 4)  # a posted write would reach the device now
    config.write(slot, cs.COMMAND, 2, config.read(slot, cs.COMMAND, 2) | cs.COMMAND_INTX_DISABLE)
    for number in range((control & 0x7FF) + 1):
        mmio.write(table + 16 * number + 12, 4, 1)
    config.write(slot, capability + 2, 2, config.read(slot, capability + 2, 2) & ~0x4000)
    for number in range(len(messages)):
        mmio.write(table + 16 * number + 12, 4, 0)
    return capability
