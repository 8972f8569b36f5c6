"""Figures over time: every 10 s what is known of the node, each running guest and each storage goes into a file.

Nothing here asks an engine: guests' figures are those `GuestSampler` has, so a guest that does not answer delays nobody
and leaves a gap. One thread owns the file; a tick that finds the last one still being written is left out.

    tick ──▶ collect (the loop, no waiting) ──▶ pressures of guests (thread) ──▶ MetricsFile.add (its thread)
         └─▶ events.MetricsSampled ──▶ open graphs
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from appliance.clock import Clock
from appliance.errors import HostError, TimedOut
from appliance.events import EventBus, GuestListChanged, MetricsSampled
from appliance.model.guest import GuestState, GuestStats
from appliance.model.metrics import FRAMES, LEVELS, Fold, Point, coarser, in_order, named, rate
from appliance.services.guest_view import GuestView
from appliance.services.guests import GuestService
from appliance.services.node import NodeService, NodeStatus
from appliance.services.pressure import read_pressure_of
from appliance.services.storage import StorageService
from appliance.state.metrics_file import MetricsFile
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)

STEP_S = LEVELS[0].step_s
IO_TIMEOUT_S = 20.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Counters:
    """A guest's counters at one moment: what rates are made from."""

    at: float
    stats: GuestStats


