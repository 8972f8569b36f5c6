"""Disks with everything that goes on at once: a guest's thread, the loop, the pool; pauses and resets in between."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import select
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from appliance.model.guest import VmDisk
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.threads import to_the_end
from appliance.vmm.block.disk import Disk, DiskOptions, open_disk
from appliance.vmm.block.layout import RequestType
from appliance.vmm.device import close_wholly
from appliance.vmm.loopbridge import LoopBridge
from appliance.vmm.vhost.backend import DataPlane
from tests.fakes.block import header
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import DriverQueue, attach, transport_of

DISK_SECTORS = 2048
DEPTH = 12


class Guest(threading.Thread):
    """Writes and reads sectors of its own, several at once, and remembers what they must hold."""

    def __init__(self, device: Disk, *, requests: int, seed: int) -> None:
        super().__init__(name="guest")
        self.failure: BaseException | None = None
        self.content = {sector: bytes(512) for sector in range(DISK_SECTORS)}
        self._device = device
        self._random = random.Random(seed)
        self._left = requests
        # Not a descriptor of the guest's: a last interrupt may come when the guest has all its answers and is gone.
        self._wake = threading.Event()
        self._open: dict[int, tuple[int, bytes | None]] = {}
        self.queue = self.begin()

    def begin(self) -> DriverQueue:
        """The driver starts anew: what was open is forgotten, and must not come back."""
        self._open.clear()
        (queue,) = attach(self._device, size=64)
        transport_of(self._device).queue_interrupt = lambda index: self._wake.set()  # type: ignore[method-assign]
        return queue

    def run(self) -> None:
        try:
            while self._left or self._open:
                self._fill()
                self._collect()
        except BaseException as error:  # noqa: BLE001
            self.failure = error

    def _fill(self) -> None:
        busy = {sector for sector, _ in self._open.values()}
        while self._left and len(self._open) < DEPTH:
            sector = self._random.choice([each for each in range(0, DISK_SECTORS, 16) if each not in busy])
            busy.add(sector)
            self._left -= 1
            if self._random.random() < 0.5:
                data = self._random.randbytes(512)
                head = self.queue.add([header(RequestType.OUT, sector), data], [1])
                self._open[head] = (sector, data)
            else:
                head = self.queue.add([header(RequestType.IN, sector)], [512, 1])
                self._open[head] = (sector, None)
        if self.queue.kick_wanted():
            self.queue.kick()
        self.queue._kicked_at = self.queue.avail_idx

    def _collect(self) -> None:
        if not (answers := self.queue.used()):
            assert self._wake.wait(30), "no interrupt within 30 s"
            self._wake.clear()
            answers = self.queue.used()
        for head, _ in answers:
            sector, written = self._open.pop(head)
            answer = self.queue.read_back(head)
            assert answer[-1] == 0
            if written is not None:
                self.content[sector] = written
            else:
                assert answer[:512] == self.content[sector], f"sector {sector}"


@pytest.fixture
async def bridge() -> AsyncIterator[LoopBridge]:
    errors: list[BaseException] = []
    made = LoopBridge(asyncio.get_running_loop(), label="vm 101", on_error=errors.append)
    yield made
    await made.close()
    assert errors == []


Open = Callable[[DataPlane, str], Disk]


@pytest.fixture
async def opened(machine: FakeMachine, bridge: LoopBridge, tmp_path: Path) -> AsyncIterator[Open]:
    made: list[Disk] = []
    path = tmp_path / "disk.raw"
    await to_the_end(path.write_bytes, bytes(DISK_SECTORS * 512))
    context = dataclasses.replace(machine.context, bridge=bridge)

    def build(plane: DataPlane, cache: str) -> Disk:
        disk = VmDisk(slot="virtio0", volume="local:disk", cache=cache)
        volume = OpenedVolume(volume_id=None, path=path, format=VolumeFormat.RAW, size_bytes=DISK_SECTORS * 512)
        made.append(open_disk(context, disk, volume, DiskOptions(run_dir=tmp_path, data_plane=plane)))
        return made[-1]

    yield build
    await bridge.close()
    for device in made:
        await to_the_end(close_wholly, device)


PLANES = pytest.mark.parametrize(
    ("plane", "cache"),
    [
        (DataPlane.PYTHON, "writeback"),
        (DataPlane.PYTHON, "directsync"),
        pytest.param(DataPlane.OFFLOAD, "writeback", marks=pytest.mark.host),
    ],
)


@PLANES
async def test_nothing_is_lost_or_mixed_up_while_the_machine_is_paused_again_and_again(
    bridge: LoopBridge, opened: Open, plane: DataPlane, cache: str
) -> None:
    device = await to_the_end(opened, plane, cache)
    guest = Guest(device, requests=1500, seed=1)
    guest.start()
    while guest.is_alive():
        await asyncio.sleep(0.01)
        device.pause()
        if plane is DataPlane.PYTHON:  # a real machine's vCPUs stand meanwhile, and the daemon is waited for
            await bridge.idle(timeout_s=10)
            index = device.queues[0].indexes
            assert device.queues[0].in_flight == 0
            await asyncio.sleep(0.002)
            assert device.queues[0].indexes == index
        device.resume()
        await asyncio.sleep(0.02)
    await to_the_end(guest.join)
    assert guest.failure is None, repr(guest.failure)


@PLANES
async def test_a_reset_in_the_middle_leaves_the_drivers_memory_alone_once_it_reads_back(
    opened: Open, plane: DataPlane, cache: str
) -> None:
    device = await to_the_end(opened, plane, cache)

    def guest() -> None:
        memory = device.context.memory
        for _ in range(25):
            (queue,) = attach(device, size=64)
            for sector in range(10):
                queue.add([header(RequestType.IN, sector)], [4096, 1])
            queue.kick()
            with device.lock:
                device.write_status(0)
            while True:
                with device.lock:
                    if not device.read_status():
                        break
                select.select([], [], [], 0.0005)
            memory.write(queue.desc, b"\xee" * 0x2_0000)
            select.select([], [], [], 0.001)
            assert memory.read(queue.desc, 0x2_0000) == b"\xee" * 0x2_0000

    await to_the_end(guest)
    assert device.context.memory
