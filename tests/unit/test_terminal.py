"""A terminal's master: what is said and typed, and who is told of its end."""

from __future__ import annotations

import asyncio
import os
import termios
import tty
from collections.abc import Iterator

import pytest

from appliance import terminal
from appliance.errors import HostError, TimedOut
from appliance.terminal import Terminal


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    """Master, which the terminal owns, and slave."""
    master, slave = os.openpty()
    yield master, slave
    os.close(slave)


async def test_what_is_said_and_typed_goes_through(pty: tuple[int, int]) -> None:
    seen = Terminal(pty[0], "shell")
    reading = asyncio.ensure_future(seen.read())
    await asyncio.sleep(0)
    os.write(pty[1], b"hello")
    assert await reading == b"hello"
    await seen.write(b"line\n")
    assert os.read(pty[1], 100) == b"line\n"
    seen.resize(100, 30)
    assert termios.tcgetwinsize(pty[1]) == (30, 100)
    seen.close()


async def test_who_waits_is_told_that_it_was_closed_and_its_number_is_free_again(pty: tuple[int, int]) -> None:
    seen = Terminal(pty[0], "shell")
    reading = asyncio.ensure_future(seen.read())
    await asyncio.sleep(0)
    seen.close()
    seen.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await reading
    with pytest.raises(HostError, match="shell: the session has ended"):
        await seen.write(b"x")
    seen.resize(1, 1)
    assert seen.closed
    reader, writer = os.pipe()
    assert pty[0] in (reader, writer)
    told = asyncio.Event()
    asyncio.get_running_loop().add_reader(reader, told.set)
    os.write(writer, b"x")
    async with asyncio.timeout(5):
        await told.wait()
    asyncio.get_running_loop().remove_reader(reader)
    os.close(reader)
    os.close(writer)


async def test_typing_what_nobody_reads_ends_with_an_error(
    pty: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "WRITE_LIMIT_S", 0.05)
    tty.setraw(pty[1])  # what edits lines takes any number of bytes of one and drops them
    seen = Terminal(pty[0], "shell")
    with pytest.raises(TimedOut, match="shell: input"):
        await seen.write(b"x" * (1 << 20))
    seen.close()