class MetricsService:
    """See the module's docstring."""

    def __init__(
        self,
        path: Path,
        *,
        guests: GuestService,
        node: NodeService,
        storage: StorageService,
        node_name: str,
        events: EventBus,
        clock: Clock,
        scope: TaskScope,
    ) -> None:
        self._file = MetricsFile(path)
        self._guests, self._node, self._storage, self._node_name = guests, node, storage, node_name
        self._events, self._clock, self._scope = events, clock, scope
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")
        self._counters: dict[str, Counters] = {}
        self._latest: dict[str, Point] = {}
        self._trouble = ""
        self._writing = False
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    async def start(self) -> None:
        """Open the file and begin. A file that cannot be opened costs the figures, not the appliance."""
        try:
            await self._in_thread(self._file.open)
        except HostError as error:
            self._tell_trouble(error.message)
        self._tasks = (
            self._scope.start(self._run(), name="figures over time"),
            self._scope.start(self._forget_deleted(), name="figures of deleted guests"),
        )

    async def close(self) -> None:
        """Finish what is being written, close the file. No figures are taken any more: their thread is gone."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=IO_TIMEOUT_S)
        try:
            await self._in_thread(self._file.close)
        finally:
            await asyncio.to_thread(self._thread.shutdown)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def history(self, series: str, timeframe: str, how: Fold) -> Sequence[Point]:
        """A series over one of `FRAMES`, oldest first. Raises `HostError`, `TimedOut`."""
        frame, now = FRAMES[timeframe], int(self._clock.now())
        first = now - frame.span_s
        points = await self._in_thread(
            lambda: self._file.read(series, level=frame.level, first=first, last=now, how=how)
        )
        return coarser(points, frame.step_s, how)

    def latest(self, series: str) -> Mapping[str, float]:
        """The newest figures of a series, by name; empty when there are none."""
        point = self._latest.get(series)
        return named(series, point) if point is not None else {}

    def latest_time(self) -> int:
        """When the newest figures were taken; 0 before the first."""
        return max((point.time for point in self._latest.values()), default=0)

    # --- taking -------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            now = self._clock.now()
            await self._clock.sleep(STEP_S - now % STEP_S)
            await self.tick()

    async def tick(self) -> None:
        """Take and write one step's figures."""
        time = int(self._clock.now()) // STEP_S * STEP_S
        points = await self.collect()
        self._latest = {series: Point(time, values) for series, values in points.items()}
        self._events.publish(MetricsSampled())
        if self._writing:
            self._tell_trouble("the disk is too slow: figures are left out")
            return
        try:
            refused = await self._in_thread(lambda: self._write(time, points))
        except (HostError, TimedOut) as error:
            self._tell_trouble(error.message)
            return
        self._tell_trouble(f"no room for {refused} more series" if refused else "")

    def _write(self, time: int, points: Mapping[str, Sequence[float]]) -> int:
        """In the file's thread. `_writing` is still set when the disk did not answer before the next tick."""
        self._writing = True
        try:
            return self._file.add(time, points)
        finally:
            self._writing = False

    async def collect(self) -> dict[str, tuple[float, ...]]:
        """What is known now, by series."""
        found = {f"node/{self._node_name}": node_values(await self._node.status())}
        running = [guest for guest in self._guests.list() if guest.state in (GuestState.RUNNING, GuestState.PAUSED)]
        pids = {guest.guest_id: guest.pid for guest in running if guest.pid}
        pressures = await asyncio.to_thread(lambda: {each: read_pressure_of(pid) for each, pid in pids.items()})
        for guest in running:
            series = f"{guest.kind}/{guest.guest_id}"
            found[series] = self._guest_values(series, guest, pressures.get(guest.guest_id, {}))
        self._counters = {series: counters for series, counters in self._counters.items() if series in found}
        for config in self._storage.storages():
            usage = self._storage.cached_usage(config.storage_id)
            if usage is not None:
                values = {"total": float(usage.total_bytes), "used": float(usage.used_bytes)}
                found[f"storage/{config.storage_id}"] = values
        return {series: in_order(series, values) for series, values in found.items()}

    def _guest_values(self, series: str, guest: GuestView, pressures: Mapping[str, float]) -> dict[str, float]:
        values: dict[str, float] = {"maxcpu": guest.cpus, "maxmem": guest.maxmem, "maxdisk": guest.maxdisk}
        stats, before = guest.stats, self._counters.get(series)
        if stats is None or (before is not None and before.stats is stats):
            return values  # the guest has not answered since: a gap, not a flat line
        now = self._clock.monotonic()
        self._counters[series] = Counters(now, stats)
        old = before.stats if before is not None else None
        seconds = now - before.at if before is not None else 0.0
        for name, counter in (
            ("netin", "net_in_bytes"),
            ("netout", "net_out_bytes"),
            ("diskread", "disk_read_bytes"),
            ("diskwrite", "disk_write_bytes"),
        ):
            values[name] = rate(getattr(stats, counter), getattr(old, counter) if old else None, seconds)
        used = rate(stats.cpu_seconds, old.cpu_seconds if old else None, seconds)
        values["cpu"] = used / guest.cpus if guest.cpus else math.nan
        values["mem"], values["disk"] = stats.memory_bytes, stats.disk_used_bytes
        return {**values, **pressures}

    async def _forget_deleted(self) -> None:
        with self._events.subscribe() as seen:
            async for event in seen:
                if isinstance(event, GuestListChanged) and not event.exists:
                    await self._forget(f"{event.kind}/{event.guest_id}")

    async def _forget(self, series: str) -> None:
        try:
            await self._in_thread(lambda: self._file.forget(series))
        except (HostError, TimedOut) as error:
            log.warning("figures of %s: %s", series, error)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` in the file's thread, after what was asked of it before. Raises `TimedOut`."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            async with asyncio.timeout(IO_TIMEOUT_S):
                return await asyncio.shield(future)
        except TimeoutError as error:
            raise TimedOut("the file of figures", IO_TIMEOUT_S) from error

    def _tell_trouble(self, text: str) -> None:
        """Once when it begins, once when it is over: a full disk must not fill the log every 10 s."""
        if text != self._trouble:
            log.warning("figures over time: %s", text or "they are written again")
        self._trouble = text


def node_values(status: NodeStatus) -> dict[str, float]:
    """The node's figures by column."""
    return {
        "cpu": status.cpu_ratio,
        "iowait": status.iowait_ratio,
        "loadavg": status.load[0],
        "maxcpu": status.cpu_count,
        "memtotal": status.memory_total_bytes,
        "memused": status.memory_used_bytes,
        "memavailable": status.memory_available_bytes,
        "swaptotal": status.swap_total_bytes,
        "swapused": status.swap_used_bytes,
        "roottotal": status.rootfs_total_bytes,
        "rootused": status.rootfs_used_bytes,
        "netin": status.net_in_bytes_s,
        "netout": status.net_out_bytes_s,
        "diskread": status.disk_read_bytes_s,
        "diskwrite": status.disk_write_bytes_s,
        **status.pressure,
    }
