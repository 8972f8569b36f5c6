"""Split virtqueues as a driver and a device see them (virtio 1.2 §2.7). Attacks are in test_hostile_rings."""

from __future__ import annotations

import pytest

from appliance.errors import Unsupported
from appliance.vmm.virtio.queue import Segment, VirtQueue, cut, passed
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import BASE, DriverQueue


class Pair:
    """A queue with its driver."""

    def __init__(self, machine: FakeMachine, *, size: int = 8, event_idx: bool = True, indirect: bool = False) -> None:
        self.machine = machine
        self.interrupts = 0
        self.driver = DriverQueue(machine.memory, BASE, size, event_idx=event_idx, indirect=indirect)
        self.queue = VirtQueue(machine.memory, size, label="vm 101: t: queue 0", interrupt=self._interrupt)
        self.start(self.queue)

    def start(self, queue: VirtQueue) -> None:
        queue.set_features(event_idx=self.driver.event_idx, indirect=self.driver.indirect)
        queue.desc, queue.avail, queue.used = self.driver.desc, self.driver.avail, self.driver.used_ring
        queue.enable()

    def _interrupt(self) -> None:
        self.interrupts += 1

    def serve(self) -> int:
        """Echo what can be read; returns how many chains."""
        count = 0
        while chain := self.queue.pop():
            self.queue.push(chain, chain.write(chain.read(1 << 20)))
            count += 1
        return count


@pytest.fixture(params=[False, True], ids=["direct", "indirect"])
def pair(machine: FakeMachine, request: pytest.FixtureRequest) -> Pair:
    return Pair(machine, indirect=request.param)


def test_a_chain_is_gathered_scattered_and_given_back(pair: Pair) -> None:
    head = pair.driver.add([b"hello ", b"world"], [4, 100])
    assert pair.serve() == 1
    assert pair.driver.used() == [(head, 11)]
    assert pair.driver.read_back(head) == b"hello world"


def test_parts_of_a_chain_are_read_and_written_at_offsets(pair: Pair) -> None:
    head = pair.driver.add([b"abc", b"def"], [3, 3])
    chain = pair.queue.pop()
    assert chain is not None
    assert (chain.readable_bytes, chain.writable_bytes) == (6, 6)
    assert (chain.read(2), chain.read(3, 2), chain.read(100, 5), chain.read(1, 6)) == (b"ab", b"cde", b"f", b"")
    assert (chain.write(b"xy", 2), chain.write(b"toolong", 4), chain.write(b"no", 6)) == (2, 2, 0)
    pair.queue.push(chain, 6)
    pair.driver.used()
    assert pair.driver.read_back(head) == b"\0\0xyto"


def test_indexes_run_freely_past_65535(machine: FakeMachine) -> None:
    pair = Pair(machine, size=2)
    pair.queue.set_indexes(0xFFFE, 0xFFFE)
    pair.driver.avail_idx = pair.driver.used_idx = 0xFFFE
    machine.memory.store_u16(pair.driver.avail + 2, 0xFFFE)
    machine.memory.store_u16(pair.driver.used_ring + 2, 0xFFFE)
    for number in range(6):
        head = pair.driver.add([bytes([number])], [1])
        assert pair.serve() == 1
        assert pair.driver.used() == [(head, 1)]


def test_a_full_ring_is_served_wholly_and_can_be_filled_again(pair: Pair) -> None:
    for _ in range(3):
        count = 8 if pair.driver.indirect else 4
        heads = [pair.driver.add([b"x"], [1]) for _ in range(count)]
        assert pair.serve() == count
        assert [head for head, _ in pair.driver.used()] == heads


def test_chains_come_back_in_any_order(machine: FakeMachine) -> None:
    pair = Pair(machine)
    first, second = pair.driver.add([b"1"], [1]), pair.driver.add([b"2"], [1])
    one, two = pair.queue.pop(), pair.queue.pop()
    assert one is not None
    assert two is not None
    pair.queue.push(two, 0)
    pair.queue.push(one, 1)
    assert pair.driver.used() == [(second, 0), (first, 1)]
    assert pair.queue.in_flight == 0


def test_a_chain_put_back_is_popped_again(machine: FakeMachine) -> None:
    pair = Pair(machine)
    first, second = pair.driver.add([b"1"]), pair.driver.add([b"2"])
    chain = pair.queue.pop()
    assert chain is not None
    pair.queue.unpop(chain)
    assert pair.queue.has_available()
    assert pair.queue.enable_kicks()
    again = [pair.queue.pop(), pair.queue.pop(), pair.queue.pop()]
    assert [each and each.head for each in again] == [first, second, None]


