"""A guest's console: every byte to every reader, the newest kept, nobody held up."""

from __future__ import annotations

import asyncio

import pytest

from appliance.errors import HostError, TimedOut
from appliance.vmm import console
from appliance.vmm.console import HISTORY_LIMIT_BYTES, PIECE_BYTES, READ_LIMIT_BYTES, UNREAD_LIMIT_BYTES, ByteChannel
from tests.fakes.machine import FakeBridge


class Line:
    """A device with room for four bytes at a time."""

    def __init__(self) -> None:
        self.typed = b""
        self.room = 4

    def receive(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.typed += taken
        return len(taken)


@pytest.fixture
def channel() -> ByteChannel:
    return ByteChannel("vm 101: serial0", FakeBridge())


async def test_history_and_what_follows_are_one_text_without_gap(channel: ByteChannel) -> None:
    channel.feed(b"be")
    first = channel.attach()
    channel.feed(b"gin")
    second = channel.attach()
    channel.feed(b"ning")
    assert first.history() + await first.read() == b"beginning"
    assert second.history() + await second.read() == b"beginning"
    await first.close()
    assert await first.read() == b""


async def test_the_newest_bytes_are_kept(channel: ByteChannel) -> None:
    for number in range(3000):
        channel.feed(b"%099d\n" % number)
    history = channel.attach().history()
    assert len(history) == HISTORY_LIMIT_BYTES
    assert history.endswith(b"2999\n")


async def test_a_reader_that_sleeps_loses_the_oldest_and_holds_nobody_up(channel: ByteChannel) -> None:
    sleeper = channel.attach()
    for _ in range(UNREAD_LIMIT_BYTES // 4096 + 10):
        channel.feed(b"x" * 4096)
    channel.end()
    size = 0
    while data := await sleeper.read():
        size += len(data)
    assert size == UNREAD_LIMIT_BYTES


async def test_what_is_said_in_crumbs_takes_no_more_memory_than_its_bytes(channel: ByteChannel) -> None:
    """A guest that says two bytes at a time, a million times, and an attachment that does not read."""
    sleeper = channel.attach()
    for _ in range(100_000):
        channel.feed(b"ab")
    assert len(sleeper._unread) <= 2 * 200_000 // PIECE_BYTES + 1
    assert len(channel._history) <= 2 * HISTORY_LIMIT_BYTES // PIECE_BYTES + 1
    assert channel.history() == b"ab" * (HISTORY_LIMIT_BYTES // 2)
    assert await sleeper.read() == b"ab" * (READ_LIMIT_BYTES // 2)


async def test_typing_waits_for_room(channel: ByteChannel) -> None:
    line = Line()
    channel.bind(line)
    typing = asyncio.ensure_future(channel.write(b"longer"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert line.typed == b"long"
    line.room = 4
    channel.has_room()
    await typing
    assert line.typed == b"longer"


async def test_a_guest_that_takes_nothing_is_told(channel: ByteChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "WRITE_TIMEOUT_S", 0.01)
    channel.bind(Line())
    with pytest.raises(TimedOut, match="vm 101: serial0"):
        await channel.write(b"longer")
    channel.end()
    with pytest.raises(HostError, match="ended"):
        await channel.write(b"x")


async def test_the_last_words_are_read_after_the_end(channel: ByteChannel) -> None:
    reader = channel.attach()
    channel.feed(b"bye")
    channel.end()
    assert await reader.read() == b"bye"
    assert await reader.read() == b""
    assert await channel.attach().read() == b""
