"""Guest RAM: a memfd, mapped once, seen by its guest-physical addresses. Any thread may enter.

A guest address is hostile: each access is checked to lie in RAM, wholly, or raises `BadAddress`. Nothing here trusts what
it read: read once, check, then use. Everything that writes on behalf of a device marks the pages, for KVM's dirty log
does not contain them (the trap of STYLE): `write*` and writable loans do; whoever hands RAM to the kernel calls
`mark_dirty`.

Barriers: x86-TSO reorders only a store with a later load. `fence` is for that one case (virtio 1.2 §2.7.13.4.1: the used
index is stored, then the driver's suppression is loaded).

Other processors look at the same words at the same time, so a word is loaded and stored whole: a typed memoryview does one
store of its item's width, whereas `struct.pack_into` fills with zeros first (CPython, Modules/_struct.c: s_pack_internal),
which a driver would see as an index of 0. `unpack_from` is one load.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from appliance.errors import GuestFault, HostError
from appliance.kernel.fallocate import punch_hole
from appliance.kernel.mempolicy import Policy, mbind
from appliance.vmm import layout
from appliance.vmm.layout import PAGE

_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")


class BadAddress(GuestFault):
    """A device was told an address outside of RAM."""

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"address {address:#x}, {length} bytes, is not RAM")


@dataclass(frozen=True, slots=True)
class RamRegion:
    """Contiguous RAM: guest-physical `base`, `size` bytes, at `offset` of the memfd."""

    base: int
    size: int
    offset: int

    @property
    def end(self) -> int:
        return self.base + self.size


def regions_of(size_bytes: int) -> tuple[RamRegion, ...]:
    """How RAM of this size lies around the VGA window and the PCI hole."""
    low, high = layout.split_ram(size_bytes)
    regions = [
        RamRegion(0, min(low, layout.VGA_HOLE), 0),
        RamRegion(layout.VGA_HOLE_END, max(0, low - layout.VGA_HOLE_END), layout.VGA_HOLE_END),
        RamRegion(layout.HIGH_RAM, high, low),
    ]
    return tuple(region for region in regions if region.size)


@dataclass(frozen=True, slots=True)
class Placement:
    """`size` bytes of RAM, from `offset` of the memfd on, shall be on these nodes of the host."""

    offset: int
    size: int
    policy: Policy
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """`hugepages_kib`: 0 (none), 2048 or 1048576. `prealloc`: take all of it now, failing here rather than later; huge
    pages always are, for who touches one that is not there is killed."""

    hugepages_kib: int = 0
    prealloc: bool = False
    placements: tuple[Placement, ...] = ()


class DirtySource(Protocol):
    """Somebody in the kernel who writes to RAM and logs it himself: vhost. Pages are numbered as in `take_dirty`."""

    def start_dirty_log(self) -> None: ...

    def take_dirty(self) -> bytes:
        """What was written since the last time; and clear. As long as RAM has pages, or shorter."""

    def stop_dirty_log(self) -> None: ...


class GuestMemory:
    """RAM of one guest. `close` after the VM's slots have gone and every view has been released."""

    def __init__(self, size_bytes: int, *, name: str, options: MemoryOptions | None = None) -> None:
        """Raises `HostError` when the host has not enough. `name` ("vm 101") is what errors call it."""
        options = options or MemoryOptions()
        if size_bytes <= 0 or size_bytes % PAGE:
            raise ValueError(f"{name}: {size_bytes} bytes of RAM are not whole pages")
        self.name = name
        self.size = size_bytes
        self.regions = regions_of(size_bytes)
        self._low = layout.split_ram(size_bytes)[0]
        self.main = (
            layout.VGA_HOLE_END,
            self._low,
        )  # addresses of most of it, as in the memfd: for who cannot afford a call
        self._high_end = layout.HIGH_RAM + size_bytes - self._low
        flags = os.MFD_CLOEXEC
        if options.hugepages_kib:
            flags |= os.MFD_HUGETLB | ((options.hugepages_kib << 10).bit_length() - 1) << 26  # MFD_HUGE_SHIFT
        try:
            self.fd = os.memfd_create(name, flags)
        except OSError as error:
            raise HostError.from_os_error(error, f"{name}: memfd_create") from error
        try:
            os.ftruncate(self.fd, size_bytes)
            self._map = mmap.mmap(self.fd, size_bytes)
        except OSError as error:
            os.close(self.fd)
            raise HostError.from_os_error(error, f"{name}: {size_bytes >> 20} MiB of memory") from error
        # SAFETY: only the number is kept. The mapping stays until `close`, after which nobody has a slot on it.
        self._host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        try:
            self._map.madvise(mmap.MADV_DONTDUMP)
            if not options.hugepages_kib:
                self._prefer_huge_pages()
            for part in options.placements:  # of the memfd's pages, whoever takes them: so before any is there
                mbind(self._host_address + part.offset, part.size, part.policy, part.nodes, about=name)
            if options.prealloc or options.hugepages_kib:
                os.posix_fallocate(self.fd, 0, size_bytes)
        except OSError as error:
            self._map.close()
            os.close(self.fd)
            raise HostError.from_os_error(error, f"{name}: {size_bytes >> 20} MiB of memory") from error
        self._words = {2: memoryview(self._map).cast("H"), 4: memoryview(self._map).cast("I")}
        self._words[8] = memoryview(self._map).cast("Q")
        self._dirty: bytearray | None = None
        self._dirty_lock = threading.Lock()
        self._sources: tuple[DirtySource, ...] = ()
        self._sources_lock = (
            threading.Lock()
        )  # held while they are told, so that none is added in between; before theirs

    def close(self) -> None:
        """Unmap and close. `BufferError` when a view is still held."""
        for words in self._words.values():
            words.release()
        self._map.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _prefer_huge_pages(self) -> None:
        """As the guest touches it, memory comes in pages of 2 MiB where the host has them free and its shmem_enabled says
        "advise" (kernel/hugepages.py): a processor in a guest walks two page tables for each miss of its TLB."""
        with contextlib.suppress(OSError):  # a kernel without them
            self._map.madvise(mmap.MADV_HUGEPAGE)

    # Addresses

    def offset_of(self, address: int, length: int) -> int:
        """Where guest-physical `address` lies in the memfd. Raises `BadAddress` unless all `length` bytes are in one
        region of RAM."""
        end = address + length
        if length >= 0:
            if address >= layout.VGA_HOLE_END and end <= self._low:
                return address
            if address >= layout.HIGH_RAM and end <= self._high_end:
                return address - layout.HIGH_RAM + self._low
            if address >= 0 and end <= layout.VGA_HOLE and end <= self._low:
                return address
        raise BadAddress(address, length)

    def is_ram(self, address: int, length: int) -> bool:
        """Whether all of it is. As `offset_of` decides, written out: each descriptor of each chain is asked for."""
        end = address + length
        if length < 0 or address < 0:
            return False
        return (
            (address >= layout.VGA_HOLE_END and end <= self._low)
            or (address >= layout.HIGH_RAM and end <= self._high_end)
            or (end <= layout.VGA_HOLE and end <= self._low)
        )

    def host_address(self, address: int, length: int) -> int:
        """Where our process has it: for memory slots, vhost and vectored I/O."""
        return self._host_address + self.offset_of(address, length)

    # Content

    def read(self, address: int, length: int) -> bytes:
        """A copy."""
        offset = self.offset_of(address, length)
        return self._map[offset : offset + length]

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store, and mark the pages."""
        length = len(data)
        offset = self.offset_of(address, length)
        self._map[offset : offset + length] = data
        if self._dirty is not None:
            self._mark(offset, length)

    @contextmanager
    def lend(self, segments: Iterable[tuple[int, int]], *, writable: bool = False) -> Iterator[list[memoryview]]:
        """The bytes themselves, for readv and writev without a copy: of each (address, length) in turn, those in one piece that
        follow one another. Keep none of them.

        What is `writable` is marked when it comes back, whatever has become of it: a log that is taken meanwhile would miss what
        is written later.
        """
        spans = self._joined(segments)
        with memoryview(self._map) as whole, whole.toreadonly() as unwritable:
            source = whole if writable else unwritable
            parts = [source[start:end] for start, end in spans]
        try:
            yield parts
        finally:
            for part in parts:
                part.release()
            if writable and self._dirty is not None:
                for start, end in spans:
                    self._mark(start, end - start)

    def _joined(self, segments: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where they lie in the memfd: from, to. Raises `BadAddress`."""
        (low, high), spans, start, end = self.main, [], 0, 0
        for address, length in segments:
            if low <= address <= high - length and length >= 0:
                offset = address
            else:
                offset = self.offset_of(address, length)
            if offset != end:
                if end > start:
                    spans.append((start, end))
                start = offset
            end = offset + length
        if end > start:
            spans.append((start, end))
        return spans

    def load_u16(self, address: int) -> int:
        value: int = _U16.unpack_from(self._map, self.offset_of(address, 2))[0]
        return value

    def load_u32(self, address: int) -> int:
        value: int = _U32.unpack_from(self._map, self.offset_of(address, 4))[0]
        return value

    def load_u64(self, address: int) -> int:
        value: int = _U64.unpack_from(self._map, self.offset_of(address, 8))[0]
        return value

    def store_u16(self, address: int, value: int) -> None:
        """As those below: one store, at a multiple of its size; anything else is a mistake of ours (`ValueError`)."""
        self._store(2, address, value)

    def store_u32(self, address: int, value: int) -> None:
        self._store(4, address, value)

    def store_u64(self, address: int, value: int) -> None:
        self._store(8, address, value)

    def _store(self, size: int, address: int, value: int) -> None:
        offset = self.offset_of(address, size)
        place, odd = divmod(offset, size)
        if odd:
            raise ValueError(f"{self.name}: a store of {size} bytes at {address:#x}")
        self._words[size][place] = value
        if self._dirty is not None:
            self._mark(offset, size)

    @staticmethod
    def fence() -> None:
        """Order an earlier store before a later load. Taking a lock is a locked instruction: a full barrier on x86."""
        with _FENCE:
            pass

    def discard(self, address: int, length: int) -> None:
        """Give whole pages back to the host; they read as zeros. For the balloon. Raises `HostError`."""
        offset = self.offset_of(address, length)
        try:
            punch_hole(self.fd, offset, length)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise HostError.from_os_error(error, f"{self.name}: giving back memory") from error
        self.mark_dirty(address, length)

    def whole(self) -> mmap.mmap:
        """All RAM in the memfd's order: for saving and restoring, while nothing runs. Keep no view of it."""
        return self._map

    def resident_bytes(self) -> int:
        """What the guest has touched: the memfd's blocks."""
        return os.fstat(self.fd).st_blocks * 512

    # The dirty log of our own writes: one bit for each page of the memfd

    def start_dirty_log(self) -> None:
        """Begin to note what we write; nothing is dirty yet. Raises `HostError` when a source cannot."""
        with self._sources_lock:
            self._dirty = bytearray(-(-self.size // PAGE // 8))
            for source in self._sources:
                source.start_dirty_log()

    def take_dirty(self) -> bytes:
        """The pages written since the last time, by us and by every source, bit n of byte n // 8 for page n of the
        memfd; and clear."""
        with self._dirty_lock:
            taken = bytes(self._dirty or b"")
            if self._dirty is not None:
                self._dirty = bytearray(len(taken))
        if taken:
            with self._sources_lock:
                for source in self._sources:
                    taken = union_of(taken, source.take_dirty())
        return taken

    def stop_dirty_log(self) -> None:
        with self._sources_lock:
            self._dirty = None
            for source in self._sources:
                source.stop_dirty_log()

    def add_dirty_source(self, source: DirtySource) -> None:
        """From now on its pages are in the log as well. Raises `HostError` when there is a log and it cannot."""
        with self._sources_lock:
            if self._dirty is not None:
                source.start_dirty_log()
            self._sources = (*self._sources, source)

    def remove_dirty_source(self, source: DirtySource) -> None:
        """It writes no more; what it has logged last is kept. Harmless when done twice."""
        with self._sources_lock:
            if source not in self._sources:
                return
            self._sources = tuple(each for each in self._sources if each is not source)
            if self._dirty is not None:
                last = source.take_dirty()
                source.stop_dirty_log()
                with self._dirty_lock:
                    self._dirty = bytearray(union_of(self._dirty, last))

    def mark_dirty(self, address: int, length: int) -> None:
        """Note that somebody on our side has written there."""
        if self._dirty is not None:
            self._mark(self.offset_of(address, length), length)

    def _mark(self, offset: int, length: int) -> None:
        if length <= 0:
            return
        first, last = offset // PAGE, (offset + length - 1) // PAGE
        with self._dirty_lock:
            dirty = self._dirty
            if dirty is None:
                return
            if first == last:
                dirty[first >> 3] |= 1 << (first & 7)
                return
            low, high = first >> 3, last >> 3  # whole bytes at once: a balloon gives back gigabytes
            mask = (1 << (last - 8 * low + 1)) - (1 << (first & 7))
            marked = int.from_bytes(dirty[low : high + 1], "little") | mask
            dirty[low : high + 1] = marked.to_bytes(high - low + 1, "little")

    def pages(self) -> Iterator[tuple[RamRegion, int]]:
        """(region, page count) in memfd order: what saving and memory slots walk."""
        for region in self.regions:
            yield region, region.size // PAGE


def union_of(one: bytes | bytearray, other: bytes) -> bytes:
    """Both bitmaps' bits, in a bitmap as long as `one`."""
    both = int.from_bytes(one, "little") | int.from_bytes(other[: len(one)], "little")
    return both.to_bytes(len(one), "little")


_FENCE = threading.Lock()
