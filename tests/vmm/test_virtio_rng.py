"""The entropy device (virtio 1.2 §5.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from appliance.vmm.virtio.rng import MAX_AT_ONCE, RngLimit, VirtioRng
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import attach, settle, transport_of

Make = Callable[[RngLimit | None], VirtioRng]


@pytest.fixture
def make(machine: FakeMachine) -> Iterator[Make]:
    made: list[VirtioRng] = []

    def build(limit: RngLimit | None = None) -> VirtioRng:
        made.append(VirtioRng("rng", machine.context, limit=limit))
        return made[-1]

    yield build
    for device in made:
        device.close()


def test_every_buffer_comes_back_full_of_random_bytes_with_one_interrupt(make: Make) -> None:
    device = make(None)
    (queue,) = attach(device)
    heads = [queue.add(writable=[32, 32]) for _ in range(3)]
    queue.kick()
    assert queue.used() == [(head, 64) for head in heads]
    assert len({queue.read_back(head) for head in heads} | {bytes(64)}) == 4
    assert transport_of(device).interrupts == [0]


def test_a_large_buffer_is_filled_in_part(make: Make) -> None:
    (queue,) = attach(make(None))
    assert len(queue.request(writable=[1 << 16])) == MAX_AT_ONCE


def test_a_buffer_that_cannot_be_written_comes_back_empty(make: Make) -> None:
    (queue,) = attach(make(None))
    assert queue.request([b"why"]) == b""


def test_a_guest_beyond_its_limit_waits_for_the_next_period_and_a_reset_does_not_help(
    machine: FakeMachine, make: Make
) -> None:
    device = make(RngLimit(max_bytes=100, period_s=1.0))
    (queue,) = attach(device)
    heads = [queue.add(writable=[64]) for _ in range(4)]
    queue.kick()
    assert queue.used() == [(heads[0], 64), (heads[1], 36)]
    machine.bridge.advance(0.9)
    settle(machine.bridge)
    assert queue.used() == []
    machine.bridge.advance(0.1)
    settle(machine.bridge)
    assert queue.used() == [(heads[2], 64), (heads[3], 36)]
    (queue,) = attach(device)
    queue.add(writable=[1])
    queue.kick()
    assert queue.used() == []


def test_a_device_paused_in_the_middle_of_a_request_serves_it_when_it_goes_on(machine: FakeMachine, make: Make) -> None:
    device = make(None)
    (queue,) = attach(device)
    device.pause()
    head = queue.add(writable=[16])
    queue.kick()
    assert queue.used() == []
    device.resume()
    settle(machine.bridge)
    assert queue.used() == [(head, 16)]
