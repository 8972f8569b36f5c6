"""A split virtqueue, the device's side (virtio 1.2 §2.7). Any thread may enter; its lock is never held over a call out.

The life of a buffer:
    1. the driver writes descriptors: address, length, flags, next                   desc[i]
    2. it puts the number of the first, the head, into the available ring            avail.ring[avail.idx % size]
    3. it raises avail.idx, and kicks unless the device has said not to              avail_event, or used.flags
    4. `pop` finds avail.idx ahead of our own index, takes the head
    5. and walks the chain: once, checking each address, into a `Chain`
    6. the device reads `chain.readable`, then fills `chain.writable`
    7. `push` writes (head, bytes written) into the used ring                         used.ring[used.idx % size]
    8. and raises used.idx: the buffer is the driver's again
    9. `flush` interrupts unless the driver has said not to                           used_event, or avail.flags
   10. the driver takes the element.

        desc                    avail (driver writes)          used (device writes)
        +-----------------+     +-------------------+          +--------------------------+
        | addr 8          |     | flags 2 | idx 2   |          | flags 2 | idx 2          |
        | len 4           |     | ring[size] 2 each |          | ring[size] id 4, len 4   |
        | flags 2, next 2 |     | used_event 2      |          | avail_event 2            |
        +-----------------+     +-------------------+          +--------------------------+

Hostile drivers: whatever lies in the rings is read once; a chain that loops, is longer than it may be, leaves RAM or
breaks the standard's order raises `QueueBroken`, and so does a driver that makes more available than there is room for:
what is in flight is never more than `size` chains. A chain of a queue that has been reset since is stale: it reads as
nothing, and writing and pushing it do nothing.
"""

from __future__ import annotations

import mmap
import struct
import threading
from array import array
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from appliance.errors import GuestFault, Unsupported
from appliance.vmm.memory import BadAddress, GuestMemory
from appliance.vmm.virtio.consts import (
    AVAIL_F_NO_INTERRUPT,
    DESC_BYTES,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    MAX_QUEUE_SIZE,
    USED_F_NO_NOTIFY,
)

# What one preadv takes (IOV_MAX). Linux fills indirect tables without regard to the queue's size, contrary to §2.7.5.3.1.
MAX_INDIRECT: Final = 1024
MAX_CHAIN_BYTES: Final = 1 << 32  # §2.7.5

_DESCRIPTOR = struct.Struct("<QIHH")
_made = tuple.__new__  # of a `Segment`: 0.13 in place of 0.32 us, and there are hundreds in a request


class QueueBroken(GuestFault):
    """The driver's ring makes no sense; nothing more can be taken from it until the device is reset."""


class Segment(NamedTuple):
    """Guest-physical memory that has been found to be RAM, wholly."""

    address: int
    length: int


def cut(segments: Sequence[Segment], offset: int, length: int) -> list[Segment]:
    """The part of the concatenated `segments` from `offset`, at most `length` bytes."""
    parts = []
    for address, size in segments:
        if offset >= size:
            offset -= size
            continue
        if length <= 0:
            break
        taken = min(size - offset, length)
        parts.append(Segment(address + offset, taken))
        length -= taken
        offset = 0
    return parts


