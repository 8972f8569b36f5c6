"""What of the frame buffer is visible, and what of it has changed. Pure but for `Surface`, which keeps a copy.

The guest may change mode, stride and offset at any moment, between any two looks: each look takes the registers once and
makes a `Mode` of them or refuses (`mode_of`); everything after it goes by that. A viewer may see a torn picture then, and
the next look mends it.

`Surface.look` copies the rows whose pages were written and compares them with what was there, so that a page rewritten
with what it had costs no viewer anything. It is called in a thread, one call at a time; a `Picture` may be read meanwhile
by others: rows change whole, and its size and format never.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from appliance.vmm.display.edid import PREFERRED
from appliance.vmm.display.pixels import SourceFormat
from appliance.vmm.layout import PAGE

SMALLEST: Final = 64  # as bochs-display has it
WIDEST, TALLEST = 4096, 2160
_LITTLE_PIXELS: Final = 256  # sending so many more costs less than another rectangle

Spans = dict[int, tuple[int, int]]
"""By row: the columns from, to (exclusive)."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A picture in the frame buffer. All of it lies inside: see `mode_of`."""

    width: int
    height: int
    format: SourceFormat
    stride: int  # bytes from row to row
    offset: int  # of the first row

    @property
    def row_bytes(self) -> int:
        return self.width * self.format.bytes_per_pixel


@dataclass(frozen=True, slots=True)
class Rectangle:
    x: int
    y: int
    width: int
    height: int


def mode_of(
    memory_bytes: int,
    *,
    enabled: bool,
    width: int,
    height: int,
    depth: int,
    virtual_width: int,
    offset: tuple[int, int],
    big_endian: bool,
) -> Mode | None:
    """What a guest's registers mean; None when nothing is to be seen, or it would not lie in the frame buffer."""
    form = SourceFormat.of(depth, big_endian=big_endian)
    if not enabled or form is None or not SMALLEST <= width <= WIDEST or not SMALLEST <= height <= TALLEST:
        return None
    stride = max(width, virtual_width) * form.bytes_per_pixel
    first = offset[1] * stride + offset[0] * form.bytes_per_pixel
    if first + (height - 1) * stride + width * form.bytes_per_pixel > memory_bytes:
        return None
    return Mode(width, height, form, stride, first)


