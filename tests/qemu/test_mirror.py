"""A disk moved to another image while a real QEMU's guest runs: on the new one or on the old one, and nothing is left over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.errors import HostError, NoSpace, NotFound
from appliance.model.guest import GuestState, VmDisk, VmResources
from appliance.model.volume import OpenedVolume, VolumeFormat, VolumeId
from appliance.qemu.drives import block_node
from appliance.qemu.mirror import DiskMirror
from appliance.qemu.vm import RunningVm
from tests.qemu.host import QemuHost, boot_spec, greeted, qemu_host, read_until

pytestmark = pytest.mark.host

MIB = 1 << 20
SIZE = 8 * MIB
OLD, NEW = "local:100/vm-100-disk-0.raw", "fast:100/vm-100-disk-0"
SPEC = boot_spec(disks=(VmDisk(slot="virtio0", volume=OLD),))
SLOW = MIB
"""Bytes a second: there is time to do something meanwhile."""


def image(path: Path, format: VolumeFormat, size: int = SIZE) -> OpenedVolume:
    """An empty image, as the storage would make it."""
    subprocess.run(["qemu-img", "create", "-q", "-f", format, str(path), str(size)], check=True, timeout=30)
    return OpenedVolume(volume_id=VolumeId.parse(f"{NEW}.{format}"), path=path, format=format, size_bytes=size)


def boot_disk(host: QemuHost) -> OpenedVolume:
    """Of `SIZE`, with something at its end and a hole before."""
    disk = host.disk()
    with disk.path.open("r+b") as file:
        file.truncate(SIZE)
        file.seek(SIZE - MIB)
        file.write(b"end." * (MIB // 4))
    return disk


def content(volume: OpenedVolume) -> bytes:
    """What the guest would read; nobody writes it."""
    out = volume.path.with_suffix(".content")
    argv = ["qemu-img", "convert", "-U", "-f", volume.format, "-O", "raw", str(volume.path), str(out)]
    subprocess.run(argv, check=True, timeout=30)
    return out.read_bytes()


def report(_: float) -> None:
    """Nobody looks."""


async def never() -> None:
    """The appliance was killed before."""
    raise AssertionError


async def move(vm: RunningVm, target: OpenedVolume) -> None:
    async with vm.mirroring("virtio0", target) as moving:
        await moving.in_step(report)
        assert await moving.switch()


async def crawl(vm: RunningVm, target: OpenedVolume) -> None:
    """A move that takes longer than any test."""
    async with vm.mirroring("virtio0", target, bytes_per_s=SLOW) as moving:
        await moving.in_step(report)


async def nodes(vm: RunningVm) -> list[str]:
    """The block nodes of drives, and the jobs, that QEMU has."""
    found = await vm._monitor.execute("query-named-block-nodes", {"flat": True})
    jobs = await vm._monitor.execute("query-jobs")
    assert isinstance(found, list)
    assert isinstance(jobs, list)
    names = sorted(str(each["node-name"]) for each in found if str(each["node-name"]).startswith(("drive-", "mirror-")))
    return [*names, *(str(each["id"]) for each in jobs)]


@pytest.mark.parametrize("format", [VolumeFormat.QCOW2, VolumeFormat.RAW])
async def test_a_disk_moves_while_its_guest_runs(format: VolumeFormat) -> None:
    async with qemu_host() as host:
        old = await asyncio.to_thread(boot_disk, host)
        vm = await host.start(SPEC, VmResources(disks={"virtio0": old}))
        console = await greeted(vm)
        target = await asyncio.to_thread(image, host.directory / "new", format)
        told: list[float] = []
        async with vm.mirroring("virtio0", target) as moving:
            await moving.in_step(told.append)
            assert await moving.switch()
        assert told[-1] == pytest.approx(1)
        assert len(await nodes(vm)) == 1
        disk = vm.attached["virtio0"]
        assert isinstance(disk, VmDisk)
        assert disk.volume == f"{NEW}.{format}"
        await console.write(b"x")
        await read_until(console, b"x")
        await console.close()
        assert await asyncio.to_thread(content, target) == await asyncio.to_thread(old.path.read_bytes)
        assert (await asyncio.to_thread(target.path.stat)).st_blocks * 512 < SIZE // 2, "holes stay holes"
        await vm.stop()


async def test_a_moved_disk_grows_is_kept_and_moves_again() -> None:
    async with qemu_host() as host:
        vm = await host.start(SPEC, VmResources(disks={"virtio0": await asyncio.to_thread(boot_disk, host)}))
        first = await asyncio.to_thread(image, host.directory / "first", VolumeFormat.QCOW2)
        await move(vm, first)
        await vm.resize_disk("virtio0", 2 * SIZE)
        await vm.snapshot_disks("one", ["virtio0"])
        await vm.drop_disk_snapshots("one", ["virtio0"])
        second = await asyncio.to_thread(image, host.directory / "second", VolumeFormat.RAW, 2 * SIZE)
        await move(vm, second)
        assert len(await nodes(vm)) == 1
        assert (await asyncio.to_thread(content, second))[SIZE - 4 : SIZE] == b"end."
        await vm.stop()


@pytest.mark.parametrize("how", ["cancelled", "given up"])
async def test_a_move_that_is_not_finished_leaves_the_old_disk(how: str) -> None:
    async with qemu_host() as host:
        vm = await host.start(SPEC, VmResources(disks={"virtio0": await asyncio.to_thread(boot_disk, host)}))
        before = await nodes(vm)
        target = await asyncio.to_thread(image, host.directory / "new", VolumeFormat.RAW)
        started = asyncio.Event()

        async def unfinished() -> None:
            async with vm.mirroring("virtio0", target, bytes_per_s=SLOW) as moving:
                started.set()
                if how == "given up":
                    raise NotFound("somebody")
                await moving.in_step(report)

        task = asyncio.ensure_future(unfinished())
        await started.wait()
        if how == "cancelled":
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises((asyncio.CancelledError, NotFound)):
            await task
        assert await nodes(vm) == before
        disk = vm.attached["virtio0"]
        assert isinstance(disk, VmDisk)
        assert disk.volume == OLD
        assert vm.state is GuestState.RUNNING
        await move(vm, target)
        await vm.stop()


async def test_a_move_cancelled_while_it_begins_leaves_nothing() -> None:
    async with qemu_host() as host:
        vm = await host.start(SPEC, VmResources(disks={"virtio0": await asyncio.to_thread(boot_disk, host)}))
        before = await nodes(vm)
        target = await asyncio.to_thread(image, host.directory / "new", VolumeFormat.RAW)
        for delay_ms in range(12):
            task = asyncio.ensure_future(crawl(vm, target))
            await asyncio.sleep(delay_ms / 1000)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert await nodes(vm) == before, f"cancelled after {delay_ms} ms"
        await vm.stop()


async def test_a_full_disk_leaves_the_old_one(tmp_path: Path) -> None:
    full = tmp_path / "small"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", full], check=True)
    try:
        async with qemu_host() as host:
            vm = await host.start(SPEC, VmResources(disks={"virtio0": await asyncio.to_thread(boot_disk, host)}))
            before = await nodes(vm)
            target = await asyncio.to_thread(image, full / "new", VolumeFormat.RAW)
            with pytest.raises(NoSpace, match="virtio0: copying it: No space left"):
                await move(vm, target)
            assert await nodes(vm) == before
            assert vm.state is GuestState.RUNNING
            await vm.stop()
    finally:
        subprocess.run(["umount", full], check=True)


async def test_an_image_of_another_size_or_none_is_an_error_and_changes_nothing() -> None:
    async with qemu_host() as host:
        vm = await host.start(SPEC, VmResources(disks={"virtio0": await asyncio.to_thread(boot_disk, host)}))
        before = await nodes(vm)
        absent = OpenedVolume(
            volume_id=VolumeId.parse(f"{NEW}.raw"), path=host.directory / "no", format=VolumeFormat.RAW, size_bytes=1
        )
        with pytest.raises(HostError):
            await move(vm, absent)
        with pytest.raises(NotFound, match="virtio7"):
            async with vm.mirroring("virtio7", absent):
                pass
        assert await nodes(vm) == before
        await vm.stop()


@pytest.mark.parametrize("keep", [False, True])
async def test_what_a_killed_appliance_left_is_ended_as_its_configuration_says(*, keep: bool) -> None:
    async with qemu_host() as host:
        old = await asyncio.to_thread(boot_disk, host)
        vm = await host.start(SPEC, VmResources(disks={"virtio0": old}))
        target = await asyncio.to_thread(image, host.directory / "new", VolumeFormat.QCOW2)
        node = block_node(SPEC.disks[0], target, buffered=False)
        left = DiskMirror(vm._monitor, "virtio0", node, SystemClock(), switched=never)
        await left.begin()
        await left.in_step(report)
        await host.engine.close()
        again = await host.adopt(SPEC)
        assert again is not None
        stands_on = await again.settle_mirrors({"virtio0": str(target.volume_id)} if keep else {})
        assert stands_on == {"virtio0": os.fspath(target.path if keep else old.path)}
        assert len(await nodes(again)) == 1
        found = again.attached["virtio0"]
        assert isinstance(found, VmDisk)
        assert found.volume == (str(target.volume_id) if keep else OLD)
        assert await again.settle_mirrors({}) == stands_on
        await again.stop()
