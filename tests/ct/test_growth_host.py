"""A running container's volume grows: image, loop device and mounted file system. Where root may not raise resource limits
(CAP_SYS_RESOURCE) the kernel refuses the last step, and so do we, with that reason.

Its first part runs in a lab host (docs/lab.md): `cd /opt/appliance/src && python -m pytest -q tests/ct/test_growth_host.py`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance import command
from appliance.ct import rootfs
from appliance.ct.running import RunningCt
from appliance.errors import HostError, Unsupported
from appliance.model.guest import CtMount
from appliance.model.volume import OpenedVolume, VolumeFormat
from tests.ct.conftest import SPEC, Host

pytestmark = pytest.mark.host

MIB = 1 << 20
MAY_GROW = rootfs._has_capability(rootfs.CAP_SYS_RESOURCE)
needs_capability = pytest.mark.skipif(
    not MAY_GROW, reason="this host's root lacks CAP_SYS_RESOURCE: ext4 does not grow mounted"
)


async def image(path: Path, tree: Path, size_mib: int) -> OpenedVolume:
    path.touch()
    os.truncate(path, size_mib * MIB)
    await command.run(["mkfs.ext4", "-qF", "-d", str(tree), str(path)], timeout_s=30)
    return OpenedVolume(volume_id=None, path=path, format=VolumeFormat.RAW, size_bytes=size_mib * MIB)


@pytest.fixture
async def guest(host: Host, tmp_path: Path) -> AsyncIterator[RunningCt]:
    """It runs on one image, and has another mounted read-only."""
    root = await image(tmp_path / "root.raw", host.volume.path, 32)
    data = await image(tmp_path / "data.raw", host.volume.path, 32)
    spec = replace(SPEC, mounts=(CtMount(slot="mp0", volume="x", path="/tmp", read_only=True),))
    guest = await host.start(spec, rootfs=root, mp0=replace(data, read_only=True))
    yield guest
    await guest.stop()


async def lengthen(path: Path) -> None:
    """What the storage does before the engine is asked."""
    os.truncate(path, 64 * MIB)


def room(guest: RunningCt, path: str) -> int:
    """MiB of the file system at `path` inside."""
    status = os.statvfs(f"/proc/{guest.pid}/root{path}")
    return status.f_blocks * status.f_frsize // MIB


@needs_capability
async def test_a_mounted_root_grows_and_can_be_filled(guest: RunningCt, tmp_path: Path) -> None:
    await lengthen(tmp_path / "root.raw")
    await guest.resize_disk("rootfs", 64 * MIB)
    assert room(guest, "/") > 50
    done = await guest.execute(["/bin/sh", "-c", "dd if=/dev/zero of=/big bs=1M count=40 && sync"], timeout_s=30)
    assert done.returncode == 0, done.stderr
    await guest.resize_disk("rootfs", 64 * MIB)
    assert room(guest, "/") > 50, "once more changes nothing"


@pytest.mark.skipif(MAY_GROW, reason="this host's root has CAP_SYS_RESOURCE")
async def test_where_the_kernel_refuses_it_the_reason_is_said_and_the_container_goes_on(
    guest: RunningCt, tmp_path: Path
) -> None:
    await lengthen(tmp_path / "root.raw")
    with pytest.raises(Unsupported, match=r"rootfs: the volume has grown, .* lacks CAP_SYS_RESOURCE"):
        await guest.resize_disk("rootfs", 64 * MIB)
    assert room(guest, "/") < 40
    done = await guest.execute(["/bin/echo", "here"], timeout_s=10)
    assert done.stdout == b"here\n"


async def test_a_read_only_volume_is_refused_without_harm(guest: RunningCt, tmp_path: Path) -> None:
    await lengthen(tmp_path / "data.raw")
    with pytest.raises((Unsupported, HostError)):
        await guest.resize_disk("mp0", 64 * MIB)
    assert room(guest, "/tmp") < 40
