"""The command line as an administrator uses it: its own process, against a running appliance."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT, Appliance

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

VM, CT = 720, 721
VM_ORIGINAL, VM_COPY, CT_COPY, REFUSED = 722, 723, 724, 725
DONE, FAILED, USAGE, DENIED, NOT_FOUND, CONFLICT, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130
LIMIT_S = 30.0
UPID = re.compile(r"UPID:[^:]+(:[0-9A-F]{8}){3}:\w+:\w*:[^:]+:")


class CommandLine:
    """Runs `appliance …`, over the local socket unless told otherwise."""

    def __init__(self, appliance: Appliance) -> None:
        self.appliance = appliance
        self.environment = {**os.environ, "APPLIANCE_SOCKET": str(appliance.run_dir / "api.sock"), "COLUMNS": "80"}

    def argv(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "appliance", *map(str, words)]

    def run(self, *words: object, status: int = DONE) -> str:
        """What was said: on standard output when all went well, else on standard error."""
        done = subprocess.run(
            self.argv(*words), cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        if status != DONE:
            assert done.stderr.startswith("appliance: "), done.stderr
            assert "Traceback" not in done.stderr
        return done.stdout if status == DONE else done.stderr

    def data(self, *words: object) -> Any:
        """The JSON that was printed."""
        return json.loads(self.run(*words, "--output", "json"))

    def start(self, *words: object, **streams: Any) -> subprocess.Popen[bytes]:
        """With the interrupt signal as a terminal's shell leaves it: a job in the background inherits it ignored."""
        argv = ["env", "--default-signal=INT", *self.argv(*words)]
        return subprocess.Popen(argv, cwd=ROOT, env=self.environment, **streams)


@pytest.fixture(scope="module")
def cli(appliance: Appliance) -> CommandLine:
    return CommandLine(appliance)


@pytest.fixture(scope="module")
def template(cli: CommandLine, busybox_template: Path) -> str:
    checksum = hashlib.sha256(busybox_template.read_bytes()).hexdigest()
    said = cli.run("upload", busybox_template, "--checksum", checksum, "--checksum-algorithm", "sha256")
    assert said.endswith("TASK OK\n")
    return "local:vztmpl/busybox_1_amd64.tar.gz"


@pytest.fixture(scope="module")
def vm(cli: CommandLine) -> Iterator[int]:
    """A VM without a disk."""
    cli.run("vm", "create", VM, "--name", "thin", "--memory", 32)
    yield VM
    cli.run("vm", "stop", VM)
    cli.run("vm", "delete", VM)


def test_help_tells_everything_needed(cli: CommandLine) -> None:
    told = cli.run("--help")
    for word in ("vm VERB", "token", "--ca-fingerprint", "Examples:", "Exit status: 0 done"):
        assert word in told
    told = cli.run("vm", "--help")
    for verb in ("list", "create VMID", "resize VMID DISK SIZE", "console VMID", "suspend VMID"):
        assert f"\n  {verb} " in told
    told = cli.run("vm", "create", "--help")
    assert told.startswith("usage: appliance vm create VMID [--name value …]")
    for part in ("Examples:", "--memory TEXT", "--onboot 0|1", "--scsi[n] TEXT", "One of: ", "property string"):
        assert part in told
    assert "--ostemplate TEXT" in cli.run("help", "ct", "create")
    assert "--source active|all|archive" in cli.run("get", "/nodes/localhost/tasks", "--help")


