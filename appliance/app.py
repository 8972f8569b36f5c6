"""The composition root: builds the layers from the bottom up in named stages, and takes them down in reverse.

No other module knows concrete classes of more than its own layer. Each stage has a time limit for its end; a stage that
does not end in time is named in the log and left behind, so that the process always ends. Guests are never stopped by
the appliance's end: they are let go of, and found again at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from appliance.clock import SystemClock
from appliance.config import Config
from appliance.ct.engine import CtEngine
from appliance.errors import ApplianceError, HostError
from appliance.events import EventBus
from appliance.kernel.lockfile import LockFile
from appliance.kernel.sd_notify import notify
from appliance.network.backend import BridgeNetwork
from appliance.qemu.engine import QemuEngine
from appliance.services.access import AccessService
from appliance.services.audit import AuditLog
from appliance.services.console import ConsoleService
from appliance.services.guest_runner import Engines
from appliance.services.guests import GuestService
from appliance.services.network import NetworkService
from appliance.services.node import NodeService
from appliance.services.pki import Pki
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskService
from appliance.services.templates import TemplateService
from appliance.state.sqlite import SqliteStore
from appliance.tasks import TaskScope
from appliance.version import VERSION
from appliance.web.server import WebServer
from appliance.web.services import Services

log = logging.getLogger(__name__)

Closer = Callable[[], Awaitable[None]]


class App:
    """One appliance process. `start` raises `ApplianceError` naming the stage's object; `close` is always safe."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._closers: list[tuple[str, float, Closer]] = []

    async def start(self) -> None:
        """All stages, in order; returns when the appliance listens."""
        began = time.monotonic()
        config = self._config
        clock, events = SystemClock(), EventBus()
        scope = TaskScope("appliance")
        self._on_close("background tasks", 15, scope.close)
        await self._prepare_directories()

        store = await SqliteStore.open(config.data_dir / "state.db", clock=clock)
        self._on_close("store", 10, store.close)
        audit = await AuditLog.open(config.data_dir / "audit.db", clock=clock)
        self._on_close("audit log", 5, audit.close)
        access = AccessService(store, events, clock, data_dir=config.data_dir, audit=audit)
        await access.start()

        services = Services(
            config=config, clock=clock, events=events, store=store, access=access, audit=audit,
        )  # fmt: skip
        server = WebServer(services)
        await server.start()
        self._on_close("web server", 10, server.close)
        notify("READY=1")
        log.info("appliance %s listens on %s after %.2f s", VERSION, server.address, time.monotonic() - began)

    async def close(self) -> None:
        """Everything that was started, in reverse, each within its limit."""
        notify("STOPPING=1")
        while self._closers:
            name, limit_s, closer = self._closers.pop()
            try:
                async with asyncio.timeout(limit_s):
                    await closer()
            except TimeoutError:
                log.error("%s did not end within %g s", name, limit_s)
            except ApplianceError as error:
                log.error("%s: %s", name, error)

    def _on_close(self, name: str, limit_s: float, closer: Closer) -> None:
        self._closers.append((name, limit_s, closer))

    async def _prepare_directories(self) -> None:
        def prepare() -> LockFile:
            for directory in (self._config.data_dir, self._config.run_dir):
                _make_directory(directory)
            return LockFile(self._config.data_dir / "lock", purpose=f"data directory {self._config.data_dir}")

        lock = await asyncio.to_thread(prepare)

        async def release() -> None:
            await asyncio.to_thread(lock.close)

        self._on_close("data directory lock", 2, release)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HostError.from_os_error(error, f"create {path}") from error
