"""What is visible of a frame buffer whose registers a guest may set to anything, and what of it has changed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.vmm.display.edid import EDID_BYTES, PREFERRED, edid
from appliance.vmm.display.pixels import PixelFormat, SourceFormat, convert, palette
from appliance.vmm.display.surface import (
    Mode,
    Picture,
    Rectangle,
    Surface,
    changed_columns,
    everything,
    merge,
    mode_of,
    rectangles,
    rows_written,
)

PAGE = 4096
MEMORY = 1 << 20
X32, X16 = SourceFormat.XRGB32, SourceFormat.RGB16


def mode(
    width: int = 64,
    height: int = 64,
    depth: int = 32,
    virtual: int = 0,
    offset: tuple[int, int] = (0, 0),
    *,
    enabled: bool = True,
    memory: int = MEMORY,
) -> Mode | None:
    return mode_of(
        memory,
        enabled=enabled,
        width=width,
        height=height,
        depth=depth,
        virtual_width=virtual,
        offset=offset,
        big_endian=False,
    )


class Card:
    """An adapter of 1 MiB."""

    def __init__(self) -> None:
        self.mode: Mode | None = None
        self.memory = bytearray(MEMORY)
        self.dirty = 0

    def write(self, offset: int, data: bytes) -> None:
        self.memory[offset : offset + len(data)] = data
        for page in range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1):
            self.dirty |= 1 << page

    def take_dirty(self) -> int:
        taken, self.dirty = self.dirty, 0
        return taken

    def bytes_at(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= MEMORY
        return bytes(self.memory[offset : offset + length])


@pytest.mark.parametrize(
    "wrong",
    [
        mode(enabled=False),
        mode(width=63),
        mode(height=0),
        mode(width=4097, memory=1 << 30),
        mode(height=2161, memory=1 << 30),
        mode(depth=24),
        mode(depth=8),
        mode(depth=0xFFFF),
        mode(width=640, height=480),
        mode(virtual=0xFFFF),
        mode(offset=(0, 0xFFFF)),
        mode(offset=(0, MEMORY // 256 - 63)),
    ],
)
def test_registers_that_mean_no_picture_within_the_frame_buffer_mean_none(wrong: Mode | None) -> None:
    assert wrong is None


def test_a_mode_may_end_with_the_frame_buffer() -> None:
    assert mode(offset=(0, MEMORY // 256 - 64)) == Mode(64, 64, X32, 256, MEMORY - 64 * 256)
    assert mode(depth=16, virtual=100, offset=(3, 2)) == Mode(64, 64, X16, 200, 406)


@given(
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.sampled_from([16, 32]),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
)
def test_every_mode_lies_in_the_frame_buffer(width: int, height: int, depth: int, virtual: int, x: int, y: int) -> None:
    found = mode(width % 700, height % 700, depth, virtual % 900, (x % 900, y % 900))
    if found is not None:
        assert found.offset + (found.height - 1) * found.stride + found.row_bytes <= MEMORY
        assert found.stride >= found.row_bytes


@given(st.integers(64, 200), st.integers(64, 100), st.integers(0, 300), st.integers(0, 3000), st.integers(0))
def test_the_rows_written_are_those_with_a_byte_in_a_page(
    width: int, height: int, more: int, offset: int, pages: int
) -> None:
    at = Mode(width, height, X32, 4 * (width + more), offset)
    pages &= (1 << 256) - 1
    expected = [
        row
        for row in range(height)
        if any(
            pages >> page & 1
            for page in range(
                (offset + row * at.stride) // PAGE, (offset + row * at.stride + at.row_bytes - 1) // PAGE + 1
            )
        )
    ]
    assert list(rows_written(at, pages)) == expected


def test_columns_that_differ_are_told_from_the_first_to_the_last() -> None:
    old = bytes(40)
    assert changed_columns(old, old, 4) is None
    assert changed_columns(old, bytes(11) + b"\1" + bytes(28), 4) == (2, 3)
    assert changed_columns(old, bytes(11) + b"\1" + bytes(20) + b"\x80" + bytes(7), 4) == (2, 9)
    assert changed_columns(old, b"\1" * 40, 4) == (0, 10)
    assert changed_columns(old, bytes(39) + b"\1", 2) == (19, 20)


@given(st.dictionaries(st.integers(0, 99), st.tuples(st.integers(0, 49), st.integers(50, 99))), st.integers(100, 5000))
def test_rectangles_cover_what_has_changed_and_do_not_overlap(spans: dict[int, tuple[int, int]], limit: int) -> None:
    covered: set[tuple[int, int]] = set()
    for area in rectangles(spans, limit):
        assert area.width * area.height <= limit
        pixels = {(x, y) for x in range(area.x, area.x + area.width) for y in range(area.y, area.y + area.height)}
        assert not covered & pixels
        covered |= pixels
    assert covered >= {(x, y) for y, (left, right) in spans.items() for x in (left, right - 1)}


def test_far_apart_changes_are_far_apart_rectangles_and_a_whole_picture_is_cut_at_the_limit() -> None:
    assert rectangles({3: (1, 4), 4: (2, 5), 9: (0, 1)}, 1000) == [Rectangle(1, 3, 4, 2), Rectangle(0, 9, 1, 1)]
    assert rectangles({3: (0, 1), 4: (2000, 2001)}, 1 << 16) == [Rectangle(0, 3, 1, 1), Rectangle(2000, 4, 1, 1)]
    assert rectangles(everything(100, 7), 300) == [
        Rectangle(0, 0, 100, 3),
        Rectangle(0, 3, 100, 3),
        Rectangle(0, 6, 100, 1),
    ]


def test_changes_merge_to_their_union() -> None:
    spans = {1: (5, 6)}
    merge(spans, {1: (2, 4), 2: (0, 1)})
    assert spans == {1: (2, 6), 2: (0, 1)}


def test_a_picture_is_cut_row_by_row() -> None:
    picture = Picture(4, 3, X16)
    for row in range(3):
        picture.set_row(row, bytes(range(8 * row, 8 * row + 8)))
    assert picture.cut(Rectangle(0, 1, 4, 2)) == bytes(range(8, 24))
    assert picture.cut(Rectangle(1, 1, 2, 2)) == bytes([10, 11, 12, 13, 18, 19, 20, 21])


def test_a_surface_without_a_mode_is_black_and_of_the_preferred_size() -> None:
    card = Card()
    surface = Surface(card)
    assert surface.look() == everything(*PREFERRED)
    assert surface.look() == {}
    card.write(0, b"x")
    assert surface.look() == {}
    assert not any(surface.picture.row(0))


def test_a_surface_tells_what_differs_not_what_was_written() -> None:
    card = Card()
    card.mode = mode()
    surface = Surface(card)
    assert surface.look() == everything(64, 64)
    card.write(256 * 5 + 8, b"\xff\0\0\0")
    assert surface.look() == {5: (2, 3)}
    assert surface.picture.row(5)[8:12] == b"\xff\0\0\0"
    card.write(256 * 5 + 8, b"\xff\0\0\0")
    assert surface.look() == {}
    card.write(64 * 256, b"behind the last row")
    assert surface.look() == {}


def test_another_size_is_another_picture_and_another_offset_the_same_one() -> None:
    card = Card()
    card.mode = mode()
    surface = Surface(card)
    surface.look()
    card.write(64 * 256 + 4, b"\1")
    card.mode = mode(offset=(0, 64))
    before = surface.picture
    assert surface.look() == {0: (1, 2)}
    assert surface.picture is before
    card.mode = mode(100, 80, 16)
    assert surface.look() == everything(100, 80)
    card.mode = None
    assert surface.look() == everything(100, 80)
    assert (surface.picture.width, surface.picture.height) == (100, 80)
    card.mode = mode(100, 80, 16)
    card.write(200 * 40 + 196, b"\1")
    surface.forget()
    assert not any(surface.picture.row(40))
    assert surface.look() == {40: (98, 99)}  # against black
    assert surface.picture.width == 100


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_colours_arrive_in_every_format(bits: int, big_endian: bool) -> None:
    maxima, shifts = {
        8: ((7, 7, 3), (0, 3, 6)),
        16: ((31, 63, 31), (11, 5, 0)),
        32: ((255, 255, 255), (0, 8, 16)),
    }[bits]
    form = PixelFormat(bits, bits, big_endian, maxima=maxima, shifts=shifts)
    chosen = random.Random(1)
    pixels = [tuple(chosen.randrange(256) for _ in range(3)) for _ in range(50)] + [(255, 255, 255), (0, 0, 0)]
    sources = {
        X32: b"".join(bytes([b, g, r, 0x55]) for r, g, b in pixels),
        SourceFormat.BGRX32: b"".join(bytes([0x55, r, g, b]) for r, g, b in pixels),
    }
    for source, data in sources.items():
        made = convert(data, source, form)
        assert len(made) == len(pixels) * bits // 8
        for number, colours in enumerate(pixels):
            value = int.from_bytes(made[number * bits // 8 :][: bits // 8], "big" if big_endian else "little")
            for colour, maximum, shift in zip(colours, maxima, shifts, strict=True):
                assert (value >> shift & maximum) == (colour * maximum + 127) // 255


def test_sixteen_bits_become_eight_a_colour_with_white_white() -> None:
    data = b"".join(value.to_bytes(2, "little") for value in (0xFFFF, 0, 0xF800, 0x07E0, 0x001F, 0x0400))
    made = convert(data, X16, PixelFormat())
    assert [made[at : at + 3].hex() for at in range(0, 24, 4)] == [
        "ffffff",
        "000000",
        "0000ff",
        "00ff00",
        "ff0000",
        "008200",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        PixelFormat(bits=24),
        PixelFormat(bits=0),
        PixelFormat(maxima=(254, 255, 255)),
        PixelFormat(shifts=(25, 8, 0)),
        PixelFormat(bits=16, maxima=(31, 63, 31), shifts=(200, 5, 0)),
        PixelFormat(bits=16, true_colour=False),
    ],
)
def test_a_format_no_pixel_can_have_is_refused(wrong: PixelFormat) -> None:
    with pytest.raises(ValueError):
        PixelFormat.parse(wrong.pack())


def test_a_colour_map_stands_for_a_format_of_ours() -> None:
    form = PixelFormat.parse(PixelFormat(bits=8, depth=8, true_colour=False, maxima=(0, 0, 0)).pack())
    assert not form.true_colour
    made = convert(bytes([0xFF, 0, 0, 0, 0, 0xFF, 0, 0, 0, 0, 0xFF, 0]), X32, form)
    assert [palette()[index] for index in made] == [(0, 0, 0xFFFF), (0, 0xFFFF, 0), (0xFFFF, 0, 0)]


def test_the_edid_is_sound_and_its_preferred_mode_is_read_as_firmware_reads_it() -> None:
    block = edid("Appliance with a long name")
    assert len(block) == EDID_BYTES
    assert sum(block) % 256 == 0
    assert block[:8] == bytes.fromhex("00ffffffffffff00")
    width, height = block[56] | (block[58] & 0xF0) << 4, block[59] | (block[61] & 0xF0) << 4
    assert (width, height) == PREFERRED
    assert 55 < int.from_bytes(block[54:56], "little") * 10_000 / ((width + 160) * (height + 23)) < 61
