"""Documents as typed values: JSON by msgspec, keys sorted, so that equal values are equal bytes.

    jobs = Documents(store, "jobs/", Job)
    stored = await jobs.get("nightly")                      # Stored[Job] | None
    await store.txn([jobs.unchanged("nightly", stored)], [jobs.put("nightly", changed)])

New fields of a document type need a default (old documents lack them); fields this version does not know are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from appliance.state.store import Absent, Condition, Delete, Document, Put, RevisionIs, Store, StoreError

T = TypeVar("T")


def encode(value: object) -> bytes:
    """JSON of a dataclass, Struct, dict, list or plain value."""
    return msgspec.json.encode(value, order="deterministic")


def decode(document: Document, type_: type[T]) -> T:
    """The value of `document`. Raises `StoreError` naming the key when it is not JSON of a `type_`."""
    try:
        return msgspec.json.decode(document.value, type=type_)
    except msgspec.DecodeError as error:
        raise StoreError(f"store document {document.key}: {error}") from error


@dataclass(frozen=True, slots=True)
class Stored(Generic[T]):
    """A value and the revision that last changed it."""

    id: str
    value: T
    revision: int


class Documents(Generic[T]):
    """The documents under one prefix, which share one type. `id` is what follows the prefix in the key."""

    def __init__(self, store: Store, prefix: str, type_: type[T]) -> None:
        self._store = store
        self._prefix = prefix
        self._type = type_

    def key(self, id_: str) -> str:
        return self._prefix + id_

    async def get(self, id_: str) -> Stored[T] | None:
        """The value, or None. Raises `StoreError`."""
        document = await self._store.get(self.key(id_))
        return None if document is None else self._stored(document)

    async def all(self) -> tuple[Sequence[Stored[T]], int]:
        """All values in order of their ids, and the revision of this view (to watch from). Raises `StoreError`."""
        documents, revision = await self._store.range(self._prefix)
        return [self._stored(document) for document in documents], revision

    def put(self, id_: str, value: T) -> Put:
        """The operation that writes it."""
        return Put(self.key(id_), encode(value))

    def delete(self, id_: str) -> Delete:
        """The operation that deletes it."""
        return Delete(self.key(id_))

    def unchanged(self, id_: str, stored: Stored[T] | None) -> Condition:
        """The condition that nobody has written it since it was read as `stored`."""
        return Absent(self.key(id_)) if stored is None else RevisionIs(self.key(id_), stored.revision)

    def _stored(self, document: Document) -> Stored[T]:
        return Stored(document.key.removeprefix(self._prefix), decode(document, self._type), document.mod_revision)