def test_a_vm_through_the_everyday_verbs(cli: CommandLine) -> None:
    vmid = VM_ORIGINAL
    said = cli.run("vm", "create", vmid, "--name", "small", "--memory", 32, "--scsi0", "local:0.01")
    assert f"vm-{vmid}-disk-0" in said
    assert said.endswith("TASK OK\n")
    heads, row = cli.run("vm", "list").splitlines()
    assert heads.split() == ["VMID", "NAME", "STATUS", "CPUS", "MEM", "MAXMEM", "MAXDISK", "UPTIME", "TAGS"]
    assert row.split()[:3] == [str(vmid), "small", "stopped"]
    assert "32.0 MiB" in row
    cli.run("vm", "set", vmid, "--description", "two words", "--tags", "a;b", "--onboot", 1)
    config = cli.data("vm", "config", vmid)
    assert (config["description"], config["tags"], config["onboot"], config["memory"]) == ("two words", "a;b", 1, "32")
    cli.run("vm", "set", vmid, "--delete", "description,tags")
    assert "description" not in cli.data("vm", "config", vmid)
    assert cli.run("vm", "start", vmid).endswith("TASK OK\n")
    assert cli.data("vm", "status", vmid)["status"] == "running"
    cli.run("vm", "suspend", vmid)
    assert re.search(r"^qmpstatus +paused$", cli.run("vm", "status", vmid), re.M)
    cli.run("vm", "resume", vmid)
    cli.run("vm", "reset", vmid)
    cli.run("vm", "resize", vmid, "scsi0", "+6M")
    assert "running" in cli.run("vm", "delete", vmid, status=CONFLICT)
    cli.run("vm", "shutdown", vmid, "--timeout", 1, "--forceStop", 1)
    assert cli.data("vm", "status", vmid)["status"] == "stopped"
    cli.run("vm", "snapshot", vmid, "before", "--description", "small")
    assert [row["name"] for row in cli.data("vm", "snapshots", vmid)] == ["before", "current"]
    cli.run("vm", "rollback", vmid, "before")
    cli.run("vm", "delsnapshot", vmid, "before")
    assert "archive local:backup/vzdump-qemu-" in cli.run("vm", "backup", vmid, "--storage", "local")
    cli.run("vm", "clone", vmid, VM_COPY, "--name", "copy")
    names = {row["vmid"]: row["name"] for row in cli.data("vm", "list")}
    assert (names[vmid], names[VM_COPY]) == ("small", "copy")
    for guest in (vmid, VM_COPY):
        cli.run("vm", "delete", guest)
    assert cli.data("vm", "list") == []


def test_a_container_through_the_everyday_verbs_and_its_console(cli: CommandLine, template: str) -> None:
    cli.run("ct", "create", CT, "--ostemplate", template, "--hostname", "box", "--rootfs", "local:0.05", "--memory", 64)
    cli.run("ct", "start", CT)
    assert cli.run("ct", "list", "--output", "text").split("\t")[:3] == ["721", "box", "running"]
    _use_console(cli, CT)
    made = cli.data("token", "create", "admin@pve", "desk", "--privsep", 0)
    fingerprint = cli.data("get", "/nodes")[0]["ssl_fingerprint"]
    url = f"https://127.0.0.1:{cli.appliance.port}"
    _use_console(cli, CT, "--url", url, "--token", f"admin@pve!desk={made['value']}", "--ca-fingerprint", fingerprint)
    cli.run("token", "delete", "admin@pve", "desk")
    cli.run("ct", "stop", CT)
    cli.run("ct", "clone", CT, CT_COPY, "--hostname", "other")
    assert cli.data("ct", "config", CT_COPY)["hostname"] == "other"
    cli.run("ct", "resize", CT, "rootfs", "80M")
    assert "size=80M" in cli.data("ct", "config", CT)["rootfs"]
    for guest in (CT, CT_COPY):
        cli.run("ct", "delete", guest)
    assert cli.run("ct", "list").split() == [
        "VMID",
        "NAME",
        "STATUS",
        "CPUS",
        "MEM",
        "MAXMEM",
        "MAXDISK",
        "UPTIME",
        "TAGS",
    ]


