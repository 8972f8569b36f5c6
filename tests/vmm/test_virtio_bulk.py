"""Many buffers at one stroke: what taking them one by one does, and all odd buffers are left to that."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.vmm.layout import MIB
from appliance.vmm.memory import GuestMemory
from appliance.vmm.netdev.backend import NetStatistics
from appliance.vmm.netdev.filter import ReceiveFilter
from appliance.vmm.netdev.receive import Fed, Receiver
from appliance.vmm.netdev.transmit import Transmitter
from appliance.vmm.virtio.bulk import GATHERED_PIECES, BulkQueue
from appliance.vmm.virtio.consts import DESC_BYTES, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE
from appliance.vmm.virtio.queue import QueueBroken
from tests.fakes.cable import FakeCable
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import BASE, DriverQueue

SIZE = 16
MAC = bytes.fromhex("020000000001")
DESCRIPTOR = struct.Struct("<QIHH")


class OneByOne(BulkQueue):
    """A queue that always goes the long way."""

    def gather(self, *, most: int, longest: int) -> list[bytes]:
        return []

    def scatter(self, data: memoryview, *, most: int, count_at: int) -> int:
        return 0


@contextmanager
def cable_with(frames: Sequence[bytes] = ()) -> Iterator[FakeCable]:
    """One on which these wait for the guest."""
    cable = FakeCable()
    try:
        for frame in frames:
            cable.arrive(MAC + bytes(6) + b"\x08\x00" + frame)
        yield cable
    finally:
        cable.close()


def queue_with(memory: GuestMemory, kind: type[BulkQueue], *, indirect: bool = False) -> tuple[BulkQueue, DriverQueue]:
    driver = DriverQueue(memory, BASE, SIZE, indirect=indirect)
    queue = kind(memory, SIZE, label="vm 101: net0: queue 0", interrupt=lambda: None)
    queue.set_features(event_idx=True, indirect=indirect)
    queue.desc, queue.avail, queue.used = driver.desc, driver.avail, driver.used_ring
    queue.enable()
    return queue, driver


def received(kind: type[BulkQueue], rounds: list[tuple[list[list[int]], list[bytes]]]) -> list[object]:
    """What a guest sees that makes those buffers available (each a chain of lengths), and then is sent those frames."""
    memory = GuestMemory(4 * MIB, name="vm 101")
    try:
        queue, driver = queue_with(memory, kind)
        told: list[object] = []
        for buffers, frames in rounds:
            for lengths in buffers:
                if len(lengths) <= len(driver._free):
                    driver.add([], lengths)
            with cable_with(frames) as cable:
                receiver = Receiver(queue, cable, 0, statistics := NetStatistics())
                receiver.filter = ReceiveFilter(MAC)
                try:
                    told.append(receiver.run())
                except QueueBroken as error:
                    told.append(str(error))
            told += [(head, written, driver.read_back(head)) for head, written in driver.used()]
            told.append((statistics, queue.indexes, queue.in_flight))
        return told
    finally:
        memory.close()


plain = st.integers(1, 700).map(lambda length: [length])
chained = st.lists(st.integers(1, 700), min_size=1, max_size=3)
frames = st.lists(st.integers(1, 3000).map(lambda length: bytes(number % 251 for number in range(length))), max_size=4)


@given(st.lists(st.tuples(st.lists(st.one_of(plain, plain, chained), max_size=SIZE), frames), max_size=6))
def test_a_guest_that_receives_sees_no_difference(rounds: list[tuple[list[list[int]], list[bytes]]]) -> None:
    assert received(BulkQueue, rounds) == received(OneByOne, rounds)


@dataclass(frozen=True)
class Sent:
    """A buffer a guest makes available: its pieces, and how it is spoilt."""

    pieces: list[bytes]
    wrong: str = ""


def transmitted(kind: type[BulkQueue], rounds: list[list[Sent]], *, indirect: bool) -> list[object]:
    """What a guest sees that makes those buffers available, and what has reached the cable."""
    memory = GuestMemory(4 * MIB, name="vm 101")
    try:
        queue, driver = queue_with(memory, kind, indirect=indirect)
        told: list[object] = []
        for buffers in rounds:
            for each in buffers:
                if (1 if indirect else len(each.pieces)) <= len(driver._free):
                    spoil(driver, driver.add(each.pieces), each.wrong)
            with cable_with() as cable:
                transmitter = Transmitter(queue, cable, 0, statistics := NetStatistics())
                try:
                    told.append(transmitter.run())
                except QueueBroken as error:
                    told.append(str(error))
            told += [driver.used(), cable.sent, statistics, queue.indexes, queue.in_flight]
        return told
    finally:
        memory.close()


def spoil(driver: DriverQueue, head: int, wrong: str) -> None:
    """Make the first descriptor of the buffer (of its table, where it has one) what a driver must not make it."""
    at = driver.desc + DESC_BYTES * head
    address, _, flags, _ = DESCRIPTOR.unpack(driver.memory.read(at, DESC_BYTES))
    if flags & DESC_F_INDIRECT:
        at = address
    address, length, flags, following = DESCRIPTOR.unpack(driver.memory.read(at, DESC_BYTES))
    match wrong:
        case "writable":
            flags |= DESC_F_WRITE
        case "outside of RAM":
            address = 1 << 40
        case "empty":
            length = 0
        case "endless":
            flags, following = flags | DESC_F_NEXT, 0
        case "a table":
            flags |= DESC_F_INDIRECT
    driver.memory.write(at, DESCRIPTOR.pack(address, length, flags, following))


pieces = st.lists(st.integers(1, 300), min_size=1, max_size=GATHERED_PIECES + 2).map(
    lambda lengths: [bytes(12) + bytes(lengths[0]), *map(bytes, lengths[1:])]
)
spoilt = st.sampled_from([""] * 8 + ["writable", "outside of RAM", "empty", "endless", "a table"])
sent = st.builds(Sent, pieces, spoilt)


@given(st.lists(st.lists(sent, max_size=SIZE), max_size=5), st.booleans())
def test_a_guest_that_sends_sees_no_difference(rounds: list[list[Sent]], indirect: bool) -> None:
    assert transmitted(BulkQueue, rounds, indirect=indirect) == transmitted(OneByOne, rounds, indirect=indirect)


def test_the_next_buffers_are_copied_out_up_to_the_first_that_is_odd(machine: FakeMachine) -> None:
    queue, driver = queue_with(machine.memory, BulkQueue, indirect=True)
    heads = [driver.add([b"one"]), driver.add([b"t", b"w", b"o"]), driver.add([b"ask"], [10]), driver.add([b"four"])]
    assert queue.gather(most=SIZE, longest=100) == [b"one", b"two"]
    assert driver.used() == [(heads[0], 0), (heads[1], 0)]
    assert queue.gather(most=SIZE, longest=100) == []
    chain = queue.pop()
    assert chain is not None
    assert chain.head == heads[2]
    assert queue.gather(most=SIZE, longest=3) == [], "it is longer"
    assert queue.gather(most=0, longest=100) == []
    assert queue.gather(most=1, longest=100) == [b"four"]


def test_a_sender_goes_round_the_ends_of_both_rings(machine: FakeMachine) -> None:
    queue, driver = queue_with(machine.memory, BulkQueue)
    for number in range(3 * SIZE):
        heads = [driver.add([bytes([number, place])]) for place in range(5)]
        assert queue.gather(most=SIZE, longest=100) == [bytes([number, place]) for place in range(5)]
        assert driver.used() == [(head, 0) for head in heads]


def test_the_ends_of_both_rings_are_gone_round(machine: FakeMachine) -> None:
    queue, driver = queue_with(machine.memory, BulkQueue)
    for number in range(3 * SIZE):
        heads = [driver.add([], [100]) for _ in range(5)]
        data = bytearray([number]) * 450
        assert queue.scatter(memoryview(data), most=SIZE, count_at=10) == 5
        assert data[10:12] == b"\x05\x00"
        assert driver.used() == [(head, 100) for head in heads[:4]] + [(heads[4], 50)]
        assert b"".join(driver.read_back(head) for head in heads)[:450] == data


def test_what_is_written_is_in_the_dirty_log(machine: FakeMachine) -> None:
    queue, driver = queue_with(machine.memory, BulkQueue)
    head = driver.add([], [5000])
    machine.memory.start_dirty_log()
    assert queue.scatter(memoryview(bytearray(5000)), most=SIZE, count_at=10)
    pages = int.from_bytes(machine.memory.take_dirty(), "little")
    (address, _) = driver._chains[head][1][0]
    for each in (address, address + 4999, queue.used):
        assert pages >> each // 4096 & 1


@pytest.mark.parametrize("wrong", ["outside of RAM", "readable", "no such descriptor", "too many"])
def test_nothing_is_taken_where_something_is_odd(machine: FakeMachine, wrong: str) -> None:
    queue, driver = queue_with(machine.memory, BulkQueue)
    driver.add([], [100])
    head = driver.add([], [100])
    if wrong == "outside of RAM":
        driver.describe(head, 1 << 40, 100, 2)
    elif wrong == "readable":
        driver.describe(head, 0x20_0000, 100, 0)
    elif wrong == "no such descriptor":
        machine.memory.store_u16(driver.avail + 6, SIZE)
    else:
        machine.memory.store_u16(driver.avail + 2, SIZE + 1)
    before = machine.memory.read(MIB, MIB)
    assert queue.scatter(memoryview(bytearray(150)), most=SIZE, count_at=10) == 0
    assert machine.memory.read(MIB, MIB) == before
    assert queue.indexes == (0, 0)


def test_a_starved_guest_is_one_either_way(machine: FakeMachine) -> None:
    queue, driver = queue_with(machine.memory, BulkQueue)
    driver.add([], [1500])
    with cable_with([bytes(3000)]) as cable:
        receiver = Receiver(queue, cable, 0, NetStatistics())
        receiver.filter = ReceiveFilter(MAC)
        assert receiver.run() is Fed.STARVED
        assert driver.used() == []
        driver.add([], [1600])
        assert receiver.run() is Fed.ENOUGH
    assert [written for _, written in driver.used()] == [1500, 1526]
