"""Ownership of asyncio tasks: every background task belongs to a `TaskScope`, which ends it.

Not the product's long jobs with UPIDs: those are `services/tasks.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from appliance.errors import ApplianceError, ServiceStopping

log = logging.getLogger(__name__)
T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T] | asyncio.Future[T], *, name: str) -> T:
    """Await `work`, whole: a cancellation of the caller goes on only once `work` has ended, however often it comes.

    For what must not be left half-way: a document and what it names, the clean-up after a failure. `work` has time-outs
    of its own. What it raises after a cancellation is logged, for the caller gets the `CancelledError`.
    Of work in a thread: `threads.to_the_end`.
    """
    task = work if asyncio.isfuture(work) else asyncio.get_running_loop().create_task(work, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled() and (failure := task.exception()) is not None:
        log.error("%s: %s", name, failure, exc_info=None if isinstance(failure, ApplianceError | OSError) else failure)
    raise cancelled


class TaskScope:
    """Owns the tasks it starts. `close()` cancels them all and waits; afterwards `start` refuses.

    A task that fails is logged with its name and does not disturb its siblings: this is one of the three supervisors
    of STYLE (middleware, task scope, vCPU thread). Whoever needs the result awaits the returned task.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def start(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `coroutine` as a task of this scope. Raises `ServiceStopping` after `close()`."""
        if self._closed:
            coroutine.close()
            raise ServiceStopping(f"{self.name}: stopping, {name} not started")
        task = asyncio.get_running_loop().create_task(coroutine, name=f"{self.name}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            ours = isinstance(error, ApplianceError)  # its text says everything
            log.error("%s: task failed: %s", task.get_name(), error, exc_info=None if ours else error)

    async def close(self, *, timeout_s: float = 10.0) -> None:
        """Cancel all tasks and wait at most `timeout_s` for them; names the ones that would not end."""
        self._closed = True
        tasks = {task for task in self._tasks if task is not asyncio.current_task()}
        for task in tasks:
            task.cancel(f"{self.name} closes")
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=timeout_s)
            for task in stuck:
                log.error("%s: did not end within %g s", task.get_name(), timeout_s)
