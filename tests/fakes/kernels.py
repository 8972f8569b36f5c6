"""Kernel files of a few bytes, every number of which can be made wrong."""

from __future__ import annotations

import struct

MIB = 1 << 20
NOTE_PVH = 18


def bzimage(
    code: bytes,
    *,
    setup_sects: int = 1,
    version: int = 0x20F,
    loadflags: int = 1,
    xloadflags: int = 1,
    jump: int = 0x6A,
    relocatable: int = 1,
    kernel_alignment: int = 2 * MIB,
    pref_address: int = 2 * MIB,
    init_size: int = MIB,
    initrd_addr_max: int = 0x7FFF_FFFF,
    cmdline_size: int = 2047,
) -> bytes:
    """A bzImage with `code` at its 64-bit entry point (boot.rst, "The Real-Mode Kernel Header")."""
    image = bytearray(1024)
    for at, size, value in (
        (0x1F1, 1, setup_sects),
        (0x1FE, 2, 0xAA55),
        (0x200, 1, 0xEB),
        (0x201, 1, jump),
        (0x202, 4, int.from_bytes(b"HdrS", "little")),
        (0x206, 2, version),
        (0x211, 1, loadflags),
        (0x22C, 4, initrd_addr_max),
        (0x230, 4, kernel_alignment),
        (0x234, 1, relocatable),
        (0x236, 2, xloadflags),
        (0x238, 4, cmdline_size),
        (0x258, 8, pref_address),
        (0x260, 4, init_size),
    ):
        image[at : at + size] = value.to_bytes(size, "little")
    return bytes(image) + bytes(0x200) + code


def note(owner: bytes, kind: int, content: bytes | int) -> bytes:
    """An ELF note; an integer is eight bytes."""
    data = content.to_bytes(8, "little") if isinstance(content, int) else content
    owner += b"\0"
    padded = owner.ljust(-(-len(owner) // 4) * 4, b"\0") + data.ljust(-(-len(data) // 4) * 4, b"\0")
    return struct.pack("<III", len(owner), len(data), kind) + padded


def elf_kernel(
    code: bytes,
    *,
    address: int = 2 * MIB,
    entry: int | None = None,
    notes: bytes = b"",
    elf_class: int = 2,
    machine: int = 62,
    kind: int = 2,
    header_count: int | None = None,
    headers_at: int = 64,
    file_bytes: int | None = None,
    memory_bytes: int | None = None,
    segments: int = 1,
) -> bytes:
    """An ELF64 executable with `code` at physical `address`, as often as `segments`, and a segment of `notes`."""
    count = segments + bool(notes)
    code_at = 64 + 56 * count
    ident = b"\x7fELF" + bytes([elf_class, 1, 1]) + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        ident,
        *(kind, machine, 1, address if entry is None else entry, headers_at, 0, 0, 64, 56),
        *(count if header_count is None else header_count, 0, 0, 0),
    )
    in_file = len(code) if file_bytes is None else file_bytes
    in_memory = len(code) if memory_bytes is None else memory_bytes
    load = struct.pack("<IIQQQQQQ", 1, 7, code_at, address, address, in_file, in_memory, 4096)
    notes_header = struct.pack("<IIQQQQQQ", 4, 4, code_at + len(code), 0, 0, len(notes), len(notes), 4)
    return header + load * segments + (notes_header if notes else b"") + code + notes
