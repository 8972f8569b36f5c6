"""The stored configuration of guests: changing it, with the volumes it names, templates, and disks that grow.

A change makes its volumes first, then writes, then removes: what fails leaves the configuration and its volumes as they
were. A running guest is given what it can take (`live_changes.py`, `guest_hotplug.py`); the rest is pending until its next
start (ADR 6).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from appliance.errors import ApplianceError, Conflict, InvalidParameter, Unsupported
from appliance.events import EventBus, GuestConfigChanged
from appliance.model.guest import GuestKind, GuestState
from appliance.model.volume import VolumeId
from appliance.services import guest_config, lifecycle
from appliance.services.guest_config import DiskConfig, Existing
from appliance.services.guest_hotplug import GuestHotplug
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_runner import GuestRunner
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.guest_volumes import GuestVolumes, Made
from appliance.services.live_changes import LiveChanges
from appliance.services.ports import LogLine
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskHandle, TaskService
from appliance.tasks import to_its_end

log = logging.getLogger(__name__)


class GuestConfiguration:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        inventory: GuestInventory,
        runner: GuestRunner,
        volumes: GuestVolumes,
        storage: StorageService,
        tasks: TaskService,
        events: EventBus,
        live: LiveChanges,
        hotplug: GuestHotplug,
    ) -> None:
        self._inventory = inventory
        self._runner = runner
        self._volumes = volumes
        self._storage = storage
        self._tasks = tasks
        self._events = events
        self._live = live
        self._hotplug = hotplug

    async def update(
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
        """Write keys and delete keys; makes and removes volumes as they ask. Returns when done.

        Raises `InvalidParameter`, naming the keys, also where a running machine did not take a disk or NIC, or did not
        let go of one: that is written all the same, and applies at the next start.
        """
        guest = self._inventory.get(guest_id, kind)
        parsed = await asyncio.to_thread(guest_config.parse, kind, put)
        async with guest.hold(f"configuration by {user}"):
            config = guest.stored.record.config
            self._inventory.require_unlocked(guest, skip=skip_lock or "lock" in delete)
            guest_config.check_digest(config, digest)
            plan = guest_config.plan_update(kind, config, parsed, delete)
            if not plan.changed:
                return
            self._require_removable(guest, plan.removed)
            _check_not_kept(guest, plan.removed)
            await self._apply(guest, plan.config, removed=plan.removed, log_line=log_line)
            await self._plug(guest, plan.changed, log_line)

    async def _plug(self, guest: GuestRuntime, changed: Collection[str], log_line: LogLine) -> None:
        if guest.kind is GuestKind.LXC:
            waiting = {each.key: each.running for each in self.pending(guest.kind, guest.guest_id)}
            live = await self._live.apply(guest, waiting, log_line)
        else:
            live = await self._hotplug.apply(guest, changed, log_line)
        await self.applied(guest, live.done)
        if live.problems:
            raise InvalidParameter(dict(live.problems))

    def _require_removable(self, guest: GuestRuntime, volumes: Sequence[VolumeId]) -> None:
        if guest.state is GuestState.STOPPED or not volumes:
            return
        held = self._hotplug.held(guest)
        if held is None or not held.isdisjoint(volumes):
            raise Conflict(f"{guest.label} is running: shut it down before volumes are removed")

    async def _apply(
        self, guest: GuestRuntime, config: Mapping[str, str], *, removed: Sequence[VolumeId], log_line: LogLine
    ) -> None:
        filled = guest_config.fill_macs(guest.kind, config, self._inventory.mac_source())
        guest_config.check(guest.kind, guest.guest_id, filled)
        in_use = self._inventory.volumes_of_others(guest.guest_id)
        made = await self._volumes.make(guest.kind, guest.guest_id, filled, in_use=in_use, log_line=log_line)
        await to_its_end(self._write(guest, made, removed=removed), name=f"configuration of {guest.label}")

    async def _write(self, guest: GuestRuntime, made: Made, *, removed: Sequence[VolumeId]) -> None:
        try:
            await self._inventory.table.replace(guest.stored, config=made.config)
        except ApplianceError:
            await self._volumes.remove(made.volumes, log.info)
            raise
        self._tell_config(guest)
        own = [volume for volume in await self._volumes.of_guest(guest.guest_id) if volume in removed]
        if problems := await self._volumes.remove(own, log.info):
            await self._keep_unused(guest, own)
            raise Conflict(f"{guest.label}: {'; '.join(problems)}")

    async def _keep_unused(self, guest: GuestRuntime, removed: Sequence[VolumeId]) -> None:
        """What could not be removed stays in the configuration, unused, so that it can be tried again."""
        config = dict(guest.stored.record.config)
        for volume in await self._volumes.of_guest(guest.guest_id):
            if volume in removed:
                config[guest_config.free_unused_slot(config)] = str(volume)
        await self._inventory.table.replace(guest.stored, config=config)
        self._tell_config(guest)

    def _tell_config(self, guest: GuestRuntime) -> None:
        self._events.publish(GuestConfigChanged(guest_id=guest.guest_id, kind=guest.kind))

    async def make_template(self, kind: GuestKind, guest_id: int, *, user: str) -> str:
        """Turn a stopped guest into a template: never started again, only cloned."""

        async def change(guest: GuestRuntime, task: TaskHandle) -> None:
            if guest.state is not GuestState.STOPPED:
                raise Conflict(f"{guest.label} is running: shut it down before it becomes a template")
            if guest.stored.record.snapshots:
                raise Conflict(f"{guest.label} has snapshots: remove them before it becomes a template")
            await self._inventory.table.replace(guest.stored, config={**guest.stored.record.config, "template": "1"})
            self._tell_config(guest)

        return await self._locked_task(kind, guest_id, lifecycle.task_type("template", kind), user, change)

    async def resize(
        self, kind: GuestKind, guest_id: int, *, slot: str, size: str, user: str, skip_lock: bool = False
    ) -> str:
        """Grow the disk in `slot` to `size` ("32G", "+5G"), live where it runs."""
        self._disk_to_resize(self._inventory.get(guest_id, kind), slot, size)

        async def grow(guest: GuestRuntime, task: TaskHandle) -> None:
            disk, volume, target = self._disk_to_resize(guest, slot, size)
            task.log(f"{slot}: {guest_config.format_size(disk.size_bytes)} -> {guest_config.format_size(target)}")
            left = await self._grow(guest, slot, volume, target, task)
            text = guest_config.print_disk(kind, disk, volume, target)
            config = {**guest.stored.record.config, slot: text}
            await self._inventory.table.replace(guest.stored, config=config, grow=left)
            self._tell_config(guest)

        return await self._locked_task(kind, guest_id, "resize", user, grow, skip_lock=skip_lock)

    async def _grow(
        self, guest: GuestRuntime, slot: str, volume: VolumeId, size_bytes: int, task: TaskHandle
    ) -> Sequence[str]:
        """Grow the volume and what uses it; returns the slots whose file system is still to follow."""
        others = [other for other in guest.stored.record.grow if other != slot]
        running = await self._runner.reach(guest) if guest.state is not GuestState.STOPPED else None
        if running is None or guest.kind is GuestKind.LXC:
            await self._storage.backend(volume.storage).resize(volume, size_bytes)
        if running is None:
            return others
        try:  # QEMU grows its image itself; a container's file system grows where the volume has grown under it
            await running.resize_disk(slot, size_bytes)
        except Unsupported as error:
            if guest.kind is not GuestKind.LXC:
                raise
            task.warn(str(error))
            return [*others, slot]
        return others

    def pending(self, kind: GuestKind, guest_id: int) -> Sequence[guest_config.Pending]:
        """What waits for the next start of a guest that runs. Raises `NotFound`."""
        guest = self._inventory.get(guest_id, kind)
        record = guest.stored.record
        if guest.state is GuestState.STOPPED or record.started is None:
            return ()
        return guest_config.pending(kind, record.config, record.started)

    def reverting(self, kind: GuestKind, guest_id: int, keys: Sequence[str]) -> tuple[dict[str, str], Sequence[str]]:
        """What to write and delete so that these keys are what runs. Raises `NotFound`, `InvalidParameter`."""
        guest = self._inventory.get(guest_id, kind)
        record = guest.stored.record
        running = record.started if guest.state is not GuestState.STOPPED else None
        return guest_config.revert(kind, record.config, record.config if running is None else running, keys)

    async def applied(self, guest: GuestRuntime, keys: Collection[str]) -> None:
        """Note that a running guest has taken up these keys as they are configured now. Under the guest's lock."""
        record = guest.stored.record
        if record.started is None or not keys:
            return
        kept = {key: value for key, value in record.started.items() if key not in keys}
        taken = {key: record.config[key] for key in keys if key in record.config}
        if (started := kept | taken) != record.started:
            await self._inventory.table.replace(guest.stored, started=started)
            self._tell_config(guest)

    async def before_start(self, guest: GuestRuntime, log_line: LogLine) -> None:
        """What a start needs first: file systems that follow their volumes, and a note of what is started."""
        await self.finish_growing(guest, log_line)
        if guest.stored.record.started != guest.stored.record.config:
            await self._inventory.table.replace(guest.stored, started=dict(guest.stored.record.config))

    async def finish_growing(self, guest: GuestRuntime, log_line: LogLine) -> None:
        """Let file systems follow their volumes that grew while this host could not grow them."""
        if not guest.stored.record.grow:
            return
        for slot in guest.stored.record.grow:
            config = guest.stored.record.config
            if slot in config:
                disk = guest_config.parse_disk(guest.kind, slot, config[slot])
                if isinstance(disk.volume, Existing):
                    log_line(f"{slot}: growing its file system")
                    volume = disk.volume.volume_id
                    await self._storage.backend(volume.storage).resize(volume, disk.size_bytes)
        await self._inventory.table.replace(guest.stored, grow=[])

    def _disk_to_resize(self, guest: GuestRuntime, slot: str, size: str) -> tuple[DiskConfig, VolumeId, int]:
        """The disk, its volume and its new size in bytes. Raises `InvalidParameter`."""
        config = guest.stored.record.config
        if slot not in config or not guest_config.is_disk_slot(guest.kind, slot):
            raise InvalidParameter({"disk": f"{guest.label} has no disk '{slot}'"})
        disk = guest_config.parse_disk(guest.kind, slot, config[slot])
        if not isinstance(disk.volume, Existing) or disk.is_cdrom or disk.is_unused:
            raise InvalidParameter({"disk": f"{guest.label}: '{slot}' is no disk that can be resized"})
        return disk, disk.volume.volume_id, guest_config.resize_target(disk.size_bytes, size)

    async def _locked_task(
        self,
        kind: GuestKind,
        guest_id: int,
        task_kind: str,
        user: str,
        act: Callable[[GuestRuntime, TaskHandle], Awaitable[None]],
        *,
        skip_lock: bool = False,
    ) -> str:
        guest = self._inventory.get(guest_id, kind)
        self._inventory.require_unlocked(guest, skip=skip_lock)

        async def work(task: TaskHandle) -> None:
            async with guest.hold(f"{task_kind} by {user}", log=task.log):
                self._inventory.require_unlocked(guest, skip=skip_lock)
                await act(guest, task)

        return await self._tasks.run(task_kind, object_id=str(guest_id), user=user, work=work)


def _check_not_kept(guest: GuestRuntime, removed: Sequence[VolumeId]) -> None:
    """Raises `Conflict` when a snapshot consists of one of these volumes."""
    for name, kept in guest.stored.record.snapshots.items():
        held = {volume for _, volume in guest_config.referenced_volumes(guest.kind, kept.config)}
        for volume in removed:
            if volume in held:
                raise Conflict(f"{guest.label}: volume {volume} belongs to snapshot '{name}': remove that first")
