"""The contract every store keeps: SQLite's, the fake, etcd's. A back end's test module derives from `StoreContract`,
gives it a `store` and a `pass_time` fixture, and adds what only concerns itself.

The store under test keeps `HISTORY_TRANSACTIONS` transactions of history and lets a watch fall `QUEUE_TRANSACTIONS` behind;
a back end with other means overrides `forget_history` and `outrun_a_reader`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from appliance.errors import InvalidParameter, NotFound
from appliance.state.store import (
    KEY_LIMIT_BYTES,
    TRANSACTION_LIMIT_OPERATIONS,
    VALUE_LIMIT_BYTES,
    Absent,
    Change,
    Compacted,
    Condition,
    Delete,
    DeletePrefix,
    Document,
    Exists,
    Operation,
    Put,
    RevisionIs,
    Store,
    TxnResult,
)

HISTORY_TRANSACTIONS = 40
QUEUE_TRANSACTIONS = 20
PATIENCE_S = 30.0

PassTime = Callable[[float], Awaitable[None]]
"""Lets that many seconds pass on the clock the store's leases follow."""


async def put(store: Store, key: str, value: bytes = b"x", *, lease_id: int | None = None) -> int:
    """Write one document; returns the revision."""
    return (await store.txn([], [Put(key, value, lease_id)])).revision


async def keys(store: Store, prefix: str = "") -> list[str]:
    return [document.key for document in (await store.range(prefix))[0]]


async def take(changes: AsyncIterator[Sequence[Change]], count: int = 1) -> list[Sequence[Change]]:
    """The next `count` batches of a watch."""
    async with asyncio.timeout(PATIENCE_S):
        return [await anext(changes) for _ in range(count)]


async def until_gone(store: Store, key: str) -> None:
    """Wait until a document has vanished."""
    async with asyncio.timeout(PATIENCE_S):
        while await store.get(key):
            await asyncio.sleep(0.01)


