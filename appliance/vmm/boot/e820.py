"""The memory map: what is RAM and what is kept from the operating system. Pure.

Directly booted, we are the firmware and tell all of it. SeaBIOS is told what QEMU tells it (`etc/e820`): RAM and what only
the host knows of; it adds its own areas, the ECAM and its tables. (CMOS has the sizes again, for SeaBIOS's first moments:
`legacy.rtc_nvram.pc_nvram`.)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from appliance.vmm import layout
from appliance.vmm.layout import KIB, MIB

EBDA: Final = 0x9_FC00  # the last KiB below the VGA window belongs to the BIOS on any PC
BIOS_AREA, BIOS_AREA_END = 0xE_0000, 0x10_0000
_ENTRY = struct.Struct("<QQI")


class Kind(IntEnum):
    """ACPI 6.5 §15, table 15.1."""

    RAM = 1
    RESERVED = 2


@dataclass(frozen=True, slots=True)
class E820Entry:
    """`size` bytes from `base` on."""

    base: int
    size: int
    kind: Kind

    @property
    def end(self) -> int:
        return self.base + self.size


def direct_map(ram_bytes: int) -> tuple[E820Entry, ...]:
    """For a guest booted without firmware, by address, without overlaps."""
    low, high = layout.split_ram(ram_bytes)
    if low <= MIB:
        raise ValueError(f"{ram_bytes} bytes of RAM: nothing above 1 MiB")
    entries = [
        E820Entry(0, EBDA, Kind.RAM),
        E820Entry(EBDA, layout.VGA_HOLE - EBDA, Kind.RESERVED),
        E820Entry(BIOS_AREA, BIOS_AREA_END - BIOS_AREA, Kind.RESERVED),
        E820Entry(MIB, low - MIB, Kind.RAM),
        E820Entry(layout.ECAM, layout.ECAM_BYTES, Kind.RESERVED),
        _kvm_pages(),
    ]
    if high:
        entries.append(E820Entry(layout.HIGH_RAM, high, Kind.RAM))
    return tuple(entries)


def firmware_map(ram_bytes: int) -> tuple[E820Entry, ...]:
    """For `etc/e820`."""
    low, high = layout.split_ram(ram_bytes)
    entries = [E820Entry(0, low, Kind.RAM), _kvm_pages()]
    if high:
        entries.append(E820Entry(layout.HIGH_RAM, high, Kind.RAM))
    return tuple(entries)


def _kvm_pages() -> E820Entry:
    """The identity map's page and the TSS's three, which KVM on Intel processors uses behind the guest's back."""
    return E820Entry(layout.KVM_IDENTITY_MAP, 16 * KIB, Kind.RESERVED)


def encode(entries: tuple[E820Entry, ...]) -> bytes:
    """As in `etc/e820` and in Linux's boot_params: 20 bytes each."""
    return b"".join(_ENTRY.pack(each.base, each.size, each.kind) for each in entries)
