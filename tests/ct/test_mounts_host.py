"""What of the host a container is given: directories, memory, devices; each on the real kernel, and no more than that."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance import command
from appliance.ct.running import RunningCt
from appliance.errors import InvalidParameter
from appliance.kernel import mount
from appliance.model.guest import CtDevice, CtMount, CtSecurity, MountKind
from tests.ct.conftest import SPEC, Host, each_runtime, leftovers

pytestmark = pytest.mark.host


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A directory of the host that belongs to its root."""
    path = tmp_path / "share"
    path.mkdir()
    (path / "note").write_text("from the host\n")
    return path


@pytest.fixture
def mounted_below(share: Path) -> Iterator[Path]:
    """What the host mounts in the directory, while the container runs."""
    below = share / "below"
    below.mkdir()
    yield below
    for target in mount.mounts_under(share):
        mount.umount(target)


def shared(path: Path, **fields: object) -> CtMount:
    return CtMount(slot="mp0", volume=str(path), path="/in", kind=MountKind.HOST_PATH, **fields)  # type: ignore[arg-type]


async def inside(guest: RunningCt, script: str) -> str:
    """What a shell inside says to `script`, errors included."""
    done = await guest.execute(["/bin/busybox", "sh", "-c", f"({script}) 2>&1"], timeout_s=20)
    return done.text


async def test_a_directory_of_the_host_has_the_hosts_owners_unless_ids_are_mapped(host: Host, share: Path) -> None:
    guest = await host.start(replace(SPEC, mounts=(shared(share),)))
    assert await inside(guest, "busybox stat -c %u /in/note; cat /in/note; touch /in/x") == (
        "65534\nfrom the host\ntouch: /in/x: Permission denied"
    )
    await guest.stop()


@each_runtime
async def test_with_mapped_ids_roots_files_are_roots_outside(host: Host, share: Path) -> None:
    guest = await host.start(replace(SPEC, mounts=(shared(share, map_ids=True),)))
    assert await inside(guest, "busybox stat -c %u /in/note; touch /in/x && busybox chown 7:8 /in/x") == "0"
    status = (share / "x").stat()
    assert (status.st_uid, status.st_gid) == (7, 8)
    await guest.stop()


async def test_nothing_set_id_and_no_device_works_through_it(host: Host, share: Path) -> None:
    os.mknod(share / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    spec = replace(SPEC, mounts=(shared(share, map_ids=True, options=frozenset({"noexec"})),))
    guest = await host.start(spec)
    said = await inside(
        guest, "grep ' /in ' /proc/self/mountinfo; busybox cp /bin/busybox /in/b; /in/b true; cat /in/null"
    )
    assert "nosuid,nodev,noexec" in said
    assert said.count("Permission denied") + said.count("Operation not permitted") == 2, said
    await guest.stop()


async def test_mounts_spread_neither_way(host: Host, share: Path, mounted_below: Path) -> None:
    await command.run(["mount", "--bind", str(share), str(share)], timeout_s=10)
    await command.run(["mount", "--make-shared", str(share)], timeout_s=10)
    guest = await host.start(replace(SPEC, mounts=(shared(share, map_ids=True),)))
    await inside(guest, "mkdir /in/own; mount -t tmpfs none /in/own && touch /in/own/mine")
    assert not (share / "own/mine").exists()
    await command.run(["mount", "-t", "tmpfs", "none", str(mounted_below)], timeout_s=10)
    (mounted_below / "secret").touch()
    assert await inside(guest, "ls /in/below") == ""
    await guest.stop()


async def test_a_link_on_the_way_to_a_path_of_the_host_is_refused(host: Host, share: Path, run_dir: Path) -> None:
    link = share / "link"
    link.symlink_to("/etc")
    for path in (link, link / "ssl"):
        with pytest.raises(InvalidParameter, match="symbolic link"):
            await host.start(replace(SPEC, mounts=(shared(path),)))
    with pytest.raises(InvalidParameter, match="No such file"):
        await host.start(replace(SPEC, mounts=(shared(share / "absent"),)))
    assert await leftovers(run_dir) == []


async def test_one_file_of_the_host_may_be_mounted_read_only(host: Host, share: Path, run_dir: Path) -> None:
    guest = await host.start(replace(SPEC, mounts=(shared(share / "note", read_only=True, map_ids=True),)))
    assert await inside(guest, "cat /in; echo x > /in") == "from the host\nsh: can't create /in: Read-only file system"
    await guest.stop()
    assert await leftovers(run_dir) == []


async def test_memory_is_a_file_system_of_the_size_asked_for(host: Host) -> None:
    memory = CtMount(slot="mp0", volume="", path="/in", size_bytes=1 << 20, kind=MountKind.MEMORY)
    guest = await host.start(replace(SPEC, mounts=(memory,)))
    said = await inside(guest, "dd if=/dev/zero of=/in/x bs=64k count=17; busybox stat -c %u:%a /in")
    assert "No space left on device" in said
    assert said.endswith("0:755")
    await guest.stop()


@each_runtime
async def test_a_device_has_the_owner_and_mode_asked_for_and_works(host: Host, run_dir: Path) -> None:
    tun = CtDevice(slot="dev0", path="/dev/net/tun", mode=0o640, gid=12)
    zero = CtDevice(slot="dev1", path="/dev/full", read_only=True)
    guest = await host.start(replace(SPEC, devices=(tun, zero)))
    said = await inside(guest, "busybox stat -c %u:%g:%a:%t:%T /dev/net/tun; busybox tunctl -t tun7")
    assert said.startswith("0:12:640:a:c8\n"), said
    assert "tun7" in said
    await guest.stop()
    assert await leftovers(run_dir) == []


@each_runtime
async def test_a_device_that_was_not_given_cannot_be_opened_even_by_a_node_of_it(host: Host) -> None:
    """The second wall: were a container to get at a node, its device rules would still refuse it."""
    denied = CtDevice(slot="dev0", path="/dev/fuse", mode=0o666, read_only=True)
    guest = await host.start(replace(SPEC, devices=(denied,)))
    said = await inside(guest, "exec 3<>/dev/fuse")
    assert "Operation not permitted" in said
    await guest.stop()


async def test_what_is_no_device_of_this_host_is_refused_by_key(host: Host, run_dir: Path) -> None:
    for path in ("/dev/shm", "/dev/absent0"):
        with pytest.raises(InvalidParameter, match="dev0"):
            await host.start(replace(SPEC, devices=(CtDevice(slot="dev0", path=path),)))
    assert await leftovers(run_dir) == []


async def test_a_stricter_filter_refuses_mounts_and_a_dropped_capability_is_gone(host: Host) -> None:
    security = CtSecurity(seccomp="strict", dropped=frozenset({"NET_ADMIN"}))
    guest = await host.start(replace(SPEC, security=security, pids=20))
    assert "permission denied" in await inside(guest, "mount -t tmpfs none /tmp")
    assert "Operation not permitted" in await inside(guest, "busybox ip addr add 10.9.9.9/32 dev lo")
    said = await inside(guest, "i=0; while [ $i -lt 40 ]; do sleep 2 & i=$((i+1)); done")
    assert "can't fork" in said
    await guest.stop()
