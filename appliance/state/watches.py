"""Watches of a store that lives in this process: a bounded history to begin from, bounded queues to fall behind in.

The back end calls `publish` on the loop once for each transaction, in revision order, before it acknowledges the
transaction; so whoever has seen revision R (by `range` or `txn`) finds everything after R here. The history is in memory
only: after a restart there is nobody left who could ask for what came before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from appliance.state.checks import check_prefix
from appliance.state.store import Change, Compacted

HISTORY_LIMIT_TRANSACTIONS = 4096
HISTORY_LIMIT_BYTES = 8 << 20
QUEUE_LIMIT_TRANSACTIONS = 1024
QUEUE_LIMIT_BYTES = 16 << 20

CHANGE_OVERHEAD_BYTES = 200
"""What a change costs besides its value; keeps a flood of deletions from counting as nothing."""

_Batch = Sequence[Change]


class BoundedBatches:
    """A FIFO of transactions' changes that knows its size. The newest batch is kept whatever its size."""

    def __init__(self, *, transactions: int, size_bytes: int) -> None:
        self._limit_transactions = transactions
        self._limit_bytes = size_bytes
        self._size_bytes = 0
        self.batches: deque[_Batch] = deque()

    def append(self, batch: _Batch) -> None:
        self.batches.append(batch)
        self._size_bytes += _size_bytes(batch)

    def popleft(self) -> _Batch:
        batch = self.batches.popleft()
        self._size_bytes -= _size_bytes(batch)
        return batch

    @property
    def over_limit(self) -> bool:
        return len(self.batches) > 1 and (
            len(self.batches) > self._limit_transactions or self._size_bytes > self._limit_bytes
        )


def _size_bytes(batch: _Batch) -> int:
    return sum(len(c.document.value) if c.document else 0 for c in batch) + CHANGE_OVERHEAD_BYTES * len(batch)


class Watch:
    """One reader. Iterate it asynchronously; made by `WatchHub.watch` only."""

    def __init__(self, prefix: str, after: int, queue: BoundedBatches) -> None:
        self._prefix = prefix
        self._after = after
        self._queue = queue
        self._ready = asyncio.Event()
        self._error: Compacted | None = None
        self._ended = False

    def offer(self, batch: _Batch) -> None:
        """Queue what concerns this watch; an overflow turns the watch into a `Compacted` error."""
        if self._error or batch[0].revision <= self._after:
            return
        mine = [change for change in batch if change.key.startswith(self._prefix)]
        if mine:
            self._queue.append(mine)
            if self._queue.over_limit:
                self.fail("the reader of this watch fell too far behind")
            self._ready.set()

    def fail(self, reason: str) -> None:
        """Drop what is queued; the reader gets `Compacted`."""
        self._error = Compacted(f"watch {self._prefix!r} after {self._after}: {reason}")
        self._queue.batches.clear()
        self._ready.set()

    def end(self) -> None:
        """No more changes: the reader gets what is queued, then the iteration ends."""
        self._ended = True
        self._ready.set()

    def __aiter__(self) -> AsyncIterator[_Batch]:
        return self

    async def __anext__(self) -> _Batch:
        while True:
            if self._error:
                raise self._error
            if self._queue.batches:
                return self._queue.popleft()
            if self._ended:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()


class WatchHub:
    """The history and the watches open now. `revision` is that of the last transaction published, or the store's at start."""

    def __init__(
        self,
        *,
        revision: int,
        history_transactions: int = HISTORY_LIMIT_TRANSACTIONS,
        queue_transactions: int = QUEUE_LIMIT_TRANSACTIONS,
    ) -> None:
        self._history = BoundedBatches(transactions=history_transactions, size_bytes=HISTORY_LIMIT_BYTES)
        self._queue_transactions = queue_transactions
        self._compacted = revision
        self._watches: set[Watch] = set()
        self._closed = False

    def publish(self, batch: _Batch) -> None:
        """The changes of one transaction, in revision order."""
        self._history.append(batch)
        while self._history.over_limit:
            self._compacted = self._history.popleft()[0].revision
        for watch in self._watches:
            watch.offer(batch)

    def close(self) -> None:
        """End every watch."""
        self._closed = True
        for watch in self._watches:
            watch.end()

    @asynccontextmanager
    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[AsyncIterator[_Batch]]:
        """See `Store.watch`."""
        check_prefix(prefix)
        queue = BoundedBatches(transactions=self._queue_transactions, size_bytes=QUEUE_LIMIT_BYTES)
        watch = Watch(prefix, after, queue)
        if after < self._compacted:
            watch.fail(f"history begins after revision {self._compacted}")
        for batch in self._history.batches:
            watch.offer(batch)
        if self._closed:
            watch.end()
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)
