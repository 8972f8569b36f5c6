"""PVE's terminal packets, from the browser to the server (pve-xtermjs README; termproxy). Pure.

    0:LENGTH:BYTES     type BYTES (LENGTH counts bytes)
    1:COLUMNS:ROWS:    the terminal's new size
    2                  ping

Packets may be split over messages or share one. Bytes to the browser are the terminal's own, unframed. Everything here
is hostile: `FramingError` names the first mistake, and the connection ends.
"""

from __future__ import annotations

from dataclasses import dataclass

DATA_LIMIT_BYTES = 64 << 10
HEADER_LIMIT_BYTES = 24
SIZE_LIMIT = 1000


class FramingError(ValueError):
    """The browser broke the protocol."""


@dataclass(frozen=True, slots=True)
class Typed:
    """Bytes for the terminal."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Resized:
    """The terminal's new size."""

    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Ping:
    """The browser is still there."""


Packet = Typed | Resized | Ping


class PacketParser:
    """Cuts what comes from a browser into packets; holds at most one incomplete packet."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Packet]:
        """The packets that are complete now. Raises `FramingError`; nothing may be fed after that."""
        self._buffer += data
        packets: list[Packet] = []
        position = 0
        while position < len(self._buffer):
            packet, position_after = self._next(position)
            if packet is None:
                break
            packets.append(packet)
            position = position_after
        del self._buffer[:position]
        return packets

    def _next(self, start: int) -> tuple[Packet | None, int]:
        match self._buffer[start : start + 1]:
            case b"0":
                return self._typed(start)
            case b"1":
                return self._resized(start)
            case b"2":
                return Ping(), start + 1
            case other:
                raise FramingError(f"unknown packet type {bytes(other)!r}")

    def _typed(self, start: int) -> tuple[Packet | None, int]:
        fields = self._fields(start, 2)
        if fields is None:
            return None, start
        _, length, begin = fields
        if length > DATA_LIMIT_BYTES:
            raise FramingError(f"packet of {length} bytes, at most {DATA_LIMIT_BYTES} are accepted")
        if len(self._buffer) < begin + length:
            return None, start
        return Typed(bytes(self._buffer[begin : begin + length])), begin + length

    def _resized(self, start: int) -> tuple[Packet | None, int]:
        fields = self._fields(start, 3)
        if fields is None:
            return None, start
        _, columns, rows, end = fields
        if columns > SIZE_LIMIT or rows > SIZE_LIMIT:
            raise FramingError(f"terminal size {columns}x{rows}")
        # a terminal that is not laid out yet has no size: nothing to tell the guest
        return (Resized(columns, rows) if columns and rows else Ping()), end

    def _fields(self, start: int, count: int) -> list[int] | None:
        """`count` decimal numbers, each ended by a colon, and the position after them; None while incomplete."""
        header = self._buffer[start : start + HEADER_LIMIT_BYTES]
        parts = header.split(b":", count)
        if len(parts) <= count:
            if len(header) == HEADER_LIMIT_BYTES or not all(part.isdigit() for part in parts if part):
                raise FramingError("malformed packet header")
            return None
        numbers = parts[:count]
        if not all(part.isdigit() for part in numbers):
            raise FramingError("malformed packet header")
        return [*map(int, numbers), start + sum(len(part) + 1 for part in numbers)]
