"""The store's file: made whole or not at all, checked before use, held by one process.

A new file is built under another name and renamed, so an existing file that is empty or half made is damage, never
"new". `application_id` says whose it is, `user_version` which schema; a newer schema is refused, not guessed at.
All functions block: the store's thread calls them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from pathlib import Path

from appliance.errors import HostError, NoSpace
from appliance.files import sync_directory
from appliance.state.store import StoreError, StoreFull

APPLICATION_ID = 0x41504C53
"""ASCII "APLS"."""

SCHEMA_VERSION = 1
"""Append only: a version that exists in the field never changes its meaning."""

BUSY_TIMEOUT_MS = 5000
"""How long a commit waits for someone who reads the file with other tools (a backup, the sqlite3 shell)."""

JOURNAL_SIZE_LIMIT_BYTES = 16 << 20

SHM_PAGE_BYTES = 32 << 10
"""SQLite grows its -shm file by this much (walIndexPage, WALINDEX_PGSZ)."""

_SCHEMA = """
CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL);
INSERT INTO state VALUES (1, 0);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    value BLOB NOT NULL,
    create_revision INTEGER NOT NULL,
    mod_revision INTEGER NOT NULL,
    version INTEGER NOT NULL,
    lease_id INTEGER
);
CREATE INDEX documents_by_lease ON documents (lease_id) WHERE lease_id IS NOT NULL;
CREATE TABLE leases (lease_id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_s REAL NOT NULL, remaining_s REAL NOT NULL);
"""


def store_error(path: Path, doing: str, error: sqlite3.Error) -> StoreError:
    """The error of ours for one of SQLite's, naming the file. A full disk becomes `StoreFull`."""
    text = f"store {path}: {doing}: {error}"
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(text)
    if code == sqlite3.SQLITE_IOERR and _no_space_left(path):  # what SQLite says when its -shm file cannot grow
        return StoreFull(f"{text}: no space left on the file system")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(f"{text} (the file is damaged: restore it from a backup)")
    return StoreError(text)


def _no_space_left(path: Path) -> bool:
    """Whether the file system has less than a page of SQLite's -shm file."""
    try:
        status = os.statvfs(path.parent)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < SHM_PAGE_BYTES


def _os_store_error(path: Path, doing: str, error: OSError) -> StoreError:
    wrapped = HostError.from_os_error(error, f"store {path}: {doing}")
    return StoreFull(wrapped.message) if isinstance(wrapped, NoSpace) else StoreError(wrapped.message)


def take_lock(path: Path) -> int:
    """Make this process the only one that uses the store; the descriptor returned holds the lock until it is closed.

    Raises `StoreError` naming the process that has it.
    """
    name = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _os_store_error(path, f"open {name}", error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        # The number is for people only: no space for it is no reason not to start.
        with contextlib.suppress(OSError):
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise StoreError(f"store {path}: in use by another process ({owner or 'unknown'})") from error
    return fd


def open_file(path: Path) -> sqlite3.Connection:
    """Open the store's file, making it when there is none, and check it. Raises `StoreError` naming the file."""
    if not path.exists():
        _create(path)
    try:
        connection = _connect(path)
    except sqlite3.Error as error:
        raise store_error(path, "open", error) from error
    try:
        _check(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT_BYTES}")
    except sqlite3.Error as error:
        connection.close()
        raise store_error(path, "open", error) from error
    except StoreError:
        connection.close()
        raise
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1000)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise StoreError(f"store {path}: not a store of the appliance, or damaged (application id {application_id:#x})")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"store {path}: written by a newer appliance (schema {version}, this one knows {SCHEMA_VERSION})"
        )
    if version != SCHEMA_VERSION:
        raise StoreError(f"store {path}: unknown schema {version}")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StoreError(f"store {path}: the file is damaged, restore it from a backup: {verdict}")


def _create(path: Path) -> None:
    """Build a whole new file aside and rename it into place."""
    for suffix in ("-wal", "-journal"):
        if path.with_name(path.name + suffix).exists():
            raise StoreError(f"store {path}: missing, but {path.name}{suffix} is there: restore the file it belongs to")
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        _build(temporary)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise _os_store_error(path, "create", error) from error
    except sqlite3.Error as error:
        raise store_error(path, "create", error) from error
    finally:
        for name in (temporary, temporary.with_name(temporary.name + "-journal")):
            with contextlib.suppress(OSError):
                name.unlink(missing_ok=True)


def _build(path: Path) -> None:
    with contextlib.closing(_connect(path)) as connection:
        connection.executescript(
            f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; {_SCHEMA} COMMIT;"
        )
