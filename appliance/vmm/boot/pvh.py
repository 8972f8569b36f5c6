"""Booting an ELF kernel: by PVH where it has the note, by Linux's 64-bit protocol otherwise.

PVH (Xen's public/arch-x86/hvm/start_info.h, and docs/misc/pvh.pandoc): the note XEN_ELFNOTE_PHYS32_ENTRY has the physical
entry point; the vCPU is in 32-bit protected mode without paging, flat segments, ebx points at `hvm_start_info`:

    magic version flags nr_modules │ modlist │ cmdline │ rsdp │ memmap │ memmap_entries reserved        u32 ×4, u64 ×4, u32 ×2
    module: paddr size cmdline reserved (u64 ×4)            memory map entry: addr size (u64) type reserved (u32)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from appliance.vmm.boot import e820, elf, linux
from appliance.vmm.boot.kernel_file import BadKernel, Buffer, clear, low_ram_end, place_initrd
from appliance.vmm.boot.low_memory import (
    CODE_32,
    COMMAND_LINE,
    COMMAND_LINE_END,
    GDT,
    START_INFO,
    ZERO_PAGE,
    DirectTables,
    global_descriptors,
    place_command_line,
)
from appliance.vmm.boot.regs import Entry, protected_mode
from appliance.vmm.layout import MIB
from appliance.vmm.memory import GuestMemory

NOTE_PHYS32_ENTRY: Final = 18
START_MAGIC: Final = 0x336E_C578
CMDLINE_MOST: Final = 2047  # COMMAND_LINE_SIZE of x86 Linux, less its terminator

_INFO = struct.Struct("<IIIIQQQQII")
_MODULE = struct.Struct("<QQQQ")
_MAP_ENTRY = struct.Struct("<QQII")


def load_pvh(
    memory: GuestMemory, kernel: Buffer, initrd: Buffer, cmdline: str, *, tables: DirectTables, name: str
) -> Entry:
    """Everything an ELF kernel needs, in memory; how the first vCPU enters it. As `linux.load_linux`."""
    image = elf.parse(kernel, name)
    load_segments(memory, kernel, image, name)
    above = max(segment.end for segment in image.segments)
    disk = place_initrd(memory, initrd, above=above, below=1 << 31, name=name)
    length = place_command_line(memory, cmdline, most_bytes=min(CMDLINE_MOST, COMMAND_LINE_END - COMMAND_LINE - 1))
    memory_map = e820.direct_map(memory.size)
    ip = entry_point(image)
    _check_entry(image, ip if ip is not None else image.entry, name)
    if ip is None:
        page = linux.zero_page(linux.plain_header(), memory_map, rsdp=tables.rsdp, initrd=(disk, len(initrd)))
        return linux.enter(memory, page, image.entry)
    info = start_info(
        memory_map,
        rsdp=tables.rsdp,
        cmdline=COMMAND_LINE if length else 0,
        initrd=(disk, len(initrd)) if disk else None,
    )
    if START_INFO + len(info) > ZERO_PAGE:
        raise BadKernel(f"{name}: a memory map of {len(memory_map)} entries")
    memory.write(START_INFO, info)
    memory.write(GDT, global_descriptors(CODE_32))
    return protected_mode(ip=ip, start_info=START_INFO)


def load_segments(memory: GuestMemory, kernel: Buffer, image: elf.Elf, name: str) -> None:
    """Copy what is in the file and clear what is not. Raises `BadKernel` when one is not in low RAM above 1 MiB."""
    end = low_ram_end(memory)
    for segment in image.segments:
        if segment.address < MIB or segment.end > end:
            place = f"{segment.address:#x}-{segment.end:#x}"
            raise BadKernel(f"{name}: its segment at {place} is not in RAM from 1 MiB to {end // MIB} MiB")
    for segment in image.segments:
        with memoryview(kernel) as whole, whole[segment.offset : segment.offset + segment.file_bytes] as content:
            memory.write(segment.address, content)
        clear(memory, segment.address + segment.file_bytes, segment.memory_bytes - segment.file_bytes)


def entry_point(image: elf.Elf) -> int | None:
    """The PVH entry point; None when the kernel does not have one."""
    for note in image.notes:
        if note.owner == b"Xen" and note.kind == NOTE_PHYS32_ENTRY and len(note.content) in (4, 8):
            return int.from_bytes(note.content, "little")
    return None


def _check_entry(image: elf.Elf, ip: int, name: str) -> None:
    if not any(segment.address <= ip < segment.end for segment in image.segments):
        raise BadKernel(f"{name}: its entry point {ip:#x} is in none of its segments")


def start_info(
    memory_map: Sequence[e820.E820Entry],
    *,
    rsdp: int,
    cmdline: int,
    initrd: tuple[int, int] | None,
    address: int = START_INFO,
) -> bytes:
    """hvm_start_info with its module list and memory map, to be put at `address`. Pure."""
    modules = _MODULE.pack(initrd[0], initrd[1], 0, 0) if initrd else b""
    modules_at = address + _INFO.size + 8  # 64-byte start info, so that all that follows is aligned
    map_at = modules_at + len(modules)
    entries = b"".join(_MAP_ENTRY.pack(each.base, each.size, each.kind, 0) for each in memory_map)
    info = _INFO.pack(
        START_MAGIC,
        1,
        0,
        1 if initrd else 0,
        modules_at if initrd else 0,
        cmdline,
        rsdp,
        map_at,
        len(memory_map),
        0,
    )
    return info + bytes(8) + modules + entries
