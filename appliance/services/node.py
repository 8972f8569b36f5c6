"""This node's figures: sampled every 2 s in a thread, kept for a day, read without waiting.

    now        `status()`    the newest sample and what is true of the host at all
    graphs     `history()`   the last hour in steps of 10 s
               `averages()`  the last day in steps of 1 min (the RRD data of Proxmox VE's API)

Both rings are bounded and in memory: they begin anew with the appliance.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.clock import Clock
from appliance.errors import HostError
from appliance.events import EventBus, NodeStatsSampled
from appliance.services.node_sample import HostInfo, Sample, read_host, read_sample
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)

SAMPLE_EVERY_S = 2.0
HISTORY_STEP_S, HISTORY_LIMIT = 10, 360
AVERAGES_STEP_S, AVERAGES_LIMIT = 60, 1440


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """The node now. Ratios are 0…1 of all CPUs; sizes in bytes."""

    sampled_at: float
    cpu_ratio: float
    iowait_ratio: float
    cpu_count: int
    load: tuple[float, float, float]
    memory_total_bytes: int
    memory_used_bytes: int
    memory_free_bytes: int
    memory_available_bytes: int
    swap_total_bytes: int
    swap_used_bytes: int
    rootfs_total_bytes: int
    rootfs_used_bytes: int
    rootfs_available_bytes: int
    uptime_s: float
    net_in_bytes_s: float
    net_out_bytes_s: float
    host: HostInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Means over one step; `time` is its beginning, epoch seconds."""

    time: int
    cpu_ratio: float
    iowait_ratio: float
    load: float
    memory_used_bytes: float
    swap_used_bytes: float
    rootfs_used_bytes: float
    net_in_bytes_s: float
    net_out_bytes_s: float


class Ring:
    """The newest `limit` steps' means. A step is finished by the first value after it."""

    def __init__(self, step_s: int, limit: int) -> None:
        self._step_s = step_s
        self._points: deque[Point] = deque(maxlen=limit)
        self._open: list[NodeStatus] = []
        self._begin = 0

    def add(self, status: NodeStatus) -> None:
        """Take one more value; they must come in order of time."""
        begin = int(status.sampled_at) // self._step_s * self._step_s
        if self._open and begin != self._begin:
            self._points.append(mean(self._begin, self._open))
            self._open = []
        self._begin = begin
        self._open.append(status)

    def points(self) -> Sequence[Point]:
        """The finished steps, oldest first."""
        return tuple(self._points)


def mean(begin: int, statuses: Sequence[NodeStatus]) -> Point:
    """The mean of some values, at least one."""
    count = len(statuses)
    return Point(
        time=begin,
        cpu_ratio=sum(each.cpu_ratio for each in statuses) / count,
        iowait_ratio=sum(each.iowait_ratio for each in statuses) / count,
        load=sum(each.load[0] for each in statuses) / count,
        memory_used_bytes=sum(each.memory_used_bytes for each in statuses) / count,
        swap_used_bytes=sum(each.swap_used_bytes for each in statuses) / count,
        rootfs_used_bytes=sum(each.rootfs_used_bytes for each in statuses) / count,
        net_in_bytes_s=sum(each.net_in_bytes_s for each in statuses) / count,
        net_out_bytes_s=sum(each.net_out_bytes_s for each in statuses) / count,
    )


def derive(sample: Sample, before: Sample | None, host: HostInfo, *, now: float) -> NodeStatus:
    """The status from two samples; ratios since boot while there is only one. Pure."""
    total = sample.cpu_total - (before.cpu_total if before else 0)
    idle = sample.cpu_idle - (before.cpu_idle if before else 0)
    iowait = sample.cpu_iowait - (before.cpu_iowait if before else 0)
    seconds = sample.uptime_s - before.uptime_s if before else 0.0
    received = sample.net_in_bytes - before.net_in_bytes if before else 0
    sent = sample.net_out_bytes - before.net_out_bytes if before else 0
    return NodeStatus(
        sampled_at=now,
        cpu_ratio=_ratio(total - idle - iowait, total),
        iowait_ratio=_ratio(iowait, total),
        cpu_count=host.cpu.cpus,
        load=sample.load,
        memory_total_bytes=sample.memory_total_bytes,
        memory_used_bytes=sample.memory_total_bytes - sample.memory_available_bytes,
        memory_free_bytes=sample.memory_free_bytes,
        memory_available_bytes=sample.memory_available_bytes,
        swap_total_bytes=sample.swap_total_bytes,
        swap_used_bytes=sample.swap_total_bytes - sample.swap_free_bytes,
        rootfs_total_bytes=sample.rootfs_total_bytes,
        rootfs_used_bytes=sample.rootfs_total_bytes - sample.rootfs_free_bytes,
        rootfs_available_bytes=sample.rootfs_available_bytes,
        uptime_s=sample.uptime_s,
        # an interface that goes takes its counters with it: never below zero
        net_in_bytes_s=max(0.0, received / seconds) if seconds > 0 else 0.0,
        net_out_bytes_s=max(0.0, sent / seconds) if seconds > 0 else 0.0,
        host=host,
    )


def _ratio(part: int, whole: int) -> float:
    """Within 0…1: the kernel's idle and iowait counters may step back."""
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


class NodeService:
    """See the module's docstring. `start` takes the first sample; sampling is a task of `scope`."""

    def __init__(self, events: EventBus, clock: Clock, scope: TaskScope) -> None:
        self._events = events
        self._clock = clock
        self._scope = scope
        self._host: HostInfo | None = None
        self._sample: Sample | None = None
        self._status: NodeStatus | None = None
        self._history = Ring(HISTORY_STEP_S, HISTORY_LIMIT)
        self._averages = Ring(AVERAGES_STEP_S, AVERAGES_LIMIT)

    async def start(self) -> None:
        """Take the first sample and go on sampling. Raises `HostError` when /proc cannot be read."""
        await self._take()
        self._scope.start(self._sample_on(), name="node-figures")

    async def _sample_on(self) -> None:
        while True:
            await self._clock.sleep(SAMPLE_EVERY_S)
            try:
                await self._take()
            except HostError as error:
                log.warning("node figures: %s", error)

    async def _take(self) -> NodeStatus:
        try:
            if self._host is None:
                self._host = await asyncio.to_thread(read_host)
            sample = await asyncio.to_thread(read_sample)
        except OSError as error:
            raise HostError.from_os_error(error, f"read {error.filename or '/proc'}") from error
        status = derive(sample, self._sample, self._host, now=self._clock.now())
        self._sample, self._status = sample, status
        self._history.add(status)
        self._averages.add(status)
        self._events.publish(NodeStatsSampled())
        return status

    async def status(self) -> NodeStatus:
        """The newest sample. Raises `HostError` only when there has never been one."""
        return self._status if self._status is not None else await self._take()

    def history(self) -> Sequence[Point]:
        """The last hour in steps of 10 s, oldest first."""
        return self._history.points()

    def averages(self) -> Sequence[Point]:
        """The last day in steps of 60 s, oldest first."""
        return self._averages.points()
