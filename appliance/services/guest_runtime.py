"""One guest in this process: what is stored of it, what runs of it, and who may change it just now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from appliance.errors import Conflict, NotFound
from appliance.model.guest import ExitReason, GuestId, GuestKind, GuestState, GuestStats
from appliance.services.guest_lock import GuestLock
from appliance.services.guest_records import StoredGuest
from appliance.services.ports import LogLine
from appliance.services.ports.running_guest import RunningGuest


@dataclass(slots=True)
class GuestRuntime:
    """One guest in this process: what is stored, and what runs.

    `running` is None with a state RUNNING for a guest that runs but could not be taken over (see `GuestRunner.adopt`).
    `restart_due`: it has ended to be started again, and nobody has asked for anything else since. `end_asked_at`: when a
    stop or shutdown of this run was asked for here; `failures` are its ends in a row (`restart_policy.py`), `last_exit` is
    how the last run ended. `overruled` is set while a stop waits for the lock. `own_lock`: the `lock` in its configuration
    marks an operation of this process, which holds the guest's lock: who comes meanwhile waits for that instead of being
    refused.
    """

    stored: StoredGuest
    lock: GuestLock
    state: GuestState = GuestState.STOPPED
    running: RunningGuest | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    overruled: asyncio.Event = field(default_factory=asyncio.Event)
    stops_waiting: int = 0
    restart_due: bool = False
    end_asked_at: float | None = None
    failures: int = 0
    last_exit: ExitReason | None = None
    removed: bool = False
    own_lock: bool = False
    root_bytes: int = 0
    stats: GuestStats | None = None
    cpus_used: float = 0.0
    tell: LogLine = lambda line: None
    """Takes what becomes of this run: the log of the task that started it, also when that has long ended."""
    exit_detail: str = ""
    """Why it ended last."""

    @property
    def guest_id(self) -> GuestId:
        return self.stored.guest_id

    @property
    def kind(self) -> GuestKind:
        return self.stored.kind

    @property
    def label(self) -> str:
        """`vm 100`, for messages."""
        return f"{self.kind.prefix} {self.guest_id}"

    def stop_asked(self) -> None:
        """A stop waits for the lock: no orderly shutdown shall keep it waiting."""
        self.stops_waiting += 1
        self.overruled.set()

    def stop_done(self) -> None:
        """A stop that was asked for is over, well or not."""
        self.stops_waiting -= 1
        if not self.stops_waiting:
            self.overruled.clear()

    @asynccontextmanager
    async def hold(self, what: str, *, log: LogLine = lambda _: None, unfinished: bool = False) -> AsyncIterator[None]:
        """The guest's lock, for an operation on a guest that is still there.

        Raises `NotFound` when it was removed while this waited, `Conflict` when its creation or removal was left
        half-way (unless `unfinished` may be worked on), and what `GuestLock.hold` raises.
        """
        async with self.lock.hold(what, log=log):
            if self.removed:
                raise NotFound(self.label)
            if self.stored.record.busy and not unfinished:
                raise Conflict(f"{self.label}: '{self.stored.record.busy}' was not finished; remove it")
            yield

    @contextmanager
    def locked_by_us(self) -> Iterator[None]:
        """While this lasts, the `lock` in its configuration is of who holds the guest's lock: see `own_lock`."""
        self.own_lock = True
        try:
            yield
        finally:
            self.own_lock = False
