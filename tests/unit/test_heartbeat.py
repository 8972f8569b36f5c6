"""What systemd hears over a process's life, by a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance.heartbeat import START_EXTENSION_S, START_INTERVAL_S, START_LIMIT_S, Heartbeat
from appliance.kernel.sd_notify import ServiceManager
from tests.fakes.clock import FakeClock

EXTENDED = f"EXTEND_TIMEOUT_USEC={START_EXTENSION_S * 1e6:.0f}"


class Systemd:
    """The manager's end of $NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """All since the last call."""
        found: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(4096).decode())
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    manager = Systemd(tmp_path / "notify")
    yield manager
    manager.close()


@contextlib.asynccontextmanager
async def beating(systemd: Systemd, clock: FakeClock, *, watchdog_s: float) -> AsyncIterator[Heartbeat]:
    heartbeat = Heartbeat(ServiceManager(str(systemd.path), watchdog_s=watchdog_s), clock)
    task = asyncio.ensure_future(heartbeat.run())
    await asyncio.sleep(0)
    yield heartbeat
    task.cancel()
    await asyncio.wait([task])


async def test_a_long_start_is_extended_until_it_serves_and_then_it_beats(systemd: Systemd) -> None:
    clock = FakeClock()
    async with beating(systemd, clock, watchdog_s=30) as heartbeat:
        await clock.advance(START_INTERVAL_S)
        assert systemd.heard() == [EXTENDED] * 2
        heartbeat.serving("https://h:8006")
        await clock.advance(30)
        assert systemd.heard() == ["READY=1\nSTATUS=Serving https://h:8006", *["WATCHDOG=1"] * 3]
        heartbeat.stopping()
        await clock.advance(60)
        assert systemd.heard() == ["STOPPING=1\nSTATUS=Ending"]


async def test_a_start_that_hangs_is_not_extended_for_ever(systemd: Systemd) -> None:
    clock = FakeClock()
    async with beating(systemd, clock, watchdog_s=600):
        await clock.advance(START_LIMIT_S + START_INTERVAL_S)
        systemd.heard()
        await clock.advance(1200)
        assert systemd.heard() == []


async def test_the_first_beat_comes_within_a_short_watchdog(systemd: Systemd) -> None:
    clock = FakeClock()
    async with beating(systemd, clock, watchdog_s=3) as heartbeat:
        heartbeat.serving("x")
        await clock.advance(1)
        assert systemd.heard()[-1] == "WATCHDOG=1"


async def test_without_a_manager_it_ends_at_once() -> None:
    await asyncio.wait_for(Heartbeat(ServiceManager(""), FakeClock()).run(), 5)


@pytest.mark.parametrize(("pid", "expected"), [("", 180.0), ("ours", 180.0), ("1", 0.0)])
def test_only_a_watchdog_of_this_process_counts(pid: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = str(os.getpid()) if pid == "ours" else pid
    for name, value in (("NOTIFY_SOCKET", "/nowhere"), ("WATCHDOG_USEC", "180000000"), ("WATCHDOG_PID", pid)):
        monkeypatch.setenv(name, value)
    assert ServiceManager.take().watchdog_s == expected
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ), "helpers would speak for us"