class StoreContract:
    """Derive, name it `Test...`, and provide the fixtures `store` and `pass_time`."""

    async def forget_history(self, store: Store) -> None:
        """Make the store forget what happened before now."""
        for _ in range(HISTORY_TRANSACTIONS + 1):
            await put(store, "filler")

    async def outrun_a_reader(self, store: Store) -> None:
        """Change `watched/...` more often than a watch that is not read can hold."""
        for number in range(QUEUE_TRANSACTIONS + 1):
            await put(store, f"watched/{number}")

    # documents

    async def test_a_new_store_is_empty(self, store: Store) -> None:
        documents, _ = await store.range("")
        assert list(documents) == []

    async def test_what_is_not_there_is_none(self, store: Store) -> None:
        assert await store.get("guests/100") is None

    async def test_a_document_carries_its_revisions_and_version(self, store: Store) -> None:
        first = await put(store, "guests/100", b"one")
        await put(store, "guests/101")
        last = await put(store, "guests/100", b"two")
        assert await store.get("guests/100") == Document(
            key="guests/100", value=b"two", create_revision=first, mod_revision=last, version=2
        )
        assert last == first + 2

    async def test_a_document_made_again_begins_anew(self, store: Store) -> None:
        await put(store, "a")
        await put(store, "a")
        await store.txn([], [Delete("a")])
        revision = await put(store, "a")
        document = await store.get("a")
        assert document is not None
        assert (document.create_revision, document.mod_revision, document.version) == (revision, revision, 1)

    async def test_any_bytes_come_back(self, store: Store) -> None:
        for value in (b"", bytes(range(256)), "{}é\N{SNOWMAN}".encode(), b"z" * VALUE_LIMIT_BYTES):
            await put(store, "a", value)
            document = await store.get("a")
            assert document is not None
            assert document.value == value

    async def test_a_range_is_in_key_order_and_keeps_to_its_prefix(self, store: Store) -> None:
        for key in ("b/2", "a", "b/10", "b~", "b/1/x", "bb", "B/1", "b"):
            await put(store, key)
        assert await keys(store, "b/") == ["b/1/x", "b/10", "b/2"]
        assert await keys(store, "b") == ["b", "b/1/x", "b/10", "b/2", "bb", "b~"]
        assert await keys(store) == ["B/1", "a", "b", "b/1/x", "b/10", "b/2", "bb", "b~"]
        assert await keys(store, "c") == []

    async def test_a_range_tells_the_revision_it_is_of(self, store: Store) -> None:
        revision = await put(store, "a")
        assert (await store.range("zzz"))[1] == revision

    # transactions

    async def test_a_transaction_changes_all_its_keys_at_one_revision(self, store: Store) -> None:
        await put(store, "old")
        result = await store.txn([], [Put("a", b"1"), Put("b", b"2"), Delete("old")])
        documents, revision = await store.range("")
        assert [(d.key, d.mod_revision) for d in documents] == [("a", revision), ("b", revision)]
        assert result == TxnResult(True, revision)

    @pytest.mark.parametrize(
        ("condition", "holds"),
        [
            (Absent("no"), True),
            (Absent("yes"), False),
            (Exists("no"), False),
            (Exists("yes"), True),
            (RevisionIs("no", 0), False),
        ],
    )
    async def test_conditions(self, store: Store, condition: Condition, holds: bool) -> None:
        before = await put(store, "yes")
        result = await store.txn([Exists("yes"), condition], [Put("done", b"")])
        assert result == TxnResult(holds, before + holds)
        assert (await store.get("done") is not None) == holds

    async def test_a_stale_revision_loses(self, store: Store) -> None:
        first = await put(store, "a", b"1")
        assert (await store.txn([RevisionIs("a", first)], [Put("a", b"2")])).succeeded
        assert not (await store.txn([RevisionIs("a", first)], [Put("a", b"3")])).succeeded
        document = await store.get("a")
        assert document is not None
        assert document.value == b"2"

    async def test_of_many_who_claim_a_key_one_wins(self, store: Store) -> None:
        results = await asyncio.gather(*(store.txn([Absent("id/100")], [Put("id/100", b"%d" % n)]) for n in range(20)))
        assert sum(result.succeeded for result in results) == 1

    async def test_concurrent_increments_lose_nothing(self, store: Store) -> None:
        await put(store, "n", b"0")

        async def increment() -> None:
            while True:
                document = await store.get("n")
                assert document is not None
                value = b"%d" % (int(document.value) + 1)
                if (await store.txn([RevisionIs("n", document.mod_revision)], [Put("n", value)])).succeeded:
                    return

        await asyncio.gather(*(increment() for _ in range(12)))
        document = await store.get("n")
        assert document is not None
        assert (document.value, document.version) == (b"12", 13)

    async def test_what_changes_nothing_takes_no_revision(self, store: Store) -> None:
        before = await put(store, "a")
        nothing: list[list[Operation]] = [[], [Delete("no")], [DeletePrefix("no/")]]
        for then in nothing:
            assert await store.txn([], then) == TxnResult(True, before)

    async def test_deleting_a_prefix_takes_all_below_it_and_nothing_else(self, store: Store) -> None:
        for key in ("a/1", "a/2/x", "a", "ab", "b"):
            await put(store, key)
        await store.txn([], [DeletePrefix("a/"), Put("c", b"")])
        assert await keys(store) == ["a", "ab", "b", "c"]

    # what is refused

    @pytest.mark.parametrize(
        "key", ["", "/a", "a/", "a//b", "a b", "é", "a\n", "a\0", "a\x7f", "k" * (KEY_LIMIT_BYTES + 1)]
    )
    async def test_bad_keys_are_refused(self, store: Store, key: str) -> None:
        with pytest.raises(InvalidParameter):
            await store.get(key)
        with pytest.raises(InvalidParameter):
            await store.txn([], [Put(key, b"")])
        with pytest.raises(InvalidParameter):
            await store.txn([Absent(key)], [])

    async def test_the_longest_key_is_taken(self, store: Store) -> None:
        await put(store, "k" * KEY_LIMIT_BYTES)
        assert await keys(store, "kk") == ["k" * KEY_LIMIT_BYTES]

    @pytest.mark.parametrize(
        "then",
        [
            [Put("a", b"1"), Put("a", b"2")],
            [Put("a", b"1"), Delete("a")],
            [Put("a/b", b"1"), DeletePrefix("a/")],
            [DeletePrefix("a/b"), DeletePrefix("a/")],
        ],
    )
    async def test_a_key_may_appear_once(self, store: Store, then: list[Operation]) -> None:
        with pytest.raises(InvalidParameter, match="twice"):
            await store.txn([], then)

    async def test_too_much_is_refused(self, store: Store) -> None:
        with pytest.raises(InvalidParameter):
            await put(store, "a", b"z" * (VALUE_LIMIT_BYTES + 1))
        with pytest.raises(InvalidParameter):
            await store.txn([], [Put(f"k/{n}", b"") for n in range(TRANSACTION_LIMIT_OPERATIONS + 1)])
        assert (await store.txn([], [Put(f"k/{n}", b"") for n in range(TRANSACTION_LIMIT_OPERATIONS)])).succeeded

    # watches

    async def test_a_watch_tells_changes_in_order_one_batch_a_transaction(self, store: Store) -> None:
        start = await put(store, "before")
        async with store.watch("w/", after=start) as changes:
            await store.txn([], [Put("w/a", b"1"), Put("other", b""), Put("w/b", b"2")])
            await put(store, "other")
            await store.txn([], [Delete("w/a")])
            batches = await take(changes, 2)
        assert [[(c.revision, c.key, c.document and c.document.value) for c in batch] for batch in batches] == [
            [(start + 1, "w/a", b"1"), (start + 1, "w/b", b"2")],
            [(start + 3, "w/a", None)],
        ]

    async def test_a_watch_tells_the_document_as_it_was_written(self, store: Store) -> None:
        async with store.watch("", after=(await store.range(""))[1]) as changes:
            await put(store, "a", b"1")
            written = await store.get("a")
            await put(store, "a", b"2")
            assert (await take(changes))[0][0].document == written

    async def test_a_watch_begins_in_the_past(self, store: Store) -> None:
        revisions = [await put(store, f"w/{n}") for n in range(5)]
        async with store.watch("w/", after=revisions[1]) as changes:
            await put(store, "w/5")
            assert [batch[0].key for batch in await take(changes, 4)] == ["w/2", "w/3", "w/4", "w/5"]

    async def test_a_watch_after_a_later_revision_waits_for_it(self, store: Store) -> None:
        now = await put(store, "a")
        async with store.watch("", after=now + 1) as changes:
            await put(store, "a", b"skipped")
            await put(store, "a", b"told")
            ((change,),) = await take(changes)
        assert change.document is not None
        assert change.document.value == b"told"

    async def test_deleting_a_prefix_is_told_document_by_document(self, store: Store) -> None:
        for key in ("p/2", "p/1", "q"):
            last = await put(store, key)
        async with store.watch("", after=last) as changes:
            await store.txn([], [DeletePrefix("p/")])
            assert await take(changes) == [[Change(last + 1, "p/1", None), Change(last + 1, "p/2", None)]]

    async def test_range_then_watch_misses_nothing_under_load(self, store: Store) -> None:
        async def load() -> None:
            for number in range(30):
                await store.txn([], [Put(f"w/{number % 3}", b"%d" % number)])

        writer = asyncio.ensure_future(load())
        while not await store.get("w/0"):
            await asyncio.sleep(0)
        documents, revision = await store.range("w/")
        seen = {document.key: document.value for document in documents}
        async with store.watch("w/", after=revision) as changes:
            while seen.get("w/2") != b"29":
                for change in (await take(changes))[0]:
                    assert change.document is not None
                    assert change.revision == revision + 1
                    revision = change.revision
                    seen[change.key] = change.document.value
        await writer
        assert seen == {"w/0": b"27", "w/1": b"28", "w/2": b"29"}

    async def test_a_watch_of_forgotten_history_is_told_so(self, store: Store) -> None:
        start = await put(store, "a")
        await self.forget_history(store)
        async with store.watch("", after=start) as changes:
            with pytest.raises(Compacted):
                await take(changes)

    async def test_a_reader_too_far_behind_is_told_so_and_others_are_not(self, store: Store) -> None:
        start = await put(store, "a")
        async with store.watch("watched/", after=start) as slow, store.watch("quiet/", after=start) as other:
            await self.outrun_a_reader(store)
            await put(store, "quiet/1")
            assert (await take(other))[0][0].key == "quiet/1"
            with pytest.raises(Compacted):
                await take(slow, QUEUE_TRANSACTIONS + 1)

    async def test_a_closed_store_ends_its_watches(self, store: Store) -> None:
        async with store.watch("", after=(await store.range(""))[1]) as changes:
            waiting = asyncio.ensure_future(take(changes))
            await asyncio.sleep(0)
            await store.close()
            with pytest.raises(StopAsyncIteration):
                await waiting

    # leases

    async def test_documents_vanish_with_their_lease(self, store: Store, pass_time: PassTime) -> None:
        lease = await store.lease(2.0)
        revision = await put(store, "l/a", lease_id=lease.lease_id)
        await store.txn([], [Put("l/b", b"", lease.lease_id), Put("stays", b"")])
        async with store.watch("l/", after=revision + 1) as changes:
            await pass_time(3.5)
            (batch,) = await take(changes)
        assert [(change.revision, change.key, change.document) for change in batch] == [
            (revision + 2, "l/a", None),
            (revision + 2, "l/b", None),
        ]
        assert await keys(store) == ["stays"]

    async def test_a_renewed_lease_lives_on(self, store: Store, pass_time: PassTime) -> None:
        lease = await store.lease(3.0)
        await put(store, "a", lease_id=lease.lease_id)
        for _ in range(3):
            await pass_time(1.5)
            await lease.renew()
        assert await keys(store) == ["a"]
        await lease.revoke()

    async def test_a_revoked_lease_ends_at_once(self, store: Store) -> None:
        lease = await store.lease(60.0)
        await put(store, "a", lease_id=lease.lease_id)
        await lease.revoke()
        assert await keys(store) == []
        with pytest.raises(NotFound):
            await lease.renew()
        await lease.revoke()

    async def test_an_ended_lease_holds_nothing(self, store: Store, pass_time: PassTime) -> None:
        lease = await store.lease(1.0)
        await put(store, "a", lease_id=lease.lease_id)
        await pass_time(3.0)
        await until_gone(store, "a")
        with pytest.raises(NotFound):
            await lease.renew()
        with pytest.raises(NotFound):
            await store.txn([], [Put("b", b""), Put("c", b"", lease.lease_id)])
        assert await keys(store) == []

    async def test_a_document_written_without_its_lease_outlives_it(self, store: Store) -> None:
        lease = await store.lease(60.0)
        await put(store, "a", lease_id=lease.lease_id)
        await put(store, "a")
        await lease.revoke()
        assert await keys(store) == ["a"]

    async def test_a_document_follows_its_newest_lease(self, store: Store) -> None:
        first, second = await store.lease(60.0), await store.lease(60.0)
        await put(store, "a", lease_id=first.lease_id)
        await put(store, "a", lease_id=second.lease_id)
        await first.revoke()
        document = await store.get("a")
        assert document is not None
        assert document.lease_id == second.lease_id
        await second.revoke()
        assert await keys(store) == []

    @pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf")])
    async def test_a_senseless_time_to_live_is_refused(self, store: Store, ttl_s: float) -> None:
        with pytest.raises(InvalidParameter):
            await store.lease(ttl_s)
