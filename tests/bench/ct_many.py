"""A hundred busybox containers at once: what each costs the host beyond its own, and how fast all are listed.

`overhead_mib` is counted, not taken from the host's free memory, which everything else on the host changes: the shims'
proportional memory, the growth of the appliance's, and the growth of the kernel's own (slabs that cannot be reclaimed,
per-CPU data, stacks, page tables: control groups, namespaces, mounts, interfaces) less what the containers' control groups
are charged of that; for each container.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp
import psutil

from tests.bench.client import client
from tests.bench.containers import CT, container
from tests.bench.figures import Figure
from tests.harness import Appliance

Request = AbstractAsyncContextManager[aiohttp.ClientResponse]
Work = Callable[[aiohttp.ClientSession, str, int], Awaitable[None]]
COUNT = 100
FIRST = 200
AT_ONCE = 4
LISTS = 30
MIB = 1 << 20
SETTLE_S = 6.0
"""A round of the sampler, and the kernel's own counting, which lags behind."""


def many() -> Iterable[Figure]:
    """See the module's docstring."""
    with container() as (appliance, api, _):
        appliance.finish(api, appliance.node(api).lxc(CT).status.start.post())
        appliance.finish(api, appliance.node(api).lxc(CT).status.stop.post())
        yield from asyncio.run(_measure(appliance))


async def _measure(appliance: Appliance) -> list[Figure]:
    async with client(appliance) as session:
        node = (await (await session.get("/api2/json/nodes")).json())["data"][0]["node"]
        base = f"/api2/json/nodes/{node}"
        await _each(session, base, _clone)
        await asyncio.sleep(SETTLE_S)
        kernel, resident = await asyncio.to_thread(_kernel_bytes), _resident(appliance)
        began = time.monotonic()
        await _each(session, base, _start)
        started_s = time.monotonic() - began
        await asyncio.sleep(SETTLE_S)
        shims = await asyncio.to_thread(_shims, appliance)
        grown = await asyncio.to_thread(_kernel_bytes) - kernel - await asyncio.to_thread(_charged)
        appliance_grown = _resident(appliance) - resident
        listed = []
        for _ in range(LISTS):
            began = time.monotonic()
            rows = (await (await session.get(f"{base}/lxc")).json())["data"]
            listed.append(time.monotonic() - began)
        running = sum(row["status"] == "running" for row in rows)
        if running != COUNT:
            raise RuntimeError(f"{running} of {COUNT} containers run")
        await _each(session, base, _stop)
    parts = {"shim": shims, "appliance": appliance_grown, "kernel": max(grown, 0)}
    return [
        Figure("overhead_mib", sum(parts.values()) / MIB / COUNT, "MiB", 4),
        *(Figure(f"overhead_{name}_mib", size / MIB / COUNT, "MiB", 4) for name, size in parts.items()),
        Figure("list_ms", 1000 * statistics.median(listed), "ms", 50),
        Figure("start_100_s", started_s, "s", 60),
    ]


async def _each(session: aiohttp.ClientSession, base: str, work: Work) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(vmid: int) -> None:
        async with slots:
            await work(session, base, vmid)

    await asyncio.gather(*(one(FIRST + number) for number in range(COUNT)))


async def _clone(session: aiohttp.ClientSession, base: str, vmid: int) -> None:
    await _task(session, base, session.post(f"{base}/lxc/{CT}/clone", data={"newid": str(vmid), "full": "1"}))


async def _start(session: aiohttp.ClientSession, base: str, vmid: int) -> None:
    await _task(session, base, session.post(f"{base}/lxc/{vmid}/status/start"))


async def _stop(session: aiohttp.ClientSession, base: str, vmid: int) -> None:
    await _task(session, base, session.post(f"{base}/lxc/{vmid}/status/stop"))


async def _task(session: aiohttp.ClientSession, base: str, request: Request) -> None:
    async with request as response:
        response.raise_for_status()
        upid = (await response.json())["data"]
    async with session.get(f"{base}/tasks/{upid}/status?wait=30") as response:
        status = (await response.json())["data"]
    if status.get("exitstatus") != "OK":
        raise RuntimeError(status)


def _resident(appliance: Appliance) -> int:
    assert appliance.process is not None
    return int(psutil.Process(appliance.process.pid).memory_info().rss)


def _shims(appliance: Appliance) -> int:
    """The proportional set size of this appliance's shims: what is shared between them counts once."""
    total = 0
    for pid_file in appliance.run_dir.glob("ct/2[0-9][0-9]/shim.pid"):
        rollup = Path(f"/proc/{pid_file.read_text().strip()}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) << 10
    return total


def _kernel_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(fields[name].split()[0]) << 10 for name in ("SUnreclaim", "Percpu", "KernelStack", "PageTables"))


def _charged() -> int:
    """Kernel memory that the containers' own control groups are charged for."""
    root, groups = Path("/sys/fs/cgroup"), "ct-2[0-9][0-9]"
    v1 = sum(int(path.read_text()) for path in root.glob(f"memory/*/{groups}/memory.kmem.usage_in_bytes"))
    v2 = sum(
        int(line.split()[1])
        for path in root.glob(f"*/{groups}/memory.stat")
        for line in path.read_text().splitlines()
        if line.startswith("kernel ")
    )
    return v1 + v2


BENCHMARKS = [many]
