"""The command line against a listening appliance (over fakes): output, waiting, exit statuses, consoles, pinned TLS."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import os
import pty
import ssl
import sys
import termios
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.cli.arguments import Arguments, parse
from appliance.cli.errors import CliError, Exit
from appliance.cli.main import main
from appliance.cli.output import render, size
from appliance.model.guest import GuestKind, GuestState
from appliance.services.pki import ensure_server_identity
from appliance.web.application import build_application
from appliance.web.server import SOCKET_NAME, Server
from tests.fakes.services import NODE, TOKEN, World, fake_services
from tests.fakes.viewer import FakeViewer

TIMEOUT_S = 20


@dataclass(slots=True)
class Terminal:
    """Runs `appliance ...` against the appliance under test."""

    world: World
    socket_path: Path
    port: int
    ca: bytes
    capture: pytest.CaptureFixture[str]

    async def run(self, *words: str, status: Exit = Exit.OK) -> str:
        """Run over the local socket; returns what was printed."""
        return await self.run_as("--socket", str(self.socket_path), *words, status=status)

    async def run_as(self, *words: str, status: Exit = Exit.OK) -> str:
        result = await asyncio.to_thread(main, list(words))
        printed = self.capture.readouterr()
        assert result == status, printed.err
        return printed.out if status is Exit.OK else printed.err


@pytest.fixture
async def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Terminal]:
    services, world = fake_services(tmp_path)
    now = datetime.datetime.now(datetime.UTC)
    identity = await asyncio.to_thread(ensure_server_identity, tmp_path / "pki", ["localhost"], now)
    ca = await asyncio.to_thread((tmp_path / "pki" / "ca.pem").read_text)
    context = await asyncio.to_thread(identity.context)
    server = Server(build_application(services))
    path = tmp_path / "run" / SOCKET_NAME
    await server.start(host="127.0.0.1", port=0, tls=context, socket_path=path)
    yield Terminal(world, path, server.port, ssl.PEM_cert_to_DER_cert(ca), capsys)
    await server.close()


async def test_replies_are_tables_json_or_text(terminal: Terminal) -> None:
    terminal.world.guests.add(100, state=GuestState.RUNNING)
    table = await terminal.run("get", "/cluster/resources", "--type", "vm")
    assert table.splitlines()[0].split()[:2] == ["ID", "TYPE"]
    assert "512.0 MiB" in table
    found = json.loads(await terminal.run("get", "/cluster/resources", "--type=vm", "--output", "json"))
    assert found[0]["vmid"] == 100
    assert "qemu/100\tqemu" in await terminal.run("--output=text", "get", "cluster/resources")


async def test_a_task_is_waited_for_and_its_log_shown(terminal: Terminal) -> None:
    terminal.world.guests.add(100)
    assert await terminal.run("create", f"/nodes/{NODE}/qemu/100/status/start") == "vm 100: start\nTASK OK\n"
    assert (await terminal.run("vm", "stop", "100", "--no-wait")).startswith("UPID:")
    status = json.loads(await terminal.run("vm", "start", "100", "--output", "json"))
    assert status["exitstatus"] == "OK"


async def test_a_task_that_grows_is_followed_to_its_failure(terminal: Terminal) -> None:
    upid = terminal.world.tasks.begin("download")
    following = asyncio.create_task(terminal.run("tasks", upid, status=Exit.FAILED))
    for number in range(3):
        terminal.world.tasks.logs[upid].append(f"part {number}")
        await asyncio.sleep(0.1)
    terminal.world.tasks.finish(upid, "no space")
    assert "task failed: no space" in await following


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["get", "/cluster/options", "--nonsense", "1"], Exit.USAGE),
        (["get"], Exit.USAGE),
        (["nonsense"], Exit.USAGE),
        (["--nonsense", "1", "get", "/"], Exit.USAGE),
        (["--output", "xml", "get", "/"], Exit.USAGE),
        (["vm", "status", "999"], Exit.NOT_FOUND),
        (["vm", "status"], Exit.USAGE),
        (["ct", "fly", "100"], Exit.USAGE),
        (["ct", "reset", "100"], Exit.USAGE),
        (["vm", "set", "100"], Exit.USAGE),
        (["vm", "create", "100", "--vmid", "101"], Exit.USAGE),
        (["vm", "list", "--nonsense", "1"], Exit.USAGE),
        (["tasks", "UPID:nope"], Exit.USAGE),
        (["get", "/cluster/config/join"], Exit.CONFLICT),
        (["get", "/nowhere"], Exit.USAGE),
    ],
)
async def test_exit_statuses_say_what_went_wrong(terminal: Terminal, words: list[str], status: Exit) -> None:
    assert (await terminal.run(*words, status=status)).startswith("appliance: ")


async def test_wrong_parameters_are_shown_one_a_line(terminal: Terminal) -> None:
    told = await terminal.run("set", "/cluster/options", "--max_workers", "x", "--zzz", "1", status=Exit.USAGE)
    assert "  max_workers: type check ('integer') failed - got 'x'" in told
    assert "  zzz: property is not defined" in told


async def test_help_comes_from_the_appliance(terminal: Terminal) -> None:
    told = await terminal.run("get", f"/nodes/{NODE}/tasks", "--help")
    assert "--source" in told
    assert "active|all|archive" in told
    assert "--keyboard" in await terminal.run("set", "/cluster/options", "--help")
    assert "--serial" in await terminal.run("vm", "console", "--help")


async def test_the_audit_log_is_shown_and_verified(terminal: Terminal) -> None:
    await terminal.run("set", "/cluster/options", "--keyboard", "de")
    assert "root@pam" in await terminal.run("audit", "--output", "text")
    assert json.loads(await terminal.run("audit", "verify", "--output", "json"))["ok"] == 1


async def test_no_appliance_is_a_clear_error(tmp_path: Path, terminal: Terminal) -> None:
    told = await terminal.run_as("--socket", str(tmp_path / "none"), "get", "/version", status=Exit.UNREACHABLE)
    assert "no appliance is running here" in told
    told = await terminal.run_as("--url", "https://127.0.0.1:1", "get", "/version", status=Exit.UNREACHABLE)
    assert "127.0.0.1:1" in told


async def test_another_appliance_is_known_by_its_certificate(terminal: Terminal) -> None:
    address = f"https://127.0.0.1:{terminal.port}"
    right = hashlib.sha256(terminal.ca).hexdigest()
    remote = ["--url", address, "--token", TOKEN]
    assert "version" in await terminal.run_as(*remote, "--ca-fingerprint", right, "get", "/version")
    colons = ":".join(right[i : i + 2].upper() for i in range(0, 64, 2))
    assert "version" in await terminal.run_as(*remote, "--ca-fingerprint", colons, "get", "/version")
    wrong = "0" * 64
    told = await terminal.run_as(*remote, "--ca-fingerprint", wrong, "get", "/version", status=Exit.UNREACHABLE)
    assert "not the one expected" in told
    await terminal.run_as(*remote, "get", "/version", status=Exit.UNREACHABLE)
    bad_token = ["--url", address, "--token", "admin@pve!ci=wrong", "--ca-fingerprint", right]
    await terminal.run_as(*bad_token, "get", "/version", status=Exit.DENIED)


async def test_a_console_types_shows_and_leaves(terminal: Terminal) -> None:
    terminal.world.guests.add(101, GuestKind.LXC)
    viewer = FakeViewer(echo=True)
    terminal.world.guests.consoles[101, "console"] = viewer
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, 100))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "appliance", "--socket", str(terminal.socket_path), "ct", "console", "101",
        stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            assert b"Ctrl-] leaves" in await _read_until(master, b"leaves")
            await viewer.say(b"login: ")
            await _read_until(master, b"login: ")
            os.write(master, b"r\x03t")
            await _read_until(master, b"r\x03t")
            os.write(master, b"bye\x1drest")
            assert await process.wait() == Exit.OK
        assert bytes(viewer.typed) == b"r\x03tbye"
        assert viewer.sizes == [(100, 30)]
    finally:
        os.close(master)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _read_until(fd: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        try:
            seen += await asyncio.to_thread(os.read, fd, 4096)
        except OSError as error:  # EIO: the other end is closed
            raise AssertionError(f"the console ended, having said {seen!r}") from error
    return seen


def test_arguments_are_names_with_values_and_the_rest() -> None:
    parsed = parse(["101", "--memory", "512", "--force", "--name=a b", "--ids", "1", "--ids", "2", "--", "--x"])
    assert parsed == Arguments(["101", "--x"], {"memory": "512", "force": "1", "name": "a b", "ids": "1,2"})
    with pytest.raises(CliError):
        parse(["-x"])


def test_a_guests_name_cannot_command_the_terminal() -> None:
    shown = render([{"name": "evil\x1b]0;x\x07\u202e", "mem": 1536}], "table")
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "1.5 KiB" in shown


@pytest.mark.parametrize(
    ("bytes_", "text"), [(0, "0 B"), (1023, "1023 B"), (1 << 30, "1.0 GiB"), (5 << 40, "5.0 TiB"), (1 << 60, "1048576.0 TiB")]
)  # fmt: skip
def test_sizes_are_for_people(bytes_: int, text: str) -> None:
    assert size(bytes_) == text


async def test_help_needs_no_appliance_but_for_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = ["--socket", str(tmp_path / "none")]
    for words in (["vm", "--help"], ["help", "ct"], ["get", "--help"], ["token", "--help"], ["tasks", "--help"],
                  ["audit", "--help"], ["vm", "create", "--help"]):  # fmt: skip
        assert await asyncio.to_thread(main, [*nowhere, *words] if words[0] != "help" else words) == Exit.OK
        assert capsys.readouterr().out.startswith("usage: appliance ")


async def test_a_verbs_help_is_complete(terminal: Terminal) -> None:
    told = await terminal.run("vm", "start", "--help")
    assert told.startswith("usage: appliance vm start VMID")
    assert "Needs: VM.PowerMgmt on /vms/{vmid}" in told
    assert "Also here: get" in await terminal.run("set", "/cluster/options", "--help")
    assert max(map(len, told.splitlines())) <= 100


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("uptime", 45, "45s"), ("uptime", 725.5, "12m 5s"), ("uptime", 10_920, "3h 2m"), ("uptime", 694_800, "8d 1h"),
     ("expire", 0, "never"), ("starttime", 1_700_000_000, "2023-11-14"), ("cpu", 0.12345, "0.123")],
)  # fmt: skip
def test_times_are_for_people(name: str, value: float, text: str) -> None:
    assert text in render([{name: value}], "table")
    assert str(value) in render([{name: value}], "text")


def test_no_command_shows_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == Exit.USAGE
    assert main(["--help"]) == Exit.OK
    assert "Exit status" in capsys.readouterr().out
