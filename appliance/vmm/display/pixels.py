"""Pixel formats: the guest's, a viewer's, and from one to the other. Pure; speed matters, so no pixel is touched alone.

A viewer's format is any true colour of 8, 16 or 32 bits (RFC 6143 §7.4). Conversion takes the picture apart into a plane
of bytes for each colour, and makes each byte of the viewer's pixels from tables of what each colour contributes to it:
`bytes.translate` and whole-plane OR do the work, in C.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

_FORMAT = struct.Struct(">BBBBHHHBBB3x")
FORMAT_BYTES: Final = _FORMAT.size
_ALL = bytes(range(256))


class SourceFormat(Enum):
    """How the guest lays out a pixel. Values: where the bytes of red, green and blue are, if they have bytes of their own."""

    XRGB32 = (2, 1, 0)  # a little-endian word: blue, green, red, nothing
    BGRX32 = (1, 2, 3)  # a big-endian word: nothing, red, green, blue
    RGB16 = ()  # a little-endian half word: 5, 6, 5 bits

    @property
    def bytes_per_pixel(self) -> int:
        return 2 if self is SourceFormat.RGB16 else 4

    @classmethod
    def of(cls, depth: int, *, big_endian: bool) -> SourceFormat | None:
        """As the adapter's registers say it; None for what it does not have."""
        match depth:
            case 32:
                return cls.BGRX32 if big_endian else cls.XRGB32
            case 16:
                return cls.RGB16
            case _:
                return None


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """A viewer's (RFC 6143 §7.4). Make one of bytes by `parse`, which checks it."""

    bits: int = 32
    depth: int = 24
    big_endian: bool = False
    true_colour: bool = True
    maxima: tuple[int, int, int] = (255, 255, 255)
    shifts: tuple[int, int, int] = (16, 8, 0)

    @property
    def bytes_per_pixel(self) -> int:
        return self.bits // 8

    def pack(self) -> bytes:
        return _FORMAT.pack(self.bits, self.depth, self.big_endian, self.true_colour, *self.maxima, *self.shifts)

    @classmethod
    def parse(cls, data: bytes) -> PixelFormat:
        """`ValueError` says what no pixel can be."""
        bits, depth, big_endian, true_colour, red, green, blue, *shifts = _FORMAT.unpack(data)
        if bits not in (8, 16, 32):
            raise ValueError(f"{bits} bits a pixel")
        if not true_colour:
            if bits != 8:
                raise ValueError(f"a colour map with {bits} bits a pixel")
            return cls(8, 8, big_endian=False, true_colour=False, maxima=PALETTE.maxima, shifts=PALETTE.shifts)
        for maximum, shift in zip((red, green, blue), shifts, strict=True):
            if maximum & (maximum + 1) or maximum << shift >= 1 << bits:
                raise ValueError(f"a colour of up to {maximum} shifted by {shift} in {bits} bits")
        return cls(bits, depth, bool(big_endian), True, (red, green, blue), (shifts[0], shifts[1], shifts[2]))


SERVER_FORMAT: Final = PixelFormat()
PALETTE: Final = PixelFormat(8, 8, maxima=(7, 7, 3), shifts=(0, 3, 6))  # what a colour map of ours stands for


def palette() -> list[tuple[int, int, int]]:
    """The 256 colours of the map, 16 bits each, such that a pixel of `PALETTE` is its own index."""
    maxima, shifts = PALETTE.maxima, PALETTE.shifts
    return [
        tuple((index >> shift & maximum) * 0xFFFF // maximum for maximum, shift in zip(maxima, shifts, strict=True))  # type: ignore[misc]
        for index in range(256)
    ]


def convert(data: bytes | bytearray, source: SourceFormat, wanted: PixelFormat) -> bytes | bytearray:
    """Whole pixels of a guest as the viewer wants them."""
    if source is SourceFormat.XRGB32 and wanted == SERVER_FORMAT:
        return data
    planes = _planes(data, source)
    size = wanted.bytes_per_pixel
    made = [_combined(planes, tables) for tables in _tables(wanted)]
    if size == 1:
        return made[0] or bytes(len(planes[0]))
    out = bytearray(size * len(planes[0]))
    for place, plane in enumerate(made):
        if plane is not None:
            out[place::size] = plane
    return out


Plane = bytes | bytearray
Tables = tuple[bytes | None, bytes | None, bytes | None]


def _planes(data: bytes | bytearray, source: SourceFormat) -> tuple[Plane, Plane, Plane]:
    """Red, green and blue, 8 bits each."""
    if source is SourceFormat.RGB16:
        low, high = data[0::2], data[1::2]
        green = _either(low.translate(_GREEN_LOW), high.translate(_GREEN_HIGH))
        return high.translate(_RED), green, low.translate(_BLUE)
    red, green, blue = source.value
    return data[red::4], data[green::4], data[blue::4]


def _combined(planes: tuple[Plane, Plane, Plane], tables: Tables) -> Plane | None:
    """One byte of each pixel; None when it is always zero."""
    made: Plane | None = None
    for plane, table in zip(planes, tables, strict=True):
        if table is not None:
            part = plane if table is _ALL else plane.translate(table)
            made = part if made is None else _either(made, part)
    return made


def _either(one: Plane, other: Plane) -> bytes:
    """The bits of both."""
    return (int.from_bytes(one, "little") | int.from_bytes(other, "little")).to_bytes(len(one), "little")


@lru_cache(maxsize=64)
def _tables(wanted: PixelFormat) -> tuple[Tables, ...]:
    """For each byte of a pixel: what red, green and blue put into it; None for nothing."""
    return tuple(
        (_table(wanted, 0, place), _table(wanted, 1, place), _table(wanted, 2, place))
        for place in range(wanted.bytes_per_pixel)
    )


def _table(wanted: PixelFormat, colour: int, place: int) -> bytes | None:
    maximum, shift = wanted.maxima[colour], wanted.shifts[colour]
    down = 8 * (wanted.bytes_per_pixel - 1 - place if wanted.big_endian else place)
    made = bytes(((value * maximum + 127) // 255 << shift) >> down & 0xFF for value in range(256))
    if made == _ALL:
        return _ALL
    return made if any(made) else None


def _wider(bits: int, value: int) -> int:
    """A colour of 5 or 6 bits as 8: the high bits again at the low end, so that white is white."""
    return value << 8 - bits | value >> 2 * bits - 8


# RGB16: high byte RRRRRGGG, low byte GGGBBBBB
_RED = bytes(_wider(5, byte >> 3) for byte in range(256))
_BLUE = bytes(_wider(5, byte & 0x1F) for byte in range(256))
_GREEN_HIGH = bytes(_wider(6, (byte & 7) << 3) for byte in range(256))
_GREEN_LOW = bytes(_wider(6, byte >> 5) for byte in range(256))
