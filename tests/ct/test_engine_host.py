"""Containers on this host's real runtime: life, limits, ids, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance import command
from appliance.clock import SystemClock
from appliance.ct.engine import CtEngine
from appliance.ct.running import RunningCt
from appliance.ct.runtime import OciRuntime
from appliance.errors import Conflict, GuestFault, HostError, NotFound, TimedOut, Unsupported
from appliance.kernel import mount
from appliance.model.guest import CtMount, CtResources, ExitReason, GuestId, GuestState
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.tasks import TaskScope
from tests.ct.conftest import SPEC, Host, each_runtime, is_alive, leftovers, opening, shell

pytestmark = pytest.mark.host


async def ended(guest: RunningCt) -> ExitReason:
    async with asyncio.timeout(30):
        return await guest.wait()


async def console_text(guest: RunningCt, until: str) -> str:
    """What the console says, up to and with `until`."""
    console = await guest.open_console("console")
    text = console.history()
    async with asyncio.timeout(30):
        while until.encode() not in text:
            chunk = await console.read()
            assert chunk, f"the console ended: {text!r}"
            text += chunk
    await console.close()
    return text.decode()


# --- life -------------------------------------------------------------------------------------------------------------


@each_runtime
async def test_a_container_starts_runs_as_its_own_root_and_stops_without_a_trace(host: Host, run_dir: Path) -> None:
    guest = await host.start()
    assert guest.state is GuestState.RUNNING
    own = await asyncio.to_thread(Path(f"/proc/{guest.pid}/ns/net").stat)
    assert host.connected == [own.st_ino]
    assert Path(f"/proc/{guest.pid}/uid_map").read_text().split() == ["0", "100000", "65536"]
    assert list(await host.engine.running_ids()) == [101]
    inside = await guest.execute(
        ["/bin/sh", "-c", "id -u; hostname 2>/dev/null || cat /proc/sys/kernel/hostname"], timeout_s=10
    )
    assert inside.text.split() == ["0", "web"]
    await guest.stop()
    assert (await ended(guest)).kind == "stopped"
    assert host.states == [GuestState.STOPPED]
    assert await leftovers(run_dir) == []


@each_runtime
async def test_an_init_that_ends_by_itself_is_told_with_its_status(host: Host) -> None:
    assert (await ended(await host.start(shell("exit 0")))).kind == "shutdown"
    crashed = await ended(await host.start(shell("exit 3")))
    assert (crashed.kind, crashed.detail) == ("crashed", "init ended with status 3")


@each_runtime
async def test_a_shutdown_request_reaches_init_as_its_own_signal(host: Host) -> None:
    guest = await host.start(shell("trap 'exit 0' USR2; echo up; while :; do sleep 0.05; done"))
    await console_text(guest, "up")
    await guest.shutdown()
    assert (await ended(guest)).kind == "shutdown"


@each_runtime
async def test_a_paused_container_does_not_execute_and_can_be_stopped(host: Host) -> None:
    guest = await host.start(shell("while :; do echo tick; sleep 0.01; done"))
    await guest.pause()
    assert host.states == [GuestState.PAUSED]
    before = (await guest.stats()).cpu_seconds
    await asyncio.sleep(0.1)
    assert (await guest.stats()).cpu_seconds == before
    await guest.resume()
    assert host.states == [GuestState.PAUSED, GuestState.RUNNING]
    await guest.pause()
    await guest.stop()
    assert (await ended(guest)).kind == "stopped"


async def test_a_second_start_of_a_running_container_is_a_conflict_and_leaves_it_running(
    host: Host, run_dir: Path
) -> None:
    guest = await host.start()
    with pytest.raises(Conflict, match="ct 101: already running"):
        await host.start()
    other = TaskScope("other")
    stranger = CtEngine(run_dir, run_dir, other, SystemClock())
    await stranger.probe()
    with pytest.raises(Conflict):
        await stranger.start(
            SPEC,
            CtResources(open=opening({"rootfs": host.volume}), connect=host.connect),
            on_state=host.on_state,
            log=print,
        )
    await stranger.close()
    await other.close()
    assert guest.state is GuestState.RUNNING
    assert await is_alive(guest.pid)


@each_runtime
async def test_many_start_and_stop_at_the_same_time(
    host: Host, make_root: Callable[[str], OpenedVolume], run_dir: Path
) -> None:
    specs = [replace(SPEC, guest_id=GuestId(200 + number), id_base=100_000 * (1 + number % 3)) for number in range(4)]
    roots = [make_root(f"root-{spec.guest_id}") for spec in specs]
    starts = [host.start(spec, rootfs=root) for spec, root in zip(specs, roots, strict=True)]
    guests = await asyncio.gather(*starts)
    assert list(await host.engine.running_ids()) == [200, 201, 202, 203]
    await asyncio.gather(*(guest.stop() for guest in guests))
    assert await leftovers(run_dir) == []


# --- limits and confinement -------------------------------------------------------------------------------------------


@each_runtime
async def test_the_memory_limit_kills(host: Host) -> None:
    guest = await host.start(shell("exec tail /dev/zero", memory_mib=32))
    reason = await ended(guest)
    assert (reason.kind, reason.detail) == ("crashed", "killed: out of memory")
    assert not Path("oom").exists(), "the shim writes into its own directory, not into ours"


@each_runtime
async def test_the_process_limit_holds(host: Host) -> None:
    guest = await host.start(shell("(for i in $(seq 100); do sleep 60 & done); exec sleep 1000"))
    await console_text(guest, "can't fork")
    assert (await guest.stats()).processes <= 40


async def test_figures_are_of_this_container(host: Host) -> None:
    guest = await host.start(shell("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo up; exec sleep 100"))
    await console_text(guest, "up")
    stats = await guest.stats()
    assert stats.cpu_seconds > 0
    assert 0 < stats.memory_bytes < 64 << 20
    assert stats.memory_max_bytes == 64 << 20
    assert stats.processes == 1


@each_runtime
async def test_what_root_inside_must_not_do_fails(host: Host) -> None:
    guest = await host.start()
    attempts = {
        "a device node": "mknod /tmp/sda b 8 0",
        "a user namespace": "unshare -U true",
        "the host's clock": "cat /proc/1/status >/dev/null; echo 1 > /proc/sys/kernel/sysrq",
        "a writable sysfs": "touch /sys/x",
        "its memory limit": "echo 1000000000 > /sys/fs/cgroup/memory/memory.limit_in_bytes",
    }
    for what, attempt in attempts.items():
        done = await guest.execute(["/bin/sh", "-c", attempt], timeout_s=10)
        assert done.returncode != 0, what
    status = await guest.execute(["/bin/cat", "/proc/1/status"], timeout_s=10)
    assert "Seccomp:\t2" in status.text


@each_runtime
async def test_a_container_that_may_use_keys_has_a_session_keyring_of_its_own(host: Host, runtime_name: str) -> None:
    """runc makes it inside, crun as the host's root, which the container does not see. The kernel is slow in collecting those of
    dead containers, so each has a number that no other test's has."""
    number = GuestId({"runc": 4711, "crun": 4712}[runtime_name])
    guest = await host.start(replace(SPEC, guest_id=number, features=frozenset({"keyctl", "nesting"})))
    inside = (await guest.execute(["/bin/cat", "/proc/keys"], timeout_s=10)).text
    outside = await asyncio.to_thread(Path("/proc/keys").read_text)
    seen, name = (inside, f"_ses.{number}:") if runtime_name == "runc" else (outside, f" {number}:")
    assert name in seen
    assert name not in (outside if runtime_name == "runc" else inside)


