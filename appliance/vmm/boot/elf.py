"""Reading ELF64 kernels (System V gABI, chapters 4 and 5). Pure; the file is hostile: every number is checked against its
length before use, and what is wrong is said as `BadKernel`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from appliance.vmm.boot.kernel_file import BadKernel, Buffer

MAGIC: Final = b"\x7fELF"
MAX_PROGRAM_HEADERS: Final = 64
MAX_NOTE_BYTES: Final = 1 << 20

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_CLASS_64, _LITTLE_ENDIAN, _EXECUTABLE, _X86_64 = 2, 1, 2, 62
_PT_LOAD, _PT_NOTE = 1, 4


@dataclass(frozen=True, slots=True)
class Segment:
    """`file_bytes` at `offset` of the file go to physical `address`; zeros follow up to `memory_bytes`."""

    offset: int
    address: int
    file_bytes: int
    memory_bytes: int

    @property
    def end(self) -> int:
        return self.address + self.memory_bytes


@dataclass(frozen=True, slots=True)
class Note:
    """An ELF note: owner, type, content."""

    owner: bytes
    kind: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Elf:
    """What matters of a file. Segments by address, without overlaps, each wholly in the file."""

    entry: int
    segments: tuple[Segment, ...]
    notes: tuple[Note, ...]


def parse(image: Buffer, name: str) -> Elf:
    """`name` ("kernel local:…") is what errors call it."""
    if len(image) < _HEADER.size or bytes(image[:4]) != MAGIC:
        raise BadKernel(f"{name}: it is no ELF file")
    ident, kind, machine, _, entry, at, _, _, _, entry_bytes, count, _, _, _ = _HEADER.unpack_from(image)
    if (ident[4], ident[5], machine) != (_CLASS_64, _LITTLE_ENDIAN, _X86_64) or kind != _EXECUTABLE:
        raise BadKernel(f"{name}: it is no 64-bit x86 executable")
    if not 1 <= count <= MAX_PROGRAM_HEADERS or entry_bytes != _PROGRAM.size:
        raise BadKernel(f"{name}: {count} program headers of {entry_bytes} bytes")
    if at + count * entry_bytes > len(image):
        raise BadKernel(f"{name}: it ends before its program headers")
    segments, notes = [], []
    for number in range(count):
        p_type, _, offset, _, address, file_bytes, memory_bytes, _ = _PROGRAM.unpack_from(
            image, at + number * entry_bytes
        )
        if p_type not in (_PT_LOAD, _PT_NOTE):
            continue
        if offset + file_bytes > len(image):
            raise BadKernel(f"{name}: it ends before its segment {number}")
        if p_type == _PT_NOTE:
            notes += list(_notes(image[offset : offset + min(file_bytes, MAX_NOTE_BYTES)]))
        elif file_bytes > memory_bytes:
            raise BadKernel(f"{name}: segment {number} has more bytes in the file than in memory")
        elif memory_bytes:
            segments.append(Segment(offset, address, file_bytes, memory_bytes))
    return Elf(entry, _in_order(segments, name), tuple(notes))


def _in_order(segments: list[Segment], name: str) -> tuple[Segment, ...]:
    ordered = sorted(segments, key=lambda each: each.address)
    if not ordered:
        raise BadKernel(f"{name}: it has nothing to load")
    for before, after in pairwise(ordered):
        if before.end > after.address:
            raise BadKernel(f"{name}: segments overlap at {after.address:#x}")
    return tuple(ordered)


def _notes(content: Buffer) -> Iterator[Note]:
    """Those of one PT_NOTE segment, up to the first that does not fit."""
    at = 0
    while at + _NOTE.size <= len(content):
        owner_bytes, content_bytes, kind = _NOTE.unpack_from(content, at)
        owner_at = at + _NOTE.size
        content_at = owner_at + -(-owner_bytes // 4) * 4
        if content_at + content_bytes > len(content):
            return
        owner = bytes(content[owner_at : owner_at + owner_bytes]).rstrip(b"\0")
        yield Note(owner, kind, bytes(content[content_at : content_at + content_bytes]))
        at = content_at + -(-content_bytes // 4) * 4