def rows_written(mode: Mode, pages: int) -> Iterator[int]:
    """The rows, in order, that have a byte in one of `pages` (bit n: page n of the frame buffer)."""
    end = mode.offset + (mode.height - 1) * mode.stride + mode.row_bytes
    following = 0  # the first row not told yet
    pages = pages >> mode.offset // PAGE << mode.offset // PAGE
    while pages:
        page = (pages & -pages).bit_length() - 1
        pages &= pages - 1
        start = page * PAGE
        if start >= end:
            return
        # a row's bytes are row_bytes of its stride: the first that ends behind the page's start, the last that begins in it
        first = max(following, -(-(start - mode.offset - mode.row_bytes + 1) // mode.stride))
        last = min(mode.height - 1, (start + PAGE - 1 - mode.offset) // mode.stride)
        yield from range(first, last + 1)
        following = max(following, last + 1)


def changed_columns(old: bytes | bytearray, new: bytes, bytes_per_pixel: int) -> tuple[int, int] | None:
    """The columns from, to (exclusive) between which two rows differ; None when they do not."""
    if old == new:
        return None
    size = bytes_per_pixel
    if old[:size] != new[:size] and old[-size:] != new[-size:]:
        return 0, len(new) // size  # a whole new picture is found out five times as fast
    difference = int.from_bytes(old, "little") ^ int.from_bytes(new, "little")
    first = (difference & -difference).bit_length() - 1
    last = difference.bit_length() - 1
    return first // 8 // bytes_per_pixel, last // 8 // bytes_per_pixel + 1


def merge(into: Spans, more: Mapping[int, tuple[int, int]]) -> None:
    """What has changed in either."""
    for row, (left, right) in more.items():
        known = into.get(row)
        into[row] = (left, right) if known is None else (min(left, known[0]), max(right, known[1]))


def everything(width: int, height: int) -> Spans:
    """All has changed."""
    return dict.fromkeys(range(height), (0, width))


def rectangles(spans: Spans, limit_pixels: int) -> list[Rectangle]:
    """Rectangles over all of `spans`: neighbouring rows together while they are alike and there are at most
    `limit_pixels` of them."""
    found: list[Rectangle] = []
    top = left = right = pixels = 0
    following = -1  # the row below the last of the rectangle that is being made
    for row in sorted(spans):
        start, end = spans[row]
        if row == following:
            wider_left, wider_right = min(left, start), max(right, end)
            area, own = (wider_right - wider_left) * (row - top + 1), pixels + end - start
            if area <= limit_pixels and area <= 2 * own + _LITTLE_PIXELS:
                left, right, pixels, following = wider_left, wider_right, own, row + 1
                continue
        if following > 0:
            found.append(Rectangle(left, top, right - left, following - top))
        top, left, right, pixels, following = row, start, end, end - start, row + 1
    if following > 0:
        found.append(Rectangle(left, top, right - left, following - top))
    return found


class Picture:
    """A copy of what is visible in one mode, without gaps between its rows. Black at first."""

    def __init__(self, width: int, height: int, form: SourceFormat) -> None:
        self.width, self.height, self.format = width, height, form
        self.row_bytes = width * form.bytes_per_pixel
        self._data = bytearray(self.row_bytes * height)

    def row(self, number: int) -> bytearray:
        return self._data[number * self.row_bytes : (number + 1) * self.row_bytes]

    def set_row(self, number: int, data: bytes) -> None:
        assert len(data) == self.row_bytes
        self._data[number * self.row_bytes : (number + 1) * self.row_bytes] = data

    def cut(self, area: Rectangle) -> bytes | bytearray:
        """The pixels of `area`, which is inside, row by row."""
        size = self.format.bytes_per_pixel
        if area.width == self.width:
            return self._data[area.y * self.row_bytes : (area.y + area.height) * self.row_bytes]
        starts = range(area.y * self.row_bytes + area.x * size, (area.y + area.height) * self.row_bytes, self.row_bytes)
        return b"".join([self._data[start : start + area.width * size] for start in starts])


class Source(Protocol):
    """What a surface looks at: a `BochsDisplay`, or a test's."""

    @property
    def mode(self) -> Mode | None: ...

    def take_dirty(self) -> int: ...

    def bytes_at(self, offset: int, length: int) -> bytes: ...


class Surface:
    """The last picture there was. Before the first one it is black, of the size that the EDID prefers."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._mode: Mode | None = None
        self._stale = True
        self.picture = Picture(*PREFERRED, SourceFormat.XRGB32)

    def forget(self) -> None:
        """Nobody looks any more: give back the memory. The size stays."""
        self._mode, self._stale = None, True
        self.picture = Picture(self.picture.width, self.picture.height, self.picture.format)

    def look(self) -> Spans:
        """Bring `picture` up to date, which is another one when size or format have changed: everything has then.
        Returns what has changed. Blocking, for a thread. Raises `HostError`."""
        pages = self._source.take_dirty()
        mode = self._source.mode
        if mode != self._mode:
            self._mode, self._stale = mode, True
        if mode is None:
            return self._blank()
        picture = self.picture
        is_new = (picture.width, picture.height, picture.format) != (mode.width, mode.height, mode.format)
        if is_new:
            picture = Picture(mode.width, mode.height, mode.format)
        changed: Spans = {}
        for row in range(mode.height) if self._stale else rows_written(mode, pages):
            new = self._source.bytes_at(mode.offset + row * mode.stride, mode.row_bytes)
            columns = changed_columns(picture.row(row), new, mode.format.bytes_per_pixel)
            if columns is not None:
                picture.set_row(row, new)
                changed[row] = columns
        self._stale, self.picture = False, picture
        return everything(mode.width, mode.height) if is_new else changed

    def _blank(self) -> Spans:
        if not self._stale:
            return {}
        self._stale = False
        old = self.picture
        self.picture = Picture(old.width, old.height, old.format)
        return everything(old.width, old.height)
