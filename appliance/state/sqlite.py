"""The store of a single host: SQLite (WAL, synchronous=FULL) in one thread, with group commit.

    sqlite.py         this: the loop's side, fulfils `Store`
    sqlite_thread.py  the thread, rounds of group commit
    sqlite_tables.py  the operations as SQL
    sqlite_file.py    making, checking and locking the file
    reserve.py        space on a full disk
    watches.py        history and watches, in memory      leases.py   lease timers      checks.py   what is refused

An acknowledged transaction has been fsynced. Order of one commit: fsync → watches → the caller's answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import TypeVar

from appliance.clock import Clock
from appliance.errors import HostError, TimedOut
from appliance.state.checks import check_key, check_prefix, check_transaction, check_ttl
from appliance.state.leases import LeaseKeeper, TimedLease
from appliance.state.sqlite_tables import Tables
from appliance.state.sqlite_thread import OPEN_TIMEOUT_S, STOP_TIMEOUT_S, Outcome, SqliteThread
from appliance.state.store import Change, Condition, Document, Operation, TxnResult
from appliance.state.watches import HISTORY_LIMIT_TRANSACTIONS, QUEUE_LIMIT_TRANSACTIONS, WatchHub
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)
T = TypeVar("T")

OPERATION_TIMEOUT_S = 60.0
"""A disk that does not answer for this long has hung."""


class SqliteStore:
    """Fulfils `Store`. Made by `open`; belongs to the loop it was opened on.

    An operation that is cancelled or timed out may still happen, unless it had not begun.
    """

    def __init__(self, path: Path, clock: Clock, *, history_transactions: int, queue_transactions: int) -> None:
        self._path = path
        self._scope = TaskScope(f"store {path}")
        self._thread = SqliteThread(path, self._deliver)
        self._keeper = LeaseKeeper(clock, self._scope, end=self._end_lease, record=self._record_lease)
        self._history_transactions = history_transactions
        self._queue_transactions = queue_transactions
        self._hub = WatchHub(revision=0)
        self._closed = False

    @classmethod
    async def open(
        cls,
        path: Path,
        clock: Clock,
        *,
        history_transactions: int = HISTORY_LIMIT_TRANSACTIONS,
        queue_transactions: int = QUEUE_LIMIT_TRANSACTIONS,
    ) -> SqliteStore:
        """Open `path`, making it (0600) when there is none; leases go on with what remained of them.

        Raises `StoreError` naming the file: in use, damaged, foreign, of a newer schema, disk full.
        """
        store = cls(path, clock, history_transactions=history_transactions, queue_transactions=queue_transactions)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(store.close)
            await store._start()
            undo.pop_all()
        return store

    async def get(self, key: str) -> Document | None:
        check_key(key)
        return await self._call(lambda tables: tables.get(key), f"get {key}")

    async def range(self, prefix: str) -> tuple[Sequence[Document], int]:
        check_prefix(prefix)
        return await self._call(lambda tables: tables.range(prefix), f"range {prefix}")

    async def txn(self, when: Sequence[Condition], then: Sequence[Operation]) -> TxnResult:
        check_transaction(when, then)
        return await self._call(lambda tables: tables.txn(when, then), "transaction", writes=True)

    def watch(self, prefix: str, *, after: int) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Change]]]:
        return self._hub.watch(prefix, after=after)

    async def lease(self, ttl_s: float) -> TimedLease:
        check_ttl(ttl_s)
        lease_id = await self._call(lambda tables: tables.grant_lease(ttl_s), "lease", writes=True)
        return self._keeper.add(lease_id, ttl_s, remaining_s=ttl_s)

    async def close(self) -> None:
        """Record what remains of the leases, finish what is queued, close the file. Safe to call again.

        Raises `TimedOut` when the disk has hung.
        """
        if self._closed:
            return
        self._closed = True
        remaining = self._keeper.remaining()
        await self._scope.close()
        try:
            if remaining:
                await self._call(lambda tables: _record_leases(tables, remaining), "close", writes=True)
        except HostError as error:
            log.warning("store %s: what remains of %d leases is not recorded: %s", self._path, len(remaining), error)
        finally:
            self._hub.close()
            await self._stop()

    async def _stop(self) -> None:
        try:
            await self._thread.stop()
        except TimeoutError as error:
            raise TimedOut(f"store {self._path}: close", STOP_TIMEOUT_S) from error

    async def _start(self) -> None:
        try:
            await self._thread.start()
        except TimeoutError as error:
            raise TimedOut(f"store {self._path}: open", OPEN_TIMEOUT_S) from error
        leases, revision = await self._call(lambda tables: (tables.leases(), tables.revision()), "open")
        self._hub = WatchHub(
            revision=revision,
            history_transactions=self._history_transactions,
            queue_transactions=self._queue_transactions,
        )
        for lease_id, ttl_s, remaining_s in leases:
            self._keeper.add(lease_id, ttl_s, remaining_s=remaining_s)

    async def _call(self, operation: Callable[[Tables], T], doing: str, *, writes: bool = False) -> T:
        future: asyncio.Future[T] = self._thread.submit(operation, writes=writes)
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT_S):
                return await future
        except TimeoutError as error:
            raise TimedOut(f"store {self._path}: {doing}", OPERATION_TIMEOUT_S) from error

    def _deliver(self, outcomes: Sequence[Outcome]) -> None:
        """Watches first, in commit order; then the answers."""
        for outcome in outcomes:
            if outcome.changes:
                self._hub.publish(outcome.changes)
        for outcome in outcomes:
            future = outcome.request.future
            if future.done():
                continue
            if outcome.error is not None:
                future.set_exception(outcome.error)
            else:
                future.set_result(outcome.result)

    async def _end_lease(self, lease_id: int) -> None:
        await self._call(lambda tables: tables.end_lease(lease_id), f"end lease {lease_id}", writes=True)

    async def _record_lease(self, lease_id: int, remaining_s: float) -> None:
        await self._call(lambda tables: tables.record_lease(lease_id, remaining_s), "record lease", writes=True)


def _record_leases(tables: Tables, remaining: dict[int, float]) -> None:
    for lease_id, remaining_s in remaining.items():
        tables.record_lease(lease_id, remaining_s)
