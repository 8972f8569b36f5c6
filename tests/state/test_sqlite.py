"""SQLite's store keeps the contract, and what concerns its file: restart, damage, locks, a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance import command
from appliance.errors import HostError, NoSpace, ServiceStopping
from appliance.state.sqlite import SqliteStore
from appliance.state.store import Compacted, Delete, Put, StoreError, StoreFull
from tests.fakes.clock import FakeClock
from tests.state.contract import (
    HISTORY_TRANSACTIONS,
    QUEUE_TRANSACTIONS,
    PassTime,
    StoreContract,
    keys,
    put,
    take,
    until_gone,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def pass_time(self, clock: FakeClock) -> PassTime:
        return clock.advance

    @pytest.fixture
    async def store(self, path: Path, clock: FakeClock) -> AsyncIterator[SqliteStore]:
        store = await SqliteStore.open(
            path, clock, history_transactions=HISTORY_TRANSACTIONS, queue_transactions=QUEUE_TRANSACTIONS
        )
        yield store
        await store.close()


async def _reopened(path: Path, clock: FakeClock) -> SqliteStore:
    return await SqliteStore.open(path, clock)


# restart


async def test_documents_and_the_revision_survive_a_restart(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    await put(store, "a", b"1")
    await put(store, "b", b"2")
    before = await store.range("")
    await store.close()
    store = await _reopened(path, clock)
    assert await store.range("") == before
    assert await put(store, "c") == before[1] + 1
    await store.close()


async def test_a_watch_from_before_a_restart_is_compacted_and_from_now_works(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    revision = await put(store, "a")
    await store.close()
    store = await _reopened(path, clock)
    async with store.watch("", after=revision - 1) as changes:
        with pytest.raises(Compacted):
            await take(changes)
    async with store.watch("", after=revision) as changes:
        await put(store, "b")
        assert (await take(changes))[0][0].key == "b"
    await store.close()


async def test_a_lease_goes_on_after_a_restart_with_what_remained(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    lease = await store.lease(10.0)
    await put(store, "a", lease_id=lease.lease_id)
    await clock.advance(6.0)
    await store.close()
    await clock.advance(1000.0)
    store = await _reopened(path, clock)
    await clock.advance(3.5)
    assert await keys(store) == ["a"]
    await clock.advance(1.0)
    await until_gone(store, "a")
    await store.close()


async def test_lease_ids_are_never_used_again(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    first = await store.lease(10.0)
    await first.revoke()
    await store.close()
    store = await _reopened(path, clock)
    assert (await store.lease(10.0)).lease_id > first.lease_id
    await store.close()


async def test_a_closed_store_refuses_and_may_be_closed_again(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    await store.lease(10.0)
    await store.close()
    await store.close()
    with pytest.raises(ServiceStopping, match=r"state\.db"):
        await store.get("a")


async def test_what_was_asked_before_the_close_is_done(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    writes = [asyncio.ensure_future(put(store, f"k/{n}")) for n in range(50)]
    await asyncio.sleep(0)
    await store.close()
    assert sorted(await asyncio.gather(*writes)) == list(range(1, 51))


async def test_a_cancelled_write_happens_whole_or_not_at_all(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    writes = [asyncio.ensure_future(store.txn([], [Put(f"a/{n}", b""), Put(f"b/{n}", b"")])) for n in range(40)]
    await asyncio.sleep(0)
    for write in writes[::2]:
        write.cancel()
    await asyncio.gather(*writes, return_exceptions=True)
    assert [key[2:] for key in await keys(store, "a/")] == [key[2:] for key in await keys(store, "b/")]
    assert {f"a/{n}" for n in range(1, 40, 2)} <= set(await keys(store, "a/"))
    await store.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_defect_in_the_thread_leaves_nobody_waiting(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    reads = [asyncio.ensure_future(store.get("a")) for _ in range(3)]
    defect = asyncio.ensure_future(store._call(lambda tables: 1 // (tables is None), "defect", writes=True))
    reads += [asyncio.ensure_future(store.get("a")) for _ in range(3)]
    with pytest.raises(ServiceStopping):
        await defect
    answers = await asyncio.gather(*reads, return_exceptions=True)
    assert all(answer is None or isinstance(answer, ServiceStopping) for answer in answers)
    with pytest.raises(ServiceStopping):
        await store.get("a")
    await store.close()
    await (await _reopened(path, clock)).close()


# the file


async def test_the_file_is_for_the_owner_only(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    await put(store, "a")
    assert {name.name: name.stat().st_mode & 0o077 for name in path.parent.iterdir()} == dict.fromkeys(
        ("state.db", "state.db-wal", "state.db-shm", "state.db.lock", "state.db.reserve"), 0
    )
    await store.close()


async def test_a_commit_is_synced_and_in_the_write_ahead_log(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    pragmas = await store._call(
        lambda tables: [
            tables._sql.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ],
        "look",
    )
    assert pragmas == ["wal", 2]
    await store.close()


async def test_a_second_process_is_refused_and_told_who_has_it(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    with pytest.raises(StoreError, match=rf"state\.db: in use by another process \({os.getpid()}\)"):
        await _reopened(path, clock)
    await put(store, "a")
    await store.close()
    await (await _reopened(path, clock)).close()


def _damage(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


async def _with_documents(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    await store.txn([], [Put(f"k/{n}", b"v" * 400) for n in range(100)])
    await store.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("PRAGMA user_version = 99", "newer appliance"),
        ("PRAGMA user_version = 0", "unknown schema"),
        ("PRAGMA application_id = 7", "not a store of the appliance"),
    ],
)
async def test_a_file_of_another_kind_is_refused(path: Path, clock: FakeClock, statement: str, message: str) -> None:
    await _with_documents(path, clock)
    await asyncio.to_thread(_damage, path, statement)
    with pytest.raises(StoreError, match=message) as caught:
        await _reopened(path, clock)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"this is no database" * 500])
async def test_a_file_that_is_no_database_is_refused_and_left_alone(
    path: Path, clock: FakeClock, content: bytes
) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"state\.db"):
        await _reopened(path, clock)
    assert path.read_bytes() == content


async def test_a_damaged_file_is_refused_by_name(path: Path, clock: FakeClock) -> None:
    await _with_documents(path, clock)
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096 * 4)
    with pytest.raises(StoreError, match=r"state\.db.*damaged"):
        await _reopened(path, clock)


async def test_a_log_without_its_file_is_not_applied_to_a_new_one(path: Path, clock: FakeClock) -> None:
    path.with_name("state.db-wal").write_bytes(b"left over")
    with pytest.raises(StoreError, match=r"missing, but state\.db-wal is there"):
        await _reopened(path, clock)
    assert not path.exists()


async def test_a_place_that_cannot_hold_it_is_named(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"file/state\.db"):
        await _reopened(tmp_path / "file" / "state.db", clock)


async def test_a_half_made_file_of_a_crash_is_made_anew(path: Path, clock: FakeClock) -> None:
    path.with_name(".state.db.new").write_bytes(b"half")
    store = await _reopened(path, clock)
    await put(store, "a")
    await store.close()
    assert sorted(name.name for name in path.parent.iterdir()) == [
        "state.db",
        "state.db.lock",
        "state.db.reserve",
    ]


# a full disk


async def test_a_full_file_refuses_what_does_not_fit_and_takes_what_does(path: Path, clock: FakeClock) -> None:
    store = await _reopened(path, clock)
    await put(store, "a", b"1")
    await store._call(lambda tables: tables._sql.execute("PRAGMA max_page_count = 40").fetchone(), "limit")
    big, small = await asyncio.gather(
        store.txn([], [Put("a", b"2"), Put("big", b"z" * 500_000)]),
        store.txn([], [Put("small", b"1")]),
        return_exceptions=True,
    )
    assert isinstance(big, StoreFull)
    assert isinstance(big, NoSpace)
    assert "state.db" in str(big)
    assert not isinstance(small, BaseException)
    document = await store.get("a")
    assert document is not None
    assert document.value == b"1"
    assert await keys(store) == ["a", "small"]
    await store._call(lambda tables: tables._sql.execute("PRAGMA max_page_count = 4000").fetchone(), "lift")
    assert (await store.txn([], [Put("a", b"2"), Put("big", b"z" * 500_000)])).revision == small.revision + 1
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    asyncio.run(command.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], timeout_s=10))
    yield place
    asyncio.run(command.run(["umount", "--lazy", str(place)], timeout_s=10))


def _fill(place: Path) -> None:
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    assert os.statvfs(place).f_bavail == 0


@pytest.mark.host
async def test_on_a_full_disk_nothing_is_half_written_and_it_goes_on_once_there_is_space(
    small_disk: Path, clock: FakeClock
) -> None:
    path = small_disk / "state.db"
    store = await _reopened(path, clock)
    lease = await store.lease(5.0)
    await put(store, "leased", lease_id=lease.lease_id)
    before = await store.range("")
    _fill(small_disk)
    for _ in range(3):
        with pytest.raises(StoreFull, match=r"state\.db"):
            await store.txn([], [Put("a", b"z" * 200_000), Delete("leased")])
        assert await store.range("") == before
    await clock.advance(6.0)
    (small_disk / "filler").unlink()
    await clock.advance(2.0)
    await until_gone(store, "leased")
    await store.txn([], [Put("a", b"z" * 100_000)])
    await store.close()
    store = await _reopened(path, clock)
    assert await keys(store) == ["a"]
    await store.close()


@pytest.mark.host
async def test_no_store_is_made_on_a_full_disk_and_nothing_is_left(small_disk: Path, clock: FakeClock) -> None:
    _fill(small_disk)
    with pytest.raises(HostError, match=r"state\.db"):
        await _reopened(small_disk / "state.db", clock)
    assert {name.name for name in small_disk.iterdir()} <= {"filler", "state.db.lock"}
    (small_disk / "filler").unlink()
    await (await _reopened(small_disk / "state.db", clock)).close()


@pytest.mark.host
async def test_opening_on_a_full_disk_says_that_it_is_full(small_disk: Path, clock: FakeClock) -> None:
    path = small_disk / "state.db"
    await (await _reopened(path, clock)).close()
    path.with_name("state.db.reserve").unlink()
    _fill(small_disk)
    with pytest.raises(StoreFull, match=r"no space left|full"):
        await _reopened(path, clock)
    (small_disk / "filler").unlink()
    await (await _reopened(path, clock)).close()