@each_runtime
async def test_nesting_allows_a_user_namespace_with_its_own_proc(host: Host) -> None:
    guest = await host.start(replace(SPEC, features=frozenset({"nesting"})))
    script = "unshare -U -r -m -p -f sh -c 'mkdir -p /tmp/p && mount -t proc proc /tmp/p && echo fine'"
    done = await guest.execute(["/bin/sh", "-c", script], timeout_s=10)
    assert done.text == "fine", done.stderr


@each_runtime
async def test_a_privileged_container_has_no_user_namespace(host: Host) -> None:
    guest = await host.start(replace(SPEC, id_base=0))
    assert Path(f"/proc/{guest.pid}/uid_map").read_text().split() == ["0", "0", "4294967295"]
    for setting in ("/proc/sys/kernel/panic", "/proc/sys/vm/swappiness"):
        done = await guest.execute(["/bin/sh", "-c", f"cat {setting} > {setting}"], timeout_s=10)
        assert "Read-only" in done.text + done.stderr.decode(), setting
    done = await guest.execute(["/bin/sh", "-c", "mknod /tmp/sda b 8 0"], timeout_s=10)
    assert done.returncode != 0


async def test_a_program_that_takes_too_long_is_killed_inside(host: Host) -> None:
    guest = await host.start()
    with pytest.raises(TimedOut):
        await guest.execute(["/bin/sleep", "987"], timeout_s=0.5)
    listing = await guest.execute(["/bin/ps"], timeout_s=30)
    assert "sleep 987" not in listing.text


