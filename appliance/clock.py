"""The only door to time. Services and `cluster/` take a `Clock`; tests pass `tests.fakes.clock.FakeClock`."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Wall-clock time for records people read, monotonic time for every decision about durations."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""

    def monotonic(self) -> float:
        """Seconds that never go backwards; only differences mean anything."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` (at once when zero or negative)."""


class SystemClock:
    """The kernel's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