class Chain:
    """One buffer of the driver's: what the device may read, then what it may write."""

    __slots__ = ("_generation", "_queue", "head", "readable", "readable_bytes", "writable", "writable_bytes")

    def __init__(
        self, queue: VirtQueue, head: int, readable: tuple[Segment, ...], writable: tuple[Segment, ...]
    ) -> None:
        self._queue = queue
        self._generation = queue.generation
        self.head = head
        self.readable = readable
        self.writable = writable
        self.readable_bytes = sum(segment.length for segment in readable)
        self.writable_bytes = sum(segment.length for segment in writable)

    @property
    def pieces(self) -> int:
        """How many descriptors were walked for it: what it has cost, whatever its length."""
        return len(self.readable) + len(self.writable)

    @property
    def stale(self) -> bool:
        """Whether the queue has been reset since: the memory is the driver's again."""
        return self._generation != self._queue.generation

    def read(self, limit: int, offset: int = 0) -> bytes:
        """Readable bytes from `offset`, at most `limit`, gathered; a copy, so read what is to be checked only once."""
        if self.stale:
            return b""
        memory = self._queue.memory
        whole = not offset and limit >= self.readable_bytes
        parts = self.readable if whole else cut(self.readable, offset, limit)
        return b"".join([memory.read(address, length) for address, length in parts])

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Scatter `data` over the writable bytes from `offset`; returns how much had room."""
        if self.stale:
            return 0
        memory, done = self._queue.memory, 0
        if not offset and len(self.writable) == 1 and len(data) <= self.writable_bytes:
            memory.write(self.writable[0].address, data)
            return len(data)
        for part in cut(self.writable, offset, len(data)):
            memory.write(part.address, data[done : done + part.length])
            done += part.length
        return done


class QueueState(msgspec.Struct, forbid_unknown_fields=True):
    """Part of `virtio.device.VirtioState`, whose version covers it. `in_flight`: heads taken and not given back."""

    size: int
    enabled: bool
    desc: int
    avail: int
    used: int
    next_avail: int
    next_used: int
    in_flight: list[int]


class VirtQueue:
    """One queue. The transport sets `size`, `desc`, `avail`, `used`, then calls `enable`; the device does the rest.

    `label` ("vm 101: rng: queue 0") is what errors call it; `interrupt` is called by `flush`, with no lock held.
    """

    def __init__(self, memory: GuestMemory, max_size: int, *, label: str, interrupt: Callable[[], None]) -> None:
        if not 0 < max_size <= MAX_QUEUE_SIZE or max_size & (max_size - 1):
            raise ValueError(f"{label}: {max_size} is no queue size")
        self.memory = memory
        self.max_size = max_size
        self.label = label
        self.generation = 0
        self._interrupt = interrupt
        self._lock = threading.Lock()
        self._event_idx = self._indirect = False
        self.reset()

    def reset(self) -> None:
        """As at power-on; every chain still out becomes stale."""
        with self._lock:
            self.generation += 1
            self.size = self.max_size
            self.desc = self.avail = self.used = 0
            self.enabled = False
            self._next_avail = self._next_used = 0
            self._unsignalled = 0
            self._in_flight: dict[int, int] = {}
            self._outstanding = 0
            self._again: list[int] = []

    def set_features(self, *, event_idx: bool, indirect: bool) -> None:
        """What was negotiated."""
        self._event_idx, self._indirect = event_idx, indirect

    def enable(self) -> None:
        """Begin with empty rings where the driver has put them. Raises `QueueBroken`, remaining disabled, when they
        cannot be there (§2.7: alignment; §2.6: a power of two, at most what was offered)."""
        size = self.size
        if not 0 < size <= self.max_size or size & (size - 1):
            raise QueueBroken(f"{self.label}: size {size}")
        areas = ((self.desc, 16, DESC_BYTES * size), (self.avail, 2, 6 + 2 * size), (self.used, 4, 6 + 8 * size))
        for address, alignment, length in areas:
            if address % alignment or not self.memory.is_ram(address, length):
                raise QueueBroken(f"{self.label}: a ring at {address:#x}")
        self.enabled = True

    # Taking

    def pop(self) -> Chain | None:
        """The next buffer, now the device's to `push` back; None when there is none. Raises `QueueBroken`."""
        with self._lock:
            if not self.enabled:
                return None
            if self._again:
                return self._take(self._again.pop(0))
            ahead = (self.memory.load_u16(self.avail + 2) - self._next_avail) & 0xFFFF
            if not ahead:
                return None
            held = ahead + self._outstanding
            if held > self.size:
                raise QueueBroken(f"{self.label}: {held} buffers in a ring of {self.size}")
            head = self.memory.load_u16(self.avail + 4 + 2 * (self._next_avail % self.size))
            chain = self._take(head)
            self._next_avail = (self._next_avail + 1) & 0xFFFF
            return chain

    def unpop(self, chain: Chain) -> None:
        """Put back the chain popped last, as if it had not been taken. Only when nothing was popped since."""
        with self._lock:
            if not chain.stale:
                self._drop(chain.head)
                self._again.insert(0, chain.head)

    def has_available(self) -> bool:
        """Whether `pop` would return something (or raise)."""
        with self._lock:
            return self.enabled and self._available()

    def _available(self) -> bool:
        return bool(self._again) or self.memory.load_u16(self.avail + 2) != self._next_avail

    def _take(self, head: int) -> Chain:
        readable, writable = self._walk(head)
        self._in_flight[head] = self._in_flight.get(head, 0) + 1
        self._outstanding += 1
        return Chain(self, head, tuple(readable), tuple(writable))

    def _walk(self, head: int) -> tuple[list[Segment], list[Segment]]:
        """§2.7.5: follow the chain; each descriptor is read once."""
        at, count = self.memory.offset_of(self.desc, DESC_BYTES * self.size), self.size
        found: tuple[list[Segment], list[Segment]] = ([], [])
        table = self._follow(self.memory.whole(), at, count, head, count, found)
        if table is not None:  # §2.7.5.3: the chain goes on in a table, copied before it is looked at
            count = len(table) // DESC_BYTES
            if self._follow(table, 0, count, 0, min(count, MAX_INDIRECT), found) is not None:
                raise QueueBroken(f"{self.label}: an indirect table within another")
        if sum(length for segments in found for _, length in segments) > MAX_CHAIN_BYTES:
            raise QueueBroken(f"{self.label}: a chain of over 4 GiB")
        return found

    def _follow(
        self,
        table: bytes | mmap.mmap,
        at: int,
        count: int,
        number: int,
        limit: int,
        found: tuple[list[Segment], list[Segment]],
    ) -> bytes | None:
        """From descriptor `number` of the `count` at `table[at]`, at most `limit`, into `found` (readable, writable): to the
        chain's end, or to an indirect table, which is returned."""
        readable, writable = found
        is_ram, (low, high), unpack = self.memory.is_ram, self.memory.main, _DESCRIPTOR.unpack_from
        for _ in range(limit):
            if number >= count:
                raise QueueBroken(f"{self.label}: descriptor {number} of {count}")
            address, length, flags, number = unpack(table, at + DESC_BYTES * number)
            if flags & DESC_F_INDIRECT:
                if flags & DESC_F_NEXT:
                    raise QueueBroken(f"{self.label}: an indirect descriptor with a next one")
                return self._indirect_table(address, length)
            if not length or not (low <= address <= high - length or is_ram(address, length)):
                raise QueueBroken(f"{self.label}: a buffer at {address:#x}, {length} bytes")
            if flags & DESC_F_WRITE:
                writable.append(_made(Segment, (address, length)))
            elif writable:
                raise QueueBroken(f"{self.label}: a readable buffer after a writable one")  # §2.7.4.2
            else:
                readable.append(_made(Segment, (address, length)))
            if not flags & DESC_F_NEXT:
                return None
        raise QueueBroken(f"{self.label}: the chain does not end")

    def _indirect_table(self, address: int, length: int) -> bytes:
        count, odd = divmod(length, DESC_BYTES)
        if not self._indirect or odd or not 0 < count <= MAX_QUEUE_SIZE:
            raise QueueBroken(f"{self.label}: an indirect table of {length} bytes")
        try:
            return self.memory.read(address, length)
        except BadAddress as error:
            raise QueueBroken(f"{self.label}: indirect table: {error}") from error

    # Giving back

    def push(self, chain: Chain, written: int) -> None:
        """Return a chain, of which the first `written` writable bytes were written (§2.7.8)."""
        self.push_all(((chain, written),))

    def push_all(self, used: Sequence[tuple[Chain, int]]) -> None:
        """Return chains at one stroke: the driver sees all of them used, or none (§5.1.6.4, merged receive buffers)."""
        with self._lock:
            elements: list[int] = []
            for chain, written in used:
                if not chain.stale:
                    self._drop(chain.head)
                    elements += (chain.head, written & 0xFFFF_FFFF)
            if elements:
                self._give_back(elements)

    def _give_back(self, elements: Sequence[int]) -> None:
        """(head, bytes written) by turns, into the used ring, and its index."""
        count, first = len(elements) // 2, self._next_used % self.size
        packed = array("I", elements).tobytes()
        straight = 8 * min(count, self.size - first)
        self.memory.write(self.used + 4 + 8 * first, packed[:straight])
        if straight < len(packed):  # round the ring's end
            self.memory.write(self.used + 4, packed[straight:])
        self._next_used = (self._next_used + count) & 0xFFFF
        self.memory.store_u16(self.used + 2, self._next_used)  # after the elements: stores keep their order
        self._unsignalled += count

    def _drop(self, head: int) -> None:
        left = self._in_flight.get(head, 0) - 1
        if left < 0:
            raise AssertionError(f"{self.label}: {head} is not in flight")
        if left:
            self._in_flight[head] = left
        else:
            del self._in_flight[head]
        self._outstanding -= 1

    def flush(self) -> None:
        """Interrupt for what was pushed since the last time, if the driver wants one (§2.7.7)."""
        with self._lock:
            wanted = self.enabled and self._unsignalled > 0 and self._wants_interrupt()
            self._unsignalled = 0
        if wanted:
            self._interrupt()

    def _wants_interrupt(self) -> bool:
        self.memory.fence()  # used.idx is stored before the driver's suppression is loaded: the mirror of §2.7.13.4.1
        if not self._event_idx:
            return not self.memory.load_u16(self.avail) & AVAIL_F_NO_INTERRUPT
        used_event = self.memory.load_u16(self.avail + 4 + 2 * self.size)
        return passed(used_event, self._next_used, self._unsignalled)

    # Kicks

    def disable_kicks(self) -> None:
        """Kicks are not needed for now; a hint to the driver. With event idx the old avail_event says it (§2.7.10)."""
        with self._lock:
            if self.enabled and not self._event_idx:
                self.memory.store_u16(self.used, USED_F_NO_NOTIFY)

    def enable_kicks(self) -> bool:
        """Ask to be kicked for the next buffer. True when one is there already, which nobody will kick for."""
        with self._lock:
            if not self.enabled:
                return False
            if self._event_idx:
                self.memory.store_u16(self.used + 4 + 8 * self.size, self._next_avail)
            else:
                self.memory.store_u16(self.used, 0)
            self.memory.fence()  # the wish is stored before avail.idx is loaded, or a kick gets lost
            return self._available()

    # State

    @property
    def in_flight(self) -> int:
        """Chains popped and not pushed."""
        return self._outstanding

    @property
    def indexes(self) -> tuple[int, int]:
        """(next available, next used): where a vhost backend takes up a queue that is served in order, nothing being
        in flight. What was put back is available."""
        return (self._next_avail - len(self._again)) & 0xFFFF, self._next_used

    def set_indexes(self, next_avail: int, next_used: int) -> None:
        """What a vhost backend has come to, with nothing in flight."""
        with self._lock:
            self._next_avail, self._next_used = next_avail & 0xFFFF, next_used & 0xFFFF
            self._again = []

    def save(self) -> QueueState:
        """While paused. What is in flight is taken again by `pop` after `restore`."""
        in_flight = [head for head, count in self._in_flight.items() for _ in range(count)]
        return QueueState(
            self.size,
            self.enabled,
            self.desc,
            self.avail,
            self.used,
            self._next_avail,
            self._next_used,
            in_flight + self._again,
        )

    def restore(self, state: QueueState) -> None:
        """Raises `Unsupported` when it cannot be so."""
        self.reset()
        self.size, self.desc, self.avail, self.used = state.size, state.desc, state.avail, state.used
        self.set_indexes(state.next_avail, state.next_used)
        if not state.enabled:
            return
        try:
            self.enable()
        except QueueBroken as error:
            raise Unsupported(f"saved state: {error}") from error
        if len(state.in_flight) > self.size:
            raise Unsupported(f"saved state: {self.label}: {len(state.in_flight)} buffers in flight")
        self._again = list(state.in_flight)


def passed(event: int, index: int, added: int) -> bool:
    """Whether the free-running 16-bit `index`, having grown by `added`, went beyond `event` (§2.7.7.2)."""
    return added > 0xFFFF or (index - event - 1) & 0xFFFF < added
