"""The memory balloon (virtio 1.2 §5.5)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from appliance.errors import HostError
from appliance.vmm.layout import MIB, PAGE
from appliance.vmm.virtio import consts
from appliance.vmm.virtio.balloon import (
    DEFLATE,
    F_DEFLATE_ON_OOM,
    F_FREE_PAGE_HINT,
    F_PAGE_POISON,
    F_REPORTING,
    HINTS,
    INFLATE,
    MAX_PAGES_AT_ONCE,
    REPORTING,
    STATS,
    BalloonStats,
    VirtioBalloon,
    runs,
    whole_pages,
)
from appliance.vmm.virtio.queue import Segment
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import DriverQueue, attach, settle, transport_of

AREA = 0x80_0000  # guest memory that is neither ring nor buffer


@pytest.fixture
def balloon(machine: FakeMachine) -> Iterator[VirtioBalloon]:
    device = VirtioBalloon("balloon", machine.context)
    yield device
    device.close()


def pages(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def fill(machine: FakeMachine, count: int) -> int:
    """`count` pages of ones; returns the first one's number."""
    machine.memory.write(AREA, b"\xff" * (count * PAGE))
    return AREA // PAGE


def test_pages_given_up_read_as_zeros_and_their_memory_is_the_hosts(
    machine: FakeMachine, balloon: VirtioBalloon
) -> None:
    queues = attach(balloon)
    first = fill(machine, 16)
    before = machine.memory.resident_bytes()
    assert queues[INFLATE].request([pages(first + 3, first, first + 1, first)]) == b""
    assert machine.memory.resident_bytes() == before - 3 * PAGE
    assert machine.memory.read(AREA, 5 * PAGE) == bytes(2 * PAGE) + b"\xff" * PAGE + bytes(PAGE) + b"\xff" * PAGE
    queues[DEFLATE].request([pages(first)])
    assert transport_of(balloon).interrupts == [INFLATE, DEFLATE]


@pytest.mark.parametrize("number", [0xA0, 0xFFFF_FFFF, 0x1000])
def test_what_is_no_memory_is_passed_over(machine: FakeMachine, balloon: VirtioBalloon, number: int) -> None:
    queues = attach(balloon)
    first = fill(machine, 1)
    queues[INFLATE].request([pages(number, first)])
    assert machine.memory.read(AREA, PAGE) == bytes(PAGE)
    assert balloon.live


@pytest.mark.parametrize("size", [3, 4 * MAX_PAGES_AT_ONCE + 4])
def test_page_numbers_that_no_driver_sends_break_the_device(balloon: VirtioBalloon, size: int) -> None:
    queues = attach(balloon)
    queues[INFLATE].add([bytes(size)])
    queues[INFLATE].kick()
    assert not balloon.live


def test_the_target_is_told_in_pages_and_the_guests_word_in_bytes(balloon: VirtioBalloon) -> None:
    attach(balloon)
    balloon.target_mib = 12
    assert (balloon.target_mib, balloon.config_as_read(0, 4)) == (12, 4 * 256)
    assert transport_of(balloon).config_interrupts == 1
    balloon.write_config(4, 4, 512)
    assert balloon.actual_bytes == 14 * MIB
    balloon.target_mib = 100
    assert (balloon.target_mib, balloon.config_as_read(0, 4)) == (16, 0)
    balloon.target_mib = -1
    assert balloon.target_mib == 0
    balloon.write_config(0, 4, 1)
    balloon.write_config(14, 4, 1)
    assert (balloon.target_mib, balloon.config_as_read(12, 4)) == (0, 0)
    balloon.write_config(4, 4, 0xFFFF_FFFF)
    assert balloon.actual_bytes == 0


def test_deflating_by_need_is_offered_unless_it_is_not_wanted(machine: FakeMachine, balloon: VirtioBalloon) -> None:
    strict = VirtioBalloon("strict", machine.context, deflate_on_oom=False)
    assert balloon.features & ~strict.features == consts.bits(F_DEFLATE_ON_OOM)
    strict.close()


# Figures


