"""Guests as the API, the pages and the command line know them: one service for virtual machines and containers.

guests.py               this: reading, consoles; start and end of the service
guest_creation.py       create, clone, destroy          guest_power.py   start … resume, start order
guest_configuration.py  settings, disks that grow        guest_snapshots.py  snapshots, returns
guest_backup.py         archives of guests                guest_restore.py    guests made again from one
guest_moves.py          volumes to another storage
guest_runner.py         starts, supervises, ends       guest_runtime.py  what runs
guest_records.py        what is stored
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import ApplianceError, Conflict, HostError, InvalidParameter, Unsupported
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
from appliance.state.store import Put, Store
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class GuestService:
    """See the module's docstring. Methods that change guests return a UPID unless they say otherwise."""

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
        self._store, self._events, self._clock, self._tasks = store, events, clock, tasks
        self._access, self._storage, self._network, self._consoles = access, storage, network, consoles
        self._engines, self._node, self._scope = engines, node, scope
        self._inventory = GuestInventory(store, clock, new_mac)
        self._volumes = GuestVolumes(storage, provisioner)
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
        self._configuration = GuestConfiguration(
            inventory=self._inventory,
            runner=self._runner,
            volumes=self._volumes,
            storage=storage,
            tasks=tasks,
            events=events,
            live=LiveChanges(network),
            hotplug=GuestHotplug(storage=storage, network=network),
        )
        self._creation = GuestCreation(
            inventory=self._inventory,
            runner=self._runner,
            volumes=self._volumes,
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
            volumes=self._volumes,
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
            creation=self._creation,
            volumes=self._volumes,
            storage=storage,
            provisioner=provisioner,
            clock=clock,
        )
        self.replacements = GuestReplacement(
            inventory=self._inventory,
            runner=self._runner,
            restores=self.restores,
            snapshots=self.snapshots,
            volumes=self._volumes,
            tasks=tasks,
            events=events,
        )
        self._power = GuestPower(inventory=self._inventory, runner=self._runner, tasks=tasks, clock=clock)
        self._sampler = GuestSampler(
            lambda: self._inventory, network=network, events=events, clock=clock, tell_oom=self._notices.out_of_memory
        )
        self._addresses = GuestAddresses(network, clock)

    # --- start and end of the appliance -------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read the guests, undo or finish what was interrupted, and find what really runs."""
        await self._inventory.load()
        await self._creation.recover()
        await self.applications.load(self._inventory)
        for guest in self._inventory:
            try:
                await self._runner.adopt(guest)
            except ApplianceError as error:
                log.error("%s: cannot tell whether it runs: %s", guest.label, error)
        for guest in self._inventory:
            try:
                await self.snapshots.recover(guest)
                await self.moves.recover(guest)
            except ApplianceError as error:
                log.error("%s: %s", guest.label, error)
        for guest_id in sorted(await self._runner.running_ids() - {guest.guest_id for guest in self._inventory}):
            log.error("guest %d runs on this host, but is not defined here; it is left alone", guest_id)
        self._scope.start(self._tell_unreferenced(), name="volumes nobody names")
        self._scope.start(self._sampler.run(), name="guest figures")
        self._scope.start(self._addresses.watch(), name="guest addresses")
        usage = RootUsage(lambda: self._inventory, storage=self._storage, clock=self._clock)
        self._scope.start(usage.run(), name="sizes of roots")

    async def start_onboot(self) -> None:
        """Start the `onboot` guests, once a boot of the host: an appliance that restarts starts nothing.

        What goes wrong is logged: it is no reason for the appliance not to run.
        """
        await self.applications.start_with_appliance(self._inventory)
        try:
            await self._start_with_host()
        except ApplianceError as error:
            log.error("starting guests with the host: %s", error)

    async def _start_with_host(self) -> None:
        try:
            boot_id = await asyncio.to_thread(BOOT_ID.read_bytes)
        except OSError as error:
            raise HostError.from_os_error(error, f"read {BOOT_ID}") from error
        key = f"nodes/{self._node}/boot"
        seen = await self._store.get(key)
        if seen is not None and seen.value == boot_id:
            return
        if any(self._inventory.summary(guest).onboot for guest in self._inventory):
            await self._power.start_all(user="root@pam")
        await self._store.txn([], [Put(key, boot_id)])  # last: starting what runs already does no harm

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

    # --- configuration ------------------------------------------------------------------------------------------------

    async def update_config(
        self,
        kind: GuestKind,
        guest_id: int,
        *,
        put: Mapping[str, object],
        delete: Sequence[str],
        digest: str | None,
        user: str,
        skip_lock: bool = False,
        log_line: LogLine = log.info,
    ) -> None:
        """Write keys and delete keys; makes and removes volumes as they ask. Returns when done."""
        await self._configuration.update(
            kind, guest_id, put=put, delete=delete, digest=digest, user=user, skip_lock=skip_lock, log_line=log_line
        )

    def pending(self, kind: GuestKind, guest_id: int) -> Sequence[guest_config.Pending]:
        """What waits for the next start of a guest that runs. Raises `NotFound`."""
        return self._configuration.pending(kind, guest_id)

    def reverting(self, kind: GuestKind, guest_id: int, keys: Sequence[str]) -> tuple[dict[str, str], Sequence[str]]:
        """What to write and delete so that these keys are what runs. Raises `NotFound`, `InvalidParameter`."""
        return self._configuration.reverting(kind, guest_id, keys)

    async def make_template(self, kind: GuestKind, guest_id: int, *, user: str) -> str:
        """Turn a stopped guest into a template: never started again, only cloned."""
        return await self._configuration.make_template(kind, guest_id, user=user)

    async def resize(
        self, kind: GuestKind, guest_id: int, *, slot: str, size: str, user: str, skip_lock: bool = False
    ) -> str:
        """Grow the disk in `slot` to `size` ("32G", "+5G"), live where it runs."""
        return await self._configuration.resize(kind, guest_id, slot=slot, size=size, user=user, skip_lock=skip_lock)

    # --- making and removing, power: see guest_creation.py and guest_power.py --------------------------------------------

    async def create(
        self,
        kind: GuestKind,
        guest_id: int,
        params: Mapping[str, object],
        *,
        user: str,
        start: bool = False,
        pool: str | None = None,
        template: str | None = None,
        password: str | None = None,
        ssh_keys: Sequence[str] = (),
    ) -> str:
        return await self._creation.create(
            kind,
            GuestId(guest_id),
            params,
            user=user,
            start=start,
            pool=pool,
            template=template,
            password=password,
            ssh_keys=ssh_keys,
        )

    async def clone(
        self,
        kind: GuestKind,
        guest_id: int,
        *,
        new_id: int,
        name: str | None = None,
        description: str | None = None,
        full: bool = True,
        storage: str | None = None,
        pool: str | None = None,
        user: str,
        snapshot: str = "",
    ) -> str:
        return await self._creation.clone(
            kind,
            GuestId(guest_id),
            GuestId(new_id),
            name=name,
            description=description,
            full=full,
            storage=storage,
            pool=pool,
            user=user,
            snapshot=snapshot,
        )

    async def destroy(
        self, kind: GuestKind, guest_id: int, *, user: str, unreferenced: bool = False, skip_lock: bool = False
    ) -> str:
        """Remove a stopped guest, its volumes, its pool membership and the permissions on it.

        With `unreferenced`, volumes that carry its id and are named by no configuration go, too.
        """
        return await self._creation.destroy(
            kind, GuestId(guest_id), unreferenced=unreferenced, user=user, skip_lock=skip_lock
        )

    async def start(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        return await self._power.start(kind, guest_id, user=user, skip_lock=skip_lock)

    async def stop(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        return await self._power.stop(kind, guest_id, user=user, skip_lock=skip_lock)

    async def shutdown(
        self,
        kind: GuestKind,
        guest_id: int,
        *,
        user: str,
        timeout_s: float | None = None,
        force_stop: bool = False,
        skip_lock: bool = False,
    ) -> str:
        return await self._power.shutdown(
            kind, guest_id, timeout_s=timeout_s, force=force_stop, user=user, skip_lock=skip_lock
        )

    async def reboot(self, kind: GuestKind, guest_id: int, *, user: str, timeout_s: float | None = None) -> str:
        return await self._power.reboot(kind, guest_id, timeout_s=timeout_s, user=user)

    async def reset(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        if kind is GuestKind.LXC:
            raise Unsupported(f"ct {guest_id}: containers cannot be reset; stop and start it")
        return await self._power.reset(kind, guest_id, user=user, skip_lock=skip_lock)

    async def suspend(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        return await self._power.suspend(kind, guest_id, user=user, skip_lock=skip_lock)

    async def resume(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        return await self._power.resume(kind, guest_id, user=user, skip_lock=skip_lock)

    async def start_all(self, *, user: str, guest_ids: Sequence[int] | None = None, force: bool = False) -> str:
        return await self._power.start_all(user=user, onboot_only=not force, guest_ids=guest_ids)

    async def stop_all(self, *, user: str, guest_ids: Sequence[int] | None = None, force_stop: bool = True) -> str:
        return await self._power.stop_all(user=user, guest_ids=guest_ids, force_stop=force_stop)

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
        await self._configuration.before_start(guest, log_line)

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

    async def _tell_unreferenced(self) -> None:
        """Name the volumes that a process killed between making them and writing the configuration has left.

        They stay: only their owner knows whether they are needed. As with PVE, whose `qm rescan` is asked for, too.
        """
        found = await self._volumes.all()
        named = self._inventory.volumes_of_others(None)
        for guest in self._inventory:
            strays = [str(volume) for owner, volume in found if owner == guest.guest_id and volume not in named]
            if strays and guest.lock.holder is None:  # who holds it may be about to name them
                log.warning("%s: volumes of its id that no configuration names: %s", guest.label, ", ".join(strays))
