"""Rules of the leaf modules: errors, volumes' names, listen addresses, the event bus, helper programs, atomic files."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from appliance import command, config, files
from appliance.errors import CommandFailed, HostError, InvalidParameter, NoSpace, NotFound, ServiceStopping, TimedOut
from appliance.events import EventBus, Lagged, StorageContentChanged
from appliance.model.volume import VolumeId
from appliance.tasks import TaskScope
from tests.leaks import Snapshot


def test_a_full_disk_becomes_no_space_and_names_the_object() -> None:
    error = HostError.from_os_error(OSError(errno.ENOSPC, "No space left on device"), "write /x")
    assert isinstance(error, NoSpace)
    assert str(error) == "write /x: No space left on device"


def test_not_found_says_does_not_exist() -> None:
    assert "does not exist" in str(NotFound("vm 100"))


@pytest.mark.parametrize("text", ["local:iso/x.iso", "local:100/vm-100-disk-0.qcow2", "a:b"])
def test_a_volume_id_survives_the_round_trip(text: str) -> None:
    assert str(VolumeId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "local",
        "local:",
        "local:../x",
        "local:a/../b",
        "local:/etc/passwd",
        "local:a//b",
        "local:.",
        "lo/cal:x",
        "local:a\nb",
    ],
)
def test_a_volume_id_that_could_leave_its_storage_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        VolumeId.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:8006", ("127.0.0.1", 8006)), ("[::1]:0", ("::1", 0)), (":8006", ("0.0.0.0", 8006))],
)
def test_listen_addresses_are_understood(text: str, expected: tuple[str, int]) -> None:
    assert config.parse_listen(text) == expected


@pytest.mark.parametrize("text", ["8006", "host:", "1.2.3.4:70000", "a:b:c"])
def test_a_bad_listen_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        config.parse_listen(text)


def test_run_directories_of_two_instances_never_meet() -> None:
    assert config.default_run_dir(Path("/a")) != config.default_run_dir(Path("/b"))


async def test_a_subscriber_that_falls_behind_is_told_once() -> None:
    bus = EventBus()
    with bus.subscribe(limit=2) as subscription:
        for _ in range(3):
            bus.publish(StorageContentChanged(storage="local"))
        assert await subscription.next() == Lagged()


async def test_a_command_past_its_time_is_killed() -> None:
    with pytest.raises(TimedOut):
        await command.run(["sleep", "30"], timeout_s=0.05)


async def test_a_cancelled_command_leaves_no_process() -> None:
    task = asyncio.ensure_future(command.run(["sleep", "30"], timeout_s=60))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


LEAVES_THE_GROUP = "setsid sleep 5 & "
"""A grandchild that is not killed with the group and holds the pipes open."""


@pytest.mark.parametrize(
    "script",
    [LEAVES_THE_GROUP, f"{LEAVES_THE_GROUP} exec sleep 30", "exec yes", "exec sleep 30"],
    ids=["its child lives on", "killed, its child lives on", "too much output", "silent"],
)
async def test_however_a_command_ends_its_pipes_are_closed_when_run_returns(script: str) -> None:
    await command.run(["true"], timeout_s=30)
    before = Snapshot.take().descriptors
    with pytest.raises((TimedOut, CommandFailed)):
        await command.run(["sh", "-c", script], timeout_s=0.3)
    assert Snapshot.take().descriptors == before
    task = asyncio.ensure_future(command.run(["sh", "-c", script], timeout_s=60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Snapshot.take().descriptors == before


async def test_a_failed_command_names_itself_and_its_last_words() -> None:
    with pytest.raises(CommandFailed, match="ls exited with status 2"):
        await command.run(["ls", "/nonexistent"], timeout_s=5)


async def test_a_missing_program_is_named() -> None:
    with pytest.raises(CommandFailed, match="no-such-program"):
        await command.run(["no-such-program"], timeout_s=5)


async def test_a_command_gets_its_input_and_gives_its_output() -> None:
    assert (await command.run(["cat"], timeout_s=5, stdin=b"x" * 100_000)).stdout == b"x" * 100_000


def test_an_atomic_write_leaves_only_the_file(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "a", b"one", mode=0o600)
    files.write_atomic(tmp_path / "a", b"two", mode=0o600)
    assert [(p.name, p.read_bytes(), p.stat().st_mode & 0o777) for p in tmp_path.iterdir()] == [("a", b"two", 0o600)]


async def test_a_closed_scope_ends_its_tasks_and_takes_no_new_ones() -> None:
    scope = TaskScope("test")
    task = scope.start(asyncio.sleep(60), name="sleeper")
    await scope.close()
    assert task.cancelled()
    with pytest.raises(ServiceStopping):
        scope.start(asyncio.sleep(0), name="late")


@pytest.mark.parametrize(("error", "traced"), [(NotFound("volume 'x'"), False), (RuntimeError("a mistake"), True)])
async def test_a_failed_task_is_traced_only_when_the_mistake_is_ours(
    caplog: pytest.LogCaptureFixture, error: Exception, traced: bool
) -> None:
    async def fail() -> None:
        raise error

    scope = TaskScope("test")
    await asyncio.wait([scope.start(fail(), name="one")])
    (record,) = caplog.records
    assert str(error) in record.getMessage()
    assert bool(record.exc_info) is traced
    await scope.close()
