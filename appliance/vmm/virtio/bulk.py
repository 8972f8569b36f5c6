"""A queue from which buffers as drivers make them are taken many at one stroke, for a network device in Python.

`VirtQueue.pop` takes a buffer whatever it is made of, checks it, and finds out what is wrong with it. Here only such are taken
that need no more than a look, in a fraction of the time; all others are left in the ring, for `pop`.
"""

from __future__ import annotations

import mmap
import struct
from typing import Final

from appliance.vmm.memory import BadAddress
from appliance.vmm.virtio.consts import DESC_BYTES, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE
from appliance.vmm.virtio.queue import VirtQueue

GATHERED_PIECES: Final = 20
"""Descriptors of a buffer that is gathered, at most: Linux' largest frame has 19 (MAX_SKB_FRAGS, and two for its headers)."""

_DESCRIPTOR = struct.Struct("<QIHH")


class BulkQueue(VirtQueue):
    """A `VirtQueue` with `gather` and `scatter`."""

    def gather(self, *, most: int, longest: int) -> list[bytes]:
        """Copy out the next buffers, at most `most`, and give them back at one stroke; what was in each, in their order.

        It ends before the first that is longer than `longest` bytes, has anything to write to, more than `GATHERED_PIECES`
        descriptors, or such in an indirect table that do not follow each other: that, and whatever is wrong, is for `pop`.
        """
        with self._lock:
            memory, size = self.memory, self.size
            if not self.enabled or self._again:
                return []
            ahead = (memory.load_u16(self.avail + 2) - self._next_avail) & 0xFFFF
            if not ahead or ahead + self._outstanding > size:
                return []
            ring, at = memory.whole(), memory.offset_of(self.desc, DESC_BYTES * size)
            found: list[bytes] = []
            elements: list[int] = []
            for head in self._heads(min(ahead, most)):
                content = self._content(ring, at, head, longest)
                if content is None:
                    break
                found.append(content)
                elements += (head, 0)
            if found:
                self._next_avail = (self._next_avail + len(found)) & 0xFFFF
                self._give_back(elements)
            return found

    def _content(self, ring: mmap.mmap, at: int, head: int, longest: int) -> bytes | None:
        """Of the buffer that begins with descriptor `head`; None for any reason why `gather` cannot have it. Each descriptor
        is read once."""
        memory, size, number = self.memory, self.size, head
        table: bytes | mmap.mmap = ring
        parts: list[bytes] = []
        for place in range(1, GATHERED_PIECES + 1):
            if number >= size:
                return None
            address, length, flags, number = _DESCRIPTOR.unpack_from(table, at + DESC_BYTES * number)
            try:
                if flags == DESC_F_INDIRECT and place == 1 and self._indirect:
                    size, odd = divmod(length, DESC_BYTES)
                    if odd:
                        return None
                    table, at = memory.read(address, min(length, DESC_BYTES * GATHERED_PIECES)), 0
                    size = min(size, GATHERED_PIECES)
                    number = 0
                    continue
                longest -= length
                if flags & ~DESC_F_NEXT or not length or longest < 0:
                    return None
                parts.append(memory.read(address, length))
            except BadAddress:
                return None
            if not flags:
                return b"".join(parts)
        return None

    def scatter(self, data: memoryview, *, most: int, count_at: int) -> int:
        """Copy `data` into the next buffers, as many as it needs, and give them back at one stroke; how many they were.

        Their number is stored at `data[count_at]`, two bytes, before anything is copied. 0, with nothing taken, unless `most`
        buffers are enough, each is one writable descriptor of its own, and the first has room for that number, which is what
        drivers give a network device: `pop` deals with all others, and finds out what is wrong. A frame of 64 KiB takes a
        fifth of the time here.
        """
        with self._lock:
            taken = self._plain(len(data), most)
            if not taken or taken[0][2] < count_at + 2:
                return 0
            data[count_at : count_at + 2] = len(taken).to_bytes(2, "little")
            memory, position = self.memory, 0
            elements: list[int] = []
            for head, address, length in taken:
                piece = data[position : position + length]
                memory.write(address, piece)
                elements += (head, len(piece))
                position += length
            self._next_avail = (self._next_avail + len(taken)) & 0xFFFF
            self._give_back(elements)
            return len(taken)

    def _plain(self, wanted: int, most: int) -> list[tuple[int, int, int]]:
        """(head, address, length) of the next buffers that have room for `wanted` bytes together, looked at and not taken;
        none for any reason why `scatter` cannot have them."""
        if not self.enabled or self._again:
            return []
        memory, size, found = self.memory, self.size, []
        ahead = (memory.load_u16(self.avail + 2) - self._next_avail) & 0xFFFF
        if ahead + self._outstanding > size:
            return []
        table, at, is_ram = memory.whole(), memory.offset_of(self.desc, DESC_BYTES * size), memory.is_ram
        for head in self._heads(min(ahead, most)):
            if head >= size:
                return []
            address, length, flags, _ = _DESCRIPTOR.unpack_from(table, at + DESC_BYTES * head)
            if flags != DESC_F_WRITE or not length or not is_ram(address, length):
                return []
            found.append((head, address, length))
            wanted -= length
            if wanted <= 0:
                return found
        return []

    def _heads(self, count: int) -> memoryview:
        """The next `count` of the available ring: a copy, as integers (a format of `struct` for each count would be compiled
        anew, which takes longer than all the rest)."""
        first = self._next_avail % self.size
        straight = min(count, self.size - first)
        packed = self.memory.read(self.avail + 4 + 2 * first, 2 * straight)
        if straight < count:  # round the ring's end
            packed += self.memory.read(self.avail + 4, 2 * (count - straight))
        return memoryview(packed).cast("H")
