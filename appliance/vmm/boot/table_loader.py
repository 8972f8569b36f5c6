"""Placing tables whose addresses nobody knows yet: by firmware, following a script, or by ourselves. Pure.

The script is QEMU's linker/loader protocol (hw/acpi/bios-linker-loader.c; SeaBIOS src/fw/romfile_loader.c): records of 128
bytes, little-endian, in fw_cfg's `etc/table-loader`, about fw_cfg files by name.

    1 allocate       file, alignment, zone        load the file into memory
    2 add pointer    file, offset, size, target   add where `target` went to the integer there
    3 add checksum   file, offset, start, length  make the bytes of the range sum to 0
    4 write pointer  file, offset, size, target, target's offset   tell the host: write the address into a fw_cfg file
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from appliance.errors import Unsupported

FILE_SCRIPT = "etc/table-loader"
_RECORD_BYTES = 128
_NAME_BYTES = 56  # the terminating zero included


class Zone(IntEnum):
    """Where the firmware may put a file."""

    HIGH = 1
    FSEG = 2  # below 1 MiB, where the RSDP is looked for


@dataclass(frozen=True, slots=True)
class Blob:
    """A file to be placed. `devices_own`: a device brings it into fw_cfg itself."""

    name: str
    data: bytes
    align: int
    zone: Zone
    devices_own: bool = False


@dataclass(frozen=True, slots=True)
class Pointer:
    """The integer of `size` bytes at `offset` of `file` holds an offset into `target`; it shall hold an address."""

    file: str
    offset: int
    size: int
    target: str


@dataclass(frozen=True, slots=True)
class Checksum:
    """The byte at `offset` shall make `length` bytes from `start` on sum to 0."""

    file: str
    offset: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class WritePointer:
    """The host shall learn, in its writable file `file`, where `target`'s `target_offset` went."""

    file: str
    offset: int
    size: int
    target: str
    target_offset: int


Link = Pointer | Checksum | WritePointer


@dataclass(frozen=True, slots=True)
class Tables:
    """Blobs, and what is to be done once they have addresses: pointers, then checksums over them."""

    blobs: tuple[Blob, ...]
    links: tuple[Link, ...]

    def ordered(self) -> list[Link]:
        """Checksums last: a pointer changes what they are of."""
        return sorted(self.links, key=lambda each: isinstance(each, Checksum))


def files(tables: Tables) -> dict[str, bytes]:
    """fw_cfg's files, the script included, but for those that devices own: a `WritePointer`'s is always one."""
    return {FILE_SCRIPT: script(tables), **{blob.name: blob.data for blob in tables.blobs if not blob.devices_own}}


def script(tables: Tables) -> bytes:
    """The script for the firmware."""
    records = [_record(1, _name(blob.name) + struct.pack("<IB", blob.align, blob.zone)) for blob in tables.blobs]
    for link in tables.ordered():
        match link:
            case Pointer(file, offset, size, target):
                records.append(_record(2, _name(file) + _name(target) + struct.pack("<IB", offset, size)))
            case Checksum(file, offset, start, length):
                records.append(_record(3, _name(file) + struct.pack("<III", offset, start, length)))
            case WritePointer(file, offset, size, target, target_offset):
                numbers = struct.pack("<IIB", offset, target_offset, size)
                records.append(_record(4, _name(file) + _name(target) + numbers))
    return b"".join(records)


def _name(name: str) -> bytes:
    encoded = name.encode()
    if len(encoded) >= _NAME_BYTES:
        raise ValueError(f"file name {name!r} has more than {_NAME_BYTES - 1} bytes")
    return encoded.ljust(_NAME_BYTES, b"\0")


def _record(command: int, content: bytes) -> bytes:
    return (struct.pack("<I", command) + content).ljust(_RECORD_BYTES, b"\0")


# Doing it ourselves


@dataclass(frozen=True, slots=True)
class Placed:
    """Where each blob is, and its bytes as they belong there. `told` are the addresses of `WritePointer`s, by file."""

    addresses: Mapping[str, int]
    content: Mapping[str, bytes]
    told: Mapping[str, int]


def place(tables: Tables, base: int, end: int) -> Placed:
    """Lay the blobs out in [base, end), the first one first. Raises `Unsupported` when they do not fit."""
    addresses: dict[str, int] = {}
    cursor = base
    for blob in tables.blobs:
        cursor = -(-cursor // blob.align) * blob.align
        addresses[blob.name] = cursor
        cursor += len(blob.data)
    if cursor > end:
        raise Unsupported(f"firmware tables: {cursor - base} bytes do not fit {base:#x}-{end - 1:#x}")
    content = {blob.name: bytearray(blob.data) for blob in tables.blobs}
    told = {}
    for link in tables.ordered():
        match link:
            case Pointer(file, offset, size, target):
                field = slice(offset, offset + size)
                value = int.from_bytes(content[file][field], "little") + addresses[target]
                content[file][field] = value.to_bytes(size, "little")
            case Checksum(file, offset, start, length):
                data = content[file]
                data[offset] = (data[offset] - sum(data[start : start + length])) & 0xFF
            case WritePointer(file, _, _, target, target_offset):
                told[file] = addresses[target] + target_offset
    return Placed(addresses, {name: bytes(data) for name, data in content.items()}, told)
