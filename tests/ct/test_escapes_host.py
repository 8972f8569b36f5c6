"""Ways out of a container that have worked elsewhere: each is tried by its root, and none reaches host or neighbour."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance import command
from appliance.ct.running import RunningCt
from appliance.errors import NoSpace
from appliance.model.guest import GuestId
from appliance.model.inside import FileWrite
from appliance.model.volume import OpenedVolume, VolumeFormat
from tests.ct.conftest import SPEC, Host

pytestmark = pytest.mark.host
RUNTIMES = [path for name in ("runc", "crun", "conmon") if (path := shutil.which(name))]


async def inside(guest: RunningCt, script: str) -> str:
    return (await guest.execute(["/bin/busybox", "sh", "-c", f"({script}) 2>&1"], timeout_s=60)).text


def digests() -> list[str]:
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in RUNTIMES]


async def test_the_runtime_cannot_be_overwritten_through_proc_self_exe(host: Host) -> None:
    """CVE-2019-5736: a program inside that is a link to the runtime which enters, while init waits to write to it."""
    before = await asyncio.to_thread(digests)
    guest = await host.start(replace(SPEC, pids=100))
    hunter = "while :; do for exe in /proc/[0-9]*/exe; do echo pwned 2>/dev/null >$exe; done; done"
    await inside(
        guest, f"echo '#!/proc/self/exe' >/bin/evil; busybox chmod 755 /bin/evil; busybox timeout 4 sh -c '{hunter}' &"
    )
    for _ in range(10):
        await guest.execute(["/bin/evil"], timeout_s=20)
    assert await asyncio.to_thread(digests) == before
    assert (await guest.execute(["/bin/busybox", "true"], timeout_s=20)).returncode == 0
    await guest.stop()


async def test_the_kernels_helpers_of_the_host_cannot_be_set(host: Host) -> None:
    """core_pattern, modprobe, sysrq, the uevent helper and a cgroup's release agent all run programs as the host's root."""
    guest = await host.start()
    before = await asyncio.to_thread(Path("/proc/sys/kernel/core_pattern").read_text)
    paths = "/proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger /sys/kernel/uevent_helper"
    said = await inside(guest, f"for f in {paths}; do echo x >$f && echo BROKEN $f; done")
    assert "BROKEN" not in said
    take = "mount -t cgroup -o $c none /cg && echo x >/cg/release_agent && echo BROKEN"
    assert "BROKEN" not in await inside(guest, f"mkdir -p /cg; for c in memory rdma freezer; do {take}; done")
    assert await asyncio.to_thread(Path("/proc/sys/kernel/core_pattern").read_text) == before
    await guest.stop()


async def test_no_device_of_the_host_is_made_mounted_or_opened(host: Host) -> None:
    guest = await host.start()
    said = await inside(
        guest, "mknod /dev/mem1 c 1 1; mknod /tmp/disk b 254 0; cat /dev/mem1 /tmp/disk; mount -t ext4 /dev/vda /tmp"
    )
    assert "BROKEN" not in said
    assert said.count("Operation not permitted") >= 2, said
    await guest.stop()


@pytest.fixture
async def small(tmp_path: Path, make_root: Callable[[str], OpenedVolume]) -> OpenedVolume:
    """A root file system of 24 MiB."""
    path, source = tmp_path / "small.raw", make_root("source")
    with path.open("wb") as file:
        file.truncate(24 << 20)
    await command.run(["mkfs.ext4", "-q", "-d", str(source.path), str(path)], timeout_s=30)
    return OpenedVolume(volume_id=None, path=path, format=VolumeFormat.RAW, size_bytes=24 << 20)


async def test_a_container_that_fills_its_disk_memory_and_processes_is_alone_with_that(
    host: Host, small: OpenedVolume, make_root: Callable[[str], OpenedVolume]
) -> None:
    neighbour = await host.start(replace(SPEC, guest_id=GuestId(102), id_base=300_000), rootfs=make_root("neighbour"))
    greedy = await host.start(replace(SPEC, pids=30, memory_mib=32), rootfs=small)
    assert "No space left on device" in await inside(greedy, "dd if=/dev/zero of=/big bs=64k")
    with pytest.raises(NoSpace):
        await greedy.files.write("/more", pieces(bytes(1 << 20)), FileWrite())
    assert "can't fork" in await inside(greedy, "i=0; while [ $i -lt 60 ]; do sleep 2 & i=$((i+1)); done")
    await inside(greedy, "busybox tail /dev/zero")
    assert (await greedy.stats()).oom_kills >= 1
    assert await inside(neighbour, "echo fine >/x; cat /x") == "fine"
    await greedy.stop()
    await neighbour.stop()


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for each in data:
        yield each


async def test_two_containers_own_nothing_of_each_other(host: Host, make_root: Callable[[str], OpenedVolume]) -> None:
    """Different id ranges: what leaks from one to the other, by whatever way, belongs to nobody there."""
    other = await host.start(replace(SPEC, guest_id=GuestId(102), id_base=300_000), rootfs=make_root("other"))
    guest = await host.start()
    maps = [await asyncio.to_thread(Path(f"/proc/{each.pid}/uid_map").read_text) for each in (guest, other)]
    ranges = [range(int(text.split()[1]), int(text.split()[1]) + int(text.split()[2])) for text in maps]
    assert not set(ranges[0]) & set(ranges[1])
    assert await inside(guest, f"busybox kill -9 {other.pid}; cat /proc/{other.pid}/environ") != ""
    assert (await other.execute(["/bin/busybox", "true"], timeout_s=20)).returncode == 0
    await guest.stop()
    await other.stop()
