"""Address spaces of a machine: the ports and the memory that is no RAM. vCPU threads read and write them.

A handler sees offsets into its own range and plain little-endian integers. It takes its device's lock itself; it never
blocks. Readers look at an immutable table, so that adding and removing ranges (BARs move at run time) needs no lock on
their side; a vCPU that is in a handler while its range is removed finishes there.

What nobody claims reads as all ones and ignores writes, as on a PC.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

from appliance.errors import Conflict

_REMEMBERED = 4096


class BusHandler(Protocol):
    """A device's registers. `size` is 1, 2, 4 or 8 and the access lies within the range wholly."""

    def read(self, offset: int, size: int) -> int:
        """The value, 0 <= value < 256**size."""

    def write(self, offset: int, size: int, value: int) -> None:
        """0 <= value < 256**size."""


@dataclass(frozen=True, slots=True)
class BusRange:
    """`length` addresses from `base`."""

    base: int
    length: int
    handler: BusHandler
    name: str

    @property
    def end(self) -> int:
        return self.base + self.length


class Bus:
    """One address space. `add` and `remove` from any thread; `read` and `write` from vCPU threads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._table: tuple[list[int], list[BusRange]] = ([], [])
        self._remembered: dict[int, BusRange] = {}

    def add(self, base: int, length: int, handler: BusHandler, *, name: str) -> BusRange:
        """Claim addresses. Raises `Conflict` where another range has some of them."""
        added = BusRange(base, length, handler, name)
        with self._lock:
            for other in self._table[1]:
                if other.base < added.end and added.base < other.end:
                    raise Conflict(f"{self.name} {base:#x}-{added.end - 1:#x}: {name} would overlap {other.name}")
            self._publish(sorted([*self._table[1], added], key=lambda each: each.base))
        return added

    def remove(self, claimed: BusRange) -> None:
        """Give a range back; once is enough, twice is harmless."""
        with self._lock:
            self._publish([each for each in self._table[1] if each is not claimed])

    def _publish(self, ranges: list[BusRange]) -> None:
        self._table = ([each.base for each in ranges], ranges)
        self._remembered = {}

    def find(self, address: int) -> BusRange | None:
        """Whose `address` is."""
        remembered = self._remembered
        found = remembered.get(address)
        if found is not None:
            return found
        bases, ranges = self._table
        number = bisect_right(bases, address) - 1
        if number < 0 or address >= ranges[number].end:
            return None
        if len(remembered) < _REMEMBERED:  # a guest may try every address there is
            remembered[address] = ranges[number]
        return ranges[number]

    def read(self, address: int, size: int) -> int:
        """As the guest sees it."""
        found = self.find(address)
        if found is None or address + size > found.end:
            return (1 << (8 * size)) - 1
        return found.handler.read(address - found.base, size)

    def write(self, address: int, size: int, value: int) -> None:
        """As the guest does it."""
        found = self.find(address)
        if found is not None and address + size <= found.end:
            found.handler.write(address - found.base, size, value)

    def ranges(self) -> list[BusRange]:
        """All of them by address, for people and tests."""
        return list(self._table[1])


class Bytewise:
    """Lets a device of byte-wide registers answer accesses of any width, lowest address first."""

    def read_byte(self, offset: int) -> int:
        raise NotImplementedError

    def write_byte(self, offset: int, value: int) -> None:
        raise NotImplementedError

    def read(self, offset: int, size: int) -> int:
        value = 0
        for number in range(size):
            value |= self.read_byte(offset + number) << (8 * number)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        for number in range(size):
            self.write_byte(offset + number, value >> (8 * number) & 0xFF)
