"""A guest restored over: it becomes what a backup says and keeps its VMID, pool, permissions and range of user ids.

    before        new volumes are made and filled beside the old ones     interrupted: they go, the guest is as it was
    exchange      one transaction: configuration, snapshots, what stays   the guest is the new one
    after         the volumes that the backup replaces go                 interrupted: the next start ends it

`GuestRecord.moving` names the volumes that stay whatever happens: those of before until the exchange, from then on those that
are not replaced. What else carries the guest's id and is named nowhere is removed at the next start (`GuestMoves.recover`).

As in PVE a VM's disks that the backup does not have become unused, and all snapshots are lost. A container's mount points that
the backup has no content for stay as unused volumes, too (PVE erases them).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec

from appliance.errors import Conflict, InvalidParameter
from appliance.events import EventBus, GuestConfigChanged
from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.model.volume import VolumeId
from appliance.services import guest_config, lifecycle
from appliance.services.guest_config import Existing
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_records import GuestRecord, SnapshotRecord
from appliance.services.guest_restore import GuestRestore, Restoration
from appliance.services.guest_runner import GuestRunner
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.guest_snapshots import GuestSnapshots
from appliance.services.guest_volumes import GuestVolumes, Made, owned
from appliance.services.snapshot_records import DELETE
from appliance.services.tasks import TaskHandle, TaskService
from appliance.tasks import to_its_end

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What becomes of a guest. `config` names what stays of the old volumes as unused ones; `removed` are the volumes that
    go, `snapshots` what is still to be taken out of volumes that stay."""

    config: dict[str, str]
    removed: tuple[VolumeId, ...]
    snapshots: dict[str, SnapshotRecord]


def plan_exchange(
    kind: GuestKind, old: GuestRecord, config: Mapping[str, str], *, replaced: Collection[str]
) -> Exchange:
    """`old` becomes `config`, whose slots `replaced` are filled from the backup. Pure. Raises `Conflict` when there are more
    volumes left over than a configuration can name."""
    guest_id, new = GuestId(old.guest_id), dict(config)
    named = set(owned(kind, guest_id, new))
    removed: list[VolumeId] = []
    for slot, volume in _volumes_of(kind, old):
        if volume in named:
            continue
        named.add(volume)
        if slot in replaced or _is_generated(kind, old.config, slot):
            removed.append(volume)
        else:
            new[guest_config.free_unused_slot(new)] = str(volume)
    parts = {name: _left_of(kind, guest_id, kept, removed) for name, kept in old.snapshots.items()}
    return Exchange(
        config=new, removed=tuple(removed), snapshots={name: kept for name, kept in parts.items() if kept.config}
    )


