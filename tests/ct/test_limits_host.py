"""Limits of a running container on this host's control groups: changed, bound, and refused where they do not fit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance import command
from appliance.ct.running import RunningCt
from appliance.kernel.cgroup_update import disk_of, io_files
from appliance.model.guest import IoLimit
from appliance.model.volume import OpenedVolume, VolumeFormat
from tests.ct.conftest import SPEC, Host, each_runtime

MIB = 1 << 20


@pytest.fixture
async def image(tmp_path: Path, make_root: Callable[[str], OpenedVolume]) -> OpenedVolume:
    """A raw image of 64 MiB with busybox in it."""
    path, source = tmp_path / "disk.raw", make_root("source")
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    await command.run(["mkfs.ext4", "-q", "-d", str(source.path), str(path)], timeout_s=30)
    return OpenedVolume(volume_id=None, path=path, format=VolumeFormat.RAW, size_bytes=64 * MIB)


async def inside(guest: RunningCt, script: str) -> str:
    return (await guest.execute(["/bin/busybox", "sh", "-c", f"({script}) 2>&1"], timeout_s=60)).text


@pytest.mark.host
@each_runtime
async def test_memory_grows_and_shrinks_while_it_runs(host: Host) -> None:
    guest = await host.start()
    for memory_mib in (256, 32):
        assert await guest.update_limits(replace(SPEC, memory_mib=memory_mib, swap_mib=16), ["memory"]) == {}
        assert (await guest.stats()).memory_max_bytes == memory_mib * MIB
    await guest.stop()


@pytest.mark.host
async def test_less_memory_than_is_in_use_is_refused_and_nobody_is_killed(host: Host) -> None:
    guest = await host.start(replace(SPEC, memory_mib=128))
    await inside(guest, "mkdir -p /m; mount -t tmpfs none /m; dd if=/dev/zero of=/m/x bs=1M count=60")
    failed = await guest.update_limits(replace(SPEC, memory_mib=32), ["memory", "swap"])
    assert set(failed) == {"memory", "swap"}
    assert "in use" in failed["memory"]
    assert (await guest.stats()).memory_max_bytes == 128 * MIB
    assert await inside(guest, "ls /m") == "x"
    await guest.stop()


@pytest.mark.host
@each_runtime
async def test_processor_time_and_processes_are_limited_while_it_runs(host: Host) -> None:
    guest = await host.start()
    spec = replace(SPEC, cpu_limit=0.1, pids=12)
    assert await guest.update_limits(spec, ["cpulimit", "pids", "cpuunits", "cores"]) == {}
    before = (await guest.stats()).cpu_seconds
    began = time.monotonic()
    await inside(guest, "busybox timeout 1.5 sh -c 'while :; do :; done'")
    used = ((await guest.stats()).cpu_seconds - before) / (time.monotonic() - began)
    assert used < 0.3, used
    assert "can't fork" in await inside(guest, "i=0; while [ $i -lt 20 ]; do sleep 3 & i=$((i+1)); done")
    await guest.stop()


@pytest.mark.host
async def test_disk_traffic_is_limited_from_the_start_and_while_it_runs(host: Host, image: OpenedVolume) -> None:
    spec = replace(SPEC, io_limit=IoLimit(write_bytes=2_000_000))
    guest = await host.start(spec, rootfs=image)
    write = "busybox dd if=/dev/zero of=/x bs=64k count=48 oflag=direct conv=notrunc"
    began = time.monotonic()
    assert "48+0 records out" in await inside(guest, write)
    limited_s = time.monotonic() - began
    assert limited_s > 1.0, "3 MiB at 2 MB/s"
    assert await guest.update_limits(SPEC, ["iolimit"]) == {}
    began = time.monotonic()
    await inside(guest, write)
    assert time.monotonic() - began < limited_s / 2
    await guest.stop()


def test_a_partition_is_limited_by_its_disk(tmp_path: Path) -> None:
    disk = tmp_path / "sda"
    (disk / "sda1").mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    (disk / "sda1/dev").write_text("8:1\n")
    (disk / "sda1/partition").write_text("1\n")
    for number, place in (("8:0", disk), ("8:1", disk / "sda1")):
        (tmp_path / number).symlink_to(place)
    assert disk_of(8 << 8, tmp_path) == disk_of(8 << 8 | 1, tmp_path) == "8:0"
    assert disk_of(42, tmp_path) is None, "the number of a file system without a disk"


def test_io_limits_are_written_as_each_version_reads_them() -> None:
    limit = IoLimit(read_bytes=5, write_operations=7)
    assert io_files("8:0", limit, v2=True) == {"io.max": "8:0 rbps=5 wbps=max riops=max wiops=7"}
    assert io_files("8:0", limit, v2=False)["blkio.throttle.read_bps_device"] == "8:0 5"
    assert io_files("8:0", limit, v2=False)["blkio.throttle.write_bps_device"] == "8:0 0"