def _use_console(cli: CommandLine, guest_id: int, *options: str) -> None:
    """Type a command, read the answer, leave with Ctrl-]; the terminal is as it was."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (33, 101))
    before = termios.tcgetattr(slave)
    process = cli.start(*options, "ct", "console", guest_id, stdin=slave, stdout=slave, stderr=slave)
    try:
        _read_until(master, b"Ctrl-] leaves")
        os.write(master, b"\n")
        _read_until(master, b"# ")
        os.write(master, b"echo $((6*7))-$(hostname); stty size\n")
        said = _read_until(master, b"33 101")
        assert b"42-box" in said
        os.write(master, b"\x03\x1d")
        said = _read_until(master, b"left the console")
        assert process.wait(LIMIT_S) == DONE
        assert termios.tcgetattr(slave) == before
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(slave)
        os.close(master)


def _read_until(fd: int, wanted: bytes) -> bytes:
    seen, deadline = b"", time.monotonic() + LIMIT_S
    while wanted not in seen:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"never said {wanted!r}, only {seen!r}"
        seen += os.read(fd, 4096)
    return seen


def test_the_whole_api_by_path(cli: CommandLine) -> None:
    assert "nodes" in cli.run("get", "/").splitlines()
    cli.run("create", "/pools", "--poolid", "prod", "--comment", "do not touch")
    assert cli.data("get", "/pools/prod")["comment"] == "do not touch"
    cli.run("set", "pools/prod", "--comment=")
    cli.run("delete", "/pools/prod")
    cli.run("get", "/pools/prod", status=NOT_FOUND)
    told = cli.run("create", "/pools", "--help")
    assert "--poolid TEXT" in told
    assert "Required." in told
    assert "Also here: " in told


def test_replies_are_tables_json_or_tab_separated(cli: CommandLine, vm: int) -> None:
    (row,) = cli.data("get", "/cluster/resources", "--type", "vm")
    assert (row["vmid"], row["name"]) == (vm, "thin")
    assert cli.run("get", "/cluster/resources", "--type=vm").splitlines()[0].startswith("ID ")
    (line,) = cli.run("get", "/nodes/localhost/qemu", "--output=text").splitlines()
    assert "thin" in line.split("\t")
    with cli.start("get", "/cluster/resources", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| head` does
        assert process.stderr.read() == b""


def test_a_file_is_sent_to_a_storage_or_refused(cli: CommandLine, tmp_path: Path) -> None:
    image = tmp_path / "what.bin"
    image.write_bytes(bytes(3 << 20))
    assert "--content" in cli.run("upload", image, status=USAGE)
    cli.run("upload", image, "--content", "iso", "--filename", "empty.iso")
    (row,) = cli.data("get", "/nodes/localhost/storage/local/content", "--content", "iso")
    assert (row["volid"], row["size"]) == ("local:iso/empty.iso", 3 << 20)
    cli.run("delete", "/nodes/localhost/storage/local/content/local:iso/empty.iso")
    told = cli.run("upload", image, "--content", "nonsense", status=USAGE)
    assert "content" in told
    cli.run("upload", image, "--content", "iso", "--filename", "x.iso", "--storage", "nowhere", status=NOT_FOUND)
    assert str(tmp_path / "no.iso") in cli.run("upload", tmp_path / "no.iso", status=FAILED)
    assert cli.run("upload", "--help").startswith("usage: appliance upload FILE")


def test_tasks_are_listed_followed_and_cancelled(cli: CommandLine, vm: int) -> None:
    cli.run("vm", "start", vm)
    upid = cli.run("vm", "shutdown", vm, "--timeout", 60, "--no-wait").strip()
    assert UPID.fullmatch(upid)
    assert any(upid in line and "running" in line for line in cli.run("tasks", "--source", "all").splitlines())
    cli.run("tasks", "cancel", upid)
    assert "interrupted by user" in cli.run("tasks", upid, status=FAILED)
    assert cli.run("tasks", "--limit", 1).splitlines()[0].split()[0] == "UPID"
    cli.run("tasks", f"{upid}x", status=USAGE)
    cli.run("tasks", upid.replace("qmshutdown", "qmnothing"), status=NOT_FOUND)
    cli.run("vm", "stop", vm)


def test_ctrl_c_stops_the_waiting_and_not_the_task(cli: CommandLine, vm: int) -> None:
    cli.run("vm", "start", vm)
    with cli.start("vm", "shutdown", vm, "--timeout", 60, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"asked to shut down" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == INTERRUPTED
    upid = UPID.search(said.decode())
    assert upid is not None
    assert b"Traceback" not in said
    assert cli.data("get", f"/nodes/localhost/tasks/{upid[0]}/status")["status"] == "running"
    cli.run("tasks", "cancel", upid[0])
    cli.run("vm", "stop", vm)


def test_a_token_works_from_elsewhere_until_it_is_deleted(cli: CommandLine) -> None:
    made = cli.data("token", "create", "admin@pve", "laptop", "--privsep", 0, "--comment", "my laptop")
    assert made["full-tokenid"] == "admin@pve!laptop"
    assert "my laptop" in cli.run("token", "list", "admin@pve")
    authority = ssl.PEM_cert_to_DER_cert((cli.appliance.data_dir / "pki" / "ca.pem").read_text())
    fingerprint = hashlib.sha256(authority).hexdigest()
    url = f"https://127.0.0.1:{cli.appliance.port}"
    remote: list[object] = ["--url", url, "--token", f"admin@pve!laptop={made['value']}"]
    pinned = [*remote, "--ca-fingerprint", fingerprint]
    assert cli.run(*pinned, "vm", "list").startswith("VMID")
    assert "--ca-fingerprint" in cli.run(*remote, "vm", "list", status=UNREACHABLE)
    assert fingerprint in cli.run(*remote, "--ca-fingerprint", "0" * 64, "vm", "list", status=UNREACHABLE)
    shown = cli.data(*pinned, "get", "/nodes")[0]["ssl_fingerprint"]
    assert cli.run(*remote, "--ca-fingerprint", shown, "get", "/version")
    cli.run("token", "delete", "admin@pve", "laptop")
    cli.run(*pinned, "vm", "list", status=DENIED)


def test_a_token_without_privileges_is_not_allowed(cli: CommandLine) -> None:
    made = cli.data("token", "create", "admin@pve", "weak")
    remote = ["--url", f"https://127.0.0.1:{cli.appliance.port}", "--token", f"admin@pve!weak={made['value']}"]
    shown = cli.data("get", "/nodes")[0]["ssl_fingerprint"]
    told = cli.run(*remote, "--ca-fingerprint", shown, "create", "/pools", "--poolid", "mine", status=DENIED)
    assert "Permission check failed" in told
    cli.run("token", "delete", "admin@pve", "weak")


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["vm", "create", VM, "--memory", "32"], CONFLICT, "already exists"),
        (["vm", "create", REFUSED, "--memory", "lots", "--nonsense", "1"], USAGE, "  memory: "),
        (["vm", "create", REFUSED, "--net0", "virtio,bridge=nowhere", "--start"], FAILED, "nowhere"),
        (["vm", "resume", VM], FAILED, "not running"),
        (["vm", "status", 759], NOT_FOUND, "vm 759 does not exist"),
        (["ct", "config", VM], NOT_FOUND, f"{VM} does not exist"),
        (["vm", "strat", VM], USAGE, "did you mean start?"),
        (["vm", "resize", VM], USAGE, "usage: appliance vm resize VMID DISK SIZE"),
        (["get", "/nodes/elsewhere/qemu"], NOT_FOUND, "elsewhere"),
        (["--output", "xml", "vm", "list"], USAGE, "table, json, text"),
    ],
)
def test_exit_statuses_and_messages_say_what_is_wrong(
    cli: CommandLine, vm: int, words: list[object], status: int, told: str
) -> None:
    assert told in cli.run(*words, status=status)
    if words[:3] == ["vm", "create", REFUSED] and status == FAILED:
        cli.run("vm", "delete", REFUSED)


def test_an_appliance_that_is_not_there_is_named(cli: CommandLine, tmp_path: Path) -> None:
    assert "no appliance is running here" in cli.run("--socket", tmp_path / "no", "vm", "list", status=UNREACHABLE)
    assert "no appliance" in cli.run("--data-dir", tmp_path, "vm", "list", status=UNREACHABLE)
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(dead))
    assert str(dead) in cli.run("--socket", dead, "vm", "list", status=UNREACHABLE)
    told = cli.run("--url", "https://127.0.0.1:1", "--ca-fingerprint", "0" * 64, "vm", "list", status=UNREACHABLE)
    assert "https://127.0.0.1:1" in told


def test_a_changed_audit_log_is_found_and_the_row_named(cli: CommandLine) -> None:
    cli.run("create", "/pools", "--poolid", "evidence")
    cli.run("delete", "/pools/evidence")
    assert "POST /pools" in cli.run("audit", "--limit", 5)
    assert cli.data("audit", "verify")["ok"] == 1
    path = cli.appliance.data_dir / "audit.log"
    lines = path.read_bytes().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if b"poolid=evidence" in line)
    whole = path.read_bytes()
    lines[number] = lines[number].replace(b"poolid=evidence", b"poolid=innocent")
    with path.open("r+b") as file:  # in place: the appliance goes on appending to this file
        file.write(b"".join(lines))
    try:
        assert f"line {number + 1}" in cli.run("audit", "verify", status=FAILED)
    finally:
        with path.open("r+b") as file:
            file.write(whole)
    assert cli.data("audit", "verify")["ok"] == 1