# --- volumes ----------------------------------------------------------------------------------------------------------


async def test_files_are_stored_with_the_containers_own_ids(host: Host) -> None:
    guest = await host.start(shell("touch /etc/made; echo up; exec sleep 100"))
    await console_text(guest, "up")
    await guest.stop()
    made = (host.volume.path / "etc/made").stat()
    assert (made.st_uid, made.st_gid) == (0, 0)


async def test_a_raw_image_is_a_root_and_its_loop_device_goes_with_it(host: Host, tmp_path: Path) -> None:
    image = tmp_path / "root.raw"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    await command.run(["mkfs.ext4", "-qF", "-d", str(host.volume.path), str(image)], timeout_s=30)
    volume = OpenedVolume(volume_id=None, path=image, format=VolumeFormat.RAW, size_bytes=32 << 20)
    guest = await host.start(rootfs=volume)
    assert any(image.name in backing for backing in backing_files())
    assert (await guest.stats()).disk_used_bytes > 0
    await guest.stop()
    assert not any(image.name in backing for backing in backing_files())


async def test_mount_points_are_mounted_in_their_places_and_read_only_ones_are(
    host: Host, make_root: Callable[[str], OpenedVolume]
) -> None:
    spec = replace(
        SPEC,
        mounts=(
            CtMount(slot="mp0", volume="x", path="/srv/data"),
            CtMount(slot="mp1", volume="y", path="/opt", read_only=True),
        ),
    )
    data, read_only = make_root("data"), make_root("opt")
    guest = await host.start(spec, mp0=data, mp1=replace(read_only, read_only=True))
    done = await guest.execute(["/bin/sh", "-c", "touch /srv/data/made; touch /opt/made"], timeout_s=10)
    assert b"Read-only" in done.stderr
    assert (data.path / "made").stat().st_uid == 0
    assert not (read_only.path / "made").exists()


async def test_owners_are_shifted_and_back_where_the_kernel_maps_no_ids(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, userns_fd: int | None = None, **__: object) -> None:
        if userns_fd is not None:
            raise OSError(22, "mount_setattr: Invalid argument")

    monkeypatch.setattr(mount, "mount_setattr", refuse)
    busybox = host.volume.path / "bin/busybox"
    busybox.chmod(0o4755)
    guest = await host.start(shell("touch /etc/made; echo up; exec sleep 100"))
    await console_text(guest, "up")
    assert busybox.stat().st_uid == 100_000
    assert busybox.stat().st_mode & 0o7777 == 0o4755
    await guest.stop()
    for path in (busybox, host.volume.path / "etc/made", host.volume.path / "bin/sh"):
        assert path.lstat().st_uid == 0


