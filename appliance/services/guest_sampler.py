"""Samples running guests' figures in rounds; readers take the last ones and never wait for a guest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.events import EventBus, GuestStatsSampled
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.ports.network import NetworkBackend
from appliance.services.ports.running_guest import RunningGuest

log = logging.getLogger(__name__)

ROUND_S = 5.0
ONE_GUEST_LIMIT_S = 4.0
AT_ONCE = 8


class GuestSampler:
    """One round every `ROUND_S`; a guest that does not answer in time keeps its old figures and delays nobody."""

    def __init__(
        self,
        guests: Callable[[], Iterable[GuestRuntime]],
        *,
        network: NetworkBackend,
        events: EventBus,
        clock: Clock,
        tell_oom: Callable[[GuestRuntime, int], Awaitable[None]],
    ) -> None:
        """`tell_oom` hears how many processes of a guest the kernel has killed since the last round."""
        self._guests = guests
        self._network = network
        self._events = events
        self._clock = clock
        self._tell_oom = tell_oom
        self._cpu: dict[RunningGuest, tuple[float, float]] = {}

    async def run(self) -> None:
        """Sample for ever; ended by cancellation."""
        while True:
            await self.round()
            await self._clock.sleep(ROUND_S)

    async def round(self) -> None:
        """Sample every running guest once, `AT_ONCE` at a time."""
        running = [guest for guest in self._guests() if guest.running is not None]
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(guest: GuestRuntime) -> None:
            async with slots:
                await self._sample(guest)

        results = await asyncio.gather(*(one(guest) for guest in running), return_exceptions=True)
        for guest, defect in zip(running, results, strict=True):
            if defect is not None:  # of one guest's figures: the others' must go on
                log.error("%s: no figures", guest.label, exc_info=defect)
        alive = {guest.running for guest in running}
        self._cpu = {key: value for key, value in self._cpu.items() if key in alive}
        if running:
            self._events.publish(GuestStatsSampled())

    async def _sample(self, guest: GuestRuntime) -> None:
        running = guest.running
        if running is None:
            return
        try:
            async with asyncio.timeout(ONE_GUEST_LIMIT_S):
                stats = await running.stats()
                received, sent = await self._network.counters(guest.guest_id)
        except (ApplianceError, TimeoutError) as error:
            log.debug("%s: no figures: %s", guest.label, error)
            return
        if guest.running is not running:
            return
        known = guest.stats.oom_kills if guest.stats is not None else 0
        used = stats.disk_used_bytes or guest.root_bytes
        guest.stats = replace(stats, net_in_bytes=received, net_out_bytes=sent, disk_used_bytes=used)
        if stats.oom_kills > known:
            await self._tell_oom(guest, stats.oom_kills - known)
        now = self._clock.monotonic()
        before = self._cpu.get(running)
        self._cpu[running] = (now, stats.cpu_seconds)
        if before is not None and now > before[0]:
            guest.cpus_used = max(0.0, (stats.cpu_seconds - before[1]) / (now - before[0]))
