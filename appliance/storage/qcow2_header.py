"""Reads what a qcow2 image says of itself, from its first cluster: every byte hostile, nothing opened, nothing followed.

QEMU would open an image's backing and data files while it looks at it. So an image is judged here first (`refusal`) and
shown to QEMU only if it names no file but, for a linked clone, the one we wrote ourselves.

    docs/interop/qcow2.txt      0 magic  4 version  8 backing offset u64  16 backing size u32  20 cluster_bits
                               24 size u64  32 crypt_method  36 l1_size  40 l1_offset u64  48 refcount offset u64
                               56 refcount clusters  60 nb_snapshots  64 snapshots offset u64
                               72 incompatible u64  80 compatible u64  88 autoclear u64  96 refcount_order  100 header length
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"QFI\xfb"
READ_BYTES: Final = 1 << 16
"""Enough for any header QEMU writes: extensions and the backing file's name lie in the first cluster."""
SIZE_LIMIT_BYTES: Final = 64 << 40
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_INCOMPATIBLE_CORRUPT, _INCOMPATIBLE_DATA_FILE = 1 << 1, 1 << 2
_INCOMPATIBLE_KNOWN = 0b11111  # dirty, corrupt, external data file, compression type, extended L2
_EXTENSION_BACKING_FORMAT, _EXTENSION_DATA_FILE, _EXTENSION_END = 0xE2792ACA, 0x44415441, 0
_EXTENSIONS_LIMIT = 64
_NAME_LIMIT_BYTES = 1023


class BadImage(ValueError):
    """The bytes are not a sound qcow2 header. The text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2Header:
    """What matters of a header."""

    version: int
    size_bytes: int
    backing_file: str
    backing_format: str
    data_file: bool
    encrypted: bool
    corrupt: bool
    internal_snapshots: int


def parse(head: bytes) -> Qcow2Header:
    """Parse the first `READ_BYTES` bytes of a file. Raises `BadImage`."""
    if len(head) < _V2.size or not head.startswith(MAGIC):
        raise BadImage("not a qcow2 image")
    _, version, backing_at, backing_length, cluster_bits, size, crypt, *_, snapshots, _ = _V2.unpack_from(head)
    if version not in (2, 3):
        raise BadImage(f"qcow2 version {version} is unknown")
    if not 9 <= cluster_bits <= 21:
        raise BadImage(f"cluster size 2^{cluster_bits} is out of range")
    incompatible, header_length = 0, _V2.size
    if version == 3:
        if len(head) < _V2.size + _V3.size:
            raise BadImage("the header is cut short")
        incompatible, _, _, _, header_length = _V3.unpack_from(head, _V2.size)
    if incompatible & ~_INCOMPATIBLE_KNOWN:
        raise BadImage(f"incompatible features {incompatible:#x} are unknown")
    extensions = _extensions(head, header_length)
    return Qcow2Header(
        version=version,
        size_bytes=size,
        backing_file=_backing_file(head, backing_at, backing_length),
        backing_format=extensions.get(_EXTENSION_BACKING_FORMAT, b"").decode("ascii", "replace"),
        data_file=bool(incompatible & _INCOMPATIBLE_DATA_FILE) or _EXTENSION_DATA_FILE in extensions,
        encrypted=crypt != 0,
        corrupt=bool(incompatible & _INCOMPATIBLE_CORRUPT),
        internal_snapshots=snapshots,
    )


def refusal(header: Qcow2Header, *, backing_allowed: bool) -> str | None:
    """Why an image must not be shown to QEMU; None when it may. Its backing file's name is the caller's to judge."""
    if header.data_file:
        return "it keeps its data in an external file (refused)"
    if header.backing_file and not backing_allowed:
        return f"it refers to the backing file {header.backing_file[:100]!r} (refused)"
    if header.encrypted:
        return "it is encrypted"
    if header.corrupt:
        return "it is marked as corrupt"
    if not 0 < header.size_bytes <= SIZE_LIMIT_BYTES:
        return f"its virtual size of {header.size_bytes} bytes is absurd"
    return None


def _backing_file(head: bytes, offset: int, length: int) -> str:
    if offset == 0:
        return ""
    if not 0 < length <= _NAME_LIMIT_BYTES or offset + length > len(head):
        raise BadImage("the backing file's name lies outside the header")
    return head[offset : offset + length].decode("utf-8", "surrogateescape")


def _extensions(head: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for _ in range(_EXTENSIONS_LIMIT):
        if offset + 8 > len(head):
            return found  # version 2 images may have none, and no end mark
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == _EXTENSION_END:
            return found
        if offset + 8 + length > len(head):
            raise BadImage("a header extension reaches beyond the header")
        found[kind] = head[offset + 8 : offset + 8 + length]
        offset += 8 + (length + 7) // 8 * 8
    raise BadImage("too many header extensions")
