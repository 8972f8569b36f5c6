"""Figures of the core: start-up, idle cost, listing speed, container start, console throughput, push latency, the CLI.

Every figure is taken on an appliance started for it as users start one. Ratios compare two things in the same run.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable

import aiohttp
import psutil

from tests.bench import containers
from tests.bench.client import client, define_vms
from tests.bench.figures import Benchmark, Figure, percentile
from tests.harness import ROOT, Appliance

MIB = 1 << 20


def listen() -> Iterable[Figure]:
    """From exec to READY=1, on a data directory that exists already; median of five."""
    with Appliance() as appliance:
        times = []
        for _ in range(5):
            appliance.stop()
            appliance.start()
            times.append(appliance.listen_s)
    yield Figure("listen_s", statistics.median(times), "s", 1.0)


def idle() -> Iterable[Figure]:
    """Memory and CPU with 20 stopped guests, nobody connected, over 20 s after it has settled."""
    with Appliance() as appliance:
        define_vms(appliance, 20)
        assert appliance.process is not None
        process = psutil.Process(appliance.process.pid)
        time.sleep(5)
        before = process.cpu_times()
        began = time.monotonic()
        time.sleep(20)
        after = process.cpu_times()
        spent = (after.user + after.system) - (before.user + before.system)
        yield Figure("idle_rss_mib", process.memory_info().rss / MIB, "MiB", 120)
        yield Figure("idle_cpu_pct", 100 * spent / (time.monotonic() - began), "%", 1.0)


def resources() -> Iterable[Figure]:
    """GET /cluster/resources with 1,000 defined guests, 50 requests/s for 10 s, each timed from its due moment."""
    with Appliance() as appliance:
        define_vms(appliance, 1000)
        yield Figure("resources_p99_ms", 1000 * asyncio.run(_resources(appliance)), "ms", 50)


async def _resources(appliance: Appliance) -> float:
    async with client(appliance) as session:
        latencies: list[float] = []
        rows = 0

        async def one(due: float) -> None:
            nonlocal rows
            async with session.get("/api2/json/cluster/resources?type=vm") as response:
                rows = len(json.loads(await response.read())["data"])
            latencies.append(time.monotonic() - due)

        began = time.monotonic()
        requests = []
        for number in range(500):
            due = began + number / 50
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            requests.append(asyncio.create_task(one(due)))
        await asyncio.gather(*requests)
    if rows != 1000:
        raise RuntimeError(f"1,000 guests are defined, {rows} are listed")
    return percentile(latencies, 0.99)


def push() -> Iterable[Figure]:
    """From the request that changes a guest to the push on a second client's websocket; 50 clients connected; p99 of 100.

    The change is a configuration write: its whole way (request, store, event, websocket) is in the figure.
    """
    with Appliance() as appliance:
        define_vms(appliance, 20)
        yield Figure("push_ms", 1000 * asyncio.run(_push(appliance)), "ms", 300)


async def _push(appliance: Appliance) -> float:
    async with client(appliance) as session:
        node = (await (await session.get("/api2/json/nodes")).json())["data"][0]["node"]
        sockets = [await session.ws_connect("/ws/events") for _ in range(50)]
        drains = [asyncio.create_task(_drain(socket)) for socket in sockets[1:]]
        latencies = []
        for number in range(100):
            began = time.monotonic()
            url = f"/api2/json/nodes/{node}/qemu/{100 + number % 20}/config"
            async with session.put(url, data={"description": f"round {number}"}) as response:
                response.raise_for_status()
            await _next_event(sockets[0], "guest-config", 100 + number % 20)
            latencies.append(time.monotonic() - began)
            await asyncio.sleep(0.1)
        for drain in drains:
            drain.cancel()
        await asyncio.gather(*drains, return_exceptions=True)
        for socket in sockets:
            await socket.close()
    return percentile(latencies, 0.99)


async def _drain(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in socket:
        pass


async def _next_event(socket: aiohttp.ClientWebSocketResponse, kind: str, guest_id: int) -> None:
    async with asyncio.timeout(10):
        while True:
            text = await socket.receive_str()
            if f'"{kind}"' in text and str(guest_id) in text:
                return


def cli() -> Iterable[Figure]:
    """`appliance --version`, wall time from fork to exit, median of twenty."""
    times = []
    for _ in range(20):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "appliance", "--version"], cwd=ROOT, check=True, capture_output=True)
        times.append(time.monotonic() - began)
    yield Figure("cli_version_s", statistics.median(times), "s", 0.15)


BENCHMARKS: list[Benchmark] = [cli, listen, idle, resources, containers.start, containers.console, push]
