"""Address spaces of a machine: the ports and the memory that is no RAM. vCPU threads read and write them.

A handler sees offsets into its own range and plain little-endian integers. It takes its device's lock itself; it never
blocks. Readers look at an immutable table, so that adding and removing ranges (BARs move at run time) needs no lock on
their side; a vCPU that is in a handler while its range is removed finishes there.

What nobody claims reads as all ones and ignores writes, as on a PC.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from appliance.errors import Conflict

_REMEMBERED = 4096

_Target = tuple[int, int, Callable[[int, int], int], Callable[[int, int, int], None]]
"""Bytes from this address to the range's end, its offset in the range, and the handler's two methods."""


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


def _read_nothing(offset: int, size: int) -> int:
    return (1 << (8 * size)) - 1


def _write_nothing(offset: int, size: int, value: int) -> None:
    return


_NOBODY: _Target = (8, 0, _read_nothing, _write_nothing)


class Bus:
    """One address space. `add` and `remove` from any thread; `read` and `write` from vCPU threads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._table: tuple[list[int], list[BusRange]] = ([], [])
        self._remembered: dict[int, _Target] = {}

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
        """The table first: a reader that sees the new memory of targets never fills it from the old table."""
        self._table = ([each.base for each in ranges], ranges)
        self._remembered = {}

    def find(self, address: int) -> BusRange | None:
        """Whose `address` is."""
        bases, ranges = self._table
        number = bisect_right(bases, address) - 1
        if number < 0 or address >= ranges[number].end:
            return None
        return ranges[number]

    def read(self, address: int, size: int) -> int:
        """As the guest sees it."""
        target = self._remembered.get(address) or self._target(address)
        if size > target[0]:
            return (1 << (8 * size)) - 1
        return target[2](target[1], size)

    def write(self, address: int, size: int, value: int) -> None:
        """As the guest does it."""
        target = self._remembered.get(address) or self._target(address)
        if size <= target[0]:
            target[3](target[1], size, value)

    def ranges(self) -> list[BusRange]:
        """All of them by address, for people and tests."""
        return list(self._table[1])

    def _target(self, address: int) -> _Target:
        """Who answers at `address`; remembered, up to a bound, as a guest may try every address there is."""
        remembered = self._remembered  # before the table: see `_publish`
        found = self.find(address)
        if found is None:
            return _NOBODY
        target = (found.end - address, address - found.base, found.handler.read, found.handler.write)
        if len(remembered) < _REMEMBERED:
            remembered[address] = target
        return target


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
