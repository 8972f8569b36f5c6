"""A saved machine as a file: who it is, its devices and vCPUs, then its RAM without the zeros.

    "APPVMSAV"  u32 version = 1  u32 header length  header (msgpack of `Header`)
    records     u64 first page  u32 pages  u32 length  data (zlib when length < pages * 4096, else as it is)
    end         u64 2^64-1      u32 0      u32 CRC-32 of everything before the end record

All integers are little-endian. A file that ends early, or whose sum is wrong, is refused whole; RAM restored until then is
of no use to anybody, so restoring happens into a machine that is thrown away on failure. Blocking: in a thread.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import msgspec

from appliance.errors import HostError, Unsupported
from appliance.vmm.layout import PAGE
from appliance.vmm.memory import GuestMemory

MAGIC = b"APPVMSAV"
VERSION = 1
_HEAD = struct.Struct("<8sII")
_RECORD = struct.Struct("<QII")
_END = 0xFFFF_FFFF_FFFF_FFFF
HEADER_LIMIT_BYTES = 64 << 20
RECORD_PAGES = 256
COMPRESSION_LEVEL = 1
_ZEROS = bytes(PAGE)


class Header(msgspec.Struct, forbid_unknown_fields=True):
    """`devices` and `vcpus` are encoded states: each part decodes its own. `extra`: consoles' histories and the like."""

    guest_id: int
    saved_at: float
    ram_bytes: int
    spec: bytes
    vm: bytes
    vcpus: list[bytes]
    devices: dict[str, bytes]
    extra: dict[str, bytes] = {}


def save(file: BinaryIO, header: Header, memory: GuestMemory, *, level: int = COMPRESSION_LEVEL) -> int:
    """Write it all to a buffered file; how many bytes that took. `level` 0 does not compress.

    Raises `HostError` (`NoSpace`) naming the machine, `Unsupported` for a header that nobody would read again.
    """
    writer = _Summed(file)
    try:
        encoded = msgspec.msgpack.encode(header)
        if len(encoded) > HEADER_LIMIT_BYTES:
            raise Unsupported(f"{memory.name}: its devices' state is {len(encoded)} bytes")
        writer.write(_HEAD.pack(MAGIC, VERSION, len(encoded)))
        writer.write(encoded)
        for first, data in _runs(memory):
            packed = zlib.compress(data, level) if level else data
            stored = packed if len(packed) < len(data) else data
            writer.write(_RECORD.pack(first, len(data) // PAGE, len(stored)))
            writer.write(stored)
        file.write(_RECORD.pack(_END, 0, writer.sum))
        file.flush()
    except OSError as error:
        raise HostError.from_os_error(error, f"{memory.name}: saving its state") from error
    return writer.count + _RECORD.size


def read_header(file: BinaryIO, *, about: str) -> tuple[Header, int]:
    """(header, the sum up to its end). Raises `Unsupported`, `HostError`."""
    head = _exactly(file, _HEAD.size, about)
    magic, version, length = _HEAD.unpack(head)
    if magic != MAGIC:
        raise Unsupported(f"{about}: not a saved machine")
    if version != VERSION:
        raise Unsupported(f"{about}: saved in format {version}, this appliance knows {VERSION}")
    if length > HEADER_LIMIT_BYTES:
        raise Unsupported(f"{about}: a header of {length} bytes")
    encoded = _exactly(file, length, about)
    try:
        header = msgspec.msgpack.decode(encoded, type=Header)
    except msgspec.MsgspecError as error:
        raise Unsupported(f"{about}: header not understood: {error}") from error
    return header, zlib.crc32(encoded, zlib.crc32(head))


def restore_ram(
    file: BinaryIO, memory: GuestMemory, checksum: int, *, about: str, cancelled: Callable[[], bool] = lambda: False
) -> None:
    """Fill `memory`, which is all zeros, from the file's records. Raises `Unsupported` for a damaged file, `HostError`."""
    with memoryview(memory.whole()) as ram:
        while True:
            record = _exactly(file, _RECORD.size, about)
            first, pages, length = _RECORD.unpack(record)
            if first == _END:
                if length != checksum:
                    raise Unsupported(f"{about}: damaged: its checksum is wrong")
                return
            start, size = first * PAGE, pages * PAGE
            if not 0 < pages <= RECORD_PAGES or start + size > memory.size or not 0 < length <= size:
                raise Unsupported(f"{about}: damaged: a record of pages {first}+{pages}")
            if cancelled():
                raise HostError(f"{about}: restoring was given up")
            stored = _exactly(file, length, about)
            checksum = zlib.crc32(stored, zlib.crc32(record, checksum))
            ram[start : start + size] = stored if length == size else _unpack(stored, size, about)


def _runs(memory: GuestMemory) -> Iterator[tuple[int, bytes]]:
    """(first page, bytes) of runs without zero pages, at most `RECORD_PAGES` each. Holes of the memfd are not read."""
    ram = memory.whole()
    for start, end in _data_extents(memory):
        first, page = -1, start // PAGE
        while page * PAGE < end:
            is_zero = ram[page * PAGE : (page + 1) * PAGE] == _ZEROS
            if first >= 0 and (is_zero or page - first == RECORD_PAGES):
                yield first, ram[first * PAGE : page * PAGE]
                first = -1
            if first < 0 and not is_zero:
                first = page
            page += 1
        if first >= 0:
            yield first, ram[first * PAGE : page * PAGE]


def _data_extents(memory: GuestMemory) -> Iterator[tuple[int, int]]:
    position = 0
    while position < memory.size:
        try:
            start = os.lseek(memory.fd, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole follows
            return
        end = os.lseek(memory.fd, start, os.SEEK_HOLE)
        yield start // PAGE * PAGE, -(-end // PAGE) * PAGE
        position = end


def _unpack(stored: bytes, size: int, about: str) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(stored, size)
    except zlib.error as error:
        raise Unsupported(f"{about}: damaged: {error}") from error
    if len(data) != size or not unpacker.eof:
        raise Unsupported(f"{about}: damaged: a record of another length")
    return data


def _exactly(file: BinaryIO, count: int, about: str) -> bytes:
    try:
        data = file.read(count)
    except OSError as error:
        raise HostError.from_os_error(error, f"{about}: read") from error
    if len(data) != count:
        raise Unsupported(f"{about}: damaged: it ends early")
    return data


class _Summed:
    """A writer that knows the sum and count of what went through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sum = self.count = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.sum = zlib.crc32(data, self.sum)
        self.count += len(data)
