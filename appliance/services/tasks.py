"""Tasks: the product's long jobs, each with a UPID, a record in the store, a log and an exit status.

    run() ─▶ record in the store ─▶ TaskStarted ─▶ work(handle) ─▶ exit status ─▶ log file, record ─▶ TaskFinished
                                                    └ handle.log / warn / progress ─▶ TaskProgressed, at most 4 a second

Exit statuses are PVE's: "OK", "WARNINGS: n", or the error in one line. A task runs to its end whoever started it goes away.
What ran when the process died is marked `RESTARTED_STATUS` by the next `start`. The newest `RETENTION_TASKS` are kept,
in memory too, so that lists never wait for the disk. Not the owner of asyncio tasks: that is `appliance.tasks.TaskScope`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from appliance.clock import Clock
from appliance.errors import (
    ApplianceError,
    HostError,
    NotFound,
    ServiceStopping,
    TimedOut,
    TooManyRequests,
)
from appliance.events import EventBus, TaskFinished, TaskProgressed, TaskStarted
from appliance.services.task_log import TaskLog, append_late, read_lines
from appliance.services.task_records import RETENTION_TASKS, TaskInfo, TaskOutcome, TaskRecords, status_of_error
from appliance.services.upid import ID_LIMIT, USER_LIMIT, Upid, safe_part
from appliance.state.store import Store
from appliance.tasks import TaskScope
from appliance.threads import to_the_end

T = TypeVar("T")

log = logging.getLogger(__name__)

RUNNING_LIMIT = 1000
PROGRESS_INTERVAL_S = 0.25
SAVE_RETRY_S = 5.0
LATE_LINES_LIMIT = 100
"""Of one task, waiting to be written."""
CLOSE_TIMEOUT_S = 10.0

CANCELLED_STATUS = "interrupted by user"
STOPPED_STATUS = "interrupted: the appliance was stopped"

Lines = list[str]


class TaskHandle:
    """What the work of a task holds. On the loop; nothing here waits or fails."""

    def __init__(self, upid: str, task_log: TaskLog, *, late: Callable[[str], None] = lambda line: None) -> None:
        """`late` takes lines that come after the end of the task."""
        self.upid = upid
        self._late = late
        self.warnings = 0
        self.fraction: float | None = None
        self._log = task_log
        self._changed = asyncio.Event()

    def log(self, line: str) -> None:
        """Add a line (or lines) to the log; also after the end of the task, for whatever it began that goes on."""
        if self._log.ended:
            self._late(line)
            return
        self._log.append(line)
        self._changed.set()

    def warn(self, line: str) -> None:
        """Add a warning: the task will end with "WARNINGS: n" if it ends well."""
        self.warnings += 1
        self.log(f"WARN: {line}")

    def progress(self, fraction: float) -> None:
        """How much is done, 0 to 1."""
        self.fraction = min(1.0, max(0.0, fraction))
        self._changed.set()

    async def changed(self) -> None:
        """For the service: wait until something was logged or moved on since the last call."""
        await self._changed.wait()
        self._changed.clear()


Work = Callable[[TaskHandle], Awaitable[None]]


@dataclass(slots=True)
class _Running:
    info: TaskInfo
    log: TaskLog
    handle: TaskHandle
    ended: asyncio.Event
    work: asyncio.Task[str] | None = None
    cancelled: bool = False


class TaskService:
    """See the module's docstring. `directory` holds the logs, in up to 256 subdirectories."""

    def __init__(
        self,
        store: Store,
        events: EventBus,
        clock: Clock,
        *,
        directory: Path,
        node: str,
        retention: int = RETENTION_TASKS,
    ) -> None:
        self._events = events
        self._clock = clock
        self._node = node
        self._records = TaskRecords(store, clock, directory=directory, node=node, retention=retention)
        self._running: dict[str, _Running] = {}
        self._late: dict[str, list[str]] = {}
        self._works = TaskScope("task")
        self._scope = TaskScope("tasks")
        self._supervisors: set[asyncio.Task[Any]] = set()
        self._closing = False
        # As PVE's: ticks since boot when the process began; then one more for each task.
        self._sequence = int(clock.monotonic() * 100) & 0xFFFF_FFFF

    async def start(self) -> None:
        """Load the records; mark what ran when the process died; remove what is over the retention."""
        await self._records.load()
        self._scope.start(self._save_what_failed(), name="save again")

    async def close(self) -> None:
        """Interrupt what runs and record that. Afterwards `run` raises `ServiceStopping`."""
        self._closing = True
        await self._works.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while self._supervisors:
                    await asyncio.wait(self._supervisors)
        await self._scope.close()
        await self._records.save_unsaved()

    # running

    async def run(self, kind: str, *, object_id: str, user: str, work: Work) -> str:
        """Record a task and start `work`; returns the UPID. The task goes on whatever becomes of the caller.

        `work` always begins, even if the task is cancelled at once; only the end of the appliance can prevent it.
        Raises `StoreError` (nothing was started then), `TooManyRequests`, `ServiceStopping`.
        """
        if self._closing:
            raise ServiceStopping("tasks: the appliance is stopping")
        if len(self._running) >= RUNNING_LIMIT:
            raise TooManyRequests(f"tasks: {RUNNING_LIMIT} are running already", retry_after_s=5.0)
        begun = await asyncio.shield(self._supervise(self._begin(kind, object_id, user, work), f"begin {kind}"))
        if isinstance(begun, HostError):
            raise begun
        return begun

    async def _begin(self, kind: str, object_id: str, user: str, work: Work) -> str | HostError:
        try:
            info = await self._record(kind, object_id, user)
        except HostError as error:
            return error
        task_log = TaskLog(self._records.log_path(info.upid))
        handle = TaskHandle(info.upid, task_log, late=partial(self._append_late, info.upid))
        run = _Running(info, task_log, handle, asyncio.Event())
        self._running[info.upid] = run
        self._supervise(self._see_through(run, work), info.upid)
        self._events.publish(TaskStarted(upid=info.upid))
        return info.upid

    def _append_late(self, upid: str, line: str) -> None:
        waiting = self._late.setdefault(upid, [])
        if len(waiting) < LATE_LINES_LIMIT:
            waiting.append(line)
        if len(waiting) == 1:
            with contextlib.suppress(ServiceStopping):
                self._scope.start(self._write_late(upid), name=f"late lines of {upid}")

    async def _write_late(self, upid: str) -> None:
        try:
            if (run := self._running.get(upid)) is not None:
                await run.ended.wait()  # its last lines are on the disk then
            while waiting := self._late[upid]:
                lines = tuple(waiting)  # more may come while these are written
                await to_the_end(append_late, self._records.log_path(upid), lines)
                del waiting[: len(lines)]
        except HostError as error:
            log.warning("task %s: %s", upid, error)
        finally:
            del self._late[upid]

    async def _record(self, kind: str, object_id: str, user: str) -> TaskInfo:
        while True:
            self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
            upid = Upid(
                node=self._node,
                pid=os.getpid(),
                pstart=self._sequence,
                starttime=int(self._clock.now()),
                type=kind,
                id=safe_part(object_id, ID_LIMIT),
                user=safe_part(user, USER_LIMIT),
            )
            Upid.parse(str(upid))
            info = TaskInfo.of(upid, object_id=object_id, user=user)
            if await self._records.create(info):
                return info

    async def _see_through(self, run: _Running, work: Work) -> None:
        try:
            begun = self._works.start(self._work(run.handle, work), name=run.info.upid)
        except ServiceStopping:
            await self._finish(run, STOPPED_STATUS)
            return
        # A task cancelled before its first step runs none of its code: work that has begun can undo what its caller did.
        await asyncio.sleep(0)
        run.work = begun
        if run.cancelled:
            run.work.cancel()
        teller = self._scope.start(self._tell(run), name=f"tell {run.info.upid}")
        await asyncio.wait([run.work])
        teller.cancel()
        await self._finish(run, self._status(run, run.work, closing=self._closing))

    @staticmethod
    async def _work(handle: TaskHandle, work: Work) -> str:
        """The exit status. What is no error of ours goes on to the scope, which logs its traceback."""
        try:
            await work(handle)
        except ApplianceError as error:
            return status_of_error(str(error))
        return f"WARNINGS: {handle.warnings}" if handle.warnings else "OK"

    @staticmethod
    def _status(run: _Running, work: asyncio.Task[str], *, closing: bool) -> str:
        if work.cancelled():
            return CANCELLED_STATUS if run.cancelled else STOPPED_STATUS if closing else "interrupted"
        error = work.exception()
        if error is not None:
            return status_of_error(f"internal error: {type(error).__name__}: {error}")
        return work.result()

    async def _finish(self, run: _Running, status: str) -> None:
        outcome = TaskOutcome.of(status)
        run.log.end(f"TASK ERROR: {status}" if outcome is TaskOutcome.ERROR else f"TASK {status}")
        endtime = max(int(self._clock.now()), run.info.starttime)
        info = replace(run.info, status=status, endtime=endtime, progress=run.handle.fraction)
        await asyncio.gather(run.log.flush(), self._records.finish(info, still_running=self._running))
        del self._running[info.upid]
        run.ended.set()
        self._events.publish(TaskFinished(upid=info.upid, status=status))

    async def _tell(self, run: _Running) -> None:
        """Write the log and tell watchers of the bus, at once but not more often than every `PROGRESS_INTERVAL_S`."""
        while True:
            await run.handle.changed()
            await run.log.flush()
            self._events.publish(TaskProgressed(upid=run.info.upid))
            await self._clock.sleep(PROGRESS_INTERVAL_S)

    async def _save_what_failed(self) -> None:
        while True:
            await self._clock.sleep(SAVE_RETRY_S)
            await self._records.save_unsaved()

    def _supervise(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = self._scope.start(coroutine, name=name)
        self._supervisors.add(task)
        task.add_done_callback(self._supervisors.discard)
        return task

    async def cancel(self, upid: str) -> None:
        """Interrupt a running task: its work gets `CancelledError`. Nothing happens to an ended one. Raises `NotFound`."""
        self._require(upid)
        run = self._running.get(upid)
        if run is not None:
            run.cancelled = True
            if run.work is not None:
                run.work.cancel(CANCELLED_STATUS)

    # looking

    async def wait(self, upid: str, *, timeout_s: float) -> TaskInfo:
        """The task once it has ended. Raises `NotFound`, `TimedOut`."""
        run = self._running.get(upid)
        if run is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await run.ended.wait()
            except TimeoutError as error:
                raise TimedOut(f"task {upid}", timeout_s) from error
        return await self.get(upid)

    async def get(self, upid: str) -> TaskInfo:
        """Raises `NotFound`."""
        return self._present(self._require(upid))

    async def list(
        self,
        *,
        guest_id: int | None = None,
        limit: int = 50,
        start: int = 0,
        errors: bool = False,
        running: bool | None = None,
        kinds: Collection[str] = (),
        user: str | None = None,
        user_contains: str | None = None,
        since: float | None = None,
        until: float | None = None,
        outcomes: Collection[TaskOutcome | str] = (),
    ) -> Sequence[TaskInfo]:
        """Tasks, newest first: `limit` (0 means all) after leaving out `start`.

        `errors` are tasks that ended neither well nor with warnings; `user` takes in the user's API tokens;
        `user_contains` is any part of the name, whatever its case; `since` and `until` concern the start time;
        `outcomes` are PVE's statusfilter words.
        """

        def wanted(info: TaskInfo) -> bool:
            return (
                (guest_id is None or info.id == str(guest_id))
                and (not errors or info.outcome is TaskOutcome.ERROR)
                and (running is None or info.running == running)
                and (not kinds or info.type in kinds)
                and (user is None or info.user == user or info.user.startswith(f"{user}!"))
                and (user_contains is None or user_contains.lower() in info.user.lower())
                and (since is None or info.starttime >= since)
                and (until is None or info.starttime <= until)
                and (not outcomes or info.outcome in outcomes)
            )

        found = (self._present(info) for info in self._records.newest_first() if wanted(info))
        return tuple(islice(found, start, start + limit if limit else None))

    async def read_log(self, upid: str, *, start: int = 0, limit: int = 50) -> tuple[Lines, int]:
        """`limit` lines (0 means all) from the one with index `start`, and how many there are.

        Raises `NotFound`, `HostError`.
        """
        self._require(upid)
        run = self._running.get(upid)
        lines = run.log.lines if run else await asyncio.to_thread(read_lines, self._records.log_path(upid))
        return lines[start : start + limit if limit else None], len(lines)

    async def watch_log(self, upid: str, *, start: int = 0) -> AsyncIterator[str]:
        """The lines from the one with index `start`, each as it is written, until the task has ended.

        Raises `NotFound`, `HostError`.
        """
        self._require(upid)
        run = self._running.get(upid)
        if run is None:
            for line in (await self.read_log(upid, start=start, limit=0))[0]:
                yield line
            return
        while True:
            changed = run.log.changed
            lines = run.log.lines[start:]
            for line in lines:
                yield line
            start += len(lines)
            if run.log.ended and start >= len(run.log.lines):
                return
            await changed.wait()

    def _require(self, upid: str) -> TaskInfo:
        info = self._records.get(upid)
        if info is None:
            raise NotFound(f"task {upid[:200]!r}")
        return info

    def _present(self, info: TaskInfo) -> TaskInfo:
        run = self._running.get(info.upid)
        return info if run is None else replace(run.info, progress=run.handle.fraction)
