"""Moves data between a store and guest memory, without a copy where the store allows."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Final

from appliance.vmm.block.backend import BlockBackend
from appliance.vmm.block.layout import RequestType
from appliance.vmm.block.request import Request
from appliance.vmm.memory import GuestMemory
from appliance.vmm.virtio.queue import Segment, cut

BOUNCE_BYTES: Final = 1 << 20


def transfer(
    backend: BlockBackend, memory: GuestMemory, run: Sequence[Request], *, durable: bool = False, wait: bool = True
) -> None:
    """Requests of one direction that follow one another on the disk. Blocking. Raises `OSError`; `BlockingIOError` for
    reads that would have to `wait` and may not."""
    first = run[0]
    segments = first.segments if len(run) == 1 else [segment for each in run for segment in each.segments]
    into_guest = first.kind == RequestType.IN
    if not _aligned(segments, backend.memory_alignment):
        length = sum(each.length for each in run)
        _bounce(backend, memory, segments, first.offset, length, into_guest=into_guest, durable=durable)
        return
    with memory.lend(segments, writable=into_guest) as buffers:
        if into_guest:
            backend.read(buffers, first.offset, wait=wait)
        else:
            backend.write(buffers, first.offset, durable=durable)


def _aligned(segments: Sequence[Segment], alignment: int) -> bool:
    mask = alignment - 1
    return not mask or not any((address | length) & mask for address, length in segments)


def _bounce(
    backend: BlockBackend,
    memory: GuestMemory,
    segments: Sequence[Segment],
    offset: int,
    length: int,
    *,
    into_guest: bool,
    durable: bool,
) -> None:
    """By way of aligned memory of our own, some at a time: a guest may ask for more than we would spend."""
    with mmap.mmap(-1, min(length, BOUNCE_BYTES)) as bounce, memoryview(bounce) as whole:
        done = 0
        while done < length:
            with whole[: min(length - done, BOUNCE_BYTES)] as part:
                places = cut(segments, done, len(part))
                if into_guest:
                    backend.read([part], offset + done)
                    _scatter(memory, places, part)
                else:
                    _gather(memory, places, part)
                    backend.write([part], offset + done, durable=durable)
                done += len(part)


def _scatter(memory: GuestMemory, places: Sequence[Segment], data: memoryview) -> None:
    at = 0
    for address, length in places:
        memory.write(address, data[at : at + length])
        at += length


def _gather(memory: GuestMemory, places: Sequence[Segment], data: memoryview) -> None:
    at = 0
    for address, length in places:
        data[at : at + length] = memory.read(address, length)
        at += length
