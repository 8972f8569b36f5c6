"""The composition root: builds the layers from the bottom up in named stages, and takes them down in reverse.

No other module knows concrete classes of more than its own layer. Each stage has a time limit for its end; a stage that
does not end in time is named in the log and left behind, so that the process always ends. Guests are never stopped by
the appliance's end: they are let go of, and found again at the next start.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from appliance.clock import SystemClock
from appliance.config import DEFAULT_DATA_DIR, Config
from appliance.ct.engine import CtEngine
from appliance.ct.image_layers import ImageLayers
from appliance.errors import ApplianceError, HostError
from appliance.events import EventBus
from appliance.heartbeat import Heartbeat
from appliance.kernel.lockfile import LockFile
from appliance.kernel.sd_notify import ServiceManager
from appliance.model.guest import Capabilities
from appliance.network.backend import NetworkBackend
from appliance.qemu.engine import QemuEngine
from appliance.services import server_identity, server_names
from appliance.services.access import AccessService
from appliance.services.audit import AuditLog
from appliance.services.console import ConsoleService
from appliance.services.directory_mappings import DirectoryMappings
from appliance.services.guest_runner import Engines
from appliance.services.guests import GuestService
from appliance.services.image_build import ImageBuilder
from appliance.services.images import ImageService
from appliance.services.metrics import MetricsService
from appliance.services.network import NetworkService
from appliance.services.node import NodeService
from appliance.services.server_identity import ServerIdentity
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskService
from appliance.services.templates import TemplateService
from appliance.state import data_format
from appliance.state.sqlite import SqliteStore
from appliance.tasks import TaskScope
from appliance.version import DATA_FORMAT, VERSION
from appliance.vmm.engine import NativeEngine
from appliance.web.application import RESOURCES, build_application
from appliance.web.pages.render import RENDERER
from appliance.web.server import SOCKET_NAME, Server
from appliance.web.services import Services
from appliance.web.static import StaticFiles
from appliance.web.table import ApiTable

log = logging.getLogger(__name__)

Closer = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What every service stands on: time, events, the store, the tasks, who may do what."""

    clock: SystemClock
    events: EventBus
    scope: TaskScope
    store: SqliteStore
    audit: AuditLog
    access: AccessService
    tasks: TaskService


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host's side: storages, network, figures, consoles and the engines."""

    storage: StorageService
    templates: TemplateService
    images: ImageService
    builder: ImageBuilder
    links: NetworkBackend
    network: NetworkService
    node: NodeService
    consoles: ConsoleService
    native: NativeEngine
    qemu: QemuEngine
    containers: CtEngine
    directory_mappings: DirectoryMappings


