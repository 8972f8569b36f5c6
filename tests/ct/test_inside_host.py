"""Programs and files inside a running container: streamed, mapped to its ids, and never outside of it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.ct.execution import LIMIT
from appliance.ct.running import RunningCt
from appliance.errors import Conflict, GuestFault, InvalidParameter, NoSpace, NotFound, TooManyRequests
from appliance.model.inside import ExecRequest, FileWrite
from tests.ct.conftest import SPEC, Host, each_runtime, is_alive, leftovers

pytestmark = pytest.mark.host


async def run(guest: RunningCt, *argv: str, **fields: object) -> tuple[int, bytes, bytes]:
    """Exit status, output and errors of a program inside."""
    said = {1: b"", 2: b""}
    async with guest.executions.run(ExecRequest(argv=argv, **fields)) as execution:  # type: ignore[arg-type]
        while item := await execution.next():
            said[item[0]] += item[1]
        return await execution.wait(), said[1], said[2]


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for each in data:
        yield each


async def pid_of_exec(run_dir: Path) -> int:
    """The only one's; the runtime writes it down once the program runs."""
    async with asyncio.timeout(10):
        while not (found := list((run_dir / "ct/101").glob("exec-*.pid"))):
            await asyncio.sleep(0.01)
    return int(found[0].read_text())


async def content_of(guest: RunningCt, path: str) -> bytes:
    async with guest.files.read(path) as (_, content):
        return b"".join([each async for each in content])


@each_runtime
async def test_a_program_is_told_apart_by_its_streams_and_status(host: Host) -> None:
    guest = await host.start()
    script = "echo out; echo err >&2; cat; id -u; exit 7"
    status, out, err = await run(guest, "/bin/sh", "-c", script, stdin=b"typed\n", uid=12, gid=13)
    assert (status, out, err) == (7, b"out\ntyped\n12\n", b"err\n")
    status, out, _ = await run(guest, "sh", "-c", "echo $GREETING; pwd", environment={"GREETING": "hi"}, cwd="/tmp")
    assert (status, out) == (0, b"hi\n/tmp\n")
    await guest.stop()


@each_runtime
async def test_output_comes_while_the_program_runs_and_it_dies_with_its_reader(host: Host, run_dir: Path) -> None:
    guest = await host.start()
    async with guest.executions.run(ExecRequest(argv=("/bin/sh", "-c", "echo first; sleep 1000"))) as execution:
        async with asyncio.timeout(10):
            assert await execution.next() == (1, b"first\n")
        pid = await pid_of_exec(run_dir)
        assert await is_alive(pid)
    assert not await is_alive(pid)
    assert list((run_dir / "ct/101").glob("exec-*")) == []
    await guest.stop()


@each_runtime
async def test_what_cannot_be_started_says_why(host: Host) -> None:
    guest = await host.start()
    for argv, cwd in ((("/bin/absent",), "/"), (("/etc",), "/"), (("/bin/sh",), "/proc/self/fd/7")):
        with pytest.raises(GuestFault, match="ct 101: exec: "):
            await run(guest, *argv, cwd=cwd)
    await guest.stop()


async def test_one_container_cannot_be_filled_with_programs(host: Host) -> None:
    guest = await host.start(replace(SPEC, pids=200))
    held = [guest.executions.run(ExecRequest(argv=("/bin/sleep", "1000"))) for _ in range(LIMIT)]
    await asyncio.gather(*(each.__aenter__() for each in held))
    with pytest.raises(TooManyRequests):
        await run(guest, "/bin/true")
    await asyncio.gather(*(each.__aexit__(None, None, None) for each in held))
    assert (await run(guest, "/bin/sh", "-c", "exit 0"))[0] == 0
    await guest.stop()


async def test_a_paused_or_ended_container_executes_nothing(host: Host) -> None:
    guest = await host.start()
    await guest.pause()
    with pytest.raises(Conflict, match="paused"):
        await run(guest, "/bin/true")
    await guest.resume()
    await guest.stop()
    with pytest.raises(Conflict, match="not running"):
        await run(guest, "/bin/true")
    with pytest.raises(Conflict, match="not running"):
        await content_of(guest, "/etc/hostname")


@each_runtime
async def test_a_shell_is_a_terminal_that_ends_with_exit(host: Host, run_dir: Path) -> None:
    guest = await host.start()
    shell = await guest.open_console("shell")
    await shell.resize(100, 30)
    await shell.write(b"stty size; id -u; exit\n")
    said = b""
    async with asyncio.timeout(20):
        while data := await shell.read():
            said += data
    assert b"30 100" in said
    assert b"\r\n0\r\n" in said
    await shell.close()
    assert list((run_dir / "ct/101").glob("exec-*")) == []
    await guest.stop()


@each_runtime
async def test_a_closed_shell_is_gone_with_what_it_holds(host: Host, run_dir: Path) -> None:
    guest = await host.start()
    shell = await guest.open_console("shell")
    pid = await pid_of_exec(run_dir)
    await shell.close()
    async with asyncio.timeout(10):
        while await is_alive(pid):  # it has been killed, which takes a moment
            await asyncio.sleep(0.01)
    await guest.stop()
    assert await leftovers(run_dir) == []


