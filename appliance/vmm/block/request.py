"""A driver's request, read from its chain and checked (virtio 1.2 §5.2.6). Pure but for reading guest memory.

    readable   type 4 | reserved 4 | sector 8 | data (OUT), ranges (DISCARD, WRITE_ZEROES)
    writable   data (IN), identity (GET_ID) | status 1

however these are cut into descriptors (§2.7.4). What has no header or no room for a status cannot be answered and breaks
the device; anything else wrong is answered with a status.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from appliance.errors import GuestFault
from appliance.vmm.block import layout
from appliance.vmm.block.backend import SECTOR
from appliance.vmm.block.layout import RequestType, Status
from appliance.vmm.memory import GuestMemory
from appliance.vmm.virtio.queue import Chain, Segment, cut

HEADER_BYTES: Final = 16
MAX_BYTES: Final = 64 << 20  # of one request: no driver asks for so much
MAX_SEGMENTS: Final = 1024  # IOV_MAX

_HEADER = struct.Struct("<I4xQ")
_RANGE = struct.Struct("<QII")
RANGES_BYTES: Final = _RANGE.size * (layout.RANGES + 1)  # enough to see that there are too many


class Refused(Exception):
    """The request is answered with `status`, and nothing is done."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class Request:
    """Of queue `queue`. `segments` is the data: where it lies in guest memory, `length` bytes in all. `offset` is in bytes."""

    __slots__ = ("chain", "kind", "length", "offset", "queue", "segments", "status_at")

    def __init__(
        self, queue: int, chain: Chain, kind: int, offset: int, segments: Sequence[Segment], length: int, status_at: int
    ) -> None:
        self.queue = queue
        self.chain = chain
        self.kind = kind
        self.offset = offset
        self.segments = segments
        self.length = length
        self.status_at = status_at


def parse(queue: int, chain: Chain, memory: GuestMemory) -> Request:
    """What the driver wants. Raises `GuestFault` when it cannot be answered."""
    readable, writable = chain.readable, chain.writable
    if chain.readable_bytes < HEADER_BYTES or not writable:
        raise GuestFault(f"a request of {chain.readable_bytes} bytes with {chain.writable_bytes} for the answer")
    first = readable[0]
    whole = first.length == HEADER_BYTES  # as every driver does
    header = memory.read(first.address, HEADER_BYTES) if whole else chain.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:  # the queue was reset meanwhile
        header = bytes(HEADER_BYTES)
    kind, sector = _HEADER.unpack(header)
    last = writable[-1]
    status_at = last.address + last.length - 1
    segments: Sequence[Segment]
    if kind in (RequestType.IN, RequestType.GET_ID):
        length = chain.writable_bytes - 1
        segments = writable[:-1] if last.length == 1 else cut(writable, 0, length)
    else:
        length = chain.readable_bytes - HEADER_BYTES
        segments = readable[1:] if whole else cut(readable, HEADER_BYTES, length)
    return Request(queue, chain, kind, sector * SECTOR, segments, length, status_at)


def check_transfer(request: Request, capacity_bytes: int) -> None:
    """§5.2.6.1: whole sectors, all of them on the disk. Raises `Refused`."""
    length = request.length
    if not 0 < length <= MAX_BYTES or length % SECTOR or request.offset + length > capacity_bytes:
        raise Refused(Status.IOERR)


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes to discard or to make zeros."""

    offset: int
    length: int
    unmap: bool


def ranges_of(request: Request, data: bytes, capacity_bytes: int) -> list[Range]:
    """§5.2.6.2: every range is checked before the first is touched. Raises `Refused`."""
    count, odd = divmod(len(data), _RANGE.size)
    if odd or not 0 < count <= layout.RANGES:
        raise Refused(Status.UNSUPP if count > layout.RANGES else Status.IOERR)
    return [_range(request, fields, capacity_bytes) for fields in _RANGE.iter_unpack(data)]


def _range(request: Request, fields: tuple[int, int, int], capacity_bytes: int) -> Range:
    sector, sectors, flags = fields
    discard = request.kind == RequestType.DISCARD
    if flags & ~layout.FLAG_UNMAP or (discard and flags):
        raise Refused(Status.UNSUPP)
    limit = layout.DISCARD_SECTORS if discard else layout.ZEROES_SECTORS
    if sectors > limit or (sector + sectors) * SECTOR > capacity_bytes:
        raise Refused(Status.IOERR)
    return Range(sector * SECTOR, sectors * SECTOR, bool(flags))


def runs(requests: Sequence[Request], max_bytes: int) -> Iterator[list[Request]]:
    """Neighbouring transfers of one direction as one; everything else alone. The driver does not mind the order of what
    is in flight (§5.2.6.1)."""
    run: list[Request] = []
    length = segments = 0
    for each in requests:
        if (
            run
            and each.queue == run[0].queue
            and each.kind == run[0].kind
            and each.kind <= RequestType.OUT
            and each.offset == run[-1].offset + run[-1].length
            and length + each.length <= max_bytes
            and segments + len(each.segments) <= MAX_SEGMENTS
        ):
            run.append(each)
        else:
            if run:
                yield run
            run, length, segments = [each], 0, 0
        length += each.length
        segments += len(each.segments)
    if run:
        yield run
