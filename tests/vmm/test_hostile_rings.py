"""What a hostile driver may write into its rings and registers: the device asks for a reset, is quiet, and can be reset.

No exception but `QueueBroken` inside, none at all outside (virtio 1.2 §2.1.2, §2.7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from appliance.vmm.virtio import consts
from appliance.vmm.virtio.consts import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    STATUS_DRIVER_OK,
    STATUS_NEEDS_RESET,
)
from appliance.vmm.virtio.device import BATCH, VirtioDevice
from appliance.vmm.virtio.queue import MAX_INDIRECT, Chain
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import DriverQueue, attach, go, negotiate, set_up, settle, transport_of

SIZE = 8
DATA = 0x90_0000
MEMORY = 16 << 20


class Mirror(VirtioDevice):
    """Writes back what it reads; counts what it served. `keep` holds chains instead."""

    device_id = consts.DeviceId.ENTROPY

    def __init__(self, machine: FakeMachine) -> None:
        super().__init__("mirror", machine.context, queue_sizes=[SIZE])
        self.served = 0
        self.kicks = 0
        self.keep: list[Chain] | None = None

    def on_kick(self, index: int) -> None:
        self.kicks += 1
        self.serve(index, self._mirror)

    def _mirror(self, chain: Chain) -> int | None:
        self.served += 1
        if self.keep is not None:
            self.keep.append(chain)
            return None
        return chain.write(chain.read(1 << 20))


@dataclass
class Bench:
    machine: FakeMachine
    device: Mirror
    queue: DriverQueue

    def is_broken_and_can_be_reset(self) -> None:
        """One configuration interrupt, no service, no fault of the machine; all well after a reset."""
        served, status = self.device.served, self.device.read_status()
        assert status & STATUS_NEEDS_RESET
        assert transport_of(self.device).config_interrupts == 1
        assert self.machine.faults == []
        assert len(self.machine.notes) == 1
        assert self.machine.notes[0].startswith("vm 101: mirror: queue 0: ")
        self.queue.kick()
        assert self.device.served == served
        assert self.machine.bridge.watched == {}
        self.device.keep = None
        again = attach(self.device)[0]
        assert again.request([b"well"], [4]) == b"well"


@pytest.fixture
def bench(machine: FakeMachine) -> Iterator[Bench]:
    device = Mirror(machine)
    queue = attach(device)[0]
    yield Bench(machine, device, queue)
    device.close()


def table(queue: DriverQueue, *descriptors: tuple[int, int, int, int]) -> None:
    """Descriptors from 0 on, made available at 0."""
    for number, (address, length, flags, following) in enumerate(descriptors):
        queue.describe(number, address, length, flags, following)
    queue.make_available(0)


def indirect(queue: DriverQueue, *descriptors: tuple[int, int, int, int], length: int | None = None) -> None:
    """An indirect table at DATA, made available through descriptor 0."""
    for number, (address, size, flags, following) in enumerate(descriptors):
        queue.memory.write(DATA + 16 * number, address.to_bytes(8, "little") + size.to_bytes(4, "little"))
        queue.memory.write(DATA + 16 * number + 12, flags.to_bytes(2, "little") + following.to_bytes(2, "little"))
    queue.describe(0, DATA, 16 * len(descriptors) if length is None else length, DESC_F_INDIRECT)
    queue.make_available(0)


Attack = Callable[[DriverQueue], None]

CHAINS: dict[str, Attack] = {
    "a chain that leads back to itself": lambda q: table(q, (DATA, 1, DESC_F_NEXT, 0)),
    "a chain of two that never ends": lambda q: table(q, (DATA, 1, DESC_F_NEXT, 1), (DATA, 1, DESC_F_NEXT, 0)),
    "a next descriptor beyond the table": lambda q: table(q, (DATA, 1, DESC_F_NEXT, SIZE)),
    "a buffer beyond RAM": lambda q: table(q, (MEMORY, 1, 0, 0)),
    "a buffer that ends beyond RAM": lambda q: table(q, (MEMORY - 1, 2, 0, 0)),
    "a buffer in the VGA window": lambda q: table(q, (0xA_0000, 16, DESC_F_WRITE, 0)),
    "a buffer that reaches into the window": lambda q: table(q, (0x9_FFFF, 2, 0, 0)),
    "a buffer that wraps round": lambda q: table(q, (0xFFFF_FFFF_FFFF_FFFF, 2, 0, 0)),
    "the largest buffer there is": lambda q: table(q, (0, 0xFFFF_FFFF, 0, 0)),
    "a buffer of no bytes": lambda q: table(q, (DATA, 0, 0, 0)),
    "a readable buffer after a writable one": lambda q: table(
        q, (DATA, 1, DESC_F_NEXT | DESC_F_WRITE, 1), (DATA, 1, 0, 0)
    ),
    "an indirect table with a next descriptor": lambda q: table(
        q, (DATA, 16, DESC_F_INDIRECT | DESC_F_NEXT, 1), (DATA, 1, 0, 0)
    ),
    "an indirect table of no bytes": lambda q: indirect(q, length=0),
    "an indirect table of half a descriptor": lambda q: indirect(q, (DATA, 1, 0, 0), length=8),
    "an indirect table of one and a half": lambda q: indirect(q, (DATA, 1, 0, 0), length=24),
    "an indirect table beyond RAM": lambda q: table(q, (MEMORY - 16, 32, DESC_F_INDIRECT, 0)),
    "an indirect table of four gigabytes": lambda q: indirect(q, (DATA, 1, 0, 0), length=0xFFFF_FFF0),
    "an indirect table in an indirect table": lambda q: indirect(q, (DATA, 16, DESC_F_INDIRECT, 0)),
    "an indirect chain that never ends": lambda q: indirect(q, (DATA, 1, DESC_F_NEXT, 0)),
    "an indirect chain that leaves its table": lambda q: indirect(q, (DATA, 1, DESC_F_NEXT, 1)),
    "an indirect chain longer than any": lambda q: indirect(
        q, *((DATA, 1, DESC_F_NEXT, number + 1) for number in range(MAX_INDIRECT)), (DATA, 1, 0, 0)
    ),
    "an indirect buffer beyond RAM": lambda q: indirect(q, (MEMORY, 1, 0, 0)),
    "a chain of more than four gigabytes": lambda q: indirect(
        q,
        *((0x10_0000, 14 << 20, DESC_F_NEXT, number + 1) for number in range(400)),
        (DATA, 1, 0, 0),
    ),
    "a head beyond the table": lambda q: q.make_available(SIZE),
    "the greatest head": lambda q: q.make_available(0xFFFF),
}


@pytest.mark.parametrize("attack", CHAINS.values(), ids=CHAINS.keys())
def test_a_chain_that_makes_no_sense_breaks_the_device_until_it_is_reset(bench: Bench, attack: Attack) -> None:
    attack(bench.queue)
    bench.queue.kick()
    assert bench.device.served == 0
    bench.is_broken_and_can_be_reset()


@pytest.mark.parametrize("ahead", [SIZE + 1, 0x7FFF, 0x8000, 0xFFFF])
def test_an_available_index_too_far_ahead_breaks_the_device(bench: Bench, ahead: int) -> None:
    bench.machine.memory.store_u16(bench.queue.avail + 2, ahead)
    bench.queue.kick()
    assert bench.device.served == 0
    bench.is_broken_and_can_be_reset()


def test_an_available_index_that_goes_back_breaks_the_device(bench: Bench) -> None:
    bench.queue.request([b"x"], [1])
    bench.machine.memory.store_u16(bench.queue.avail + 2, 0)
    bench.queue.kick()
    bench.is_broken_and_can_be_reset()


def test_what_is_in_flight_is_never_more_than_the_ring_has(bench: Bench) -> None:
    bench.device.keep = []
    bench.queue.describe(0, DATA, 1)
    for _ in range(SIZE):
        bench.queue.make_available(0)
    bench.queue.kick()
    assert (len(bench.device.keep), bench.device.live) == (SIZE, True)
    bench.queue.make_available(0)
    bench.queue.kick()
    assert len(bench.device.keep) == SIZE
    bench.is_broken_and_can_be_reset()


def test_one_head_made_available_many_times_comes_back_as_often(bench: Bench) -> None:
    bench.queue.describe(0, DATA, 1)
    for _ in range(SIZE):
        bench.queue.make_available(0)
    bench.queue.kick()
    assert bench.queue.used() == [(0, 0)] * SIZE
    assert bench.device.live


def test_an_indirect_table_without_the_feature_breaks_the_device(bench: Bench) -> None:
    bench.queue = attach(bench.device, features=consts.bits(consts.F_VERSION_1))[0]
    indirect(bench.queue, (DATA, 1, 0, 0))
    bench.queue.kick()
    bench.is_broken_and_can_be_reset()


def test_descriptors_then_an_indirect_table_are_one_chain(bench: Bench) -> None:
    """§2.7.5.3.2: unusual and valid; the write flag of the descriptor that refers to a table is ignored."""
    bench.machine.memory.write(DATA + 0x100, b"abcd")
    indirect(bench.queue, (DATA + 0x102, 2, DESC_F_NEXT, 1), (DATA + 0x200, 4, DESC_F_WRITE, 0))
    bench.queue.avail_idx = 0
    bench.queue.describe(1, DATA, 32, DESC_F_INDIRECT | DESC_F_WRITE)
    table(bench.queue, (DATA + 0x100, 2, DESC_F_NEXT, 1))
    bench.queue.kick()
    assert bench.machine.memory.read(DATA + 0x200, 4) == b"abcd"


def test_a_chain_with_as_many_descriptors_as_the_ring_is_served(bench: Bench) -> None:
    assert bench.queue.request([b"x"] * (SIZE - 1), [SIZE]) == b"x" * (SIZE - 1)


def test_the_longest_indirect_chain_is_served(bench: Bench) -> None:
    indirect(
        bench.queue,
        *((DATA, 1, DESC_F_NEXT, number + 1) for number in range(MAX_INDIRECT - 1)),
        (DATA, 1, 0, 0),
    )
    bench.queue.kick()
    assert (bench.device.served, bench.device.live) == (1, True)


# Registers


@pytest.mark.parametrize("size", [0, 3, SIZE + 1, 2 * SIZE, 0xFFFF])
def test_a_ring_of_a_wrong_size_breaks_the_device_before_it_is_live(bench: Bench, size: int) -> None:
    negotiate(bench.device)
    bench.queue.size = size
    set_up(bench.device, 0, bench.queue)
    assert not bench.device.queues[0].enabled
    assert bench.device.read_status() & STATUS_NEEDS_RESET
    go(bench.device)
    assert not bench.device.live
    assert transport_of(bench.device).config_interrupts == 0  # nobody to hear it yet
    assert attach(bench.device)[0].request([b"well"], [4]) == b"well"


@pytest.mark.parametrize(
    ("area", "address"),
    [
        ("desc", 0x10_0008),
        ("avail", 0x11_0001),
        ("used_ring", 0x12_0002),
        ("desc", MEMORY),
        ("desc", MEMORY - 16),
        ("avail", 0xFFFF_FFFF_FFFF_FFFE),
        ("used_ring", 0x9_FFFC),
        ("used_ring", 0xFEE0_0000),
    ],
)
def test_rings_that_cannot_be_there_break_the_device(bench: Bench, area: str, address: int) -> None:
    negotiate(bench.device)
    setattr(bench.queue, area, address)
    set_up(bench.device, 0, bench.queue)
    assert not bench.device.queues[0].enabled
    assert bench.device.read_status() & STATUS_NEEDS_RESET
    assert attach(bench.device)[0].request([b"well"], [4]) == b"well"


def test_a_queue_enabled_twice_goes_on_as_it_was(bench: Bench) -> None:
    bench.device.keep = []
    head = bench.queue.add([b"x"], [1])
    bench.queue.kick()
    with bench.device.lock:
        bench.device.enable_queue(0)
    bench.device.queues[0].push(bench.device.keep[0], 1)
    assert bench.queue.used() == [(head, 1)]


def test_a_queue_enabled_once_the_device_is_live_stays_off(bench: Bench) -> None:
    negotiate(bench.device)
    go(bench.device)
    set_up(bench.device, 0, bench.queue)
    assert not bench.device.queues[0].enabled
    bench.queue.kick()
    assert bench.device.live


def test_a_reset_and_a_new_start_in_mid_flight_leave_the_old_chains_behind(bench: Bench) -> None:
    kept: list[Chain] = []
    bench.device.keep = kept
    head = bench.queue.add([b"old"], [3])
    bench.queue.kick()
    bench.device.keep = None
    queue = attach(bench.device)[0]
    assert queue.request([b"new"], [3]) == b"new"
    bench.device.queues[0].push(kept[0], 3)
    assert kept[0].write(b"old") == 0
    bench.device.queues[0].flush()
    assert queue.used() == []
    assert head == 0


def test_tables_that_move_under_a_chain_do_not_move_it(bench: Bench) -> None:
    """What was checked is what is used: the descriptors are read once."""
    kept: list[Chain] = []
    bench.device.keep = kept
    bench.queue.add([b"data"], [4])
    bench.queue.kick()
    bench.machine.memory.write(bench.queue.desc, b"\xff" * 16 * SIZE)
    assert kept[0].read(4) == b"data"
    assert kept[0].write(b"back") == 4


# Doorbells


def test_a_storm_of_kicks_is_one(bench: Bench) -> None:
    before = bench.device.kicks
    for _ in range(10_000):
        bench.device.doorbell(0).signal()
    assert settle(bench.machine.bridge) == 1
    assert bench.device.kicks == before + 1


def test_a_driver_that_refills_its_ring_as_fast_as_it_is_served_yields_to_others(machine: FakeMachine) -> None:
    """Each kick costs one batch, though there is always more."""

    class Refilled(Mirror):
        def _mirror(self, chain: Chain) -> int | None:
            queue.make_available(0)
            return super()._mirror(chain)

    device = Refilled(machine)
    queue = attach(device, start=False)[0]
    try:
        queue.describe(0, DATA, 1)
        queue.make_available(0)
        with device.lock:
            device.write_status(device.status | STATUS_DRIVER_OK)
        for turn in range(1, 4):
            machine.bridge.ready(device.doorbell(0).fileno())
            assert device.served == turn * BATCH
    finally:
        device.close()


def test_doorbells_of_a_broken_or_absent_device_cost_nothing(bench: Bench) -> None:
    bench.queue.make_available(SIZE)
    bench.queue.kick()
    kicks = bench.device.kicks
    bench.device.doorbell(0).signal(1000)
    assert settle(bench.machine.bridge) == 0
    bench.device.write_status(0)
    bench.device.doorbell(0).signal(1000)
    assert settle(bench.machine.bridge) == 0
    assert bench.device.kicks == kicks