@each_runtime
async def test_files_go_in_and_out_with_the_containers_own_ids(host: Host) -> None:
    guest = await host.start()
    data = os.urandom(3 << 20)
    info = await guest.files.write(
        "/srv/a/b.bin", pieces(data[:1000], data[1000:]), FileWrite(mode=0o640, uid=33, gid=34, parents=True)
    )
    assert (info.size, info.mode, info.uid, info.gid) == (len(data), 0o640, 33, 34)
    assert (await run(guest, "busybox", "stat", "-c", "%u:%g:%a", "/srv/a/b.bin"))[1] == b"33:34:640\n"
    on_volume = host.volume.path / "srv/a/b.bin"
    assert (on_volume.stat().st_uid, on_volume.read_bytes() == data) == (33, True)
    async with guest.files.read("/srv/a/b.bin", offset=1000, limit=10) as (info, content):
        assert (info.type, info.uid) == ("file", 33)
        assert b"".join([each async for each in content]) == data[1000:1010]
    async with guest.files.read("/srv") as (info, _):
        assert [entry["name"] for entry in info.entries or ()] == ["a"]
    await guest.stop()


async def test_editing_keeps_owner_and_mode_and_notices_what_others_wrote(host: Host) -> None:
    guest = await host.start()
    await run(guest, "sh", "-c", "echo one > /etc/x; busybox chown 5:6 /etc/x; busybox chmod 600 /etc/x")
    digest = hashlib.sha256(b"one\n").hexdigest()
    info = await guest.files.write("/etc/x", pieces(b"two\n"), FileWrite(expected=digest))
    assert (info.mode, info.uid, info.gid) == (0o600, 5, 6)
    with pytest.raises(Conflict, match="changed by somebody else"):
        await guest.files.write("/etc/x", pieces(b"three\n"), FileWrite(expected=digest))
    assert await content_of(guest, "/etc/x") == b"two\n"
    with pytest.raises(Conflict):
        await guest.files.write("/etc/x", pieces(b"new"), FileWrite(expected="absent"))
    await guest.stop()


async def test_a_symbolic_link_is_followed_and_said_to_be_one(host: Host) -> None:
    guest = await host.start()
    await run(guest, "sh", "-c", "echo here > /etc/real; busybox ln -s real /etc/link; busybox ln -s etc /elsewhere")
    for path, target in (("/etc/link", "real"), ("/etc/real", ""), ("/elsewhere", "etc"), ("/elsewhere/real", "")):
        async with guest.files.read(path) as (info, _):
            assert info.target == target
    assert await content_of(guest, "/etc/link") == b"here\n"
    await guest.stop()


async def test_a_privileged_container_s_root_is_ours_and_its_paths_are_still_its_own(
    host: Host, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("the host's")
    guest = await host.start(replace(SPEC, id_base=0))
    info = await guest.files.write("/etc/x", pieces(b"hi"), FileWrite(uid=5))
    assert (info.uid, (host.volume.path / "etc/x").stat().st_uid) == (5, 5)
    assert (await run(guest, "busybox", "cat", "/etc/x"))[1] == b"hi"
    await run(guest, "busybox", "ln", "-s", str(tmp_path / "secret"), "/a")
    with pytest.raises(NotFound):
        await content_of(guest, "/a")
    await guest.stop()


async def test_links_of_a_hostile_root_lead_nowhere_outside(host: Host, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    guest = await host.start()
    up = "../" * 30
    for target, name in ((f"{up}{secret}", "/a"), (str(secret.parent), "/b"), ("/proc/1/root", "/c")):
        await run(guest, "busybox", "ln", "-s", target, name)
    for path in ("/a", "/b/secret", f"{up}{secret}", "/c/etc/hostname"):
        with pytest.raises((NotFound, InvalidParameter, GuestFault)):
            await content_of(guest, path)
    await guest.files.write("/a", pieces(b"mine"), FileWrite())
    assert secret.read_text() == "the host's"
    with pytest.raises((NotFound, InvalidParameter)):
        await guest.files.write("/b/planted", pieces(b"x"), FileWrite())
    assert not (tmp_path / "planted").exists()
    await guest.stop()


async def test_devices_fifos_and_directories_are_not_opened(host: Host) -> None:
    guest = await host.start()
    await run(guest, "busybox", "mkfifo", "/tmp/fifo")
    for path in ("/tmp/fifo", "/dev/zero"):
        async with asyncio.timeout(10):
            with pytest.raises(InvalidParameter, match="neither a regular file"):
                await content_of(guest, path)
            with pytest.raises(InvalidParameter, match="not a regular file"):
                await guest.files.write(path, pieces(b"x"), FileWrite())
    with pytest.raises(InvalidParameter):
        await guest.files.write("/etc", pieces(b"x"), FileWrite())
    await guest.stop()


async def test_a_write_that_is_cut_off_leaves_the_old_file_and_nothing_else(host: Host) -> None:
    guest = await host.start()
    await run(guest, "sh", "-c", "mkdir /srv; echo old > /srv/x")

    async def cut_off() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await guest.files.write("/srv/x", cut_off(), FileWrite())
    assert (await run(guest, "sh", "-c", "ls -a /srv; cat /srv/x"))[1].split() == [b".", b"..", b"x", b"old"]
    await guest.stop()


async def test_a_container_cannot_make_a_file_larger_than_its_root(host: Host) -> None:
    guest = await host.start()
    await run(guest, "sh", "-c", "mkdir /small && mount -t tmpfs -o size=64k none /small")
    with pytest.raises(NoSpace):
        await guest.files.write("/small/x", pieces(b"x" * (1 << 20)), FileWrite())
    await guest.stop()
