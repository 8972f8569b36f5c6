"""What we put below 1 MiB for a guest that is booted without firmware, and the tables that go with it.

    0x0500  GDT                     0x6000  PVH start info, its module list and memory map
    0x7000  Linux's zero page       0x8000  stack, downwards from 0x8ff0
    0x9000  page tables: PML4, PDPT, four page directories: the first 4 GiB, identity-mapped by 2 MiB pages
   0x20000  command line            up to the EBDA
   0xe0000  RSDP, ACPI tables, generation ID page             0xf0000  SMBIOS entry points, structures
All of it but the last line is RAM to the guest (e820): it is read before it is reused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from appliance.errors import InvalidParameter, Unsupported
from appliance.vmm.boot import acpi, smbios, table_loader
from appliance.vmm.boot.e820 import BIOS_AREA, BIOS_AREA_END, EBDA
from appliance.vmm.layout import MIB, PAGE
from appliance.vmm.legacy.vmgenid import FILE_GUID
from appliance.vmm.memory import GuestMemory

GDT: Final = 0x500
START_INFO: Final = 0x6000
ZERO_PAGE: Final = 0x7000
STACK_TOP: Final = 0x8FF0
PAGE_TABLES: Final = 0x9000
COMMAND_LINE, COMMAND_LINE_END = 0x2_0000, EBDA
SMBIOS_AREA: Final = 0xF_0000  # where the entry points are looked for (DSP0134 §5.2.1)

# Selectors of the Linux boot protocol (boot.rst "64-bit BOOT PROTOCOL"): __BOOT_CS, __BOOT_DS; and a task segment
SELECTOR_CODE, SELECTOR_DATA, SELECTOR_TASK = 0x10, 0x18, 0x20
CODE_64, CODE_32, DATA, TASK = 0xA09B, 0xC09B, 0xC093, 0x008B  # SDM vol.3 §3.4.5, accessed or busy
GDT_ENTRIES: Final = 5

_PRESENT, _WRITABLE, _LARGE = 1 << 0, 1 << 1, 1 << 7  # SDM vol.3 §4.5


def descriptor(flags: int, *, limit: int = 0xFFFFF) -> int:
    """A segment descriptor with base 0. `flags` are bits 40-47 and 52-55, the latter at 12-15."""
    return (flags & 0xF000) << 40 | (flags & 0xFF) << 40 | (limit & 0xF_0000) << 32 | limit & 0xFFFF


def global_descriptors(code: int) -> bytes:
    """The GDT for `CODE_64` or `CODE_32`."""
    return struct.pack("<5Q", 0, 0, descriptor(code), descriptor(DATA), descriptor(TASK, limit=0x67))


def page_tables(base: int = PAGE_TABLES) -> bytes:
    """Identity for the first 4 GiB: six pages to be put at `base`."""
    link = _PRESENT | _WRITABLE
    top = (base + PAGE | link).to_bytes(8, "little").ljust(PAGE, b"\0")
    directories = struct.pack("<4Q", *(base + (2 + number) * PAGE | link for number in range(4))).ljust(PAGE, b"\0")
    pages = struct.pack("<2048Q", *(number * 2 * MIB | link | _LARGE for number in range(2048)))
    return top + directories + pages


def place_command_line(memory: GuestMemory, text: str, *, most_bytes: int) -> int:
    """Write it with its terminator; its length. `most_bytes` is what the kernel reads at most.

    Raises `InvalidParameter` naming `args`' length or a character that cannot be.
    """
    encoded = text.encode("utf-8", "surrogateescape")
    most = min(most_bytes, COMMAND_LINE_END - COMMAND_LINE - 1)
    if len(encoded) > most:
        raise InvalidParameter({"cmdline": f"{len(encoded)} bytes; this kernel takes {most} at most"})
    if b"\0" in encoded:
        raise InvalidParameter({"cmdline": "a null character"})
    memory.write(COMMAND_LINE, encoded + b"\0")
    return len(encoded)


@dataclass(frozen=True, slots=True)
class DirectTables:
    """Where the tables are. `generation_page` is for `VmGenId.place`, after each time this is done; None without one."""

    rsdp: int
    generation_page: int | None


def place_tables(memory: GuestMemory, tables: table_loader.Tables, identity: smbios.Identity) -> DirectTables:
    """ACPI and SMBIOS for a guest without firmware. Raises `Unsupported` when they do not fit below 1 MiB."""
    placed = table_loader.place(tables, BIOS_AREA, SMBIOS_AREA)
    for name, content in placed.content.items():
        memory.write(placed.addresses[name], content)
    structures = smbios.structures(identity)
    first = SMBIOS_AREA + 64
    if first + len(structures) > BIOS_AREA_END:
        raise Unsupported(f"{memory.name}: {len(structures)} bytes of SMBIOS structures")
    memory.write(SMBIOS_AREA, smbios.anchor_21(structures, first).ljust(32, b"\0"))
    memory.write(SMBIOS_AREA + 32, smbios.anchor_30(structures, first))
    memory.write(first, structures)
    return DirectTables(placed.addresses[acpi.FILE_RSDP], placed.addresses.get(FILE_GUID))