class GuestReplacement:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        inventory: GuestInventory,
        runner: GuestRunner,
        restores: GuestRestore,
        snapshots: GuestSnapshots,
        volumes: GuestVolumes,
        tasks: TaskService,
        events: EventBus,
    ) -> None:
        self._inventory = inventory
        self._runner = runner
        self._restores = restores
        self._snapshots = snapshots
        self._volumes = volumes
        self._tasks = tasks
        self._events = events

    async def start(self, guest_id: GuestId, plan: Restoration, *, user: str, start: bool) -> str:
        """Restore over the guest in a task; returns the UPID. `start` it afterwards.

        Raises `Conflict` for a guest that runs, is protected or locked, or whose volumes others stand on; `InvalidParameter`
        for what would be restored into a volume that is there.
        """
        guest = self._inventory.get(guest_id, plan.kind)
        _check_new_volumes(plan)
        self._check(guest)
        config = self._restores.config_of(guest_id, plan)

        async def work(task: TaskHandle) -> None:
            async with guest.hold(f"restore by {user}", log=task.log):
                self._check(guest)
                doomed = plan_exchange(guest.kind, guest.stored.record, config, replaced=plan.slots).removed
                await self._volumes.check_removable(doomed)
                task.log(f"restoring {plan.volume} over {guest.label}")
                await self._replace(guest, config, plan, task)
                if start:
                    await self._runner.launch(guest, task.log)

        return await self._tasks.run(
            lifecycle.task_type("restore", plan.kind), object_id=str(guest_id), user=user, work=work
        )

    def preview(self, guest_id: GuestId, plan: Restoration) -> Exchange:
        """What would become of the guest as it is now. Raises `NotFound`, `InvalidParameter`, `Conflict`."""
        guest = self._inventory.get(guest_id, plan.kind)
        return plan_exchange(
            guest.kind, guest.stored.record, self._restores.config_of(guest_id, plan), replaced=plan.slots
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    def _check(self, guest: GuestRuntime) -> None:
        self._inventory.require_unlocked(guest)
        if guest.state is not GuestState.STOPPED:
            raise Conflict(f"unable to restore {guest.label} - it is running: shut it down first")
        if self._inventory.summary(guest).protection:
            raise Conflict(f"unable to restore {guest.label} - protection mode enabled")

    async def _replace(self, guest: GuestRuntime, config: dict[str, str], plan: Restoration, task: TaskHandle) -> None:
        before = [str(volume) for volume in await self._volumes.of_guest(guest.guest_id)]
        try:
            await self._inventory.table.replace(guest.stored, moving=before)
            made = await self._restores.make(guest, config, plan, task)
            # whole, whoever interrupts: what was given up is not left to the next start
            await to_its_end(self._exchange(guest, made, plan, before, task), name=f"exchange {guest.label}")
        except BaseException:
            await to_its_end(self._sweep(guest, task), name=f"undo the restoration of {guest.label}")
            raise

    async def _exchange(
        self, guest: GuestRuntime, made: Made, plan: Restoration, before: Collection[str], task: TaskHandle
    ) -> None:
        exchange = plan_exchange(guest.kind, guest.stored.record, made.config, replaced=plan.slots)
        lost = sorted(guest.stored.record.snapshots)
        gone = {str(volume) for volume in exchange.removed}
        await self._inventory.table.exchange(
            guest.stored,
            own_id_range=guest.kind is GuestKind.LXC and exchange.config.get("unprivileged") == "1",
            config=exchange.config,
            snapshots=exchange.snapshots,
            moving=[volume for volume in before if volume not in gone],
            started=None,
            grow=[],
            returning="",
        )
        self._tell(guest)
        if lost:
            task.log(f"snapshots are gone: {', '.join(lost)}")
        await self._snapshots.finish_removals(guest)
        await self._sweep(guest, task)

    async def _sweep(self, guest: GuestRuntime, task: TaskHandle) -> None:
        """Remove what the record neither names nor keeps. What cannot be removed stays in the configuration, unused."""
        if (keep := guest.stored.record.moving) is None:  # done already
            return
        named = self._inventory.volumes_of_others(None)
        strays = [volume for volume in await self._volumes.of_guest(guest.guest_id)
                  if str(volume) not in keep and volume not in named]  # fmt: skip
        problems = await self._volumes.remove(strays, task.log)
        config = dict(guest.stored.record.config)
        if problems:
            for volume in set(strays) & set(await self._volumes.of_guest(guest.guest_id)):
                config[guest_config.free_unused_slot(config)] = str(volume)
            task.warn("; ".join(problems))
        await self._inventory.table.replace(guest.stored, config=config, moving=None)
        self._tell(guest)

    def _tell(self, guest: GuestRuntime) -> None:
        self._events.publish(GuestConfigChanged(guest_id=guest.guest_id, kind=guest.kind))


def _check_new_volumes(plan: Restoration) -> None:
    """What is there is never written to: only beside it can a failure leave it as it was."""
    for slot in plan.archived:
        disk = guest_config.parse_disk(plan.kind, slot, plan.config[slot])
        if isinstance(disk.volume, Existing):
            raise InvalidParameter({slot: "restored into a new volume only: give a storage and a size"})


def _volumes_of(kind: GuestKind, record: GuestRecord) -> list[tuple[str, VolumeId]]:
    """(slot, volume) of all that belongs to the guest; of what only snapshots name the slot is ""."""
    guest_id = GuestId(record.guest_id)
    found = guest_config.owned_volumes(kind, guest_id, record.config)
    known = {volume for _, volume in found}
    for kept in record.snapshots.values():
        for volume in owned(kind, guest_id, kept.config):
            if volume not in known:
                known.add(volume)
                found.append(("", volume))
    return found


def _is_generated(kind: GuestKind, config: Mapping[str, str], slot: str) -> bool:
    disk = guest_config.parse_disk(kind, slot, config[slot]) if slot in config else None
    return disk is not None and disk.is_cloudinit


def _left_of(kind: GuestKind, guest_id: int, kept: SnapshotRecord, removed: Collection[VolumeId]) -> SnapshotRecord:
    """The snapshot as one whose removal is under way, of the volumes that stay. Those that go take their part with them."""
    parts = guest_config.snapshot_volumes(kind, guest_id, kept.config)
    config = {slot: kept.config[slot] for slot, volume in parts if volume not in removed}
    return msgspec.structs.replace(kept, config=config, state=DELETE, vmstate="", state_engine="")
