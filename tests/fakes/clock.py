"""A clock that stands still until the test moves it."""

from __future__ import annotations

import asyncio
import heapq


class FakeClock:
    """Fulfils `appliance.clock.Clock`. `advance` wakes sleepers in order of their deadlines."""

    def __init__(self, *, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._monotonic = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._monotonic + seconds, self._count, future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move time on by `seconds`; each sleeper due runs at its own moment."""
        target = self._monotonic + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            deadline, _, future = heapq.heappop(self._sleepers)
            self._now += deadline - self._monotonic
            self._monotonic = deadline
            if not future.done():
                future.set_result(None)
            for _ in range(5):
                await asyncio.sleep(0)
        self._now += target - self._monotonic
        self._monotonic = target
        await asyncio.sleep(0)
