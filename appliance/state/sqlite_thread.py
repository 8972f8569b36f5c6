"""The one thread that touches the store's file, and group commit.

    loop: submit(operation) ──queue──▶ thread: take all that wait
                                          reads: answered from the last commit
                                          writes: BEGIN, each operation, one COMMIT (one fsync for all)
    loop: deliver(outcomes) ◀── call_soon_threadsafe, once a round, in commit order

Everything in a round was unanswered when the round began, so any order among them is linearizable. When a round of writes
fails, it is rolled back and each operation tried on its own: one that does not fit on a full disk spoils no other.
Before that, a full disk costs the reserve a slice, and the round is repeated at once (`reserve.py`).
Operations are answered after the commit that holds them, never before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, ServiceStopping
from appliance.state.reserve import SLICE_BYTES, Reserve
from appliance.state.sqlite_file import open_file, store_error, take_lock
from appliance.state.sqlite_tables import Tables
from appliance.state.store import Change, StoreError, StoreFull

PENDING_LIMIT = 10_000
ROUND_LIMIT = 256
OPEN_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
RESERVE_INTERVAL_S = 30.0
"""How often, besides after each commit, is looked whether there is space again to make the reserve whole."""


@dataclass(frozen=True, slots=True)
class Request:
    """One operation on its way to the thread."""

    operation: Callable[[Tables], Any]
    writes: bool
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: `result`, or `error`; `changes` are those of the store's one transaction, if any."""

    request: Request
    result: Any = None
    error: ApplianceError | None = None
    changes: Sequence[Change] = ()


Deliver = Callable[[Sequence[Outcome]], None]


class SqliteThread:
    """Owns the file, its lock and its connection. `submit` on the loop; `deliver` is called on the loop."""

    def __init__(self, path: Path, deliver: Deliver) -> None:
        self._path = path
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._reserve = Reserve(path)
        self._lock_fd = -1
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._stopping = False
        self._unanswered: list[Request] = []
        self._thread = threading.Thread(target=self._run, name=f"store-{path.name}", daemon=True)

    # on the loop

    async def start(self) -> None:
        """Open the file. Raises `StoreError` (the thread has ended then), `TimeoutError`."""
        self._thread.start()
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await self._opened

    def submit(self, operation: Callable[[Tables], Any], *, writes: bool) -> asyncio.Future[Any]:
        """Run `operation` in the thread. Raises `ServiceStopping` after `stop`, `StoreError` when too many wait."""
        if self._stopping:
            raise ServiceStopping(f"store {self._path}: closed")
        if self._queue.qsize() >= PENDING_LIMIT:
            raise StoreError(f"store {self._path}: more than {PENDING_LIMIT} operations are waiting for the disk")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put(Request(operation, writes, future))
        return future

    async def stop(self) -> None:
        """Finish what is queued, close the file, release the lock. Raises `TimeoutError` after `STOP_TIMEOUT_S`."""
        if not self._stopping:
            self._stopping = True
            self._queue.put(None)
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await self._ended.wait()
            await asyncio.to_thread(self._thread.join)

    # in the thread

    def _run(self) -> None:
        try:
            self._lock_fd = take_lock(self._path)
            self._reserve.look()
            self._connection = self._open_file()
        except StoreError as error:
            self._release()
            self._tell(self._fail_to_open, error)
            return
        self._reserve.restore()
        self._tell(self._opened_well)
        try:
            while self._round():
                pass
        finally:
            # Also when a defect ends the thread (its traceback goes to the log): nobody may wait for ever.
            self._stopping = True
            self._release()
            self._tell(self._end)

    def _round(self) -> bool:
        """Take all that waits and answer it; False when told to stop."""
        stop = self._take()
        reads = [self._read(request) for request in self._unanswered if not request.writes]
        if reads:
            self._tell(self._deliver, reads)
        writes = [request for request in self._unanswered if request.writes]
        written = self._write(writes) if writes else []
        self._reserve.restore()
        if written:
            self._tell(self._deliver, written)
        self._unanswered = []
        return not stop

    def _take(self) -> bool:
        """Wait for work and take it, leaving out what was given up meanwhile; True when told to stop.

        There may be none: then it is time to look after the reserve.
        """
        with contextlib.suppress(queue.Empty):
            request = self._queue.get(timeout=RESERVE_INTERVAL_S if self._reserve.short else None)
            while request is not None:
                if not request.future.cancelled():
                    self._unanswered.append(request)
                if len(self._unanswered) >= ROUND_LIMIT:
                    return False
                request = self._queue.get_nowait()
            return True
        return False

    def _read(self, request: Request) -> Outcome:
        try:
            return Outcome(request, request.operation(Tables(self._connected())))
        except sqlite3.Error as error:
            return Outcome(request, error=store_error(self._path, "read", error))
        except StoreError as error:
            return Outcome(request, error=error)

    def _write(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        rooms = self._make_room()
        while True:
            spoils_all = True
            try:
                return self._commit(requests)
            except sqlite3.Error as error:
                self._roll_back()
                refusal = store_error(self._path, "write", error)
                spoils_all = _concerns_the_file(error)
            except StoreError as error:
                refusal = error
            if isinstance(refusal, StoreFull) and next(rooms, False):
                continue
            if len(requests) == 1 or spoils_all:
                return [Outcome(request, error=refusal) for request in requests]
            return [outcome for request in requests for outcome in self._write([request])]

    def _make_room(self) -> Iterator[bool]:
        """What helps against a full disk, one step each, as long as there is one."""
        self._checkpoint()
        yield True
        size_bytes = SLICE_BYTES
        while self._reserve.give_up(size_bytes):
            self._checkpoint()
            yield True
            size_bytes *= 2

    def _checkpoint(self) -> None:
        """Bring the write-ahead log home: the next commit writes over it from its start instead of lengthening it."""
        with contextlib.suppress(sqlite3.Error):  # it may itself need space
            if self._connection is not None:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _commit(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        tables = Tables(self._connected())
        tables.begin()
        outcomes: list[Outcome] = []
        for request in requests:
            try:
                result = request.operation(tables)
                outcomes.append(Outcome(request, result, changes=tables.take_changes()))
            except ApplianceError as error:
                outcomes.append(Outcome(request, error=error))
        tables.commit()
        return outcomes

    def _roll_back(self) -> None:
        """Back to the last commit. A connection that cannot even do that is given up; the next round opens another."""
        connection = self._connected()
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._disconnect()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._open_file()
        return self._connection

    def _open_file(self) -> sqlite3.Connection:
        while True:
            try:
                return open_file(self._path)
            except StoreFull:
                if not self._reserve.give_up(SLICE_BYTES):
                    raise

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _release(self) -> None:
        self._disconnect()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _tell(self, function: Callable[..., None], *args: object) -> None:
        # A loop that is closed already has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    # on the loop again

    def _opened_well(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def _fail_to_open(self, error: StoreError) -> None:
        self._stopping = True
        self._ended.set()
        if not self._opened.done():
            self._opened.set_exception(error)

    def _end(self) -> None:
        """Whoever is still unanswered gets an error."""
        while not self._queue.empty():
            request = self._queue.get_nowait()
            if request is not None:
                self._unanswered.append(request)
        error = ServiceStopping(f"store {self._path}: closed")
        self._deliver([Outcome(request, error=error) for request in self._unanswered])
        self._ended.set()


def _concerns_the_file(error: sqlite3.Error) -> bool:
    """Whether every other operation would meet the same error (and, when the file is busy, wait for it again)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