class App:
    """One appliance process. `start` raises `ApplianceError` naming the stage's object; `close` is always safe."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._clock = SystemClock()
        self._heartbeat = Heartbeat(ServiceManager.take(), self._clock)
        self._closers: list[tuple[str, float, Closer]] = []
        self._engines: Sequence[Capabilities] = ()

    async def start(self) -> None:
        """All stages, in order; returns when the appliance listens."""
        began = time.monotonic()
        scope = TaskScope("appliance")
        self._on_close("background tasks", 15, scope.close)
        scope.start(self._heartbeat.run(), name="heartbeat")
        await self._prepare_directories()
        # what needs nothing of the others goes on beside them
        identity = scope.start(asyncio.to_thread(_server_identity, self._config), name="server certificate")
        table = scope.start(asyncio.to_thread(ApiTable, RESOURCES), name="table of the API")
        clock = self._clock
        qemu = QemuEngine(self._config.run_dir, scope, clock)
        native = NativeEngine(self._config.run_dir, self._config.data_dir, scope, clock)
        containers = CtEngine(self._config.run_dir, self._config.data_dir, scope, clock)
        probes = scope.start(_probe((native, qemu, containers)), name="probe the engines")

        ground = await self._start_ground(clock, scope)
        host = await self._start_host(ground, native, qemu, containers)
        self._engines = await probes
        guests = await self._start_guests(ground, host)
        metrics = await self._start_metrics(ground, host, guests)
        static = await asyncio.to_thread(StaticFiles.scan, self._config.static_dir)
        app = build_application(self._services(ground, host, guests, metrics), static=static, table=await table)
        port = await self._listen(app, (await identity).context())
        address, took = f"https://{self._config.listen_host}:{port}", time.monotonic() - began
        self._heartbeat.serving(address)
        scope.start(app[RENDERER].ready(), name="templates of the pages")
        log.info("appliance %s listens on %s after %.2f s", VERSION, address, took)
        await guests.start_onboot()

    async def _start_ground(self, clock: SystemClock, scope: TaskScope) -> Ground:
        config, events = self._config, EventBus()
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
        return Ground(clock=clock, events=events, scope=scope, store=store, audit=audit, access=access, tasks=tasks)

    async def _start_host(self, ground: Ground, native: NativeEngine, qemu: QemuEngine, containers: CtEngine) -> Host:
        config, store, scope = self._config, ground.store, ground.scope
        storage = StorageService(store, ground.events, ground.tasks, node=config.node_name, data_dir=config.data_dir)
        await storage.start()
        self._on_close("storage", 10, storage.close)
        links = NetworkBackend(
            config.run_dir,
            scope,
            ground.clock,
            instance=str(config.data_dir),
            bridge=config.bridge,
            only_one=config.data_dir == DEFAULT_DATA_DIR,
        )
        network = NetworkService(links, store, scope, bridge=config.bridge)
        await network.start()
        self._on_close("network", 20, network.close)
        node = NodeService(ground.events, ground.clock, scope)
        await node.start()
        consoles = ConsoleService(scope)
        self._on_close("consoles", 5, consoles.close)
        images = ImageService(
            storage,
            ground.tasks,
            ground.events,
            ground.clock,
            ImageLayers(),
            data_dir=config.data_dir,
            architecture=containers.architecture,
        )
        images.start()
        self._on_close("images", 5, images.close)
        builder = ImageBuilder(images, storage, ground.tasks, containers.provisioner, data_dir=config.data_dir)
        await builder.start()
        return Host(
            storage=storage,
            images=images,
            builder=builder,
            templates=TemplateService(storage, ground.tasks),
            links=links,
            network=network,
            node=node,
            consoles=consoles,
            native=native,
            qemu=qemu,
            containers=containers,
            directory_mappings=DirectoryMappings(store, node=config.node_name, data_dir=config.data_dir),
        )

    async def _start_guests(self, ground: Ground, host: Host) -> GuestService:
        guests = GuestService(
            store=ground.store,
            events=ground.events,
            clock=ground.clock,
            tasks=ground.tasks,
            access=ground.access,
            storage=host.storage,
            network=host.links,
            consoles=host.consoles,
            engines=Engines(vm=(host.native, host.qemu), ct=host.containers),
            provisioner=host.containers.provisioner,
            images=host.images,
            app_logs=host.containers.logs,
            node=self._config.node_name,
            scope=ground.scope,
            new_mac=host.network.new_mac,
            shared_directory=host.directory_mappings.directory,
        )
        self._on_close("guests", 60, guests.close)  # native ones are saved, at the speed of the disk
        await guests.load()
        # tasks end while all they work with, and undo with, is still there
        self._on_close("tasks that run", 30, ground.tasks.close)
        if not host.network.problem:
            await host.links.reconcile(guests.running_slots())
        return guests

    async def _start_metrics(self, ground: Ground, host: Host, guests: GuestService) -> MetricsService:
        metrics = MetricsService(
            self._config.data_dir / "metrics.db",
            guests=guests,
            node=host.node,
            storage=host.storage,
            node_name=self._config.node_name,
            events=ground.events,
            clock=ground.clock,
            scope=ground.scope,
        )
        await metrics.start()
        self._on_close("figures over time", 10, metrics.close)
        return metrics

    def _services(self, ground: Ground, host: Host, guests: GuestService, metrics: MetricsService) -> Services:
        return Services(
            config=self._config,
            clock=ground.clock,
            events=ground.events,
            store=ground.store,
            tasks=ground.tasks,
            access=ground.access,
            audit=ground.audit,
            guests=guests,
            storage=host.storage,
            network=host.network,
            node=host.node,
            metrics=metrics,
            consoles=host.consoles,
            templates=host.templates,
            engines=self._engines,
            directory_mappings=host.directory_mappings,
            images=host.images,
            builder=host.builder,
        )

    async def _listen(self, app: web.Application, tls: ssl.SSLContext) -> int:
        """The TCP port that is served."""
        config, server = self._config, Server(app)
        self._on_close("web server", 15, server.close)
        socket_path = config.run_dir / SOCKET_NAME
        await server.start(host=config.listen_host, port=config.listen_port, tls=tls, socket_path=socket_path)
        return server.port

    async def close(self) -> None:
        """Everything that was started, in reverse, each within its limit."""
        self._heartbeat.stopping()
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
            lock = LockFile(self._config.data_dir / "lock", purpose=f"data directory {self._config.data_dir}")
            try:
                data_format.claim(self._config.data_dir, DATA_FORMAT, version=VERSION)
                _make_directory(self._config.run_dir, 0o711)  # dnsmasq reads its files there as nobody
            except BaseException:
                lock.close()
                raise
            return lock

        lock = await asyncio.to_thread(prepare)

        async def release() -> None:
            await asyncio.to_thread(lock.close)

        self._on_close("data directory lock", 2, release)


def _make_directory(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise HostError.from_os_error(error, f"create {path}") from error


async def _probe(engines: Sequence[NativeEngine | QemuEngine | CtEngine]) -> Sequence[Capabilities]:
    """Ask each engine what it can do here, at the same time, and log what is missing: the appliance starts anyway."""
    answers = await asyncio.gather(*(engine.probe() for engine in engines))
    for found in answers:
        log.info("engine %s: %s", found.engine, f"version {found.version}" if found.usable else "cannot start guests")
        for feature, reason in found.missing.items():
            log.info("engine %s: no %s: %s", found.engine, feature, reason)
    return answers


def _server_identity(config: Config) -> ServerIdentity:
    directory, now = config.data_dir / "pki", datetime.datetime.now(datetime.UTC)
    names = server_names.of_this_host(config.node_name, config.listen_host)
    known = server_identity.recall(directory, names, now)
    if known is not None:
        return known
    from appliance.services.pki import ensure_server_identity  # X.509 takes a tenth of a second to import

    return ensure_server_identity(directory, names, now)
