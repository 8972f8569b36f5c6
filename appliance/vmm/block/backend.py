"""The seam between a virtual disk and what stores it; and what a cache mode means.

    mode           host's page cache   guest's flush   the guest is told it has a write cache
    none           no (O_DIRECT)       yes             yes
    writeback      yes                 yes             yes
    writethrough   yes                 each write      no
    directsync     no                  each write      no
    unsafe         yes                 ignored         yes

as Proxmox VE and QEMU have them (qemu(1), `cache=`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

SECTOR: Final = 512  # virtio 1.2 §5.2.5: the unit of capacity and of requests, whatever the block size is


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """`direct`: past the page cache. `ignore_flush`: fast and unsafe. `volatile`: the guest has to flush."""

    direct: bool
    ignore_flush: bool
    volatile: bool


CACHE_MODES: Final = {
    "none": CachePolicy(direct=True, ignore_flush=False, volatile=True),
    "writeback": CachePolicy(direct=False, ignore_flush=False, volatile=True),
    "writethrough": CachePolicy(direct=False, ignore_flush=False, volatile=False),
    "directsync": CachePolicy(direct=True, ignore_flush=False, volatile=False),
    "unsafe": CachePolicy(direct=False, ignore_flush=True, volatile=True),
}


class BlockBackend(Protocol):
    """A store of bytes. Calls block; any number of threads at once. Each raises `OSError`. The caller has checked that
    what it asks for lies within `size_bytes` and is whole sectors."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    @property
    def can_discard(self) -> bool:
        """Whether discarded space is given back."""

    @property
    def memory_alignment(self) -> int:
        """What addresses and lengths of buffers must be multiples of; a power of two, at most a page."""

    @property
    def waits(self) -> bool:
        """Whether every transfer waits for the medium; else some are answered from memory."""

    def read(self, buffers: Sequence[memoryview], offset: int, *, wait: bool = True) -> None:
        """Fill them all. Without `wait`, `BlockingIOError` when that would take more than a copy."""

    def write(self, buffers: Sequence[memoryview], offset: int, *, durable: bool) -> None:
        """Store them all; `durable`: on the medium when it returns."""

    def flush(self) -> None:
        """What was written before is on the medium when it returns."""

    def discard(self, offset: int, length: int) -> None:
        """The content is not needed any more."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """It reads as zeros; `unmap` allows giving the space back."""

    def resize(self, size_bytes: int) -> None:
        """Make it so large. `ValueError` to shrink it."""

    def close(self) -> None:
        """Harmless when done twice."""


@dataclass(slots=True)
class BlockStatistics:
    """Of one disk since its start. Approximate: threads count without a lock of their own."""

    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written_bytes: int = 0
    flushes: int = 0
    discards: int = 0
    errors: int = 0
