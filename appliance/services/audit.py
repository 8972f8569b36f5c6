"""The audit log: who changed what, from where, with which outcome. Append-only, its rows chained by their hashes.

One JSON object a line in one file. Each row carries the hash of the row before it and its own, which covers all its
other fields:

    {"n":7,"time":…,"who":"admin@pve","remote":"10.0.0.9","action":"POST","target":"/access/users",
     "outcome":"ok","detail":"…","previous":"9f…","hash":"41…"}

What the chain shows: an edited row, a removed row, swapped rows, an inserted row (`verify_file` names the first bad
one). A tail cut off leaves a valid chain; it shows against an anchor, the (number, hash) of a row known to exist:
`AuditLog` keeps the newest one in the store (at most `ANCHOR_INTERVAL_S` old), so that cutting the file alone is seen.
Somebody who can write both the file and the store can forge both: ship rows elsewhere if that matters.

A row is on disk when `record` returns. When the disk refuses, the row goes to the process log, and the next row that
can be written says how many are missing: a full disk must not keep an administrator out.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.clock import Clock
from appliance.errors import HostError
from appliance.state.store import Put, Store
from appliance.threads import to_the_end

log = logging.getLogger(__name__)

GENESIS = "0" * 64
ROW_LIMIT_BYTES = 64 << 10
FIELD_LIMIT = 256
DETAIL_LIMIT = 2000
ANCHOR_KEY = "audit/anchor"
ANCHOR_INTERVAL_S = 10.0
TAIL_BLOCK_BYTES = 64 << 10


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the log. `hash` is SHA-256 (hex) of the row's JSON without `hash`."""

    n: int
    time: float
    who: str
    remote: str
    action: str
    target: str
    outcome: str
    detail: str
    previous: str
    hash: str = ""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A row known to have existed."""

    n: int
    hash: str


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """`rows` counts the good rows from the start. `bad_line` (from 1) is the first bad one, with why in `problem`."""

    ok: bool
    rows: int
    head: Anchor
    bad_line: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a caller wants recorded."""

    who: str
    remote: str
    action: str
    target: str
    outcome: str
    detail: str = ""


def hash_of(row: Row) -> str:
    """The hash that belongs into `row.hash`."""
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(row, hash=""))).hexdigest()


def verify_file(path: Path, anchor: Anchor | None = None, *, size_bytes: int | None = None) -> VerifyResult:
    """Check the whole chain (with `size_bytes` so much of it), and that it contains `anchor`.

    Blocking. Raises `HostError` when the file cannot be read.
    """
    head, rows = Anchor(0, GENESIS), 0
    met = anchor is None or anchor.n == 0
    try:
        for line_number, line in _lines(path, size_bytes):
            row = _decode(line)
            if isinstance(row, str):
                return VerifyResult(False, rows, head, line_number, row)
            if problem := _row_problem(row, head):
                return VerifyResult(False, rows, head, line_number, problem)
            head, rows = Anchor(row.n, row.hash), rows + 1
            if anchor is not None and row.n == anchor.n:
                if row.hash != anchor.hash:
                    return VerifyResult(False, rows, head, line_number, f"row {row.n} is not the one that was anchored")
                met = True
    except OSError as error:
        raise HostError.from_os_error(error, f"audit log {path}") from error
    if not met and anchor is not None:
        return VerifyResult(False, rows, head, rows + 1, f"cut off: row {anchor.n} was written and is missing")
    return VerifyResult(True, rows, head)


def _lines(path: Path, size_bytes: int | None) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = position = 0
        while (size_bytes is None or position < size_bytes) and (line := file.readline(ROW_LIMIT_BYTES + 1)):
            number, position = number + 1, position + len(line)
            yield number, line
            if len(line) > ROW_LIMIT_BYTES:
                return


