"""Figures of containers: start latency against the bare OCI runtime, console throughput with a stalled second viewer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.bench.client import client
from tests.bench.figures import Figure
from tests.e2e.busybox import write_template
from tests.harness import Appliance

CT = 101
ROUNDS = 15
SETTLE_S = 0.2
"""Before each start, for both: the kernel takes the last network namespace apart in the background."""
STREAM_BYTES = 50 << 20
STREAMS = 3
LINE = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+\n"
MIB = 1 << 20


@contextmanager
def container() -> Iterator[tuple[Appliance, Any, Path]]:
    """An appliance with a stopped busybox container 101 on its bridge, and the template it was made from."""
    with Appliance() as appliance, tempfile.TemporaryDirectory() as directory:
        template = write_template(Path(directory) / "busybox_1_amd64.tar.gz")
        api = appliance.api()
        volume = appliance.upload(api, template, "vztmpl", template.name)
        net0 = f"name=eth0,bridge={appliance.bridge},ip=manual"
        node = appliance.node(api)
        appliance.finish(
            api, node.lxc.post(vmid=CT, ostemplate=volume, rootfs="local:0.2", memory=128, net0=net0, hostname="bench")
        )
        try:
            yield appliance, api, template
        finally:
            appliance.finish(api, node.lxc(CT).status.stop.post())


def start(*, goal: float = 1.5) -> Iterable[Figure]:
    """POST …/status/start until the task is OK, over create + start of the same OCI config by the runtime alone.

    The two alternate in one run; medians. Ours includes task, lock, volume, bridge port, anti-spoofing, shim and store.
    """
    with container() as (appliance, api, template):
        node = appliance.node(api)
        appliance.finish(api, node.lxc(CT).status.start.post())
        with bare_bundle(appliance, template) as (runtime, bundle):
            appliance.finish(api, node.lxc(CT).status.stop.post())
            ours, bare = asyncio.run(_alternate(appliance, runtime, bundle))
    yield Figure("ct_start_ms", 1000 * statistics.median(ours), "ms", 250)
    yield Figure("ct_start_bare_ms", 1000 * statistics.median(bare), "ms", 250)
    yield Figure("ct_start_ratio", statistics.median(ours) / statistics.median(bare), "ratio", goal)


async def _alternate(appliance: Appliance, runtime: str, bundle: Path) -> tuple[list[float], list[float]]:
    ours, bare = [], []
    async with client(appliance) as session:
        node = (await (await session.get("/api2/json/nodes")).json())["data"][0]["node"]
        base = f"/api2/json/nodes/{node}"
        for number in range(ROUNDS + 2):
            await asyncio.sleep(SETTLE_S)
            began = time.monotonic()
            await _task(session, base, f"{base}/lxc/{CT}/status/start")
            took = time.monotonic() - began
            await _task(session, base, f"{base}/lxc/{CT}/status/stop")
            await asyncio.sleep(SETTLE_S)
            baseline = await asyncio.to_thread(_bare_start, runtime, bundle)
            if number >= 2:  # the first rounds warm caches on both sides
                ours.append(took)
                bare.append(baseline)
    return ours, bare


async def _task(session: aiohttp.ClientSession, base: str, url: str) -> None:
    async with session.post(url) as response:
        response.raise_for_status()
        upid = (await response.json())["data"]
    async with session.get(f"{base}/tasks/{upid}/status?wait=30") as response:
        status = (await response.json())["data"]
    if status.get("exitstatus") != "OK":
        raise RuntimeError(f"{url}: {status}")


@contextmanager
def bare_bundle(appliance: Appliance, template: Path) -> Iterator[tuple[str, Path]]:
    """The runtime's program and a bundle with the very config of the running container 101, on a plain directory."""
    source = next(appliance.run_dir.glob(f"ct/{CT}/**/config.json"))
    config = json.loads(source.read_text())
    record = next(path for path in source.parent.rglob("*") if path.is_file() and b'"runtime"' in path.read_bytes())
    runtime = json.loads(record.read_text())["runtime"]
    bundle = Path(tempfile.mkdtemp(prefix="bare-"))
    root = bundle / "rootfs"
    root.mkdir()
    with tarfile.open(template) as tar:
        tar.extractall(root, filter="fully_trusted")
    base = config["linux"]["uidMappings"][0]["hostID"]
    subprocess.run(["chown", "-R", f"{base}:{base}", bundle], check=True)
    for namespace in config["linux"]["namespaces"]:
        namespace.pop("path", None)  # the runtime alone makes them all
    config["root"] = {"path": str(root), "readonly": False}
    config["process"]["args"] = ["/bin/sleep", "60"]
    config["linux"]["cgroupsPath"] = config["linux"]["cgroupsPath"].rsplit("/", 1)[0] + "/bare"
    config["mounts"] = [mount for mount in config["mounts"] if str(source.parent) not in mount.get("source", "")]
    (bundle / "config.json").write_text(json.dumps(config))
    try:
        yield runtime, bundle
    finally:
        shutil.rmtree(bundle)
        parent = config["linux"]["cgroupsPath"].strip("/").split("/")[0]
        for group in Path("/sys/fs/cgroup").glob(f"**/{parent}"):
            with contextlib.suppress(OSError):  # the appliance's containers are still in it, and it removes it itself
                group.rmdir()


