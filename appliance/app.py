"""The composition root: builds the layers from the bottom up in named stages, and takes them down in reverse.

No other module knows concrete classes of more than its own layer. Each stage has a time limit for its end; a stage that
does not end in time is named in the log and left behind, so that the process always ends. Guests are never stopped by
the appliance's end: they are let go of, and found again at the next start.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from appliance.clock import SystemClock
from appliance.config import DEFAULT_DATA_DIR, Config
from appliance.ct.engine import CtEngine
from appliance.errors import ApplianceError, HostError
from appliance.events import EventBus
from appliance.kernel.lockfile import LockFile
from appliance.kernel.sd_notify import ServiceManager
from appliance.network.backend import NetworkBackend
from appliance.qemu.engine import QemuEngine
from appliance.services import server_identity
from appliance.services.access import AccessService
from appliance.services.audit import AuditLog
from appliance.services.console import ConsoleService
from appliance.services.guest_runner import Engines
from appliance.services.guests import GuestService
from appliance.services.network import NetworkService
from appliance.services.node import NodeService
from appliance.services.server_identity import ServerIdentity
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskService
from appliance.services.templates import TemplateService
from appliance.state.sqlite import SqliteStore
from appliance.tasks import TaskScope
from appliance.version import VERSION
from appliance.web.application import RESOURCES, build_application
from appliance.web.pages.render import RENDERER
from appliance.web.server import Server
from appliance.web.services import Services
from appliance.web.static import StaticFiles
from appliance.web.table import ApiTable

log = logging.getLogger(__name__)

Closer = Callable[[], Awaitable[None]]


class App:
    """One appliance process. `start` raises `ApplianceError` naming the stage's object; `close` is always safe."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._manager = ServiceManager.take()
        self._closers: list[tuple[str, float, Closer]] = []

    async def start(self) -> None:
        """All stages, in order; returns when the appliance listens."""
        began = time.monotonic()
        config, clock, events = self._config, SystemClock(), EventBus()
        scope = TaskScope("appliance")
        self._on_close("background tasks", 15, scope.close)
        await self._prepare_directories()
        identity = scope.start(asyncio.to_thread(_server_identity, config), name="server certificate")
        qemu = QemuEngine(config.run_dir, scope, clock)
        containers = CtEngine(config.run_dir, config.data_dir, scope, clock)
        probes = scope.start(_probe((qemu, containers)), name="probe the engines")
        table = scope.start(asyncio.to_thread(ApiTable, RESOURCES), name="table of the API")

        store = await SqliteStore.open(config.data_dir / "state.db", clock)
        self._on_close("store", 10, store.close)
        audit = AuditLog(config.data_dir / "audit.log", clock, store)
        await audit.start()
        self._on_close("audit log", 5, audit.close)
        access = AccessService(
            store, events, clock, data_dir=config.data_dir, audit=audit, admin_password_file=config.admin_password_file
        )
        await access.start()
        self._on_close("access", 5, access.close)
        tasks = TaskService(store, events, clock, directory=config.data_dir / "tasks", node=config.node_name)
        await tasks.start()
        self._on_close("tasks", 30, tasks.close)
        storage = StorageService(store, events, tasks, node=config.node_name, data_dir=config.data_dir)
        await storage.start()
        self._on_close("storage", 10, storage.close)
        templates = TemplateService(storage, tasks)
        links = NetworkBackend(
            config.run_dir,
            scope,
            clock,
            instance=str(config.data_dir),
            bridge=config.bridge,
            only_one=config.data_dir == DEFAULT_DATA_DIR,
        )
        network = NetworkService(links, store, scope, bridge=config.bridge)
        await network.start()
        self._on_close("network", 20, network.close)
        node = NodeService(events, clock, scope)
        await node.start()
        consoles = ConsoleService(scope)
        self._on_close("consoles", 5, consoles.close)
        await probes
        guests = GuestService(
            store=store,
            events=events,
            clock=clock,
            tasks=tasks,
            access=access,
            storage=storage,
            network=links,
            consoles=consoles,
            engines=Engines(vm=(qemu,), ct=containers),
            provisioner=containers,
            node=config.node_name,
            scope=scope,
            new_mac=network.new_mac,
        )
        self._on_close("guests", 20, guests.close)
        await guests.load()
        self._on_close("tasks that run", 30, tasks.close)  # while all they work with, and undo with, is still there
        if not network.problem:
            await links.reconcile(guests.running_slots())

        services = Services(
            config=config,
            clock=clock,
            events=events,
            store=store,
            tasks=tasks,
            access=access,
            audit=audit,
            guests=guests,
            storage=storage,
            network=network,
            node=node,
            consoles=consoles,
            templates=templates,
        )
        tls = (await identity).context()
        static = await asyncio.to_thread(StaticFiles.scan, config.static_dir)
        app = build_application(services, static=static, table=await table)
        server = Server(app)
        self._on_close("web server", 15, server.close)
        await server.start(
            host=config.listen_host, port=config.listen_port, tls=tls, socket_path=config.run_dir / "api.sock"
        )
        self._manager.notify("READY=1")
        scope.start(app[RENDERER].ready(), name="templates of the pages")
        log.info(
            "appliance %s listens on https://%s:%d after %.2f s",
            VERSION,
            config.listen_host,
            server.port,
            time.monotonic() - began,
        )
        await guests.start_onboot()

    async def close(self) -> None:
        """Everything that was started, in reverse, each within its limit."""
        self._manager.notify("STOPPING=1")
        while self._closers:
            name, limit_s, closer = self._closers.pop()
            try:
                async with asyncio.timeout(limit_s):
                    await closer()
            except TimeoutError:
                log.error("%s did not end within %g s", name, limit_s)
            except (ApplianceError, OSError) as error:  # of one stage: the others must still end
                log.error("%s: %s", name, error)

    def _on_close(self, name: str, limit_s: float, closer: Closer) -> None:
        self._closers.append((name, limit_s, closer))

    async def _prepare_directories(self) -> None:
        def prepare() -> LockFile:
            _make_directory(self._config.data_dir, 0o700)
            _make_directory(self._config.run_dir, 0o711)  # dnsmasq reads its files there as nobody
            return LockFile(self._config.data_dir / "lock", purpose=f"data directory {self._config.data_dir}")

        lock = await asyncio.to_thread(prepare)

        async def release() -> None:
            await asyncio.to_thread(lock.close)

        self._on_close("data directory lock", 2, release)


def _make_directory(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise HostError.from_os_error(error, f"create {path}") from error


async def _probe(engines: Sequence[QemuEngine | CtEngine]) -> None:
    """Ask each engine what it can do here, at the same time, and log what is missing: the appliance starts anyway."""
    for found in await asyncio.gather(*(engine.probe() for engine in engines)):
        log.info("engine %s: %s", found.engine, f"version {found.version}" if found.usable else "cannot start guests")
        for feature, reason in found.missing.items():
            log.info("engine %s: no %s: %s", found.engine, feature, reason)


def _server_identity(config: Config) -> ServerIdentity:
    directory, now = config.data_dir / "pki", datetime.datetime.now(datetime.UTC)
    names = [config.node_name, socket.gethostname(), config.listen_host]
    known = server_identity.recall(directory, names, now)
    if known is not None:
        return known
    from appliance.services.pki import ensure_server_identity  # X.509 takes a tenth of a second to import

    return ensure_server_identity(directory, names, now)
