"""This node's figures now: sampled every 2 s in a thread, read without waiting. Over time: `metrics.py`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.clock import Clock
from appliance.errors import HostError
from appliance.events import EventBus, NodeStatsSampled
from appliance.services.node_sample import HostInfo, Sample, read_host, read_sample
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)

SAMPLE_EVERY_S = 2.0


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
    disk_read_bytes_s: float = 0.0
    disk_write_bytes_s: float = 0.0
    pressure: Mapping[str, float] = field(default_factory=dict)
    """PSI in percent of the last ten seconds: "pressurecpusome" …"""


def derive(sample: Sample, before: Sample | None, host: HostInfo, *, now: float) -> NodeStatus:
    """The status from two samples; ratios since boot while there is only one. Pure."""
    total = sample.cpu_total - (before.cpu_total if before else 0)
    idle = sample.cpu_idle - (before.cpu_idle if before else 0)
    iowait = sample.cpu_iowait - (before.cpu_iowait if before else 0)
    seconds = sample.uptime_s - before.uptime_s if before else 0.0
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
        net_in_bytes_s=_per_second(sample.net_in_bytes, before.net_in_bytes if before else None, seconds),
        net_out_bytes_s=_per_second(sample.net_out_bytes, before.net_out_bytes if before else None, seconds),
        disk_read_bytes_s=_per_second(sample.disk_read_bytes, before.disk_read_bytes if before else None, seconds),
        disk_write_bytes_s=_per_second(sample.disk_write_bytes, before.disk_write_bytes if before else None, seconds),
        pressure=sample.pressure,
        host=host,
    )


def _per_second(now: int, before: int | None, seconds: float) -> float:
    """Of a counter; a device that goes takes its own with it: never below zero."""
    return max(0.0, (now - before) / seconds) if before is not None and seconds > 0 else 0.0


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
        self._events.publish(NodeStatsSampled())
        return status

    async def status(self) -> NodeStatus:
        """The newest sample. Raises `HostError` only when there has never been one."""
        return self._status if self._status is not None else await self._take()
