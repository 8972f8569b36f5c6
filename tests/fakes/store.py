"""A store in a dictionary. It passes the contract suite, so what works with it works with the real ones.

`fail_with(error)` makes every write fail until `fail_with(None)`: a full disk in a word.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from appliance.clock import Clock, SystemClock
from appliance.errors import HostError, NotFound, ServiceStopping
from appliance.state.checks import check_key, check_prefix, check_transaction, check_ttl
from appliance.state.leases import LeaseKeeper, TimedLease
from appliance.state.store import (
    Absent,
    Change,
    Condition,
    Delete,
    DeletePrefix,
    Document,
    Exists,
    Operation,
    Put,
    RevisionIs,
    TxnResult,
)
from appliance.state.watches import HISTORY_LIMIT_TRANSACTIONS, QUEUE_LIMIT_TRANSACTIONS, WatchHub
from appliance.tasks import TaskScope


class FakeStore:
    """Fulfils `Store` in memory."""

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        history_transactions: int = HISTORY_LIMIT_TRANSACTIONS,
        queue_transactions: int = QUEUE_LIMIT_TRANSACTIONS,
    ) -> None:
        self.documents: dict[str, Document] = {}
        self.revision = 0
        self._error: HostError | None = None
        self._closed = False
        self._lease_ids: set[int] = set()
        self._next_lease_id = 1
        self._scope = TaskScope("fake-store")
        self._hub = WatchHub(
            revision=0, history_transactions=history_transactions, queue_transactions=queue_transactions
        )
        self._keeper = LeaseKeeper(clock or SystemClock(), self._scope, end=self._end_lease, record=self._record)

    def fail_with(self, error: HostError | None) -> None:
        """Every write raises `error` from now on; None ends it."""
        self._error = error

    async def get(self, key: str) -> Document | None:
        check_key(key)
        await self._turn()
        return self.documents.get(key)

    async def range(self, prefix: str) -> tuple[Sequence[Document], int]:
        check_prefix(prefix)
        await self._turn()
        return [self.documents[key] for key in sorted(self.documents) if key.startswith(prefix)], self.revision

    async def txn(self, when: Sequence[Condition], then: Sequence[Operation]) -> TxnResult:
        check_transaction(when, then)
        await self._turn()
        if self._error:
            raise self._error
        if not all(self._holds(condition) for condition in when):
            return TxnResult(False, self.revision)
        for operation in then:
            if isinstance(operation, Put) and operation.lease_id not in {None, *self._lease_ids}:
                raise NotFound(f"lease {operation.lease_id}")
        self._apply(then)
        return TxnResult(True, self.revision)

    def watch(self, prefix: str, *, after: int) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Change]]]:
        return self._hub.watch(prefix, after=after)

    async def lease(self, ttl_s: float) -> TimedLease:
        check_ttl(ttl_s)
        await self._turn()
        if self._error:
            raise self._error
        lease_id, self._next_lease_id = self._next_lease_id, self._next_lease_id + 1
        self._lease_ids.add(lease_id)
        return self._keeper.add(lease_id, ttl_s, remaining_s=ttl_s)

    async def close(self) -> None:
        self._closed = True
        self._hub.close()
        await self._scope.close()

    async def _turn(self) -> None:
        """As with a real store, others run before the answer comes."""
        await asyncio.sleep(0)
        if self._closed:
            raise ServiceStopping("store (fake): closed")

    def _holds(self, condition: Condition) -> bool:
        document = self.documents.get(condition.key)
        match condition:
            case RevisionIs(revision=revision):
                return document is not None and document.mod_revision == revision
            case Absent():
                return document is None
            case Exists():
                return document is not None

    def _apply(self, then: Sequence[Operation]) -> None:
        revision = self.revision + 1
        changes: list[Change] = []
        for operation in then:
            match operation:
                case Put():
                    changes.append(self._put(operation, revision))
                case Delete(key=key):
                    changes += self._delete([key], revision)
                case DeletePrefix(prefix=prefix):
                    changes += self._delete(sorted(k for k in self.documents if k.startswith(prefix)), revision)
        if changes:
            self.revision = revision
            self._hub.publish(changes)

    def _put(self, put: Put, revision: int) -> Change:
        old = self.documents.get(put.key)
        self.documents[put.key] = Document(
            key=put.key,
            value=put.value,
            create_revision=old.create_revision if old else revision,
            mod_revision=revision,
            version=old.version + 1 if old else 1,
            lease_id=put.lease_id,
        )
        return Change(revision, put.key, self.documents[put.key])

    def _delete(self, keys: Sequence[str], revision: int) -> list[Change]:
        return [Change(revision, key, None) for key in keys if self.documents.pop(key, None) is not None]

    async def _end_lease(self, lease_id: int) -> None:
        await self._turn()
        if self._error:
            raise self._error
        self._lease_ids.discard(lease_id)
        held = sorted(key for key, document in self.documents.items() if document.lease_id == lease_id)
        self._apply([Delete(key) for key in held])

    async def _record(self, lease_id: int, remaining_s: float) -> None:
        """Nothing of a fake survives it."""
