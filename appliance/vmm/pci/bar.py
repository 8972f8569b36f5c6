"""Base address registers: what a function decodes, and where (PCI 3.0 §6.2.5), the expansion ROM's among them.

A BAR is `size` addresses, a power of two; the register keeps only the address bits above that, which is also how software
finds the size: it writes all ones and reads back. `Bar` is one of them with the range it has on a bus at the moment, if
any. Where a guest may put one is decided by `refusal` and by the bus, which has no overlaps: an address that cannot be is
no error, the BAR is just not decoded there, as on a PC where another agent claims the cycle first.

Not thread-safe: the function's lock is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from appliance.vmm import layout
from appliance.vmm.bus import BusHandler, BusRange
from appliance.vmm.memory import GuestMemory
from appliance.vmm.pci import config_space as cs

LOWEST_PORT: Final = 0x1000  # below it is the chipset's, some of it within KVM (Linux: PCIBIOS_MIN_IO)
LOWEST_MEMORY: Final = layout.MIB
ADDRESS_END: Final = 1 << 52  # MAXPHYADDR is never more: SDM vol.3 §4.1.4
ROM: Final = 6  # the expansion ROM's place among the BARs (§6.2.5.2)
ROM_ENABLE: Final = 1 << 0
ROM_SMALLEST, ROM_LARGEST = 2 * layout.KIB, 16 * layout.MIB


class BarKind(Enum):
    """What it decodes, with the fixed low bits of the register."""

    IO = 0b01
    MEM32 = 0b000
    MEM64 = 0b100  # two registers

    @property
    def type_bits(self) -> int:
        """How many bits of the register say what it is."""
        return 2 if self is BarKind.IO else 4


PREFETCHABLE: Final = 1 << 3


@dataclass(slots=True)
class Bar:
    """A BAR of a function. `mapped` is its range on the bus, None where it is not decoded."""

    index: int
    size: int
    kind: BarKind
    handler: BusHandler
    prefetchable: bool = False
    mapped: BusRange | None = None
    refused: bool = False  # decoding is enabled but not possible where it is; noted once

    def __post_init__(self) -> None:
        smallest = ROM_SMALLEST if self.is_rom else 1 << self.kind.type_bits
        limits = {BarKind.IO: 256, BarKind.MEM32: 2 * layout.GIB, BarKind.MEM64: 1 << 40}
        largest = ROM_LARGEST if self.is_rom else limits[self.kind]
        if self.size & (self.size - 1) or not smallest <= self.size <= largest:
            raise ValueError(f"BAR {self.index}: {self.size} bytes of {self.kind.name}")

    @property
    def is_rom(self) -> bool:
        return self.index == ROM

    @property
    def register(self) -> int:
        """Where its register is in configuration space."""
        return cs.ROM_BAR if self.is_rom else cs.BAR0 + 4 * self.index

    @property
    def register_bytes(self) -> int:
        return 8 if self.kind is BarKind.MEM64 else 4

    @property
    def fixed_bits(self) -> int:
        """The register at address 0."""
        return self.kind.value | (PREFETCHABLE if self.prefetchable else 0)

    @property
    def writable_bits(self) -> int:
        address = self.address_bits
        return address | ROM_ENABLE if self.is_rom else address

    @property
    def address_bits(self) -> int:
        return ((1 << 8 * self.register_bytes) - 1) & ~(self.size - 1)

    def address(self, register: int) -> int | None:
        """The base that `register` says; None for the two values nobody means: not set yet, and being sized. None also
        for a ROM that is not enabled."""
        if self.is_rom and not register & ROM_ENABLE:
            return None
        base = register & self.address_bits
        low, high = self.address_bits & 0xFFFF_FFFF, self.address_bits >> 32
        # software writes ones to one half of a 64-bit register at a time; neither is an address there can be
        unset = base == 0 or base == low or (high != 0 and base >> 32 == high)
        return None if unset else base


def refusal(memory: GuestMemory, base: int, length: int, *, io: bool) -> str | None:
    """Why nothing of a device may be decoded at these addresses, as the end of a sentence; None when it may. What other
    devices have is not looked at: the bus does that. Pure."""
    end = base + length
    if io:
        return None if base >= LOWEST_PORT and end <= 1 << 16 else "is not among the ports for PCI"
    if base < LOWEST_MEMORY or end > ADDRESS_END:
        return "is not memory for PCI"
    if base < layout.FIRMWARE_END and end > layout.PCI_MEMORY_END:
        return "is the interrupt controllers' or the firmware's"
    if any(base < region.end and region.base < end for region in memory.regions):
        return "is RAM"
    return None
