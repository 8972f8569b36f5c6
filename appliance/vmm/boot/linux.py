"""Booting a Linux bzImage by the 64-bit boot protocol (Documentation/arch/x86/boot.rst, zero-page.rst).

    file:  boot sector and setup, (setup_sects + 1) sectors │ protected-mode kernel ──▶ its load address, entered at +0x200
    zero page: the setup header from the file, our fields, the memory map; rsi points at it
Paging is on (`low_memory.page_tables`), interrupts are off. The file is hostile: each number is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appliance.vmm.boot import e820
from appliance.vmm.boot.kernel_file import BadKernel, Buffer, low_ram_end, place_initrd
from appliance.vmm.boot.low_memory import (
    CODE_64,
    COMMAND_LINE,
    GDT,
    PAGE_TABLES,
    ZERO_PAGE,
    DirectTables,
    global_descriptors,
    page_tables,
    place_command_line,
)
from appliance.vmm.boot.regs import Entry, long_mode
from appliance.vmm.layout import MIB, PAGE
from appliance.vmm.memory import GuestMemory

SECTOR: Final = 512
HEADER, HEADER_END_MOST = 0x1F1, 0x290  # of boot_params
ENTRY_64: Final = 0x200

# boot_params (zero-page.rst), and the setup header's fields in it and in the file
_RSDP, _E820_ENTRIES, _E820_TABLE, E820_MOST = 0x70, 0x1E8, 0x2D0, 128
_SETUP_SECTS, _VID_MODE, _BOOT_FLAG, _JUMP, _MAGIC, _VERSION = 0x1F1, 0x1FA, 0x1FE, 0x201, 0x202, 0x206
_LOADER, _LOADFLAGS, _CODE32, _RAMDISK, _RAMDISK_SIZE = 0x210, 0x211, 0x214, 0x218, 0x21C
_CMD_LINE, _INITRD_MAX, _ALIGNMENT, _RELOCATABLE, _XLOADFLAGS = 0x228, 0x22C, 0x230, 0x234, 0x236
_CMDLINE_SIZE, _PREF_ADDRESS, _INIT_SIZE = 0x238, 0x258, 0x260
_SIZE_END: Final = 0x264

VERSION_2_12: Final = 0x20C
_LOADED_HIGH, _KERNEL_64 = 1, 1
_LOADER_UNDEFINED, _VIDEO_NORMAL = 0xFF, 0xFFFF


@dataclass(frozen=True, slots=True)
class SetupHeader:
    """What a bzImage says of itself. `raw` is the header as it goes into the zero page."""

    raw: bytes
    payload_offset: int
    payload_bytes: int
    relocatable: bool
    alignment: int
    preferred_address: int
    init_bytes: int
    initrd_max: int
    cmdline_bytes: int


def parse(image: Buffer, name: str) -> SetupHeader:
    """`name` ("vm 101: kernel") is what errors call it. Raises `BadKernel` saying what is wrong with the file."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(image[at : at + size], "little")

    if len(image) < _SIZE_END or number(_BOOT_FLAG, 2) != 0xAA55 or bytes(image[_MAGIC : _MAGIC + 4]) != b"HdrS":
        raise BadKernel(f"{name}: neither a Linux bzImage nor an ELF file")
    if number(_VERSION, 2) < VERSION_2_12:
        raise BadKernel(f"{name}: boot protocol {number(_VERSION, 2):#x}; 2.12 (Linux 3.8) is needed")
    if not number(_XLOADFLAGS, 2) & _KERNEL_64 or not number(_LOADFLAGS, 1) & _LOADED_HIGH:
        raise BadKernel(f"{name}: it has no 64-bit entry point")
    payload = ((number(_SETUP_SECTS, 1) or 4) + 1) * SECTOR
    if payload + ENTRY_64 >= len(image):
        raise BadKernel(f"{name}: it ends at {len(image)} bytes, before its 64-bit entry point")
    end = min(_JUMP + 1 + number(_JUMP, 1), HEADER_END_MOST)
    if end < _SIZE_END:
        raise BadKernel(f"{name}: its setup header is too short")
    alignment = number(_ALIGNMENT, 4)
    if alignment & (alignment - 1) or alignment > 1 << 30 or (number(_RELOCATABLE, 1) and alignment < PAGE):
        raise BadKernel(f"{name}: alignment {alignment:#x}")
    return SetupHeader(
        raw=bytes(image[HEADER:end]),
        payload_offset=payload,
        payload_bytes=len(image) - payload,
        relocatable=bool(number(_RELOCATABLE, 1)),
        alignment=alignment,
        preferred_address=number(_PREF_ADDRESS, 8),
        init_bytes=number(_INIT_SIZE, 4),
        initrd_max=number(_INITRD_MAX, 4),
        cmdline_bytes=number(_CMDLINE_SIZE, 4),
    )


