"""One lock a guest: operations on it queue, first come first served, and everybody can see who holds it.

A parallel call waits its turn instead of failing with a lock time-out; only a queue beyond any sense is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from appliance.clock import Clock
from appliance.errors import Conflict, TimedOut

QUEUE_LIMIT = 64
WAIT_LIMIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock, and since when (epoch seconds)."""

    what: str
    since: float


class GuestLock:
    """FIFO lock with a visible owner. Not re-entrant."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._lock = asyncio.Lock()
        self._waiting = 0
        self.holder: Holder | None = None

    @asynccontextmanager
    async def hold(self, what: str, *, log: Callable[[str], None] = lambda _: None) -> AsyncIterator[None]:
        """Wait for the lock and hold it as `what` ("qmstart by admin@pve"); tells `log` whom it waits for.

        Raises `Conflict` when `QUEUE_LIMIT` operations wait already, `TimedOut` after `WAIT_LIMIT_S`.
        """
        if self._waiting >= QUEUE_LIMIT:
            raise Conflict(f"{self._name}: {self._waiting} operations wait for it already")
        if self.holder is not None:
            log(f"waiting for '{self.holder.what}', which holds the lock")
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_LIMIT_S):
                await self._lock.acquire()
        except TimeoutError as error:
            held_by = f" held by '{self.holder.what}'" if self.holder else ""
            raise TimedOut(f"{self._name}: waiting for the lock{held_by}", WAIT_LIMIT_S) from error
        finally:
            self._waiting -= 1
        self.holder = Holder(what, self._clock.now())
        try:
            yield
        finally:
            self.holder = None
            self._lock.release()
