"""Keeps the `Directory` in the store: an in-memory snapshot that follows a watch, and edits as single transactions.

    access/generation      rises with every edit; each edit's transaction is conditional on it
    access/users/USER      access/groups/GROUP      access/roles/ROLE      access/pools/POOL
    access/acl             all ACL entries

Names are percent-encoded in keys. An edit is a pure function on snapshots: it is evaluated on the newest snapshot, the
difference becomes one transaction, and when another node was faster it is evaluated again on what that one wrote. So
every rule an edit checks (no such user, last administrator, one pool per guest) holds in the store, not only here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from appliance.errors import Conflict, HostError, InvalidParameter, TimedOut
from appliance.events import AccessChanged, EventBus
from appliance.services.directory import AclEntry, Directory, Group, Pool, Record, Role, User
from appliance.services.permissions import Permissions
from appliance.state.store import (
    TRANSACTION_LIMIT_OPERATIONS,
    Absent,
    Change,
    Compacted,
    Condition,
    Delete,
    Document,
    Operation,
    Put,
    RevisionIs,
    Store,
)
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)

PREFIX = "access/"
GENERATION_KEY = "access/generation"
ACL_KEY = "access/acl"
KEY_NAME_LIMIT = 400
EDIT_ATTEMPTS = 10
FOLLOW_TIMEOUT_S = 10.0
WATCH_RETRY_S = 1.0

Edit = Callable[[Directory], Directory]
Rule = Callable[[Directory, Directory], None]
"""Looks at the snapshots before and after every edit and raises what forbids it."""


def _anything_goes(old: Directory, new: Directory) -> None:
    pass


@dataclass(frozen=True, slots=True)
class _Table:
    prefix: str
    type: type[Any]
    field: str


_TABLES = (
    _Table("access/users/", User, "users"),
    _Table("access/groups/", Group, "groups"),
    _Table("access/roles/", Role, "custom_roles"),
    _Table("access/pools/", Pool, "pools"),
)


class DirectoryStore:
    """The present snapshot and the door to changing it. Use `start` before and `close` after."""

    def __init__(self, store: Store, events: EventBus, *, rule: Rule = _anything_goes) -> None:
        self._store = store
        self._events = events
        self._rule = rule
        self._scope = TaskScope("access")
        self._directory = Directory()
        self._permissions = Permissions(self._directory)
        self._revision = 0
        self._generation: Document | None = None
        self._followed = asyncio.Condition()
        self._editing = asyncio.Lock()

    @property
    def directory(self) -> Directory:
        """The newest snapshot this process knows."""
        return self._directory

    @property
    def permissions(self) -> Permissions:
        """The evaluator of `directory`."""
        return self._permissions

    async def start(self) -> None:
        """Load everything and begin to follow. Raises `HostError` naming a document that cannot be read."""
        await self._load()
        self._scope.start(self._follow(), name="follow the store")

    async def close(self) -> None:
        """Stop following."""
        await self._scope.close()

    async def edit(self, edit: Edit) -> Directory:
        """Apply `edit` to the newest snapshot, durably and visibly here; returns the snapshot it made.

        What `edit` raises passes through, and nothing has changed then. Raises `Conflict` when other nodes keep being
        faster, `InvalidParameter` when a document grows over the store's limit, `StoreError`.
        """
        async with self._editing:
            for _ in range(EDIT_ATTEMPTS):
                seen = self._revision
                new = edit(self._directory)
                self._rule(self._directory, new)
                operations = _difference(self._directory, new)
                if not operations:
                    return new
                count = 1 if self._generation is None else self._generation.version + 1
                when: Condition = (
                    Absent(GENERATION_KEY)
                    if self._generation is None
                    else RevisionIs(GENERATION_KEY, self._generation.mod_revision)
                )
                result = await self._store.txn([when], [*operations, Put(GENERATION_KEY, str(count).encode())])
                await self._wait_followed(result.revision if result.succeeded else seen + 1)
                if result.succeeded:
                    return new
        raise Conflict("access control: too many changes at once, try again")

    async def _wait_followed(self, revision: int) -> None:
        """Wait until the snapshot is at `revision` or newer."""
        try:
            async with asyncio.timeout(FOLLOW_TIMEOUT_S), self._followed:
                await self._followed.wait_for(lambda: self._revision >= revision)
        except TimeoutError as error:
            raise TimedOut("access control: the store's change to arrive", FOLLOW_TIMEOUT_S) from error

    async def _load(self) -> None:
        documents, revision = await self._store.range(PREFIX)
        # In a thread: a directory of thousands of users takes longer to decode than the loop may stand still.
        directory = await asyncio.to_thread(_apply, Directory(), [(doc.key, doc) for doc in documents])
        generation = next((doc for doc in documents if doc.key == GENERATION_KEY), None)
        await self._show(directory, generation, revision)

    async def _show(self, directory: Directory, generation: Document | None, revision: int) -> None:
        async with self._followed:
            self._directory = directory
            self._permissions = Permissions(directory)
            self._generation = generation
            self._revision = revision
            self._followed.notify_all()
        self._events.publish(AccessChanged())

    async def _follow(self) -> None:
        while True:
            try:
                async with self._store.watch(PREFIX, after=self._revision) as batches:
                    await self._follow_batches(batches)
                return  # the store closes
            except Compacted:
                log.info("access: fell behind the store's history, loading anew")
                await self._load()
            except HostError as error:
                log.error("access: cannot follow the store: %s", error)
                await asyncio.sleep(WATCH_RETRY_S)

    async def _follow_batches(self, batches: AsyncIterator[Sequence[Change]]) -> None:
        async for batch in batches:
            generation = self._generation
            for change in batch:
                if change.key == GENERATION_KEY:
                    generation = change.document
            directory = _apply(self._directory, [(change.key, _readable(change.document)) for change in batch])
            await self._show(directory, generation, batch[-1].revision)


def _apply(directory: Directory, changes: Iterable[tuple[str, Document | None]]) -> Directory:
    """`directory` with the documents' new values. Raises `HostError` naming a document that cannot be read."""
    fields: dict[str, Any] = {}
    for key, document in changes:
        if key == ACL_KEY:
            fields["acl"] = tuple(_decode(document, list[AclEntry])) if document is not None else ()
        for table in _TABLES:
            if key.startswith(table.prefix):
                name = unquote(key.removeprefix(table.prefix))
                records = fields.setdefault(table.field, dict(getattr(directory, table.field)))
                if document is None:
                    records.pop(name, None)
                else:
                    records[name] = _decode(document, table.type)
    return replace(directory, **fields)


