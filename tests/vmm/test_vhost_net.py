"""vhost-net's front end against a driver that keeps a diary: the order of calls, and what crosses to and fro."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from appliance.errors import HostError, Unsupported
from appliance.kernel.vhost_abi import VHOST_F_LOG_ALL
from appliance.vmm.irq import MessageVector
from appliance.vmm.memory import GuestMemory, union_of
from appliance.vmm.vhost.backend import DataPlane
from appliance.vmm.vhost.log import VhostLog
from appliance.vmm.virtio import consts
from appliance.vmm.virtio.net import NetOptions, VirtioNet
from tests.fakes.cable import PLAIN, FakeCable
from tests.fakes.machine import FakeMachine
from tests.fakes.vhost import FEATURES, FakeDriver, FakeVhost
from tests.fakes.virtio_driver import DriverQueue, FakeTransport, attach, settle, transport_of

MAC = bytes.fromhex("525400000001")
FRAME = MAC + MAC + bytes(50)
Made = Callable[..., VirtioNet]

START = ["set_owner", "get_features", "set_features", "set_mem_table"]
RING = ["set_vring_num", "set_vring_base", "set_vring_addr", "set_vring_kick", "set_vring_call", "set_vring_err"]
RUN = ["set_backend", "set_backend"]
STOP = ["set_backend", "set_backend", "get_vring_base", "get_vring_base"]


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def make(machine: FakeMachine, driver: FakeDriver) -> Iterator[Made]:
    made: list[VirtioNet] = []

    def build(*, pairs: int = 1, data_plane: DataPlane = DataPlane.AUTO) -> VirtioNet:
        cable = FakeCable(pairs=pairs)
        options = NetOptions(mac=MAC, data_plane=data_plane)
        try:
            device = VirtioNet("net0", machine.context, cable=cable, options=options, open_vhost=driver.open)
        except Unsupported:
            cable.close()
            raise
        driver.opened.clear()
        made.append(device)
        return device

    yield build
    for device in made:
        device.close()
    assert not driver.alive


def only(driver: FakeDriver) -> FakeVhost:
    (vhost,) = driver.alive
    return vhost


def ask(control: DriverQueue, kind: int, command: int, data: bytes) -> int:
    return control.request([bytes([kind, command]), data], [1])[0]


def test_a_queue_pair_is_given_in_the_order_the_kernel_wants(make: Made, driver: FakeDriver) -> None:
    device = make()
    queues = attach(device)
    vhost = only(driver)
    assert vhost.names() == START + RING * 2 + RUN
    assert device.data_plane == DataPlane.OFFLOAD
    assert vhost.features == FEATURES & ~(1 << VHOST_F_LOG_ALL)
    assert vhost.files["backend", 0] == vhost.files["backend", 1] == device._cable.fileno(0)
    for ring in (0, 1):
        memory = device.context.memory
        assert vhost.rings[ring].descriptors == memory.host_address(queues[ring].desc, 16)
        assert vhost.rings[ring].available == memory.host_address(queues[ring].avail, 2)
        assert vhost.rings[ring].used == memory.host_address(queues[ring].used_ring, 2)
        assert vhost.rings[ring].used_guest == queues[ring].used_ring
        assert vhost.files["kick", ring] == device.doorbell(ring).fileno()


def test_the_whole_of_ram_is_told(make: Made, driver: FakeDriver, machine: FakeMachine) -> None:
    attach(make())
    told = [(region.base, region.size, region.host_address) for region in only(driver).regions]
    memory = machine.memory
    assert told == [(each.base, each.size, memory.host_address(each.base, each.size)) for each in memory.regions]


def test_only_the_control_queue_stays_ours(make: Made, driver: FakeDriver, machine: FakeMachine) -> None:
    device = make()
    _, tx, control = attach(device)
    assert device.doorbell(0).fileno() not in machine.bridge.watched
    assert device._cable.fileno(0) not in machine.bridge.watched
    tx.add([PLAIN + FRAME])
    tx.kick()
    assert tx.used() == []
    assert ask(control, 0, 0, b"\0") == 0


def test_what_the_kernel_has_come_to_is_taken_back(make: Made, driver: FakeDriver, machine: FakeMachine) -> None:
    device = make()
    tx = attach(device)[1]
    for _ in range(3):
        tx.add([PLAIN + FRAME])
    vhost = only(driver)
    for number in range(2):  # the kernel sends two frames and stops
        machine.memory.write(tx.used_ring + 4 + 8 * number, number.to_bytes(4, "little") + bytes(4))
    machine.memory.store_u16(tx.used_ring + 2, 2)
    vhost.consumed(1, 2)
    device.pause()
    assert vhost.names()[-4:] == STOP
    assert vhost.closed
    assert device.queues[1].indexes == (2, 2)
    saved = device.save()
    assert saved is not None
    other = make(data_plane=DataPlane.PYTHON)
    other.transport = FakeTransport()
    other.pause()
    other.restore(saved)
    other.resume()
    settle(machine.bridge)
    assert len(tx.used()) == 3
    assert isinstance(other._cable, FakeCable)
    assert len(other._cable.sent) == 1


def test_buffers_put_back_are_the_kernels_again(make: Made, driver: FakeDriver, machine: FakeMachine) -> None:
    first = make(data_plane=DataPlane.PYTHON)
    rx = attach(first)[0]
    rx.add([], [20])
    assert isinstance(first._cable, FakeCable)
    first._cable.arrive(FRAME)
    settle(machine.bridge)
    first.pause()
    saved = first.save()
    assert saved is not None
    second = make()
    second.pause()
    second.restore(saved)
    second.resume()
    assert ("set_vring_base", 0, 0) in only(driver).diary


def test_going_on_after_a_pause_takes_a_new_descriptor(make: Made, driver: FakeDriver) -> None:
    device = make()
    attach(device)
    only(driver).consumed(0, 5)
    device.pause()
    assert driver.alive == []
    device.resume()
    assert len(driver.opened) == 2
    assert ("set_vring_base", 0, 5) in only(driver).diary


def test_the_calls_go_to_the_queues_vectors(make: Made, driver: FakeDriver, machine: FakeMachine) -> None:
    device = make()
    device.transport = transport = FakeTransport()
    vectors: list[MessageVector] = [machine.interrupts.message() for _ in range(3)]
    transport.vectors = {0: vectors[0], 1: vectors[1]}
    attach(device)
    vhost = only(driver)
    assert [vhost.files["call", ring] for ring in (0, 1)] == [vectors[0].fileno(), vectors[1].fileno()]
    transport.vectors[1] = vectors[2]
    device.call_changed(1)
    assert vhost.files["call", 1] == vectors[2].fileno()


def test_without_a_vector_a_call_is_passed_on(make: Made, driver: FakeDriver, machine: FakeMachine) -> None:
    device = make()
    attach(device)
    os.eventfd_write(only(driver).files["call", 0], 1)
    settle(machine.bridge)
    assert transport_of(device).interrupts == [0]


def test_a_ring_the_kernel_cannot_follow_breaks_the_device(
    make: Made, driver: FakeDriver, machine: FakeMachine
) -> None:
    device = make()
    attach(device)
    os.eventfd_write(only(driver).files["err", 0], 1)
    settle(machine.bridge)
    assert device.status & consts.STATUS_NEEDS_RESET
    assert driver.alive == []
    assert machine.bridge.watched == {}


def test_a_reset_ends_it(make: Made, driver: FakeDriver, machine: FakeMachine) -> None:
    device = make()
    attach(device)
    device.reset()
    assert driver.alive == []
    assert machine.bridge.watched == {}


def test_a_pulled_cable_is_ours(make: Made, driver: FakeDriver) -> None:
    device = make()
    attach(device)
    device.set_link(up=False)
    assert driver.alive == []
    planes = [device.data_plane]
    device.set_link(up=True)
    assert only(driver).running
    planes.append(device.data_plane)
    assert planes == [DataPlane.PYTHON, DataPlane.OFFLOAD]


def test_each_queue_pair_has_a_descriptor(make: Made, driver: FakeDriver) -> None:
    device = make(pairs=3)
    queues = attach(device)
    assert len(driver.alive) == 1
    assert ask(queues[6], 4, 0, b"\3\0") == 0
    assert [each.files["backend", 1] for each in driver.alive] == [device._cable.fileno(pair) for pair in range(3)]
    assert ask(queues[6], 4, 0, b"\1\0") == 0
    assert len(driver.alive) == 1


# Whether


def test_without_a_driver_we_serve(make: Made, driver: FakeDriver) -> None:
    driver.missing = True
    device = make()
    attach(device)
    assert device.data_plane == DataPlane.PYTHON


def test_what_is_demanded_and_missing_is_refused(make: Made, driver: FakeDriver) -> None:
    driver.missing = True
    with pytest.raises(Unsupported, match="vhost-net"):
        make(data_plane=DataPlane.OFFLOAD)


def test_a_driver_that_lacks_a_feature_is_not_used(make: Made, driver: FakeDriver) -> None:
    driver.features = FEATURES & ~(1 << consts.F_EVENT_IDX)
    assert make().data_plane == DataPlane.PYTHON


@pytest.mark.parametrize("ioctl", ["set_owner", "set_features", "set_vring_addr", "set_vring_err", "set_backend"])
def test_a_kernel_that_refuses_leaves_the_queues_to_us(
    make: Made, driver: FakeDriver, machine: FakeMachine, ioctl: str
) -> None:
    device = make()
    driver.refuse = {ioctl}
    tx = attach(device)[1]
    assert device.data_plane == DataPlane.PYTHON
    assert driver.alive == []
    assert any("without vhost-net" in note for note in machine.notes)
    tx.add([PLAIN + FRAME])
    tx.kick()
    assert len(tx.used()) == 1


def test_a_kernel_that_refuses_what_is_demanded_is_an_error(make: Made, driver: FakeDriver) -> None:
    device = make(data_plane=DataPlane.OFFLOAD)
    driver.refuse = {"set_mem_table"}
    with pytest.raises(HostError, match="vm 101: net0"):
        attach(device)


def test_a_kernel_that_does_not_say_how_far_it_came_is_an_error_of_the_pause(make: Made, driver: FakeDriver) -> None:
    device = make()
    attach(device)
    driver.refuse = {"get_vring_base"}
    with pytest.raises(HostError, match="get_vring_base"):
        device.pause()
    assert driver.alive == []


# The dirty log


def bit(bitmap: bytes, page: int) -> bool:
    return bool(bitmap[page // 8] >> page % 8 & 1)


def test_the_kernels_pages_are_in_the_log(make: Made, driver: FakeDriver, machine: FakeMachine) -> None:
    attach(make())
    vhost = only(driver)
    machine.memory.start_dirty_log()
    assert vhost.names()[-4:] == ["set_log_base", "set_features", "set_vring_addr", "set_vring_addr"]
    assert vhost.diary[-1] == ("set_vring_addr", 1, True)
    vhost.log(0x5000)
    machine.memory.write(0x9000, b"ours")
    taken = machine.memory.take_dirty()
    assert [page for page in range(4096) if bit(taken, page)] == [5, 9]
    vhost.log(0x6000)
    assert bit(machine.memory.take_dirty(), 6)
    assert not any(machine.memory.take_dirty())
    machine.memory.stop_dirty_log()
    assert vhost.diary[-1] == ("set_vring_addr", 1, False)
    assert not vhost.features >> VHOST_F_LOG_ALL & 1


def test_what_was_logged_last_is_kept_when_the_rings_stop(make: Made, driver: FakeDriver, machine: FakeMachine) -> None:
    device = make()
    attach(device)
    machine.memory.start_dirty_log()
    only(driver).log(0x7000)
    device.pause()
    assert bit(machine.memory.take_dirty(), 7)
    device.resume()
    only(driver).log(0x8000)
    assert bit(machine.memory.take_dirty(), 8)


def test_memory_above_4_gib_is_logged_where_the_memfd_has_it() -> None:
    memory = GuestMemory((3 << 30) + (1 << 20), name="vm 102")
    driver = FakeDriver()
    vhost = driver.open("vm 102: net0")
    log = VhostLog(memory, "vm 102: net0")

    class Rings:
        def log_to(self, host_address: int) -> None:
            vhost.set_log_base(host_address)
            vhost.set_features(1 << VHOST_F_LOG_ALL)

        def log_nothing(self) -> None:
            vhost.set_features(0)

    rings = Rings()
    memory.start_dirty_log()
    log.add(rings)
    vhost.log(0x3000)
    vhost.log((4 << 30) + 0x2000)
    taken = memory.take_dirty()
    pages = [page for number, byte in enumerate(taken) if byte for page in range(8 * number, 8 * number + 8)]
    assert [page for page in pages if bit(taken, page)] == [3, (0xB000_0000 >> 12) + 2]
    log.remove(rings)
    log.remove(rings)
    memory.stop_dirty_log()
    memory.close()


def test_bitmaps_are_joined_within_the_first_ones_length() -> None:
    assert union_of(b"\1\2", b"\2") == b"\3\2"
    assert union_of(b"\1", b"\2\xff") == b"\3"
