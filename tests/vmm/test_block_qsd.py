"""A disk behind the real qemu-storage-daemon: what the guest wrote is compared by qemu-img."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.errors import HostError
from appliance.vmm.block import layout as b
from appliance.vmm.block.backend import CACHE_MODES
from appliance.vmm.block.layout import RequestType, Status
from appliance.vmm.block.qsd import QsdBlk, QsdImage, open_offloaded
from appliance.vmm.device import close_wholly
from appliance.vmm.virtio.consts import STATUS_NEEDS_RESET
from tests.fakes.block import BlockDriver, block_range, header
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import DriverQueue, attach, transport_of
from tests.fakes.waiting_driver import run_until, wait_for_answers

pytestmark = pytest.mark.host
MIB = 1 << 20
OK, IOERR, UNSUPP = Status.OK, Status.IOERR, Status.UNSUPP
Make = Callable[..., QsdBlk]


@pytest.fixture(params=["qcow2", "raw"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path, kind: str) -> Path:
    made = tmp_path / f"disk.{kind}"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, made, "8M"], check=True)
    return made


@pytest.fixture
def make(machine: FakeMachine, tmp_path: Path, path: Path, kind: str) -> Iterator[Make]:
    made: list[QsdBlk] = []

    def build(mode: str = "writeback", **options: object) -> QsdBlk:
        image = QsdImage(path=path, format=kind, cache=CACHE_MODES[mode], **options)  # type: ignore[arg-type]
        made.append(open_offloaded("virtio0", machine.context, image, socket_path=tmp_path / "virtio0.sock"))
        return made[-1]

    yield build
    for device in made:
        close_wholly(device)
    assert list(tmp_path.glob("*.sock")) == []


def driver_of(device: QsdBlk) -> BlockDriver:
    return BlockDriver(wait_for_answers(attach(device)[0]))


def same(path: Path, kind: str, content: bytes, tmp_path: Path) -> None:
    other = tmp_path / "expected.raw"
    other.write_bytes(content)
    subprocess.run(["qemu-img", "compare", "-f", kind, "-F", "raw", path, other], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("mode", "aio"),
    [("none", "native"), ("writeback", "io_uring"), ("writeback", "threads"), ("writethrough", "io_uring")],
)
def test_reads_writes_discards_and_zeroes_reach_the_image(
    make: Make, path: Path, kind: str, tmp_path: Path, mode: str, aio: str
) -> None:
    device = make(mode, discard=True, aio=aio)
    assert device.size_bytes == 8 * MIB
    assert device.data_plane == "vhost-user"
    assert device.read_config(b.WRITEBACK_AT, 1) == CACHE_MODES[mode].volatile
    driver = driver_of(device)
    expected = bytearray(8 * MIB)
    for sector, length in ((0, 512), (8, 65536), (1024, 4096), (16383, 512)):
        data = os.urandom(length)
        assert driver.write(sector, data[:200], data[200:]) == OK
        expected[sector * 512 : sector * 512 + length] = data
    assert driver.read(8, 65536) == (OK, bytes(expected[4096 : 4096 + 65536]))
    assert driver.discard(block_range(0, 128)) == OK  # a cluster
    assert driver.write_zeroes(block_range(128, 1)) == OK
    expected[: 65536 + 512] = bytes(65536 + 512)
    assert driver.flush() == OK
    assert driver.read(16384, 512)[0] == IOERR
    assert driver.queue.request([header(77)], [1]) == bytes([UNSUPP])
    close_wholly(device)
    same(path, kind, bytes(expected), tmp_path)


def test_a_read_only_image_is_not_written(make: Make) -> None:
    device = make(read_only=True)
    driver = driver_of(device)
    assert device.has(b.F_RO)
    assert driver.write(0, bytes(512)) == IOERR
    assert driver.read(0, 512) == (OK, bytes(512))


def test_what_is_written_into_memory_is_in_the_dirty_log_and_in_no_later_one(machine: FakeMachine, make: Make) -> None:
    driver = driver_of(make())
    driver.read(0, 4096)
    machine.memory.start_dirty_log()
    head = driver.queue.add([header(RequestType.IN)], [8192, 1])
    buffers = driver.queue._chains[head][1]
    driver.queue.kick()
    driver.queue.used()
    log = machine.memory.take_dirty()
    pages = {page for at, size in buffers for page in range(at >> 12, (at + size - 1 >> 12) + 1)}
    pages.add(driver.queue.used_ring >> 12)
    assert pages <= {n for n in range(len(log) * 8) if log[n >> 3] >> (n & 7) & 1}
    assert len(log) == machine.memory.size // 4096 // 8
    assert not any(machine.memory.take_dirty())
    driver.read(0, 512)
    assert any(machine.memory.take_dirty())
    machine.memory.stop_dirty_log()
    driver.read(0, 512)


def test_a_paused_disk_does_nothing_and_goes_on(machine: FakeMachine, make: Make) -> None:
    device = make()
    driver = driver_of(device)
    driver.write(0, b"a" * 512)
    device.pause()
    head = driver.queue.add([header(RequestType.IN)], [512, 1])
    DriverQueue.kick(driver.queue)
    assert not select.select([transport_fd(device)], [], [], 0.05)[0]
    assert driver.queue.used() == []
    device.resume()
    run_until(device, lambda: driver.queue.memory.load_u16(driver.queue.used_ring + 2) != driver.queue.used_idx)
    assert driver.queue.used() == [(head, 513)]
    assert driver.read(0, 512) == (OK, b"a" * 512)


def transport_fd(device: QsdBlk) -> int:
    return device._relays[0].fileno()


def test_a_saved_disk_goes_on_in_another_daemon(machine: FakeMachine, make: Make) -> None:
    device = make()
    driver = driver_of(device)
    driver.write(3, b"b" * 512)
    device.write_config(b.WRITEBACK_AT, 1, 0)
    device.pause()
    saved = device.save()
    assert saved is not None
    close_wholly(device)
    other = make()
    other.transport = transport_of(device)
    other.restore(saved)
    other.resume()
    driver.queue.device = other
    assert driver.read(3, 512) == (OK, b"b" * 512)
    assert other.read_config(b.WRITEBACK_AT, 1) == 0


def test_the_driver_may_reset_the_device_and_begin_anew(make: Make) -> None:
    device = make()
    for round_ in range(3):
        driver = driver_of(device)
        assert not device.busy()
        assert driver.write(0, bytes([round_]) * 512) == OK
    assert device._helper.process
    assert device.status


def test_an_idle_daemon_that_is_killed_is_started_again(machine: FakeMachine, make: Make) -> None:
    device = make()
    driver = driver_of(device)
    assert driver.write(0, b"c" * 512) == OK
    process = device._helper.process
    assert process
    os.kill(process.pid, signal.SIGKILL)
    run_until(device, lambda: device._helper.process is not process and device._given is not None)
    assert driver.write(1, b"d" * 512) == OK
    assert driver.read(1, 512) == (OK, b"d" * 512)
    assert "started again" in machine.notes[-1]


def test_a_daemon_killed_over_a_request_breaks_the_device_as_nobody_knows_which(
    machine: FakeMachine, make: Make
) -> None:
    device = make()
    driver = driver_of(device)
    process = device._helper.process
    assert process
    os.kill(process.pid, signal.SIGSTOP)
    driver.queue.add([header(RequestType.IN)], [512, 1])
    DriverQueue.kick(driver.queue)
    os.kill(process.pid, signal.SIGKILL)
    run_until(device, lambda: bool(device.status & STATUS_NEEDS_RESET))
    assert driver_of(device).flush() == OK


def test_a_daemon_that_dies_again_and_again_breaks_the_device(machine: FakeMachine, make: Make) -> None:
    device = make()
    driver_of(device)
    for _ in range(4):
        process = device._helper.process
        assert process
        os.kill(process.pid, signal.SIGKILL)
        run_until(device, lambda process=process: device._helper.process is not process)  # type: ignore[misc]
    assert device.status & STATUS_NEEDS_RESET
    assert driver_of(device).flush() == OK


def test_a_ring_the_daemon_cannot_follow_breaks_this_device_only(machine: FakeMachine, make: Make) -> None:
    device = make()
    driver = driver_of(device)
    driver.queue.describe(0, 0xFFFF_FFFF_F000, 16, 1, 1)
    driver.queue.make_available(0)
    driver.queue.kick()
    run_until(device, lambda: bool(machine.notes))
    assert not machine.faults
    run_until(device, lambda: bool(device.status & STATUS_NEEDS_RESET))
    assert driver_of(device).flush() == OK


def test_snapshots_are_made_inside_an_image_while_it_is_open(make: Make, kind: str) -> None:
    device = make()
    if kind == "raw":
        with pytest.raises(HostError):
            device.daemon.snapshot("one")
        return
    device.daemon.snapshot("one")
    with pytest.raises(HostError):
        device.daemon.snapshot("one")
    device.daemon.drop_snapshot("one")
    device.daemon.drop_snapshot("one")
    device.daemon.snapshot("one")


def test_growing_is_seen_by_the_guest(make: Make) -> None:
    device = make()
    driver = driver_of(device)
    device.resize(16 * MIB)
    assert device.size_bytes == 16 * MIB
    assert transport_of(device).config_interrupts == 1
    assert driver.write(16 * MIB // 512 - 1, b"z" * 512) == OK


def test_an_image_that_is_none_is_refused_in_the_daemons_words(
    machine: FakeMachine, make: Make, path: Path, kind: str
) -> None:
    path.unlink()
    started = time.monotonic()
    with pytest.raises(HostError, match="No such file or directory"):
        make()
    assert time.monotonic() - started < 5


def test_what_the_daemon_moves_is_counted_over_its_restarts(make: Make) -> None:
    device = make("writeback")
    driver = driver_of(device)
    assert device.statistics.written_bytes < 4096
    for number in range(16):
        assert driver.write(64 * number, os.urandom(32768)) == OK
        assert driver.read(64 * number, 32768)[0] == OK
    first = device.statistics
    assert 16 * 32768 <= first.read_bytes < 2 * 16 * 32768
    assert 16 * 32768 <= first.written_bytes < 3 * 16 * 32768
    process = device.daemon.helper.process
    assert process is not None
    os.kill(process.pid, 9)
    run_until(device, lambda: device.daemon.helper.process is not process)
    assert driver.write(0, os.urandom(32768)) == OK
    assert device.statistics.written_bytes >= first.written_bytes