def stats(*entries: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<HQ", tag, value) for tag, value in entries)


def test_figures_are_asked_for_in_time_and_what_is_not_known_is_passed_over(
    machine: FakeMachine, balloon: VirtioBalloon
) -> None:
    queue = attach(balloon)[STATS]
    queue.add([stats((5, 16 * MIB), (4, MIB), (77, 1)) + b"odd"])
    queue.kick()
    assert balloon.stats == BalloonStats(total_bytes=16 * MIB, free_bytes=MIB, told_at_s=1000.0)
    assert queue.used() == []
    machine.bridge.advance(2.0)
    assert len(queue.used()) == 1
    queue.add([stats((6, 5 * MIB))])
    queue.kick()
    assert balloon.stats == BalloonStats(available_bytes=5 * MIB, told_at_s=1000.0)
    machine.bridge.advance(4.0)
    assert len(queue.used()) == 1


def test_a_driver_with_two_buffers_of_figures_gets_the_first_one_back(balloon: VirtioBalloon) -> None:
    queue = attach(balloon)[STATS]
    first = queue.add([stats((4, 1))])
    queue.add([stats((4, 2))])
    queue.kick()
    assert queue.used() == [(first, 0)]
    assert balloon.stats is not None
    assert balloon.stats.free_bytes == 2


def test_nothing_is_asked_of_a_driver_that_has_gone_or_a_machine_that_is_paused(
    machine: FakeMachine, balloon: VirtioBalloon
) -> None:
    queue = attach(balloon)[STATS]
    queue.add([stats((4, 1))])
    queue.kick()
    balloon.pause()
    machine.bridge.advance(10)
    assert queue.used() == []
    balloon.resume()
    settle(machine.bridge)
    machine.bridge.advance(2)
    assert len(queue.used()) == 1
    balloon.write_status(0)
    assert balloon.stats is None
    assert [timer for timer in machine.bridge.timers if not timer.cancelled] == []


# Free pages


def report(queue: DriverQueue, address: int, length: int) -> None:
    queue.describe(5, address, length, consts.DESC_F_WRITE)
    queue.make_available(5)
    queue.kick()


@pytest.mark.parametrize(
    ("features", "index"),
    [((F_FREE_PAGE_HINT, F_REPORTING), REPORTING), ((F_REPORTING,), REPORTING), ((F_REPORTING,), HINTS)],
    ids=["both", "the standard's number", "Linux's number without hints"],
)
def test_free_pages_are_discarded_whole_pages_only(
    machine: FakeMachine, balloon: VirtioBalloon, features: tuple[int, ...], index: int
) -> None:
    queues = attach(balloon, features=consts.bits(consts.F_VERSION_1, *features))
    fill(machine, 4)
    report(queues[index], AREA + 100, 3 * PAGE)
    assert queues[index].used() == [(5, 0)]
    content = machine.memory.read(AREA, 4 * PAGE)
    assert content == b"\xff" * PAGE + bytes(2 * PAGE) + b"\xff" * PAGE


@pytest.mark.parametrize(("poison", "kept"), [(0xAA, True), (0, False)])
def test_poisoned_pages_keep_their_poison(
    machine: FakeMachine, balloon: VirtioBalloon, poison: int, kept: bool
) -> None:
    queues = attach(balloon, features=consts.bits(consts.F_VERSION_1, F_PAGE_POISON, F_REPORTING), start=False)
    balloon.write_config(12, 4, poison)
    balloon.write_status(balloon.status | consts.STATUS_DRIVER_OK)
    balloon.write_config(12, 4, 1)  # too late
    fill(machine, 1)
    report(queues[REPORTING], AREA, PAGE)
    assert (machine.memory.read(AREA, PAGE) == b"\xff" * PAGE) is kept


def test_hints_nobody_asked_for_are_taken_and_dropped(machine: FakeMachine, balloon: VirtioBalloon) -> None:
    queues = attach(balloon)
    fill(machine, 1)
    report(queues[HINTS], AREA, PAGE)
    assert queues[HINTS].used() == [(5, 0)]
    assert machine.memory.read(AREA, PAGE) == b"\xff" * PAGE


# Work in the pool


class SlowPool:
    """Instead of the bridge's: what is submitted waits."""

    def __init__(self, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.work: list[Callable[[], None]] = []
        monkeypatch.setattr(machine.bridge, "submit", self.work.append)


def test_one_chain_is_discarded_at_a_time_and_the_others_follow(
    machine: FakeMachine, balloon: VirtioBalloon, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = SlowPool(machine, monkeypatch)
    queues = attach(balloon)
    first = fill(machine, 2)
    one, two = queues[INFLATE].add([pages(first)]), queues[INFLATE].add([pages(first + 1)])
    queues[INFLATE].kick()
    report(queues[REPORTING], AREA, PAGE)
    assert len(pool.work) == 1
    assert balloon.busy()
    for _ in range(3):
        pool.work.pop()()
        settle(machine.bridge)
    assert queues[INFLATE].used() == [(one, 0), (two, 0)]
    assert queues[REPORTING].used() == [(5, 0)]
    assert not balloon.busy()


def test_a_reset_waits_for_what_is_being_discarded_and_the_rest_is_left_alone(
    machine: FakeMachine, balloon: VirtioBalloon, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = SlowPool(machine, monkeypatch)
    queues = attach(balloon)
    first = fill(machine, 1)
    queues[INFLATE].add([pages(first)])
    queues[INFLATE].kick()
    balloon.write_status(0)
    assert balloon.read_status() != 0
    pool.work.pop()()
    assert balloon.read_status() == 0
    assert machine.memory.read(AREA, PAGE) == b"\xff" * PAGE


def test_a_host_that_cannot_take_memory_back_costs_nothing_but_a_note(
    machine: FakeMachine, balloon: VirtioBalloon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: int, length: int) -> None:
        raise HostError("vm 101: giving back memory: not today")

    monkeypatch.setattr(machine.memory, "discard", refuse)
    queues = attach(balloon)
    queues[INFLATE].request([pages(AREA // PAGE)])
    assert machine.notes == ["vm 101: balloon: vm 101: giving back memory: not today"]
    assert balloon.live


def test_a_saved_balloon_keeps_its_target_and_asks_again(machine: FakeMachine, balloon: VirtioBalloon) -> None:
    queues = attach(balloon)
    balloon.target_mib = 8
    balloon.write_config(4, 4, 256)
    head = queues[STATS].add([stats((4, 1))])
    queues[STATS].kick()
    balloon.pause()
    state = balloon.save()
    assert state is not None
    other = VirtioBalloon("balloon", machine.context)
    try:
        other.transport = transport_of(balloon)
        other.restore(state)
        assert (other.target_mib, other.actual_bytes) == (8, 15 * MIB)
        other.resume()
        settle(machine.bridge)
        machine.bridge.advance(2)
        assert queues[STATS].used() == [(head, 0)]
    finally:
        other.close()


def test_runs_join_neighbours_and_parts_of_pages_are_no_pages() -> None:
    assert list(runs([5, 1, 2, 2, 3])) == [Segment(PAGE, 3 * PAGE), Segment(5 * PAGE, PAGE)]
    assert list(runs([])) == []
    assert list(runs([0])) == [Segment(0, PAGE)]
    assert whole_pages(Segment(100, PAGE)).length == 0
    assert whole_pages(Segment(PAGE, 2 * PAGE)) == Segment(PAGE, 2 * PAGE)