def load_address(header: SetupHeader, low_end: int, name: str) -> int:
    """Where the kernel goes: where it prefers, else, if it can be moved, as low as it may. Raises `BadKernel`."""
    needed = max(header.init_bytes, header.payload_bytes)
    wanted = [header.preferred_address]
    if header.relocatable:
        wanted.append(max(MIB, header.alignment))
    for address in wanted:
        if address >= MIB and address + needed <= low_end:
            return address
    raise BadKernel(
        f"{name}: it needs {needed / MIB:.0f} MiB from {wanted[-1] // MIB} MiB on, RAM ends at {low_end // MIB} MiB"
    )


def load_linux(
    memory: GuestMemory, kernel: Buffer, initrd: Buffer, cmdline: str, *, tables: DirectTables, name: str
) -> Entry:
    """Everything a bzImage needs, in memory; how the first vCPU enters it. `tables` come from `place_tables`.

    Raises `BadKernel` and `InvalidParameter`; memory then holds some of it.
    """
    header = parse(kernel, name)
    address = load_address(header, low_ram_end(memory), name)
    kernel_end = address + max(header.init_bytes, header.payload_bytes)
    disk = place_initrd(memory, initrd, above=kernel_end, below=header.initrd_max + 1, name=name)
    place_command_line(memory, cmdline, most_bytes=header.cmdline_bytes)
    with memoryview(kernel) as whole, whole[header.payload_offset :] as payload:
        memory.write(address, payload)
    page = zero_page(header.raw, e820.direct_map(memory.size), rsdp=tables.rsdp, initrd=(disk, len(initrd)))
    page[_CODE32 : _CODE32 + 4] = address.to_bytes(4, "little")
    return enter(memory, page, address + ENTRY_64)


def enter(memory: GuestMemory, page: bytes | bytearray, ip: int) -> Entry:
    """Zero page, page tables and GDT in memory: what the 64-bit protocol asks of us besides the kernel itself."""
    memory.write(ZERO_PAGE, page)
    memory.write(PAGE_TABLES, page_tables())
    descriptors = global_descriptors(CODE_64)
    memory.write(GDT, descriptors)
    return long_mode(ip=ip, boot_params=ZERO_PAGE)


def zero_page(header: bytes, memory_map: Sequence[e820.E820Entry], *, rsdp: int, initrd: tuple[int, int]) -> bytearray:
    """struct boot_params with the setup header's bytes `header`; `initrd` is (address, bytes). Pure."""
    page = bytearray(PAGE)
    page[HEADER : HEADER + len(header)] = header

    def put(at: int, size: int, value: int) -> None:
        page[at : at + size] = value.to_bytes(size, "little")

    put(_RSDP, 8, rsdp)
    put(_VID_MODE, 2, _VIDEO_NORMAL)
    put(_LOADER, 1, _LOADER_UNDEFINED)
    put(_CMD_LINE, 4, COMMAND_LINE)
    for at, value in ((_RAMDISK, initrd[0]), (_RAMDISK_SIZE, initrd[1])):
        put(at, 4, value)
    entries = tuple(memory_map)[:E820_MOST]
    put(_E820_ENTRIES, 1, len(entries))
    encoded = e820.encode(entries)
    page[_E820_TABLE : _E820_TABLE + len(encoded)] = encoded
    return page


def plain_header() -> bytes:
    """A setup header for an ELF kernel, which has none: only what the kernel looks at."""
    header = bytearray(_SIZE_END - HEADER)
    for at, size, value in (
        (_BOOT_FLAG, 2, 0xAA55),
        (_MAGIC, 4, int.from_bytes(b"HdrS", "little")),
        (_VERSION, 2, VERSION_2_12),
        (_LOADFLAGS, 1, _LOADED_HIGH),
        (_ALIGNMENT, 4, 16 * MIB),
    ):
        header[at - HEADER : at - HEADER + size] = value.to_bytes(size, "little")
    return bytes(header)
