"""Consoles: every byte once and in order, replay, slow viewers, input, one hub a run."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from appliance.errors import HostError, InvalidParameter, NotFound, TimedOut, TooLarge
from appliance.services import console
from appliance.services.console import (
    QUEUE_LIMIT_BYTES,
    REPLAY_BYTES,
    ConsoleClient,
    ConsoleHub,
    ConsoleLagged,
    ConsoleService,
)
from appliance.tasks import TaskScope
from tests.fakes.console import FakeConsoleSource, FakeGuestWithConsoles

PATIENCE_S = 30.0


@pytest.fixture
async def scope() -> AsyncIterator[TaskScope]:
    scope = TaskScope("test")
    yield scope
    await scope.close()


@pytest.fixture
def source() -> FakeConsoleSource:
    return FakeConsoleSource()


@pytest.fixture
async def hub(source: FakeConsoleSource, scope: TaskScope) -> AsyncIterator[ConsoleHub]:
    hub = ConsoleHub(source, scope, name="guest 100: serial0")
    yield hub
    await hub.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


async def read_exactly(client: ConsoleClient, size: int) -> bytes:
    data = b""
    async with asyncio.timeout(PATIENCE_S):
        while len(data) < size:
            chunk = await client.read()
            assert chunk, "the console ended early"
            data += chunk
    return data


async def read_all(client: ConsoleClient) -> bytes:
    chunks = []
    async with asyncio.timeout(PATIENCE_S):
        while chunk := await client.read():
            chunks.append(chunk)
    return b"".join(chunks)


def pattern(index: int, size: int = 64 << 10) -> bytes:
    """A chunk that is like no other."""
    return (b"%08d|" % index) * (size // 9) + b"." * (size % 9)


# what viewers get


async def test_every_client_gets_every_byte_and_then_the_end(hub: ConsoleHub, source: FakeConsoleSource) -> None:
    with hub.attach() as one, hub.attach() as two:
        for chunk in (b"a", b"\x00\xff\n", b"end"):
            source.say(chunk)
        source.say(b"")
        assert await read_all(one) == await read_all(two) == b"a\x00\xff\nend"


async def test_a_client_that_comes_later_gets_the_newest_64_kib_then_the_rest_without_gap(
    hub: ConsoleHub, source: FakeConsoleSource
) -> None:
    said = b"".join(pattern(index, 10_000) for index in range(20))
    for start in range(0, len(said), 7919):
        source.say(said[start : start + 7919])
    await until(lambda: source.taken_bytes == len(said))
    with hub.attach() as client:
        source.say(b"live")
        assert await read_exactly(client, REPLAY_BYTES + 4) == said[-REPLAY_BYTES:] + b"live"


async def test_attaching_at_any_moment_leaves_no_gap_and_doubles_nothing(
    hub: ConsoleHub, source: FakeConsoleSource
) -> None:
    chunks = [pattern(index, 500) for index in range(60)]
    clients = []
    for chunk, turns in zip(chunks, itertools.cycle(range(5)), strict=False):
        source.say(chunk)
        clients.append(hub.attach())
        for _ in range(turns):
            await asyncio.sleep(0)
    source.say(b"")
    for client in clients:
        assert await read_all(client) == b"".join(chunks)


async def test_replay_begins_with_what_was_said_before_the_attachment(scope: TaskScope) -> None:
    source = FakeConsoleSource(history=b"booted\n")
    hub = ConsoleHub(source, scope)
    source.say(b"login: ")
    with hub.attach() as client:
        assert await read_exactly(client, 14) == b"booted\nlogin: "
    await hub.close()


async def test_a_client_after_the_end_gets_the_replay_then_the_end(hub: ConsoleHub, source: FakeConsoleSource) -> None:
    source.say(b"bye")
    source.say(b"")
    await until(lambda: hub.ended)
    with hub.attach() as client:
        assert await read_all(client) == b"bye"


async def test_a_broken_attachment_ends_the_console(hub: ConsoleHub, source: FakeConsoleSource) -> None:
    with hub.attach() as client:
        source.say(b"last words")
        source.break_with(HostError("conmon has gone"))
        assert await read_all(client) == b"last words"
        with pytest.raises(HostError, match="has ended"):
            await client.write(b"x")


async def test_closing_the_hub_gives_clients_what_is_left_and_closes_the_source_once(
    hub: ConsoleHub, source: FakeConsoleSource
) -> None:
    client = hub.attach()
    source.say(b"left")
    await until(lambda: source.taken_bytes == 4)
    await hub.close()
    assert await read_all(client) == b"left"
    assert source.closed == 1


async def test_a_closed_client_reads_the_end_and_disturbs_nobody(hub: ConsoleHub, source: FakeConsoleSource) -> None:
    stays, leaves = hub.attach(), hub.attach()
    waiting = asyncio.ensure_future(leaves.read())
    await asyncio.sleep(0)
    leaves.close()
    leaves.close()
    assert await waiting == b""
    source.say(b"on")
    assert await read_exactly(stays, 2) == b"on"


# slow viewers


async def test_a_stalled_viewer_is_dropped_the_other_gets_everything_and_the_first_may_come_back(
    hub: ConsoleHub, source: FakeConsoleSource
) -> None:
    total = 50 << 20
    digest, expected = hashlib.sha256(), hashlib.sha256()
    with hub.attach() as quick, hub.attach() as stalled:
        for index in range(total // (64 << 10)):
            chunk = pattern(index)
            expected.update(chunk)
            source.say(chunk)
        got = 0
        async with asyncio.timeout(PATIENCE_S):
            while got < total:
                chunk = await quick.read()
                digest.update(chunk)
                got += len(chunk)
        assert digest.digest() == expected.digest()
        with pytest.raises(ConsoleLagged):
            await stalled.read()
        with pytest.raises(ConsoleLagged):
            await stalled.write(b"x")
    with hub.attach() as again:
        assert await again.read() == pattern(total // (64 << 10) - 1)


async def test_the_fastest_viewer_paces_the_source(hub: ConsoleHub, source: FakeConsoleSource) -> None:
    with hub.attach() as client:
        for index in range(64):
            source.say(pattern(index))
        await until(lambda: source.taken_bytes > QUEUE_LIMIT_BYTES)
        for _ in range(200):
            await asyncio.sleep(0)
        assert source.taken_bytes <= QUEUE_LIMIT_BYTES + (64 << 10)
        expected = b"".join(pattern(index) for index in range(64))
        assert await read_exactly(client, len(expected)) == expected


async def test_when_all_viewers_stall_they_are_dropped_and_the_guest_goes_on(
    hub: ConsoleHub, source: FakeConsoleSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "STALL_LIMIT_S", 0.05)
    with hub.attach() as one, hub.attach() as two:
        for index in range(40):
            source.say(pattern(index))
        await until(lambda: source.taken_bytes == 40 * (64 << 10))
        for client in (one, two):
            with pytest.raises(ConsoleLagged):
                await client.read()


async def test_a_full_viewer_that_leaves_lets_the_guest_go_on(hub: ConsoleHub, source: FakeConsoleSource) -> None:
    with hub.attach():
        for index in range(40):
            source.say(pattern(index))
        await until(lambda: source.taken_bytes > QUEUE_LIMIT_BYTES)
    await until(lambda: source.taken_bytes == 40 * (64 << 10))


async def test_without_viewers_the_source_is_drained_but_does_not_take_the_loop(
    hub: ConsoleHub, source: FakeConsoleSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "DRAIN_BYTES_PER_S", 1 << 20)
    for index in range(64):
        source.say(pattern(index))
    await until(lambda: source.taken_bytes == console.DRAIN_BURST_BYTES)
    for _ in range(200):
        await asyncio.sleep(0)
    assert source.taken_bytes == console.DRAIN_BURST_BYTES


# input


async def test_what_two_clients_type_is_not_mixed(hub: ConsoleHub, source: FakeConsoleSource) -> None:
    with hub.attach() as one, hub.attach() as two:
        await asyncio.gather(one.write(b"echo one; true\n"), two.write(b"echo two; true\n"))
    assert b"".join(source.typed) == b"echo one; true\necho two; true\n"


async def test_a_large_paste_arrives_whole_and_lets_others_type_between(
    hub: ConsoleHub, source: FakeConsoleSource
) -> None:
    paste = pattern(1, 20_000)
    with hub.attach() as one, hub.attach() as two:
        pasting = asyncio.ensure_future(one.write(paste))
        await until(lambda: len(source.typed) > 0)
        await two.write(b"\x03")
        assert not pasting.done()
        await pasting
    assert b"".join(typed for typed in source.typed if typed != b"\x03") == paste


async def test_input_the_guest_does_not_take_times_out_and_is_bounded(
    hub: ConsoleHub, source: FakeConsoleSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "WRITE_TIMEOUT_S", 0.1)
    source.takes_input.clear()
    with hub.attach() as client:
        waiting = asyncio.ensure_future(client.write(b"x" * console.INPUT_LIMIT_BYTES))
        await asyncio.sleep(0)
        with pytest.raises(TooLarge):
            await client.write(b"y")
        with pytest.raises(TimedOut, match="guest 100: serial0"):
            await waiting
        source.takes_input.set()
        await client.write(b"z")
    assert source.typed[-1] == b"z"


async def test_the_last_size_asked_for_wins(hub: ConsoleHub, source: FakeConsoleSource) -> None:
    source.takes_input.clear()
    with hub.attach() as one, hub.attach() as two:
        asked = [
            asyncio.ensure_future(client.resize(columns, 24))
            for columns, client in ((80, one), (81, two), (82, one), (83, two))
        ]
        await asyncio.sleep(0)
        source.takes_input.set()
        await asyncio.gather(*asked)
    assert source.sizes[-1] == (83, 24)
    assert len(source.sizes) <= 2


@pytest.mark.parametrize(("columns", "rows"), [(0, 24), (80, -1), (100_000, 24), (80, 1001)])
async def test_a_senseless_size_is_refused(hub: ConsoleHub, columns: int, rows: int) -> None:
    with hub.attach() as client, pytest.raises(InvalidParameter):
        await client.resize(columns, rows)


# one hub a run of the guest


@pytest.fixture
async def consoles(scope: TaskScope) -> AsyncIterator[ConsoleService]:
    consoles = ConsoleService(scope)
    await consoles.start()
    yield consoles
    await consoles.close()


async def test_all_viewers_of_a_guest_share_one_attachment(consoles: ConsoleService) -> None:
    guest = FakeGuestWithConsoles()
    clients = await asyncio.gather(*(consoles.attach(guest, "serial0") for _ in range(5)))
    guest.sources[0].say(b"x")
    assert [await client.read() for client in clients] == [b"x"] * 5
    assert len(guest.sources) == 1


async def test_a_console_is_listened_to_from_the_guests_start(consoles: ConsoleService) -> None:
    guest = FakeGuestWithConsoles(names=("serial0", "serial1"))
    await consoles.guest_started(guest)
    guest.sources[1].say(b"boot messages")
    await until(lambda: guest.sources[1].taken_bytes > 0)
    with await consoles.attach(guest, "serial1") as client:
        assert await client.read() == b"boot messages"
    assert len(guest.sources) == 2


async def test_a_stopped_guest_ends_its_viewers_and_a_new_run_has_a_new_console(consoles: ConsoleService) -> None:
    first, second = FakeGuestWithConsoles(), FakeGuestWithConsoles()
    client = await consoles.attach(first, "serial0")
    first.sources[0].say(b"bye")
    await until(lambda: first.sources[0].taken_bytes > 0)
    await consoles.guest_stopped(first.guest_id)
    await consoles.guest_stopped(first.guest_id)
    assert await read_all(client) == b"bye"
    second_client = await consoles.attach(second, "serial0")
    second.sources[0].say(b"hello")
    assert await second_client.read() == b"hello"
    assert first.sources[0].closed == 1


async def test_a_new_run_replaces_the_old_one_even_if_nobody_told_of_its_end(consoles: ConsoleService) -> None:
    first, second = FakeGuestWithConsoles(), FakeGuestWithConsoles()
    old = await consoles.attach(first, "serial0")
    await consoles.attach(second, "serial0")
    assert await read_all(old) == b""
    assert first.sources[0].closed == 1


async def test_a_console_that_ended_is_attached_anew(consoles: ConsoleService) -> None:
    guest = FakeGuestWithConsoles()
    client = await consoles.attach(guest, "serial0")
    guest.sources[0].say(b"")
    assert await read_all(client) == b""
    again = await consoles.attach(guest, "serial0")
    guest.sources[1].say(b"back")
    assert await again.read() == b"back"


async def test_an_unknown_console_does_not_exist(consoles: ConsoleService) -> None:
    with pytest.raises(NotFound):
        await consoles.attach(FakeGuestWithConsoles(), "serial9")


async def test_a_console_that_cannot_be_opened_at_start_is_tried_again_by_a_viewer(consoles: ConsoleService) -> None:
    guest = FakeGuestWithConsoles()
    guest.broken = HostError("socket refused")
    await consoles.guest_started(guest)
    with pytest.raises(HostError):
        await consoles.attach(guest, "serial0")
    guest.broken = None
    client = await consoles.attach(guest, "serial0")
    guest.sources[0].say(b"x")
    assert await client.read() == b"x"