@pytest.mark.parametrize("event_idx", [False, True])
def test_the_driver_is_interrupted_once_for_a_batch_and_only_if_it_wants(machine: FakeMachine, event_idx: bool) -> None:
    pair = Pair(machine, event_idx=event_idx)
    pair.queue.flush()
    assert pair.interrupts == 0
    pair.driver.add([b"1"])
    pair.driver.add([b"2"])
    pair.serve()
    pair.queue.flush()
    pair.queue.flush()
    assert pair.interrupts == 1
    pair.driver.used()
    pair.driver.interrupts_wanted(False)
    pair.driver.add([b"3"])
    pair.serve()
    pair.queue.flush()
    assert pair.interrupts == 1
    pair.driver.used()
    pair.driver.interrupts_wanted(True)
    pair.driver.add([b"4"])
    pair.serve()
    pair.queue.flush()
    assert pair.interrupts == 2


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks_are_wanted_when_the_device_has_asked_for_them(machine: FakeMachine, event_idx: bool) -> None:
    pair = Pair(machine, event_idx=event_idx)
    pair.driver.add([b"1"])
    assert pair.driver.kick_wanted()  # the very first
    pair.queue.disable_kicks()
    pair.serve()
    assert pair.queue.enable_kicks() is False
    pair.driver.add([b"2"])
    assert pair.driver.kick_wanted()
    pair.queue.disable_kicks()
    pair.serve()
    pair.driver._kicked_at = pair.driver.avail_idx
    pair.driver.add([b"3"])
    assert not pair.driver.kick_wanted()
    assert pair.queue.enable_kicks() is True  # came in between: nobody will kick for it


@pytest.mark.parametrize(
    ("event", "index", "added", "expected"),
    [
        (0, 1, 1, True),
        (0, 0, 0, False),
        (1, 1, 1, False),
        (5, 10, 5, True),
        (4, 10, 5, False),
        (0xFFFF, 0, 1, True),
        (0xFFFF, 1, 1, False),
        (7, 7, 0x10000, True),
    ],
)
def test_an_event_has_passed_when_the_index_went_beyond_it(event: int, index: int, added: int, expected: bool) -> None:
    assert passed(event, index, added) is expected


def test_cutting_takes_a_part_of_the_concatenation() -> None:
    segments = [Segment(0x1000, 10), Segment(0x2000, 10)]
    assert cut(segments, 0, 20) == segments
    assert cut(segments, 5, 10) == [Segment(0x1005, 5), Segment(0x2000, 5)]
    assert cut(segments, 10, 1) == [Segment(0x2000, 1)]
    assert cut(segments, 20, 5) == cut(segments, 3, 0) == []


def test_what_was_out_when_the_queue_was_reset_is_stale(machine: FakeMachine) -> None:
    pair = Pair(machine)
    head = pair.driver.add([b"secret"], [6])
    chain = pair.queue.pop()
    assert chain is not None
    pair.queue.reset()
    assert chain.stale
    assert chain.read(6) == b""
    assert chain.write(b"xxxxxx") == 0
    pair.queue.push(chain, 6)
    pair.queue.unpop(chain)
    pair.queue.flush()
    assert pair.driver.used() == []
    assert pair.driver.read_back(head) == bytes(6)
    assert (pair.interrupts, pair.queue.in_flight, pair.queue.pop(), pair.queue.enable_kicks()) == (0, 0, None, False)


def test_a_saved_queue_goes_on_where_it_was_and_takes_again_what_was_in_flight(machine: FakeMachine) -> None:
    pair = Pair(machine)
    heads = [pair.driver.add([bytes([number])], [1]) for number in range(4)]
    done, _kept = pair.queue.pop(), pair.queue.pop()
    assert done is not None
    pair.queue.push(done, 0)
    state = pair.queue.save()
    other = VirtQueue(machine.memory, 8, label="vm 101: t: queue 0", interrupt=lambda: None)
    other.restore(state)
    assert other.save() == state
    taken = []
    while chain := other.pop():
        taken.append(chain.head)
        other.push(chain, 0)
    assert taken == heads[1:]
    assert [head for head, _ in pair.driver.used()] == heads


def test_a_saved_queue_that_cannot_be_is_refused(machine: FakeMachine) -> None:
    pair = Pair(machine)
    state = pair.queue.save()
    small = VirtQueue(machine.memory, 4, label="vm 101: t: queue 0", interrupt=lambda: None)
    with pytest.raises(Unsupported, match="queue 0: size 8"):
        small.restore(state)


def test_what_a_device_writes_is_in_the_dirty_log(machine: FakeMachine) -> None:
    pair = Pair(machine)
    head = pair.driver.add([b"data"], [4])
    address = pair.driver._chains[head][1][0][0]
    machine.memory.start_dirty_log()
    pair.serve()
    log = machine.memory.take_dirty()
    dirty = {8 * place + bit for place, byte in enumerate(log) for bit in range(8) if byte >> bit & 1}
    assert dirty == {pair.driver.used_ring // 4096, address // 4096}
