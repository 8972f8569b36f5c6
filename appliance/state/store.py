"""The store: documents with revisions, transactions, watches and leases. The one truth of the product.

The model is etcd's v3 key space, reduced to what the product needs, so that an etcd back end can pass the same contract
suite (`tests/state/contract.py`). Keys are `/`-separated ASCII without a leading slash (`guests/100`); values are bytes,
JSON by convention (`state/documents.py`). One global revision rises by one with each transaction that changes anything;
every document carries the revision that created it, the one that last changed it, and its own version, from 1.

All operations are linearizable: an acknowledged transaction is durable and visible to every later read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from appliance.errors import HostError, NoSpace, UserError

VALUE_LIMIT_BYTES = 1 << 20
KEY_LIMIT_BYTES = 512
TRANSACTION_LIMIT_OPERATIONS = 256


class StoreError(HostError):
    """The store could not read or write (disk full, file damaged). Nothing of the transaction has happened."""


class StoreFull(StoreError, NoSpace):
    """The file system of the store is full. Nothing of the transaction has happened; later ones work once there is space."""


class Compacted(UserError):
    """The history a watch asked for is gone: range again and watch from the revision it returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One key's value now. `version` counts its puts since it was created."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease_id: int | None = None


# conditions of a transaction


@dataclass(frozen=True, slots=True)
class RevisionIs:
    """Holds while the document's `mod_revision` is this."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Absent:
    """Holds while there is no such document."""

    key: str


@dataclass(frozen=True, slots=True)
class Exists:
    """Holds while there is such a document, whatever its revision."""

    key: str


Condition = RevisionIs | Absent | Exists

# operations of a transaction


@dataclass(frozen=True, slots=True)
class Put:
    """Create or replace. With a lease the document vanishes when the lease ends; without, it loses any lease."""

    key: str
    value: bytes
    lease_id: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete; not an error when absent."""

    key: str


@dataclass(frozen=True, slots=True)
class DeletePrefix:
    """Delete every document whose key begins with `prefix`."""

    prefix: str


Operation = Put | Delete | DeletePrefix


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`revision` is the store's revision after the transaction (unchanged when it did not succeed)."""

    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One document's change as a watch tells it; `document` is None when it was deleted."""

    revision: int
    key: str
    document: Document | None


class Lease(Protocol):
    """Keeps documents alive. It ends when `ttl_s` passes without `renew`, or by `revoke`; its documents go with it."""

    @property
    def lease_id(self) -> int: ...

    @property
    def ttl_s(self) -> float: ...

    async def renew(self) -> None:
        """Start the time to live anew. Raises `NotFound` when the lease has ended."""

    async def revoke(self) -> None:
        """End it now, deleting its documents in one transaction."""


class Store(Protocol):
    """See the module's docstring. Raises `StoreError` when the back end fails, `InvalidParameter` for bad keys/sizes."""

    async def get(self, key: str) -> Document | None: ...

    async def range(self, prefix: str) -> tuple[Sequence[Document], int]:
        """All documents under `prefix` in key order, and the revision this view is of."""

    async def txn(self, when: Sequence[Condition], then: Sequence[Operation]) -> TxnResult:
        """If all of `when` hold, do all of `then` at one new revision; else nothing. A key may appear once in `then`."""

    def watch(self, prefix: str, *, after: int) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Change]]]:
        """Every change under `prefix` with a revision > `after`, in order, one batch a transaction, none missed.

        Raises `Compacted` from the iterator when `after` is older than the kept history, and when the reader falls so
        far behind that its bounded queue overflows.
        """

    async def lease(self, ttl_s: float) -> Lease: ...

    async def close(self) -> None:
        """Release everything; pending watches end."""
