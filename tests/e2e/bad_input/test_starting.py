"""Starts that cannot be: exit status 1, one line that names the object, and nothing left on the host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.bad_input.client import Client
from tests.harness import ROOT, Appliance

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

LIMIT_S = 30


@pytest.fixture(scope="module")
def running() -> Iterator[Appliance]:
    with Appliance() as appliance:
        yield appliance
        assert Client(appliance).call("GET", "/version").status == 200, "those who came in vain disturbed nobody"


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Appliance]:
    """An appliance of its own, not started; whatever becomes of it, nothing of it stays."""
    appliance = Appliance(tmp_path)
    yield appliance
    try:
        assert appliance.lasting_traces() == []
    finally:
        shutil.rmtree(appliance.run_dir, ignore_errors=True)


def refusal(appliance: Appliance, *more: str) -> str:
    """Its words when it does not start."""
    argv = [sys.executable, "-m", "appliance", "serve", "--data-dir", str(appliance.data_dir)]
    argv += ["--listen", f"127.0.0.1:{appliance.port}", "--bridge", appliance.bridge, *more]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "cannot start" in line]
    return line


def test_a_port_in_use_is_named(running: Appliance, other: Appliance) -> None:
    words = refusal(other, "--listen", f"127.0.0.1:{running.port}")
    assert f"port {running.port} on 127.0.0.1 is in use" in words


def test_an_address_that_is_not_ours_is_named(other: Appliance) -> None:
    assert "192.0.2.1" in refusal(other, "--listen", "192.0.2.1:8006")


def test_a_data_directory_in_use_is_named_with_its_process(running: Appliance, other: Appliance) -> None:
    assert running.process is not None
    words = refusal(other, "--data-dir", str(running.data_dir))
    assert str(running.data_dir) in words
    assert str(running.process.pid) in words


def test_a_data_directory_that_is_a_file_is_named(other: Appliance) -> None:
    other.data_dir.write_text("I am a file")
    assert str(other.data_dir) in refusal(other)
    assert other.data_dir.read_text() == "I am a file"


def test_a_data_directory_that_cannot_be_written_is_named(other: Appliance) -> None:
    other.data_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", other.data_dir], check=True)
    try:
        words = refusal(other)
    finally:
        subprocess.run(["umount", other.data_dir], check=True)
    assert str(other.data_dir) in words
    assert "Read-only" in words


def test_a_data_directory_that_cannot_be_made_is_named(other: Appliance) -> None:
    assert "/proc/appliance" in refusal(other, "--data-dir", "/proc/appliance/data")


@pytest.mark.parametrize(
    "damage", [b"", b"SQLite format 3\0" + b"\xff" * 5000, b"not a database\n" * 100, None], ids=range(4)
)
def test_a_damaged_store_is_named_and_left_as_it_is(other: Appliance, damage: bytes | None) -> None:
    other.start()
    assert other.stop() == 0
    path = other.data_dir / "state.db"
    if damage is None:
        whole = path.read_bytes()
        damage = whole[:4096] + b"\xa5" * (len(whole) - 4096)
    path.write_bytes(damage)
    for name in ("state.db-wal", "state.db-shm"):
        (other.data_dir / name).unlink(missing_ok=True)
    words = refusal(other)
    assert str(path) in words
    assert path.read_bytes() == damage, "what can still be saved is not made worse"


@pytest.mark.parametrize("name", ["pki/server.pem", "pki/ca.key", "pki/ca.pem"])
def test_a_damaged_certificate_is_named(other: Appliance, name: str) -> None:
    other.start()
    assert other.stop() == 0
    (other.data_dir / name).write_text("-----BEGIN CERTIFICATE-----\ngarbage\n")
    assert str(other.data_dir / "pki") in refusal(other)


def test_a_missing_password_file_is_named(other: Appliance) -> None:
    assert "/nowhere/password" in refusal(other, "--admin-password-file", "/nowhere/password")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--listen", "here"), ("--listen", "127.0.0.1:99999"), ("--listen", "[::1:80"), ("--bridge", "a;b"),
        ("--bridge", "x" * 40), ("--bridge", "../x"), ("--bridge", ""), ("--node-name", "Ä"), ("--no-such", "x"),
        ("--log-format", "loud"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named_before_anything_is_made(other: Appliance, option: str, value: str) -> None:
    argv = [sys.executable, "-m", "appliance", "serve", "--data-dir", str(other.data_dir), option, value]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 2, done.stderr
    assert option.removeprefix("--") in done.stderr
    assert "Traceback" not in done.stderr
    assert not other.data_dir.exists()


def test_remains_of_a_killed_appliance_are_no_reason_not_to_start(other: Appliance) -> None:
    other.start()
    other.kill()
    (other.data_dir / "lock").write_text("garbage\n")
    (other.run_dir / "api.sock").unlink(missing_ok=True)
    (other.run_dir / "api.sock").write_text("a file where a socket was")
    other.start()
    assert Client(other).call("GET", "/version").status == 200
    assert other.stop() == 0


def test_an_unknown_file_in_its_place_of_sockets_is_not_followed(other: Appliance, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    other.run_dir.mkdir(mode=0o711)
    (other.run_dir / "api.sock").symlink_to(victim)
    other.start()
    assert other.stop() == 0
    assert victim.read_text() == "precious"
    assert "api.sock" not in os.listdir(other.run_dir)
