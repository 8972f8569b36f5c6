"""An access reaches the range that has it; what nobody has reads as ones; ranges come and go under running vCPUs."""

from __future__ import annotations

import threading

import pytest

from appliance.errors import Conflict
from appliance.vmm.bus import Bus, Bytewise


class Cells(Bytewise):
    """Bytes."""

    def __init__(self, content: bytes = bytes(16)) -> None:
        self.content = bytearray(content)

    def read_byte(self, offset: int) -> int:
        return self.content[offset]

    def write_byte(self, offset: int, value: int) -> None:
        self.content[offset] = value


@pytest.fixture
def bus() -> Bus:
    return Bus("port")


def test_an_access_reaches_its_range_by_offset(bus: Bus) -> None:
    low, high = Cells(), Cells()
    bus.add(0x60, 4, low, name="low")
    bus.add(0x64, 16, high, name="high")
    for _ in range(2):  # found, then remembered
        bus.write(0x62, 2, 0xBBAA)
        bus.write(0x64, 4, 0x44332211)
        assert (bus.read(0x63, 1), bus.read(0x64, 4), bus.read(0x73, 1)) == (0xBB, 0x44332211, 0)
    assert low.content[:4].hex() == "0000aabb"
    assert high.content[:4].hex() == "11223344"


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF), (8, 2**64 - 1)])
def test_what_nobody_claims_reads_as_ones_and_ignores_writes(bus: Bus, size: int, ones: int) -> None:
    cells = Cells(b"\x5a" * 16)
    bus.add(0x10, 4, cells, name="cells")
    for address in (0, 0x14, 0xFFFF_FFFF_FFFF_FFFF, 0x14 - size + 1 if size > 1 else 0x14):
        bus.write(address, size, 0)
        assert bus.read(address, size) == ones
    assert cells.content == b"\x5a" * 16


def test_ranges_may_not_overlap_and_the_conflict_names_both(bus: Bus) -> None:
    bus.add(0x3F8, 8, Cells(), name="serial0")
    for base, length in ((0x3F8, 8), (0x3FF, 1), (0x3F0, 9), (0x3E0, 0x100)):
        with pytest.raises(Conflict, match="floppy would overlap serial0"):
            bus.add(base, length, Cells(), name="floppy")
    bus.add(0x3F0, 8, Cells(), name="floppy")
    assert [each.name for each in bus.ranges()] == ["floppy", "serial0"]


def test_a_range_that_moves_answers_at_its_new_place_only(bus: Bus) -> None:
    cells = Cells(b"\x01" * 16)
    claimed = bus.add(0x1000, 16, cells, name="bar")
    assert bus.read(0x1000, 1) == 1
    bus.remove(claimed)
    bus.remove(claimed)
    assert bus.read(0x1000, 1) == 0xFF
    bus.add(0x2000, 16, cells, name="bar")
    assert (bus.read(0x1000, 1), bus.read(0x2000, 1)) == (0xFF, 1)


def test_a_guest_that_tries_every_address_fills_no_memory(bus: Bus) -> None:
    bus.add(0, 1 << 20, Zeros(), name="large")
    for address in range(20_000):
        bus.read(address, 1)
        bus.read((1 << 30) + address, 1)
    assert len(bus._remembered) <= 4096


def test_readers_see_a_range_wholly_or_not_at_all_while_it_comes_and_goes(bus: Bus) -> None:
    stop, seen, wrong = threading.Event(), set[int](), list[int]()

    def read() -> None:
        while not stop.is_set():
            value = bus.read(0x100, 4)
            seen.add(value)
            if value not in (0x01010101, 0xFFFF_FFFF):
                wrong.append(value)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(2000):
        claimed = bus.add(0x100, 16, Cells(b"\x01" * 16), name="bar")
        bus.remove(claimed)
    claimed = bus.add(0x100, 16, Cells(b"\x01" * 16), name="bar")
    stop.set()
    reader.join()
    assert not wrong
    bus.remove(claimed)
    assert bus.read(0x100, 4) == 0xFFFF_FFFF  # nothing stale is remembered


class Zeros:
    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        return
