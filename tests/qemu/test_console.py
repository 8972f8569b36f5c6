"""Serial consoles: history and stream join without a gap or a repetition, logs are bounded, input has a limit."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path

import pytest

from appliance.errors import Conflict, TimedOut
from appliance.qemu import console as console_module
from appliance.qemu.console import LOG_LIMIT_BYTES, SerialConsole, align, split_at, trim_log
from tests.qemu.boot_sector import GREETING
from tests.qemu.host import READ_TIMEOUT_S, greeted, qemu_host, read_until


def test_the_split_is_the_largest_sample_because_none_can_be_too_large() -> None:
    # QEMU has sent 5 bytes of a write that it has not logged yet: that sample is 5 too small
    lengths, received = iter([100, 100, 105, 110]), iter([0, 5, 5, 10])
    assert split_at(lambda: next(lengths), lambda: next(received), samples=4) == 100


def test_history_ends_where_the_stream_begins_though_qemu_logged_a_byte_twice() -> None:
    log = b"0001\n0002\n0003\n00044\n0005\n"  # the stream began behind 0002; one byte was logged twice since
    assert align(log, 11, b"0003\n000") == 10
    assert align(log, 10, b"0003\n000") == 10
    assert align(log, 10, b"") == 10
    assert align(log, 10, b"what is not there") == 10


def test_history_has_what_qemu_had_sent_but_not_logged_whenever_it_was_asked() -> None:
    log = b"0001\n0002\n0003\n0004\n0005\n"
    assert align(log, 9, b"0003\n000") == 10
    assert align(log, 14, b"0004\n000") == 15


def test_a_few_bytes_are_not_looked_for() -> None:
    assert align(b"login: root\n# ", 13, b"o") == 13


def test_a_small_log_is_left_alone_and_a_missing_one_is_no_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    trim_log(log)
    log.write_bytes(b"x" * 1000)
    trim_log(log)
    assert log.read_bytes() == b"x" * 1000


def test_a_large_log_keeps_its_size_and_its_end_but_not_its_blocks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    content = os.urandom(LOG_LIMIT_BYTES + 100_000)
    log.write_bytes(content)
    trim_log(log)
    status = log.stat()
    assert status.st_size == len(content)
    assert status.st_blocks * 512 < 128 << 10
    assert log.read_bytes()[-(64 << 10) :] == content[-(64 << 10) :]


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"x" * (2 * LOG_LIMIT_BYTES))
    (tmp_path / "log").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        trim_log(tmp_path / "log")


async def _lines(console: SerialConsole, at_least: int) -> bytes:
    said = b""
    while len(said) < at_least:
        said += await console.read()
    return said


async def _spoken_on(log: Path) -> None:
    """Wait until the guest has said some more to nobody: where it was left, QEMU may log a byte twice."""
    size_then = (await asyncio.to_thread(log.stat)).st_size
    async with asyncio.timeout(READ_TIMEOUT_S):
        while (await asyncio.to_thread(log.stat)).st_size < size_then + 200:
            await asyncio.sleep(0.001)


def _joins(before: bytes, after: bytes) -> bool:
    """Whether the numbered lines go on over the joint: of each part only the lines next to it are looked at."""
    numbers = [int(line, 16) for line in (before[-25:] + after[:25]).split(b"\n")[1:-1]]
    return len(numbers) > 5 and all((b - a) % 65536 == 1 for a, b in itertools.pairwise(numbers))


@pytest.mark.host
async def test_history_and_stream_join_exactly_while_the_guest_floods(monkeypatch: pytest.MonkeyPatch) -> None:
    async with qemu_host() as host:
        vm = await host.start()
        console = await greeted(vm)
        await console.write(b"f")
        await _lines(console, 5_000)
        for _ in range(8):
            await console.close()
            await _spoken_on(host.paths().serial_log(0))
            console = await vm.open_console("serial0")
            assert len(console.history()) > 2_000
            assert _joins(console.history(), await _lines(console, 2_000))
        monkeypatch.setattr(console_module, "LOG_LIMIT_BYTES", 32 << 10)
        monkeypatch.setattr(console_module, "HISTORY_LIMIT_BYTES", 8 << 10)
        await asyncio.to_thread(trim_log, host.paths().serial_log(0))
        await console.close()
        await _spoken_on(host.paths().serial_log(0))
        console = await vm.open_console("serial0")
        assert 0 < len(console.history()) <= 8 << 10
        assert _joins(console.history(), await _lines(console, 2_000))


@pytest.mark.host
async def test_one_attachment_at_a_time_and_input_nobody_takes_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "WRITE_TIMEOUT_S", 0.2)
    async with qemu_host() as host:
        vm = await host.start()
        console = await vm.open_console("serial0")
        with pytest.raises(Conflict, match="serial0"):
            await vm.open_console("serial0")
        await read_until(console, GREETING, said=console.history())
        await vm.pause()
        with pytest.raises(TimedOut, match="serial0"):
            await console.write(b"x" * (4 << 20))
        reading = asyncio.ensure_future(console.read())
        await asyncio.sleep(0)
        await console.close()
        await console.close()
        assert await asyncio.wait_for(reading, READ_TIMEOUT_S) == b""
        assert await vm.open_console("serial0")
