"""Pulling an image of ten layers, against skopeo from the same registry in the same run.

The two alternate, each into an empty store: ours through the API until the task is OK (so with task, log and listing), skopeo's
`copy` into an OCI layout. Both verify digests; neither unpacks.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import aiohttp

from tests.bench.client import client
from tests.bench.figures import Figure
from tests.harness import Appliance
from tests.oci import images, registries
from tests.oci.test_images_api import layout

LAYERS = 10
LAYER_BYTES = 16 << 20
ROUNDS = 9
NAME = "bench/ten:1"


def pull() -> Iterable[Figure]:
    """Medians of the rounds; the ratio is of the medians."""
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        layers = [images.layer(images.file(f"layer{number}", _content())) for number in range(LAYERS)]
        source = layout(directory / "layout", images.image(layers))
        with registries.docker_registry(directory) as host:
            _skopeo("copy", "--dest-tls-verify=false", source, f"docker://{host}/{NAME}")
            with Appliance() as appliance:
                api = appliance.api()
                api.appliance.oci.registries.post(registry=host, transport="plain")
                ours, theirs = asyncio.run(_alternate(appliance, host, directory))
    yield Figure("pull_ms", 1000 * statistics.median(ours), "ms", 5000)
    yield Figure("pull_skopeo_ms", 1000 * statistics.median(theirs), "ms", 5000)
    yield Figure("pull_ratio", statistics.median(ours) / statistics.median(theirs), "ratio", 1.25)


def _content() -> bytes:
    """Half of it compresses, as programs and libraries do."""
    return b"".join(os.urandom(32 << 10) + bytes(32 << 10) for _ in range(LAYER_BYTES >> 16))


async def _alternate(appliance: Appliance, host: str, directory: Path) -> tuple[list[float], list[float]]:
    ours, theirs = [], []
    async with client(appliance) as session:
        node = (await (await session.get("/api2/json/nodes")).json())["data"][0]["node"]
        base = f"/api2/json/nodes/{node}"
        for number in range(ROUNDS + 1):
            began = time.monotonic()
            await _task(session, base, f"{base}/storage/local/oci-registry-pull", {"reference": f"{host}/{NAME}"})
            took = time.monotonic() - began
            async with session.delete("/api2/json/appliance/oci/images/local:vztmpl/ten_1.tar") as response:
                response.raise_for_status()
                await _wait(session, base, (await response.json())["data"])
            other = await asyncio.to_thread(_copy, host, directory / "copy")
            if number:  # the first warms the registry's cache for both
                ours.append(took)
                theirs.append(other)
    return ours, theirs


def _copy(host: str, target: Path) -> float:
    began = time.monotonic()
    _skopeo("copy", "--src-tls-verify=false", f"docker://{host}/{NAME}", f"oci:{target}:1")
    took = time.monotonic() - began
    shutil.rmtree(target)
    return took


async def _task(session: aiohttp.ClientSession, base: str, url: str, form: dict[str, str]) -> None:
    async with session.post(url, data=form) as response:
        response.raise_for_status()
        await _wait(session, base, (await response.json())["data"])


async def _wait(session: aiohttp.ClientSession, base: str, upid: str) -> None:
    async with session.get(f"{base}/tasks/{upid}/status?wait=30") as response:
        response.raise_for_status()
        status = (await response.json())["data"]
    if status.get("exitstatus") != "OK":
        raise RuntimeError(f"{upid}: {status}")


def _skopeo(*arguments: str) -> None:
    subprocess.run(["skopeo", "--insecure-policy", *arguments], check=True, capture_output=True)


BENCHMARKS = [pull]
