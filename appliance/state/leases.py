"""Leases of a store that lives in this process: one timer each, driven by the clock.

Deadlines are monotonic and in memory. A back end that survives the process records what remains of each lease at an
orderly close and resumes with that; after a crash it resumes with the whole time to live, because ending a lease early
could end what it protects, while ending it late only delays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from appliance.clock import Clock
from appliance.errors import HostError, NotFound
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""How soon an expired lease whose documents could not be deleted (disk full) is tried again."""


class TimedLease:
    """Fulfils `Lease`. `end` deletes the lease and its documents in one transaction and may fail with `HostError`."""

    def __init__(self, lease_id: int, ttl_s: float, keeper: LeaseKeeper, *, remaining_s: float) -> None:
        self.lease_id = lease_id
        self.ttl_s = ttl_s
        self._keeper = keeper
        self._deadline = keeper.clock.monotonic() + remaining_s
        self._ended = False
        self.recorded_s = remaining_s
        """What the back end would resume with now."""

    @property
    def remaining_s(self) -> float:
        """Seconds to live, never negative."""
        return max(0.0, self._deadline - self._keeper.clock.monotonic())

    async def renew(self) -> None:
        """See `Lease.renew`. In memory, but for the first time after a restart."""
        if self._ended:
            raise NotFound(f"lease {self.lease_id}")
        self._deadline = self._keeper.clock.monotonic() + self.ttl_s
        if self.recorded_s < self.ttl_s:
            await self._keeper.record(self.lease_id, self.ttl_s)
            self.recorded_s = self.ttl_s

    async def revoke(self) -> None:
        """See `Lease.revoke`. Not an error when it has ended already; after a `HostError` it still lives."""
        if not self._ended:
            await self._keeper.end(self.lease_id)
            self._ended = True
            self._keeper.forget(self.lease_id)

    async def expire_in_time(self) -> None:
        """Wait for the deadline, however often it moves, then end the lease for good; the documents as soon as possible."""
        while self.remaining_s > 0:
            await self._keeper.clock.sleep(self.remaining_s)
        self._ended = True
        while not await self._try_to_end():
            await self._keeper.clock.sleep(RETRY_S)
        self._keeper.forget(self.lease_id)

    async def _try_to_end(self) -> bool:
        try:
            await self._keeper.end(self.lease_id)
        except HostError as error:
            log.warning("store: lease %d: cannot be ended yet: %s", self.lease_id, error)
            return False
        return True


class LeaseKeeper:
    """All live leases of one store."""

    def __init__(
        self,
        clock: Clock,
        scope: TaskScope,
        *,
        end: Callable[[int], Awaitable[None]],
        record: Callable[[int, float], Awaitable[None]],
    ) -> None:
        self.clock = clock
        self.end = end
        self.record = record
        self._scope = scope
        self._leases: dict[int, tuple[TimedLease, asyncio.Task[None]]] = {}

    def add(self, lease_id: int, ttl_s: float, *, remaining_s: float) -> TimedLease:
        """Begin to count down."""
        lease = TimedLease(lease_id, ttl_s, self, remaining_s=remaining_s)
        timer = self._scope.start(lease.expire_in_time(), name=f"lease-{lease_id}")
        self._leases[lease_id] = (lease, timer)
        return lease

    def forget(self, lease_id: int) -> None:
        """It has ended: its timer is no longer needed."""
        _, timer = self._leases.pop(lease_id, (None, None))
        if timer is not None and timer is not asyncio.current_task():
            timer.cancel()

    def remaining(self) -> dict[int, float]:
        """What an orderly close records."""
        return {lease.lease_id: lease.remaining_s for lease, _ in self._leases.values()}
