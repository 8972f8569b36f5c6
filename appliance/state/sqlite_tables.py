"""The store's operations on an open SQLite connection: plain synchronous statements, no threads, no waiting.

Whoever calls the writing methods has begun a transaction with `begin` and ends it with `commit` (or rolls back); any number
of the store's transactions fit between. Each checks everything before its first statement that writes, so an
`ApplianceError` leaves nothing half done; after a `sqlite3.Error` the caller rolls everything back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from appliance.errors import NotFound
from appliance.state.checks import END_OF_PREFIX
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

_COLUMNS = "key, value, create_revision, mod_revision, version, lease_id"
_PUT = f"""
INSERT INTO documents ({_COLUMNS}) VALUES (?1, ?2, ?3, ?3, 1, ?4)
ON CONFLICT (key) DO UPDATE SET value = ?2, mod_revision = ?3, version = version + 1, lease_id = ?4
RETURNING create_revision, version
"""  # noqa: S608  the columns are a constant


class Tables:
    """The documents and leases in one file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection
        self._revision = 0
        self._begun_at = 0
        self._changes: list[Change] = []

    # reading

    def get(self, key: str) -> Document | None:
        row = self._sql.execute(f"SELECT {_COLUMNS} FROM documents WHERE key = ?", (key,)).fetchone()  # noqa: S608  constant
        return None if row is None else _document(row)

    def range(self, prefix: str) -> tuple[Sequence[Document], int]:
        rows = self._sql.execute(
            f"SELECT {_COLUMNS} FROM documents WHERE key >= ? AND key < ? ORDER BY key",  # noqa: S608  constant
            (prefix, prefix + END_OF_PREFIX),
        ).fetchall()
        return [_document(row) for row in rows], self.revision()

    def revision(self) -> int:
        """The revision of the last commit."""
        (revision,) = self._sql.execute("SELECT revision FROM state").fetchone()
        return int(revision)

    def leases(self) -> Sequence[tuple[int, float, float]]:
        """(id, ttl_s, remaining_s) of every lease."""
        return self._sql.execute("SELECT lease_id, ttl_s, remaining_s FROM leases").fetchall()

    # writing

    def begin(self) -> None:
        self._sql.execute("BEGIN IMMEDIATE")
        self._revision = self._begun_at = self.revision()

    def commit(self) -> None:
        if self._revision != self._begun_at:
            self._sql.execute("UPDATE state SET revision = ?", (self._revision,))
        self._sql.execute("COMMIT")

    def take_changes(self) -> Sequence[Change]:
        """What the operation just done has changed."""
        changes, self._changes = self._changes, []
        return changes

    def txn(self, when: Sequence[Condition], then: Sequence[Operation]) -> TxnResult:
        """See `Store.txn`. Raises `NotFound` for an ended lease."""
        if not all(self._holds(condition) for condition in when):
            return TxnResult(False, self._revision)
        self._require_leases(then)
        self._apply(then)
        return TxnResult(True, self._revision)

    def grant_lease(self, ttl_s: float) -> int:
        cursor = self._sql.execute("INSERT INTO leases (ttl_s, remaining_s) VALUES (?, ?)", (ttl_s, ttl_s))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def record_lease(self, lease_id: int, remaining_s: float) -> None:
        """What a restart would resume with."""
        self._sql.execute("UPDATE leases SET remaining_s = ? WHERE lease_id = ?", (remaining_s, lease_id))

    def end_lease(self, lease_id: int) -> None:
        """Delete the lease and its documents; not an error when it is gone."""
        rows = self._sql.execute("SELECT key FROM documents WHERE lease_id = ? ORDER BY key", (lease_id,)).fetchall()
        self._apply([Delete(key) for (key,) in rows])
        self._sql.execute("DELETE FROM leases WHERE lease_id = ?", (lease_id,))

    def _holds(self, condition: Condition) -> bool:
        row = self._sql.execute("SELECT mod_revision FROM documents WHERE key = ?", (condition.key,)).fetchone()
        match condition:
            case RevisionIs(revision=revision):
                return row is not None and row[0] == revision
            case Absent():
                return row is None
            case Exists():
                return row is not None

    def _require_leases(self, then: Sequence[Operation]) -> None:
        for lease_id in {op.lease_id for op in then if isinstance(op, Put) and op.lease_id is not None}:
            if self._sql.execute("SELECT 1 FROM leases WHERE lease_id = ?", (lease_id,)).fetchone() is None:
                raise NotFound(f"lease {lease_id}")

    def _apply(self, then: Sequence[Operation]) -> None:
        revision = self._revision + 1
        changes: list[Change] = []
        for operation in then:
            match operation:
                case Put():
                    changes.append(self._put(operation, revision))
                case Delete(key=key):
                    changes += self._delete("key = ?", (key,), revision)
                case DeletePrefix(prefix=prefix):
                    changes += self._delete("key >= ? AND key < ?", (prefix, prefix + END_OF_PREFIX), revision)
        if changes:
            self._revision = revision
            self._changes = changes

    def _put(self, put: Put, revision: int) -> Change:
        ((created, version),) = self._sql.execute(_PUT, (put.key, put.value, revision, put.lease_id)).fetchall()
        document = Document(
            key=put.key,
            value=put.value,
            create_revision=created,
            mod_revision=revision,
            version=version,
            lease_id=put.lease_id,
        )
        return Change(revision, put.key, document)

    def _delete(self, where: str, parameters: tuple[str, ...], revision: int) -> list[Change]:
        rows = self._sql.execute(f"DELETE FROM documents WHERE {where} RETURNING key", parameters).fetchall()  # noqa: S608  callers pass constants
        return [Change(revision, key, None) for (key,) in sorted(rows)]


def _document(row: tuple[str, bytes, int, int, int, int | None]) -> Document:
    key, value, create_revision, mod_revision, version, lease_id = row
    return Document(
        key=key,
        value=value,
        create_revision=create_revision,
        mod_revision=mod_revision,
        version=version,
        lease_id=lease_id,
    )
