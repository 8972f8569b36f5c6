"""What is kept of tasks: a record each in the store under `tasks/`, a log file each under `directory/XX/UPID`.

All records are in memory as well, oldest first. A record that cannot be written when its task ends (disk full) is kept here
and written later; if the process dies before, the task counts as interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import HostError
from appliance.services.task_log import append_line
from appliance.services.upid import Upid
from appliance.state.documents import decode, encode
from appliance.state.store import (
    TRANSACTION_LIMIT_OPERATIONS,
    Absent,
    Delete,
    Document,
    Operation,
    Put,
    Store,
    StoreError,
)

log = logging.getLogger(__name__)

PREFIX = "tasks/"
RETENTION_TASKS = 2000
STATUS_LIMIT = 500
BATCH_OPERATIONS = TRANSACTION_LIMIT_OPERATIONS // 2

RESTARTED_STATUS = "interrupted: the appliance was restarted"


class TaskOutcome(StrEnum):
    """PVE's `statusfilter` words for an exit status."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    UNKNOWN = "unknown"
    """It has none: it runs."""

    @staticmethod
    def of(status: str | None) -> TaskOutcome:
        if status is None:
            return TaskOutcome.UNKNOWN
        if status == "OK":
            return TaskOutcome.OK
        return TaskOutcome.WARNING if status.startswith("WARNINGS: ") else TaskOutcome.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """A task as lists show it. Times are epoch seconds; `status` is the exit status, None while it runs; `progress` 0 to 1.

    `id` and `user` are what the caller of `TaskService.run` said, where the UPID has them made safe.
    """

    upid: str
    node: str
    pid: int
    pstart: int
    starttime: int
    type: str
    id: str
    user: str
    endtime: int | None = None
    status: str | None = None
    progress: float | None = None

    @staticmethod
    def of(upid: Upid, *, object_id: str, user: str) -> TaskInfo:
        """The record of a task that begins."""
        return TaskInfo(
            upid=str(upid),
            node=upid.node,
            pid=upid.pid,
            pstart=upid.pstart,
            starttime=upid.starttime,
            type=upid.type,
            id=object_id,
            user=user,
        )

    @property
    def running(self) -> bool:
        return self.endtime is None

    @property
    def outcome(self) -> TaskOutcome:
        return TaskOutcome.of(self.status)


def status_of_error(text: str) -> str:
    """An error's text as an exit status: one line, not empty, not to be taken for success."""
    line = " ".join(text.split())[:STATUS_LIMIT] or "unknown error"
    return line if TaskOutcome.of(line) is TaskOutcome.ERROR else f"error: {line}"


class TaskRecords:
    """The records of one node's tasks."""

    def __init__(self, store: Store, clock: Clock, *, directory: Path, node: str, retention: int) -> None:
        self._store = store
        self._clock = clock
        self._directory = directory
        self._node = node
        self._retention = retention
        self._infos: dict[str, TaskInfo] = {}
        self._unsaved: dict[str, TaskInfo] = {}

    def get(self, upid: str) -> TaskInfo | None:
        return self._infos.get(upid)

    def newest_first(self) -> Iterator[TaskInfo]:
        return reversed(self._infos.values())

    def log_path(self, upid: str) -> Path:
        """Where a task's log is; `upid` is one of ours (see `upid.py`: no "/" in it)."""
        return self._directory / f"{Upid.parse(upid).pstart & 0xFF:02X}" / upid

    async def load(self) -> None:
        """Read the records, end those of tasks that ran when the process died, remove remains. Raises `StoreError`."""
        documents, _ = await self._store.range(PREFIX)
        infos = [info for info in map(_decode, documents) if info is not None and info.node == self._node]
        infos.sort(key=lambda info: (info.starttime, info.pstart))
        self._infos = {info.upid: info for info in infos}
        for info in infos:
            if info.running:
                endtime = max(int(self._clock.now()), info.starttime)
                self._infos[info.upid] = self._unsaved[info.upid] = replace(
                    info, endtime=endtime, status=RESTARTED_STATUS
                )
        await asyncio.to_thread(self._mend_logs, [self.log_path(upid) for upid in self._unsaved])
        await self.save_unsaved()
        await self._forget_old(still_running=())
        await asyncio.to_thread(self._remove_orphans, frozenset(self._infos))

    async def create(self, info: TaskInfo) -> bool:
        """Record a task that begins; False when the UPID is taken. Raises `StoreError`."""
        key = PREFIX + info.upid
        result = await self._store.txn([Absent(key)], [Put(key, encode(info))])
        if result.succeeded:
            self._infos[info.upid] = info
        return result.succeeded

    async def finish(self, info: TaskInfo, *, still_running: Container[str]) -> None:
        """Record a task that has ended, now or, if the store cannot, later; and forget the oldest ones."""
        self._infos[info.upid] = self._unsaved[info.upid] = info
        await self.save_unsaved()
        await self._forget_old(still_running=still_running)

    async def save_unsaved(self) -> None:
        """Try to write what could not be written."""
        while batch := list(self._unsaved.values())[:BATCH_OPERATIONS]:
            try:
                await self._store.txn([], [Put(PREFIX + info.upid, encode(info)) for info in batch])
            except HostError as error:
                log.warning("tasks: the ends of %d tasks are not recorded yet: %s", len(self._unsaved), error)
                return
            for info in batch:
                if self._unsaved.get(info.upid) is info:
                    del self._unsaved[info.upid]

    async def _forget_old(self, *, still_running: Container[str]) -> None:
        """Delete records and logs beyond the retention, the oldest first; what runs stays."""
        excess = len(self._infos) - self._retention
        old = list(islice((upid for upid in self._infos if upid not in still_running), max(0, excess)))
        for start in range(0, len(old), BATCH_OPERATIONS):
            batch = old[start : start + BATCH_OPERATIONS]
            deletions: list[Operation] = [Delete(PREFIX + upid) for upid in batch]
            try:
                await self._store.txn([], deletions)
            except HostError as error:
                log.warning("tasks: old tasks are not removed yet: %s", error)
                return
            paths = [self.log_path(upid) for upid in batch]
            for upid in batch:
                self._infos.pop(upid, None)
                self._unsaved.pop(upid, None)
            await asyncio.to_thread(_unlink, paths)

    def _mend_logs(self, paths: Sequence[Path]) -> None:
        """Give the logs of interrupted tasks their last line. Blocks."""
        for path in paths:
            try:
                append_line(path, f"TASK ERROR: {RESTARTED_STATUS}")
            except HostError as error:
                log.warning("task %s: %s", path.name, error)

    def _remove_orphans(self, known: frozenset[str]) -> None:
        """Remove logs without a record (a crash between the two removals). Blocks."""
        _unlink([path for path in self._directory.glob("[0-9A-F][0-9A-F]/UPID:*") if path.name not in known])


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def _decode(document: Document) -> TaskInfo | None:
    try:
        info = decode(document, TaskInfo)
    except StoreError as error:
        log.error("tasks: a record is unreadable and left out: %s", error)
        return None
    return info if PREFIX + info.upid == document.key else None
