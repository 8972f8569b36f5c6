"""Guests as the API, the pages and the command line know them: one service for virtual machines and containers.

This module puts the parts together, tells what guests there are, and opens their consoles. What is done to guests is its parts':

    configuration  settings, disks that grow   guest_configuration.py    backups       archives      guest_backup.py
    creation       create, clone, destroy      guest_creation.py         restores      made of one   guest_restore.py
    power          start … resume, all guests  guest_power.py            replacements  over a guest  guest_replacement.py
    snapshots      and the return to one       guest_snapshots.py        moves         of volumes    guest_moves.py

Below them: guest_inventory.py every guest in memory, guest_records.py what is stored, guest_runner.py starts and supervises,
guest_runtime.py what runs. When the appliance starts: guest_startup.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence

from appliance.clock import Clock
from appliance.errors import Conflict, InvalidParameter
from appliance.events import EventBus
from appliance.model.guest import GUEST_ID_MAX, GUEST_ID_MIN, GuestId, GuestKind, GuestState
from appliance.model.volume import VolumeId
from appliance.services import cluster_options, guest_config, guest_hooks
from appliance.services.access import AccessService
from appliance.services.applications import ApplicationSupervisor
from appliance.services.backup_files import BackupFiles
from appliance.services.console import ConsoleClient, ConsoleService
from appliance.services.guest_addresses import GuestAddresses
from appliance.services.guest_backup import GuestBackups
from appliance.services.guest_configuration import GuestConfiguration
from appliance.services.guest_creation import GuestCreation
from appliance.services.guest_hotplug import GuestHotplug
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_moves import GuestMoves
from appliance.services.guest_notices import GuestNotices
from appliance.services.guest_power import GuestPower
from appliance.services.guest_replacement import GuestReplacement
from appliance.services.guest_restore import GuestRestore
from appliance.services.guest_runner import Engines, GuestRunner, SharedDirectory, no_shared_directory
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.guest_sampler import GuestSampler
from appliance.services.guest_snapshots import GuestSnapshots
from appliance.services.guest_startup import GuestStartup
from appliance.services.guest_usage import RootUsage
from appliance.services.guest_view import GuestView, view
from appliance.services.guest_volumes import GuestVolumes
from appliance.services.images import ImageService
from appliance.services.learned_resolvers import LearnedResolvers
from appliance.services.live_changes import LiveChanges
from appliance.services.ports import LogLine
from appliance.services.ports.application_logs import LogPiece, LogStore
from appliance.services.ports.ct_trees import CtProvisioner
from appliance.services.ports.network import NetworkBackend
from appliance.services.ports.running_guest import RunningGuest
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskService
from appliance.state.store import Store
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)


class GuestService:
    """See the module's docstring. What changes guests returns a UPID unless it says otherwise."""

    def __init__(
        self,
        *,
        store: Store,
        events: EventBus,
        clock: Clock,
        tasks: TaskService,
        access: AccessService,
        storage: StorageService,
        network: NetworkBackend,
        consoles: ConsoleService,
        engines: Engines,
        provisioner: CtProvisioner,
        images: ImageService | None = None,
        app_logs: LogStore | None = None,
        node: str,
        scope: TaskScope,
        new_mac: Callable[[frozenset[str]], str],
        shared_directory: SharedDirectory = no_shared_directory,
    ) -> None:
        self._store, self._clock, self._scope = store, clock, scope
        self._access, self._storage, self._consoles, self._engines = access, storage, consoles, engines
        self._inventory = GuestInventory(store, clock, new_mac)
        volumes = GuestVolumes(storage, provisioner)
        self._notices = GuestNotices(tasks, clock)
        self.applications = ApplicationSupervisor(
            store=store, events=events, clock=clock, scope=scope, logs=app_logs, launch=self._launch_application
        )
        self._resolvers = LearnedResolvers(network, scope, self._inventory.find)
        self._runner = GuestRunner(
            engines=engines,
            storage=storage,
            network=network,
            consoles=consoles,
            events=events,
            clock=clock,
            scope=scope,
            before_start=self._before_start,
            started=self._has_started,
            ended=self.applications.ended,
            shared_directory=shared_directory,
            tell_end=self._notices.crashed,
        )
        self.configuration = GuestConfiguration(
            inventory=self._inventory,
            runner=self._runner,
            volumes=volumes,
            storage=storage,
            tasks=tasks,
            events=events,
            live=LiveChanges(network),
            hotplug=GuestHotplug(storage=storage, network=network),
        )
        self.creation = GuestCreation(
            inventory=self._inventory,
            runner=self._runner,
            volumes=volumes,
            access=access,
            storage=storage,
            provisioner=provisioner,
            images=images,
            tasks=tasks,
            events=events,
            clock=clock,
            node=node,
        )
        self.snapshots = GuestSnapshots(
            inventory=self._inventory, runner=self._runner, storage=storage, tasks=tasks, events=events, clock=clock
        )
        self.backups = GuestBackups(
            inventory=self._inventory,
            runner=self._runner,
            snapshots=self.snapshots,
            storage=storage,
            provisioner=provisioner,
            tasks=tasks,
            clock=clock,
            node=node,
        )
        self.moves = GuestMoves(
            inventory=self._inventory,
            runner=self._runner,
            volumes=volumes,
            storage=storage,
            provisioner=provisioner,
            tasks=tasks,
            events=events,
            clock=clock,
        )
        self.backup_files = BackupFiles(storage, provisioner)
        self.restores = GuestRestore(
            inventory=self._inventory,
            runner=self._runner,
            creation=self.creation,
            volumes=volumes,
            storage=storage,
            provisioner=provisioner,
            clock=clock,
        )
        self.replacements = GuestReplacement(
            inventory=self._inventory,
            runner=self._runner,
            restores=self.restores,
            snapshots=self.snapshots,
            volumes=volumes,
            tasks=tasks,
            events=events,
        )
        self.power = GuestPower(inventory=self._inventory, runner=self._runner, tasks=tasks, clock=clock)
        self._startup = GuestStartup(
            store=store,
            inventory=self._inventory,
            runner=self._runner,
            volumes=volumes,
            creation=self.creation,
            snapshots=self.snapshots,
            moves=self.moves,
            power=self.power,
            applications=self.applications,
            node=node,
        )
        self._sampler = GuestSampler(
            lambda: self._inventory, network=network, events=events, clock=clock, tell_oom=self._notices.out_of_memory
        )
        self._addresses = GuestAddresses(network, clock)

    # --- start and end of the appliance -------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read the guests, undo or finish what was interrupted, find what really runs, and begin to watch it."""
        await self._startup.load()
        self._scope.start(self._startup.tell_unreferenced(), name="volumes nobody names")
        self._scope.start(self._sampler.run(), name="guest figures")
        self._scope.start(self._addresses.watch(), name="guest addresses")
        usage = RootUsage(lambda: self._inventory, storage=self._storage, clock=self._clock)
        self._scope.start(usage.run(), name="sizes of roots")

    async def start_onboot(self) -> None:
        """See `GuestStartup.start_onboot`."""
        await self._startup.start_onboot()

    async def close(self) -> None:
        """Let go of the guests that run; they go on."""
        for guest in self._inventory:
            if guest.running is not None:
                await guest.running.detach()
        for engine in self._engines.vm:
            await engine.close()
        await self._engines.ct.close()

    @property
    def any_running(self) -> bool:
        """Whether any guest of this node runs."""
        return any(guest.state is not GuestState.STOPPED for guest in self._inventory)

    def running_slots(self) -> set[tuple[GuestId, str]]:
        """(guest, "net0") of every NIC of the guests that run: the ports to keep."""
        return {
            (guest.guest_id, key)
            for guest in self._inventory
            if guest.state is not GuestState.STOPPED
            for key in guest.stored.record.config
            if key.startswith("net") and key[3:].isdigit()
        }

    # --- reading ------------------------------------------------------------------------------------------------------

    def list(self, kind: GuestKind | None = None) -> Sequence[GuestView]:
        """Every guest, by VMID."""
        now = self._clock.now()
        return [self._view(guest, now) for guest in self._inventory if kind is None or guest.kind is kind]

    def get(self, guest_id: int, kind: GuestKind | None = None) -> GuestView:
        """Raises `NotFound`."""
        return self._view(self._inventory.get(guest_id, kind), self._clock.now())

    def config(self, guest_id: int, kind: GuestKind | None = None) -> tuple[dict[str, str], str]:
        """The stored configuration and its digest. Raises `NotFound`."""
        config = self._inventory.get(guest_id, kind).stored.record.config
        return dict(config), guest_config.digest(config)

    def running(self, guest_id: int, kind: GuestKind | None = None) -> RunningGuest:
        """The engine's side of a running guest. Raises `NotFound`, `Conflict` when it does not run."""
        guest = self._inventory.get(guest_id, kind)
        if guest.running is None:
            raise Conflict(f"{guest.kind.prefix.upper()} {guest_id} not running")
        return guest.running

    async def next_id(self, wanted: int | None = None) -> int:
        """The lowest free VMID of the cluster's `next-id` range, or `wanted` if it is free.

        Raises `InvalidParameter` when `wanted` is taken or out of range, `Conflict` when none is free.
        """
        if wanted is None:
            bounds = await cluster_options.next_id_range(self._store)
            return self._inventory.table.lowest_free_id(lower=bounds.lower, upper=bounds.upper)
        if not GUEST_ID_MIN <= wanted <= GUEST_ID_MAX:
            raise InvalidParameter({"vmid": f"must be from {GUEST_ID_MIN} to {GUEST_ID_MAX}"})
        if wanted in self._inventory:
            raise InvalidParameter({"vmid": f"VM {wanted} already exists"})
        return wanted

    def named_volumes(self) -> frozenset[VolumeId]:
        """Every volume that a configuration or a snapshot names."""
        return self._inventory.volumes_of_others(None)

    # --- consoles -----------------------------------------------------------------------------------------------------

    async def attach_console(self, guest_id: int, name: str) -> ConsoleClient:
        """Raises `NotFound`, `Conflict` when it does not run."""
        return await self._consoles.attach(self.running(guest_id), name)

    async def open_display(self, guest_id: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new RFB connection. Raises `NotFound`, `Conflict` when it does not run."""
        return await self.running(guest_id).open_display()

    def application_logs(
        self, guest_id: int, *, tail: int | None, follow: Callable[[], bool]
    ) -> AsyncGenerator[Sequence[LogPiece], None]:
        """What an application container has said, followed for as long as `follow` says so. Raises `NotFound`; and when it
        is read, `Unsupported`, `HostError`."""
        return self.applications.logs(self._inventory.get(guest_id, GuestKind.LXC), tail=tail, follow=follow)

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _launch_application(self, guest: GuestRuntime) -> None:
        await self._runner.launch(guest, lambda line: log.info("%s: %s", guest.label, line))

    def _has_started(self, guest: GuestRuntime, running: RunningGuest) -> None:
        self.applications.started(guest, running)
        self._resolvers.started(guest, running)

    async def _before_start(self, guest: GuestRuntime, log_line: LogLine) -> None:
        script = guest.stored.record.config.get("hookscript", "")
        await guest_hooks.run(self._storage, script, guest.guest_id, guest_hooks.PRE_START, log_line)
        await self.configuration.before_start(guest, log_line)

    def _view(self, guest: GuestRuntime, now: float) -> GuestView:
        summary = self._inventory.summary(guest)
        lock = guest.stored.record.busy or guest.stored.record.config.get("lock") or None
        return view(
            guest,
            summary,
            now=now,
            lock=lock,
            pool=self._access.pool_of(guest.guest_id),
            addresses=self._addresses.of(summary.macs),
        )
