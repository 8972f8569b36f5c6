"""Guest addresses are hostile: what is not wholly RAM is refused; what we write is in the dirty log."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.vmm.layout import GIB, HIGH_RAM, LOW_RAM_END, MIB, PAGE, VGA_HOLE, VGA_HOLE_END
from appliance.vmm.memory import BadAddress, GuestMemory, RamRegion, regions_of, union_of
from tests.fakes.machine import FakeMachine

LARGE = 5 * GIB  # nothing of it is touched


@pytest.fixture
def large() -> Iterator[GuestMemory]:
    memory = GuestMemory(LARGE, name="vm 101")
    yield memory
    memory.close()


def dirty(bitmap: bytes) -> set[int]:
    number = int.from_bytes(bitmap, "little")
    return {page for page in range(len(bitmap) * 8) if number >> page & 1}


def test_ram_lies_around_the_vga_window_and_the_pci_hole() -> None:
    assert regions_of(LARGE) == (
        RamRegion(0, VGA_HOLE, 0),
        RamRegion(VGA_HOLE_END, LOW_RAM_END - VGA_HOLE_END, VGA_HOLE_END),
        RamRegion(HIGH_RAM, LARGE - LOW_RAM_END, LOW_RAM_END),
    )
    assert regions_of(64 << 10) == (RamRegion(0, 64 << 10, 0),)
    assert regions_of(MIB)[-1].end == MIB


def test_regions_begin_at_whole_bytes_of_a_dirty_bitmap() -> None:
    for size in (MIB, 3 * GIB, LARGE):
        assert all(region.offset % (8 * PAGE) == 0 for region in regions_of(size))


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (VGA_HOLE, 1),
        (VGA_HOLE - 1, 2),
        (VGA_HOLE_END - 1, 2),
        (VGA_HOLE - PAGE, VGA_HOLE_END - VGA_HOLE + 2 * PAGE),  # across the whole window
        (LOW_RAM_END - 1, 2),
        (HIGH_RAM - 1, 2),
        (HIGH_RAM + LARGE - LOW_RAM_END, 1),
        (2**64 - 1, 1),
        (2**64 - 8, 16),
        (-1, 1),
        (0x1000, -1),
        (0x1000, 2**64),
    ],
)
def test_what_is_not_wholly_in_one_region_is_refused(large: GuestMemory, address: int, length: int) -> None:
    with pytest.raises(BadAddress, match="is not RAM"):
        large.offset_of(address, length)
    assert not large.is_ram(address, length)


@given(accesses=st.lists(st.tuples(st.integers(0, 2**34), st.integers(1, 2**33)), min_size=1, max_size=50))
def test_an_address_that_is_taken_is_in_a_region_and_maps_to_its_place(accesses: list[tuple[int, int]]) -> None:
    memory = GuestMemory(LARGE, name="vm 101")
    for address, length in accesses:
        inside = [each for each in regions_of(LARGE) if each.base <= address and address + length <= each.end]
        assert memory.is_ram(address, length) == bool(inside)
        if inside:
            assert memory.offset_of(address, length) == inside[0].offset + address - inside[0].base
    memory.close()


def test_memory_asks_for_huge_pages_as_it_is_touched(large: GuestMemory) -> None:
    start = f"{large.host_address(0, 1):x}-"
    with Path("/proc/self/smaps").open() as file:
        area = itertools.dropwhile(lambda line: not line.startswith(start), file)
        flags = next(line for line in area if line.startswith("VmFlags:")).split()
    assert "hg" in flags


def test_what_is_written_is_read_back_across_regions(large: GuestMemory) -> None:
    for address in (0x1000, VGA_HOLE_END, LOW_RAM_END - 8, HIGH_RAM, HIGH_RAM + LARGE - LOW_RAM_END - 8):
        large.write(address, address.to_bytes(8, "little"))
    for address in (0x1000, VGA_HOLE_END, LOW_RAM_END - 8, HIGH_RAM, HIGH_RAM + LARGE - LOW_RAM_END - 8):
        assert large.load_u64(address) == address
        assert large.load_u32(address) == address & 0xFFFF_FFFF
        assert large.load_u16(address) == address & 0xFFFF


def test_what_is_lent_to_be_read_cannot_be_written_and_keeps_memory_open(machine: FakeMachine) -> None:
    with machine.memory.lend([(0x1000, 16)]) as (part,), pytest.raises(TypeError):
        part[0] = 1
    with machine.memory.lend([(0x1000, 16)], writable=True) as (part,):
        part[:5] = b"hello"
        with pytest.raises(BufferError):
            machine.memory.close()
    assert machine.memory.read(0x1000, 5) == b"hello"


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3)), max_size=12))
def test_what_is_lent_is_all_of_it_in_order_and_in_one_piece_where_it_can_be(places: list[tuple[int, int]]) -> None:
    memory = GuestMemory(2 * MIB, name="vm 101")
    try:
        for address in (0x8000, VGA_HOLE_END):
            memory.write(address, bytes(range(64)))
        segments = [(base + at, length) for at, length in places for base in (0x8000, VGA_HOLE_END)]
        with memory.lend(segments) as parts:
            assert b"".join(parts) == b"".join(memory.read(*segment) for segment in segments)
            assert all(parts)
        straight = [(VGA_HOLE_END, 3), (VGA_HOLE_END + 3, 5), (VGA_HOLE_END + 8, 1)]
        with memory.lend(straight) as parts:
            assert [bytes(part) for part in parts] == [bytes(range(9))]
    finally:
        memory.close()


@pytest.mark.parametrize("segment", [(VGA_HOLE - 1, 2), (VGA_HOLE, 1), (2 * MIB - 1, 2), (-1, 1), (VGA_HOLE_END, -1)])
def test_what_is_not_ram_is_not_lent(segment: tuple[int, int]) -> None:
    memory = GuestMemory(2 * MIB, name="vm 101")
    with pytest.raises(BadAddress), memory.lend([(0x1000, 1), segment]):
        pass
    memory.close()


def test_a_word_is_never_seen_half_stored(machine: FakeMachine) -> None:
    """A driver on another processor reads an index while it is stored; here the kernel does, with the GIL free."""
    memory, seen, over = machine.memory, os.memfd_create("seen"), threading.Event()
    memory.store_u16(0x1002, 0x1234)

    def look() -> None:
        with memory.lend([(0x1002, 2)]) as (index,):
            for _ in range(400):
                os.writev(seen, [index] * 1024)
        over.set()

    driver = threading.Thread(target=look)
    driver.start()
    while not over.is_set():
        for _ in range(1000):
            memory.store_u16(0x1002, 0x1234)
    driver.join()
    try:
        assert os.pread(seen, 1 << 20, 0) == b"\x34\x12" * (400 * 1024)
    finally:
        os.close(seen)


def test_memory_given_back_reads_as_zeros_and_takes_no_room(machine: FakeMachine) -> None:
    memory = machine.memory
    memory.write(MIB, b"x" * MIB)
    before = memory.resident_bytes()
    memory.discard(MIB, MIB)
    assert memory.resident_bytes() == before - MIB
    assert memory.read(MIB, 16) == bytes(16)
    with pytest.raises(BadAddress):
        memory.discard(VGA_HOLE, PAGE)


def test_everything_that_writes_is_in_the_dirty_log_and_nothing_else(machine: FakeMachine) -> None:
    memory = machine.memory
    memory.write(0x1000, b"before")
    assert memory.take_dirty() == b""
    memory.start_dirty_log()
    memory.write(0x5FFF, b"ab")
    memory.store_u16(0x8000, 1)
    memory.store_u32(0x9000, 1)
    memory.store_u64(0xA000, 1)
    with memory.lend([(0x10000, PAGE), (0x10000 + PAGE, 1)], writable=True):
        pass
    with memory.lend([(0x20000, PAGE)]):
        pass
    memory.mark_dirty(0x30000, 1)
    memory.write(0x40000, b"")
    memory.discard(VGA_HOLE_END, 9 * PAGE)
    memory.read(0x50000, 100)
    hole = VGA_HOLE_END // PAGE
    assert dirty(memory.take_dirty()) == {5, 6, 8, 9, 0xA, 0x10, 0x11, 0x30, *range(hole, hole + 9)}
    assert dirty(memory.take_dirty()) == set()
    memory.write(0x1000, b"x")
    memory.stop_dirty_log()
    assert memory.take_dirty() == b""


@given(first=st.integers(0, 4095), count=st.integers(1, 200))
def test_any_run_of_pages_is_marked_whole(first: int, count: int) -> None:
    memory = GuestMemory(32 * MIB, name="vm 101")
    base = MIB
    try:
        memory.start_dirty_log()
        memory.mark_dirty(base + first * PAGE, count * PAGE)
        start = base // PAGE + first
        assert dirty(memory.take_dirty()) == set(range(start, start + count))
    finally:
        memory.close()


class Source:
    """Somebody in the kernel who logs."""

    def __init__(self) -> None:
        self.logs = False

    def start_dirty_log(self) -> None:
        self.logs = True

    def take_dirty(self) -> bytes:
        return b""

    def stop_dirty_log(self) -> None:
        self.logs = False


def test_a_source_that_comes_as_the_log_begins_is_in_it(machine: FakeMachine) -> None:
    """A vCPU's thread makes a vhost device live while a migration begins: between seeing that there is no log and being
    among the sources the log must not begin."""
    memory, source, begun = machine.memory, Source(), threading.Event()

    def begin() -> None:
        begun.set()
        memory.start_dirty_log()

    migration = threading.Thread(target=begin)

    class Sources(tuple[Source, ...]):
        def __iter__(self) -> Iterator[Source]:  # the last moment before the new source is among them
            if not begun.is_set():
                migration.start()
                begun.wait()
                migration.join(0.2)
            return super().__iter__()

    memory._sources = Sources()
    memory.add_dirty_source(source)
    migration.join()
    assert source.logs


def test_two_bitmaps_are_joined_in_the_length_of_the_first() -> None:
    assert union_of(b"\x01\x00", b"\x80\x01\xff") == b"\x81\x01"
    assert union_of(b"\x01\x00", b"\x80") == b"\x81\x00"


@pytest.mark.parametrize("size", [0, -PAGE, PAGE + 1])
def test_ram_is_whole_pages(size: int) -> None:
    with pytest.raises(ValueError, match=r"vm 101: .* are not whole pages"):
        GuestMemory(size, name="vm 101")