def _readable(document: Document | None) -> Document | None:
    """What another node wrote and cannot be read counts as deleted: whom it is about loses access, all others go on."""
    for table in (_Table(ACL_KEY, list[AclEntry], "acl"), *_TABLES):
        if document is not None and document.key.startswith(table.prefix):
            try:
                _decode(document, table.type)
            except HostError as error:
                log.error("access: %s; it is treated as deleted", error)
                return None
    return document


def _decode(document: Document, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(document.value, type=kind)
    except msgspec.DecodeError as error:
        raise HostError(f"store: document {document.key} is damaged: {error}") from error


def _difference(old: Directory, new: Directory) -> list[Operation]:
    """The operations that turn `old` into `new`. Raises `InvalidParameter` when there are too many for one edit."""
    operations: list[Operation] = []
    for table in _TABLES:
        operations += _table_difference(table.prefix, getattr(old, table.field), getattr(new, table.field))
    if old.acl != new.acl:
        operations.append(Put(ACL_KEY, msgspec.json.encode(sorted(new.acl))))
    if len(operations) >= TRANSACTION_LIMIT_OPERATIONS:
        raise InvalidParameter({"request": f"changes {len(operations)} access control objects at once, too many"})
    return operations


def _table_difference(prefix: str, old: Mapping[str, Record], new: Mapping[str, Record]) -> list[Operation]:
    if old is new:
        return []
    changed: list[Operation] = [
        Put(_key(prefix, name), msgspec.json.encode(record))
        for name, record in new.items()
        if (before := old.get(name)) is not record and before != record
    ]
    return changed + [Delete(_key(prefix, name)) for name in old if name not in new]


def _key(prefix: str, name: str) -> str:
    quoted = quote(name, safe="@")
    if len(quoted) > KEY_NAME_LIMIT:
        raise InvalidParameter({"name": f"{name[:64]!r} is too long"})
    return prefix + quoted