def _bare_start(runtime: str, bundle: Path) -> float:
    """Seconds of `create` and `start`, the terminal taken over as a shim would; the container is removed afterwards."""
    name = f"bare-{os.getpid()}"
    prefix = [runtime, "--root", str(bundle / "state")]
    null = subprocess.DEVNULL
    console = bundle / "console.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(console))
        listening.listen(1)
        began = time.monotonic()
        create: list[str | Path] = [*prefix, "create", "--bundle", bundle, "--console-socket", console, name]
        subprocess.run(create, check=True, stdin=null, stdout=null, stderr=null)
        connection, _ = listening.accept()
        _, terminals, _, _ = socket.recv_fds(connection, 4096, 1)
        subprocess.run([*prefix, "start", name], check=True, stdin=null, stdout=null, stderr=null)
        took = time.monotonic() - began
    subprocess.run([*prefix, "delete", "--force", name], check=True, stdin=null, stdout=null, stderr=null)
    connection.close()
    for terminal in terminals:
        os.close(terminal)
    console.unlink()
    return took


def console() -> Iterable[Figure]:
    """50 MiB written by a container to its console, received byte for byte, while a second viewer reads nothing; median of
    three.

    `cat` writes them, in blocks: the image's `head` would write each line by itself, and that costs more processor time
    than all that is measured here.
    """
    with container() as (appliance, api, _):
        appliance.finish(api, appliance.node(api).lxc(CT).status.start.post())
        seconds = statistics.median(asyncio.run(_stream(appliance)) for _ in range(STREAMS))
    yield Figure("console_mib_s", STREAM_BYTES / MIB / seconds, "MiB/s", 20, at_most=False)


async def _stream(appliance: Appliance) -> float:
    expected = hashlib.sha256()
    for _ in range(STREAM_BYTES // len(LINE)):
        expected.update(LINE)
    async with client(appliance) as session:
        reader, stalled = await _console(session), await _console(session)
        await _type(reader, "stty raw -echo\n")
        text = LINE.decode().strip()
        await _type(
            reader, f"yes {text} | head -c {STREAM_BYTES} > /tmp/text; echo BE''GIN; cat /tmp/text; echo E''ND\n"
        )
        seen = b""
        while b"BEGIN\n" not in seen:
            seen += await reader.receive_bytes(timeout=30)
        began = time.monotonic()
        rest = seen.split(b"BEGIN\n", 1)[1]
        digest, size = hashlib.sha256(rest), len(rest)
        while size < STREAM_BYTES:
            data = await reader.receive_bytes(timeout=30)
            data = data[: STREAM_BYTES - size]
            digest.update(data)
            size += len(data)
        seconds = time.monotonic() - began
        await reader.close()
        await stalled.close()
    if digest.digest() != expected.digest():
        raise RuntimeError("the console's bytes are not the container's")
    return seconds


async def _console(session: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
    node = (await (await session.get("/api2/json/nodes")).json())["data"][0]["node"]
    base = f"/api2/json/nodes/{node}/lxc/{CT}"
    proxy = (await (await session.post(f"{base}/termproxy")).json())["data"]
    viewer = await session.ws_connect(
        f"{base}/vncwebsocket?port={proxy['port']}&vncticket={quote(proxy['ticket'], safe='')}", max_msg_size=0
    )
    await viewer.send_str(f"{proxy['user']}:{proxy['ticket']}\n")
    return viewer


async def _type(viewer: aiohttp.ClientWebSocketResponse, text: str) -> None:
    data = text.encode()
    await viewer.send_bytes(b"0:%d:%s" % (len(data), data))


BENCHMARKS = [start, console]
