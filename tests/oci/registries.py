"""Registries to pull from: Debian's docker-registry, and one of our own that misbehaves as it is told."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from appliance.storage.oci import manifest
from tests.oci.images import TestImage

PROGRAM = "docker-registry"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def installed() -> bool:
    return shutil.which(PROGRAM) is not None


@contextmanager
def docker_registry(directory: Path, *, htpasswd: str = "") -> Iterator[str]:
    """Debian's registry on a free port of loopback, its data in `directory`; its host and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if htpasswd:
        (directory / "htpasswd").write_text(htpasswd)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    (directory / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "serve", directory / "config.yml"], stdout=log, stderr=log)
    try:
        _wait(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            assert process.poll() is None, "the registry has ended"
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the registry does not answer")


@dataclass
class FakeRegistry:
    """Serves images, with what is in `instead` in place of its own answers (by the end of the path)."""

    images: dict[str, TestImage] = field(default_factory=dict)
    instead: dict[str, Handler] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    host: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        self.ranges.append(request.headers.get("Range", ""))
        self.authorizations.append(request.headers.get("Authorization", ""))
        for ending, handler in self.instead.items():
            if request.path.endswith(ending):
                return await handler(request)
        _, kind, name = request.path.rsplit("/", 2)
        if kind == "manifests":
            for tag, each in self.images.items():
                if name in (tag, each.digest):
                    return web.Response(body=each.document, content_type=manifest.OCI_MANIFEST)
        for each in self.images.values():
            if kind == "blobs" and name in each.blobs:
                return self._blob(request, each.blobs[name])
        return web.json_response({"errors": [{"code": "NAME_UNKNOWN", "message": "none"}]}, status=404)

    @staticmethod
    def _blob(request: web.Request, data: bytes) -> web.Response:
        begin = int(request.headers.get("Range", "bytes=0-")[6:-1])
        headers = {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
        return web.Response(body=data[begin:], status=206 if "Range" in request.headers else 200, headers=headers)


@contextmanager
def no_cancellation() -> Iterator[None]:
    try:
        yield
    except (asyncio.CancelledError, ConnectionError):
        return


async def serve(registry: FakeRegistry) -> web.AppRunner:
    """Start it on a free port of loopback; the caller cleans the runner up."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", registry.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    registry.host = f"127.0.0.1:{runner.addresses[0][1]}"
    return runner
