"""A container made from a template: POST …/lxc until its task is OK, on layers, whatever the template's size."""

from __future__ import annotations

import asyncio
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import aiohttp

from tests.bench.client import client
from tests.bench.figures import Benchmark, Figure
from tests.e2e.busybox import write_template
from tests.harness import Appliance

ROUNDS = 15
FILES, FILE_BYTES = 16_000, 24 << 10
"""Of the large template: about what a desktop's root holds, 375 MiB."""
FIRST = 1000


def create() -> Iterable[Figure]:
    """Median over containers made one after the other; the first from a template unpacks it, and counts apart."""
    with Appliance() as appliance, tempfile.TemporaryDirectory() as directory:
        small = write_template(Path(directory) / "small_1_amd64.tar.gz")
        large = _enlarge(small, Path(directory) / "large_1_amd64.tar")
        api = appliance.api()
        volumes = [appliance.upload(api, path, "vztmpl", path.name) for path in (small, large)]
        (first_s, _), (large_first_s, _), small_s, large_s = asyncio.run(_measure(appliance, volumes))
        node = appliance.node(api)
        for row in node.lxc.get():
            appliance.finish(api, node.lxc(row["vmid"]).delete())
    yield Figure("create_ms", 1000 * large_s, "ms", 300)
    yield Figure("create_size_ratio", large_s / small_s, "ratio", 1.5)
    yield Figure("create_first_ms", 1000 * large_first_s, "ms", 60_000)
    yield Figure("create_first_small_ms", 1000 * first_s, "ms", 3_000)


async def _measure(
    appliance: Appliance, volumes: list[str]
) -> tuple[tuple[float, str], tuple[float, str], float, float]:
    async with client(appliance) as session:
        node = (await (await session.get("/api2/json/nodes")).json())["data"][0]["node"]
        base, number = f"/api2/json/nodes/{node}", FIRST
        firsts: list[tuple[float, str]] = []
        for volume in volumes:
            firsts.append((await _create(session, base, number, volume), volume))
            number += 1
        taken: dict[str, list[float]] = {volume: [] for volume in volumes}
        for _ in range(ROUNDS):
            for volume in volumes:
                taken[volume].append(await _create(session, base, number, volume))
                number += 1
        medians = [statistics.median(taken[volume]) for volume in volumes]
        return firsts[0], firsts[1], medians[0], medians[1]


async def _create(session: aiohttp.ClientSession, base: str, vmid: int, volume: str) -> float:
    asked = {"vmid": vmid, "ostemplate": volume, "rootfs": "local:0", "memory": 64, "hostname": f"c{vmid}"}
    began = time.monotonic()
    async with session.post(f"{base}/lxc", data=asked) as response:
        response.raise_for_status()
        upid = (await response.json())["data"]
    async with session.get(f"{base}/tasks/{upid}/status?wait=30") as response:
        status = (await response.json())["data"]
    if status.get("exitstatus") != "OK":
        raise RuntimeError(f"create {vmid}: {status}")
    return time.monotonic() - began


def _enlarge(template: Path, target: Path) -> Path:
    """The template with many files more."""
    with tarfile.open(template) as old, tarfile.open(target, "w") as new:
        for member in old:
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
        for number in range(FILES):
            info = tarfile.TarInfo(f"srv/{number // 100}/{number}")
            info.size = FILE_BYTES
            new.addfile(info, io.BytesIO(os.urandom(FILE_BYTES)))
    return target


BENCHMARKS: list[Benchmark] = [create]
