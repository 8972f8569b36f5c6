"""The host's login prompt: how many there may be, and what is left of one that was given up."""

from __future__ import annotations

import asyncio
import os

import pytest

from appliance.errors import TooManyRequests, Unsupported
from appliance.services import host_shell
from appliance.services.host_shell import HostShell


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_many_asked_for_at_once_are_not_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_shell, "SHELL_LIMIT", 2)
    found = await asyncio.gather(*(HostShell.open() for _ in range(4)), return_exceptions=True)
    shells = [each for each in found if isinstance(each, HostShell)]
    assert len(shells) == 2
    assert sum(isinstance(each, TooManyRequests) for each in found) == 2
    for shell in shells:
        await shell.end()
        await shell.end()
    await (await HostShell.open()).end()


async def test_a_shell_that_cannot_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_shell, "SHELL_LIMIT", 1)
    monkeypatch.setattr(host_shell, "ARGV", ("no-such-program",))
    before = open_files()
    for _ in range(3):
        with pytest.raises(Unsupported, match="no-such-program"):
            await HostShell.open()
    assert open_files() == before


async def test_a_shell_given_up_while_it_starts_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_shell, "SHELL_LIMIT", 1)
    before = open_files()
    opening = asyncio.create_task(HostShell.open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await (await HostShell.open()).end()
    assert open_files() == before