def _decode(line: bytes) -> Row | str:
    if not line.endswith(b"\n"):
        return "the row is longer than rows are" if len(line) > ROW_LIMIT_BYTES else "the row is not finished"
    try:
        row = msgspec.json.decode(line, type=Row)
    except msgspec.DecodeError as error:
        return f"not a row: {error}"
    if msgspec.json.encode(row) + b"\n" != line:
        return "the row was rewritten (fields added or in another form)"
    return row


def _row_problem(row: Row, head: Anchor) -> str:
    if row.hash != hash_of(row):
        return f"row {row.n} was changed: its content does not match its hash"
    if row.previous != head.hash or row.n != head.n + 1:
        return f"row {row.n} does not follow row {head.n}: rows were removed, inserted or reordered"
    return ""


class AuditLog:
    """The open log. `record` from any task of the loop; `start` before, `close` after."""

    def __init__(self, path: Path, clock: Clock, store: Store | None = None) -> None:
        self.path = path
        self._clock = clock
        self._store = store
        self._file_lock = threading.Lock()
        self._fd = -1
        self._head = Anchor(0, GENESIS)
        self._lost = 0
        self._pending: list[tuple[float, Entry]] = []
        self._flushing = asyncio.Lock()
        self._anchored_at = float("-inf")

    async def start(self) -> None:
        """Open or create the file. An unfinished last row (a crash) is cut off and that is recorded. Raises `HostError`."""
        note = await asyncio.to_thread(self._open)
        if note:
            log.warning("audit log %s: %s", self.path, note)
            await self._record_own("audit.recover", "ok", note)
        if (anchor := await self.anchor()) is not None and anchor.n > self._head.n:
            note = f"row {anchor.n} was written before and is missing: the file was cut off or replaced"
            log.error("audit log %s: %s", self.path, note)
            await self._record_own("audit.truncated", "bad", note)

    async def close(self) -> None:
        """Anchor the head and close the file; idempotent."""
        if self._fd >= 0:
            await self._anchor()
            await asyncio.to_thread(self._close)

    @property
    def head(self) -> Anchor:
        """The last row written."""
        return self._head

    async def record(self, *, who: str, remote: str, action: str, target: str, outcome: str, detail: str = "") -> None:
        """Append a row; on disk when this returns (rows of concurrent calls share one fsync). Never fails: see above."""
        entry = Entry(who=who, remote=remote, action=action, target=target, outcome=outcome, detail=detail)
        mine = (self._clock.now(), entry)
        self._pending.append(mine)
        async with self._flushing:
            if any(waiting is mine for waiting in self._pending):
                batch, self._pending = self._pending, []
                await to_the_end(self._append, batch)
        if self._clock.monotonic() - self._anchored_at >= ANCHOR_INTERVAL_S:
            await self._anchor()

    async def _record_own(self, action: str, outcome: str, detail: str) -> None:
        await self.record(who="appliance", remote="local", action=action, target="", outcome=outcome, detail=detail)

    async def verify(self) -> VerifyResult:
        """Check the file against the chain and the newest row written before the call; later rows need not wait for it.

        Raises `HostError`.
        """

        def check() -> VerifyResult:
            with self._file_lock:
                head, size_bytes = self._head, os.fstat(self._fd).st_size if self._fd >= 0 else None
            return verify_file(self.path, head, size_bytes=size_bytes)

        return await asyncio.to_thread(check)

    async def tail(self, limit: int = 100) -> Sequence[Row]:
        """The newest rows, newest first; rows that cannot be read are left out."""
        return await asyncio.to_thread(self._read_tail, min(limit, 1000))

    async def anchor(self) -> Anchor | None:
        """The anchor kept in the store."""
        if self._store is None or (document := await self._store.get(ANCHOR_KEY)) is None:
            return None
        return msgspec.json.decode(document.value, type=Anchor)

    async def _anchor(self) -> None:
        if self._store is None:
            return
        self._anchored_at = self._clock.monotonic()
        try:
            await self._store.txn([], [Put(ANCHOR_KEY, msgspec.json.encode(self._head))])
        except HostError as error:
            log.error("audit log %s: its head was not anchored: %s", self.path, error)

    # what follows runs in threads

    def _open(self) -> str:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self.path, flags, 0o600)
            size = os.fstat(self._fd).st_size
            line, torn_bytes = self._last_line(size)
            if torn_bytes:
                os.ftruncate(self._fd, size - torn_bytes)
                os.fsync(self._fd)
        except OSError as error:
            self._close()
            raise HostError.from_os_error(error, f"audit log {self.path}") from error
        notes = [f"{torn_bytes} bytes of an unfinished row removed"] if torn_bytes else []
        if line:
            row = _decode(line)
            if isinstance(row, Row):
                self._head = Anchor(row.n, row.hash)
            else:
                self._head = Anchor(0, hashlib.sha256(line).hexdigest())
                notes.append(f"its last row is damaged ({row}), the chain begins anew after it")
        return "; ".join(notes)

    def _last_line(self, size: int) -> tuple[bytes, int]:
        """(the last whole line, how many bytes of an unfinished one follow it)."""
        block = os.pread(self._fd, 2 * ROW_LIMIT_BYTES, max(0, size - 2 * ROW_LIMIT_BYTES))
        whole, _, torn = block.rpartition(b"\n")
        line = whole.rpartition(b"\n")[2] + b"\n" if whole else b""
        return line, len(torn)

    def _close(self) -> None:
        with self._file_lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _append(self, batch: Sequence[tuple[float, Entry]]) -> None:
        with self._file_lock:
            entries = list(batch)
            if self._lost:
                gap = f"{self._lost} rows before this one could not be written; they are in the process log"
                missing = Entry(
                    who="appliance", remote="local", action="audit.gap", target="", outcome="lost", detail=gap
                )
                entries.insert(0, (batch[0][0], missing))
            head, data = self._head, b""
            for time, entry in entries:
                row = _row(time, entry, head)
                head = Anchor(row.n, row.hash)
                data += msgspec.json.encode(row) + b"\n"
            try:
                self._write(data)
            except OSError as error:
                self._lost += len(batch)
                for _, entry in batch:
                    log.error("audit log %s: %s; row lost: %s", self.path, error.strerror, json.dumps(str(entry)))
            else:
                self._head, self._lost = head, 0

    def _write(self, data: bytes) -> None:
        """All of `data`, synced, or nothing of it."""
        if self._fd < 0:
            raise OSError(9, "the log is closed")
        size = os.fstat(self._fd).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)
            raise

    def _read_tail(self, limit: int) -> list[Row]:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start, block = size, b""
                while start > 0 and block.count(b"\n") <= limit:
                    start = max(0, start - TAIL_BLOCK_BYTES)
                    file.seek(start)
                    block = file.read(size - start)
        except OSError as error:
            raise HostError.from_os_error(error, f"audit log {self.path}") from error
        lines = block.splitlines(keepends=True)[-limit:]
        return [row for line in reversed(lines) if isinstance(row := _decode(line), Row)]


def _row(time: float, entry: Entry, head: Anchor) -> Row:
    row = Row(
        n=head.n + 1,
        time=round(time, 3),
        who=_clip(entry.who),
        remote=_clip(entry.remote),
        action=_clip(entry.action),
        target=_clip(entry.target, 2 * FIELD_LIMIT),
        outcome=_clip(entry.outcome),
        detail=_clip(entry.detail, DETAIL_LIMIT),
        previous=head.hash,
    )
    return msgspec.structs.replace(row, hash=hash_of(row))


def _clip(text: str, limit: int = FIELD_LIMIT) -> str:
    """A field within its bound; lone surrogates (hostile headers) replaced, so that it can be encoded."""
    clipped = text if len(text) <= limit else text[: limit - 1] + "…"
    return clipped.encode(errors="replace").decode()