async def test_a_hostile_root_writes_nothing_outside(host: Host, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (host.volume.path / "etc").rmdir()
    (host.volume.path / "etc").symlink_to(outside)
    (host.volume.path / "proc").symlink_to(outside)
    with contextlib.suppress(HostError, GuestFault):
        await (await host.start()).stop()
    assert list(outside.iterdir()) == []


# --- failures leave nothing -------------------------------------------------------------------------------------------


@each_runtime
async def test_an_init_that_is_missing_is_a_clear_error(host: Host, run_dir: Path) -> None:
    with pytest.raises(HostError, match=r"container 101: create: .*/sbin/nothing"):
        await host.start(replace(SPEC, command=("/sbin/nothing",)))
    assert await leftovers(run_dir) == []


@each_runtime
async def test_a_network_that_fails_undoes_the_start(host: Host, run_dir: Path) -> None:
    async def fail(namespace: Path) -> None:
        raise NotFound("bridge vmbr9")

    with pytest.raises(NotFound):
        await host.engine.start(
            SPEC, CtResources(open=opening({"rootfs": host.volume}), connect=fail), on_state=host.on_state, log=print
        )
    assert await leftovers(run_dir) == []


async def test_a_volume_that_is_no_file_system_is_named(host: Host, tmp_path: Path, run_dir: Path) -> None:
    garbage = tmp_path / "garbage.raw"
    garbage.write_bytes(b"\0" * (1 << 20))
    volume = OpenedVolume(volume_id=None, path=garbage, format=VolumeFormat.RAW, size_bytes=1 << 20)
    with pytest.raises(HostError, match="ct 101: rootfs: fsconfig ext4"):
        await host.start(rootfs=volume)
    missing = OpenedVolume(volume_id=None, path=tmp_path / "none", format=VolumeFormat.SUBVOL, size_bytes=0)
    with pytest.raises(HostError, match=r"ct 101: rootfs: open_tree .*none: No such file"):
        await host.start(rootfs=missing)
    with pytest.raises(Unsupported, match="qcow2"):
        await host.start(rootfs=replace(volume, format=VolumeFormat.QCOW2))
    assert await leftovers(run_dir) == []


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.01, 0.03, 0.05])
@each_runtime
async def test_a_start_cancelled_at_any_moment_leaves_nothing(host: Host, run_dir: Path, delay_s: float) -> None:
    start = asyncio.ensure_future(host.start())
    await asyncio.sleep(delay_s)
    start.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await start).stop()
    assert await leftovers(run_dir) == []


@each_runtime
async def test_a_start_cancelled_once_its_container_runs_still_yields_it(
    host: Host, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = OciRuntime.start

    async def release_then_cancel(self: OciRuntime, container: str) -> None:
        await release(self, container)
        asyncio.get_running_loop().call_soon(start.cancel)

    monkeypatch.setattr(OciRuntime, "start", release_then_cancel)
    start = asyncio.ensure_future(host.start())
    guest = await start
    assert await is_alive(guest.pid)
    await guest.stop()
    assert await leftovers(run_dir) == []


@each_runtime
async def test_a_start_cancelled_at_any_of_its_first_steps_leaves_nothing(host: Host, run_dir: Path) -> None:
    for steps in range(20):
        start = asyncio.ensure_future(host.start())
        for _ in range(steps):
            await asyncio.sleep(0)
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await start).stop()
    assert await leftovers(run_dir) == []


@each_runtime
async def test_a_shim_that_is_killed_takes_its_container_with_it(host: Host, run_dir: Path) -> None:
    guest = await host.start()
    os.kill(int((run_dir / "ct/101/shim.pid").read_text()), signal.SIGKILL)
    reason = await ended(guest)
    assert (reason.kind, reason.detail) == ("crashed", "its shim died")
    assert await leftovers(run_dir) == []


async def test_what_cannot_run_is_refused_with_reasons(host: Host) -> None:
    bad = replace(
        SPEC,
        arch="arm64" if os.uname().machine == "x86_64" else "amd64",
        features=frozenset({"time-travel"}),
        memory_mib=4,
        mounts=(CtMount(slot="mp0", volume="x", path="/a/../../etc"),),
    )
    assert len(host.engine.refuse(bad)) == 4
    with pytest.raises(Unsupported, match="ct 101: architecture"):
        await host.start(bad)
    assert host.engine.refuse(SPEC) == []


def backing_files() -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found.append(path.read_text())
    return found
