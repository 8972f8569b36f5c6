"""A block backend in memory whose calls can be made to fail, and the requests a guest's block driver makes."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from appliance.vmm.block.layout import RequestType
from tests.fakes.virtio_driver import DriverQueue


class FakeBackend:
    """`data` is the disk, `diary` what was asked of it. `failing` maps a call's name to the errno it fails with."""

    def __init__(self, size_bytes: int = 1 << 20, *, read_only: bool = False, can_discard: bool = True) -> None:
        self.data = bytearray(size_bytes)
        self.read_only, self.can_discard = read_only, can_discard
        self.memory_alignment = 1
        self.waits = False
        self.slow = False  # nothing is cached
        self.diary: list[tuple[object, ...]] = []
        self.failing: dict[str, int] = {}
        self.closed = False

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def _note(self, name: str, *about: object) -> None:
        self.diary.append((name, *about))
        if number := self.failing.get(name):
            raise OSError(number, os.strerror(number))

    def read(self, buffers: Sequence[memoryview], offset: int, *, wait: bool = True) -> None:
        if not wait and self.slow:
            raise BlockingIOError
        self._note("read", offset, sum(map(len, buffers)))
        for each in buffers:
            each[:] = self.data[offset : offset + len(each)]
            offset += len(each)

    def write(self, buffers: Sequence[memoryview], offset: int, *, durable: bool) -> None:
        self._note("write", offset, sum(map(len, buffers)), durable)
        for each in buffers:
            self.data[offset : offset + len(each)] = each
            offset += len(each)

    def flush(self) -> None:
        self._note("flush")

    def discard(self, offset: int, length: int) -> None:
        self._note("discard", offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self._note("write_zeroes", offset, length, unmap)
        self.data[offset : offset + length] = bytes(length)

    def resize(self, size_bytes: int) -> None:
        if size_bytes < len(self.data):
            raise ValueError("smaller")
        self._note("resize", size_bytes)
        self.data += bytes(size_bytes - len(self.data))

    def close(self) -> None:
        self.closed = True

    def fill_up(self) -> None:
        """The host has no space left."""
        self.failing["write"] = errno.ENOSPC


def header(kind: int, sector: int = 0) -> bytes:
    """virtio 1.2 §5.2.6."""
    return struct.pack("<IIQ", kind, 0, sector)


def block_range(sector: int, sectors: int, flags: int = 0) -> bytes:
    """One range of a discard or write zeroes."""
    return struct.pack("<QII", sector, sectors, flags)


class BlockDriver:
    """Blocking requests on one queue; each returns the status, reads with the data."""

    def __init__(self, queue: DriverQueue) -> None:
        self.queue = queue

    def read(self, sector: int, *lengths: int) -> tuple[int, bytes]:
        answer = self.queue.request([header(RequestType.IN, sector)], [*lengths, 1])
        return (answer[-1] if len(answer) > 1 else answer[0]), answer[:-1]

    def write(self, sector: int, *data: bytes) -> int:
        return self.queue.request([header(RequestType.OUT, sector), *data], [1])[-1]

    def flush(self) -> int:
        return self.queue.request([header(RequestType.FLUSH)], [1])[-1]

    def identity(self, room: int = 20) -> bytes:
        return self.queue.request([header(RequestType.GET_ID)], [room, 1])[:-1]

    def discard(self, *ranges: bytes) -> int:
        return self.queue.request([header(RequestType.DISCARD), b"".join(ranges)], [1])[-1]

    def write_zeroes(self, *ranges: bytes) -> int:
        return self.queue.request([header(RequestType.WRITE_ZEROES), b"".join(ranges)], [1])[-1]
