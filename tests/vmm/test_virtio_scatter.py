"""A frame into many buffers at one stroke does what taking them one by one does, and leaves all odd buffers to that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.vmm.layout import MIB
from appliance.vmm.memory import GuestMemory
from appliance.vmm.netdev.backend import NetStatistics
from appliance.vmm.netdev.filter import ReceiveFilter
from appliance.vmm.netdev.receive import Fed, Receiver
from appliance.vmm.virtio.queue import QueueBroken, VirtQueue
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import BASE, DriverQueue

SIZE = 16
MAC = bytes.fromhex("020000000001")


class OneByOne(VirtQueue):
    """A queue that always goes the long way."""

    def scatter(self, data: memoryview, *, most: int, count_at: int) -> int:
        return 0


class Frames:
    """A cable with these frames, each behind twelve bytes of header."""

    def __init__(self, frames: list[bytes]) -> None:
        self._frames = [bytes(12) + MAC + bytes(6) + b"\x08\x00" + frame for frame in frames]
        self.sent: list[bytes] = []

    pairs = 1

    def receive(self, pair: int, buffer: memoryview) -> int:
        if not self._frames:
            return 0
        frame = self._frames.pop(0)
        buffer[: len(frame)] = frame
        return len(frame)


def queue_with(memory: GuestMemory, kind: type[VirtQueue]) -> tuple[VirtQueue, DriverQueue]:
    driver = DriverQueue(memory, BASE, SIZE)
    queue = kind(memory, SIZE, label="vm 101: net0: queue 0", interrupt=lambda: None)
    queue.set_features(event_idx=True, indirect=False)
    queue.desc, queue.avail, queue.used = driver.desc, driver.avail, driver.used_ring
    queue.enable()
    return queue, driver


def received(kind: type[VirtQueue], rounds: list[tuple[list[list[int]], list[bytes]]]) -> list[object]:
    """What a guest sees that makes those buffers available (each a chain of lengths), and then is sent those frames."""
    memory = GuestMemory(4 * MIB, name="vm 101")
    try:
        queue, driver = queue_with(memory, kind)
        told: list[object] = []
        for buffers, frames in rounds:
            for lengths in buffers:
                if len(lengths) <= len(driver._free):
                    driver.add([], lengths)
            receiver = Receiver(queue, Frames(frames), 0, statistics := NetStatistics())  # type: ignore[arg-type]
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
def test_a_guest_sees_no_difference(rounds: list[tuple[list[list[int]], list[bytes]]]) -> None:
    assert received(VirtQueue, rounds) == received(OneByOne, rounds)


def test_the_ends_of_both_rings_are_gone_round(machine: FakeMachine) -> None:
    queue, driver = queue_with(machine.memory, VirtQueue)
    for number in range(3 * SIZE):
        heads = [driver.add([], [100]) for _ in range(5)]
        data = bytearray([number]) * 450
        assert queue.scatter(memoryview(data), most=SIZE, count_at=10) == 5
        assert data[10:12] == b"\x05\x00"
        assert driver.used() == [(head, 100) for head in heads[:4]] + [(heads[4], 50)]
        assert b"".join(driver.read_back(head) for head in heads)[:450] == data


def test_what_is_written_is_in_the_dirty_log(machine: FakeMachine) -> None:
    queue, driver = queue_with(machine.memory, VirtQueue)
    head = driver.add([], [5000])
    machine.memory.start_dirty_log()
    assert queue.scatter(memoryview(bytearray(5000)), most=SIZE, count_at=10)
    pages = int.from_bytes(machine.memory.take_dirty(), "little")
    (address, _) = driver._chains[head][1][0]
    for each in (address, address + 4999, queue.used):
        assert pages >> each // 4096 & 1


@pytest.mark.parametrize("wrong", ["outside of RAM", "readable", "no such descriptor", "too many"])
def test_nothing_is_taken_where_something_is_odd(machine: FakeMachine, wrong: str) -> None:
    queue, driver = queue_with(machine.memory, VirtQueue)
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
    queue, driver = queue_with(machine.memory, VirtQueue)
    driver.add([], [1500])
    receiver = Receiver(queue, Frames([bytes(3000)]), 0, NetStatistics())  # type: ignore[arg-type]
    receiver.filter = ReceiveFilter(MAC)
    assert receiver.run() is Fed.STARVED
    assert driver.used() == []
    driver.add([], [1600])
    assert receiver.run() is Fed.ENOUGH
    assert [written for _, written in driver.used()] == [1500, 1526]
