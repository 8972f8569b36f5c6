"""On a full disk the store alone has a reserve: what makes room there must be recorded first."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance import command
from appliance.state.reserve import RESERVE_BYTES, SLICE_BYTES, Reserve
from appliance.state.sqlite import SqliteStore
from appliance.state.store import Put, StoreFull
from tests.fakes.clock import FakeClock
from tests.state.contract import keys, put

pytestmark = pytest.mark.host


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    asyncio.run(command.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)], timeout_s=10))
    yield place
    asyncio.run(command.run(["umount", "--lazy", str(place)], timeout_s=10))


@pytest.fixture
async def store(disk: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(disk / "state.db", FakeClock())
    yield opened
    await opened.close()


def fill(place: Path) -> None:
    """What others do to the file system: take every byte that is free."""
    with contextlib.suppress(OSError), (place / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert os.statvfs(place).f_bavail == 0


def held(place: Path) -> int:
    return (place / "state.db.reserve").stat().st_blocks * 512


async def test_commits_go_on_when_others_have_filled_the_disk_and_fill_it_again(disk: Path, store: SqliteStore) -> None:
    await put(store, "before")
    assert held(disk) == RESERVE_BYTES
    for number in range(100):
        fill(disk)
        await put(store, f"task/{number}", b"x" * 500)
    assert 0 < held(disk) < RESERVE_BYTES
    assert len(await keys(store)) == 101


async def test_a_used_up_reserve_refuses_clearly_and_is_whole_again_after_the_next_commit_with_space(
    disk: Path, store: SqliteStore
) -> None:
    with pytest.raises(StoreFull, match=r"state\.db"):  # noqa: PT012  until it fails
        for number in itertools.count():
            fill(disk)
            await put(store, f"much/{number}", b"x" * 500_000)
    assert held(disk) < RESERVE_BYTES
    before = await store.range("")
    (disk / "filler").unlink()
    await put(store, "after")
    assert held(disk) == RESERVE_BYTES
    assert len(await keys(store)) == len(before[0]) + 1


async def test_what_does_not_fit_into_the_reserve_does_not_use_it_up(disk: Path, store: SqliteStore) -> None:
    fill(disk)
    with pytest.raises(StoreFull):
        await store.txn([], [Put(f"huge/{number}", b"x" * 1_000_000) for number in range(10)])
    fill(disk)
    await put(store, "small")
    assert await keys(store) == ["small"]


async def test_a_store_opens_on_a_full_disk(disk: Path) -> None:
    first = await SqliteStore.open(disk / "state.db", FakeClock())
    await put(first, "a")
    await first.close()
    fill(disk)
    second = await SqliteStore.open(disk / "state.db", FakeClock())
    assert await keys(second) == ["a"]
    fill(disk)
    await put(second, "b")
    await second.close()


def test_the_reserve_is_real_blocks_also_after_a_backup_made_holes_of_it(disk: Path) -> None:
    (disk / "state.db.reserve").touch()
    os.truncate(disk / "state.db.reserve", RESERVE_BYTES)
    reserve = Reserve(disk / "state.db")
    reserve.look()
    assert held(disk) == 0
    reserve.restore()
    assert held(disk) == RESERVE_BYTES


def test_no_slice_is_given_up_while_the_disk_has_space(disk: Path) -> None:
    reserve = Reserve(disk / "state.db")
    reserve.look()
    reserve.restore()
    assert not reserve.give_up(SLICE_BYTES)
    fill(disk)
    assert reserve.give_up(SLICE_BYTES)
    assert os.statvfs(disk).f_bavail * 4096 == SLICE_BYTES


def test_a_reserve_that_cannot_be_made_is_told_once_and_disturbs_nobody(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (disk / "state.db.reserve").symlink_to("elsewhere")
    reserve = Reserve(disk / "state.db")
    for _ in range(3):
        reserve.restore()
    assert reserve.short
    assert [record.levelname for record in caplog.records] == ["WARNING"]
