"""Volumes of guests moved to another storage. The old one stays as unused, or goes with `delete`.

A container's tree is copied in passes; one that runs goes on meanwhile, and stands only for its shutdown, the last pass and
its start. A VM's image is copied while it is off. What a crash interrupts leaves the old volume in use; the new one goes at
the next start (`GuestRecord.moving` says which volumes there were before).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from appliance.clock import Clock
from appliance.errors import Conflict, InvalidParameter, Unsupported
from appliance.events import EventBus, GuestConfigChanged
from appliance.model.guest import CtTree, GuestKind, GuestState
from appliance.model.volume import ContentType, VolumeFormat, VolumeId
from appliance.services import guest_config
from appliance.services.guest_config import DiskConfig, Existing
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_power import SHUTDOWN_LIMIT_S
from appliance.services.guest_runner import GuestRunner, GuestRuntime
from appliance.services.guest_volumes import GuestVolumes
from appliance.services.ports import CtProvisioner, LogLine, TreeCopy
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskHandle, TaskService
from appliance.tasks import to_its_end

log = logging.getLogger(__name__)

PASSES_LIMIT: Final = 5
SHORT_PASS_S: Final = 1.0
"""A pass as short as this is not made shorter by another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What is asked for."""

    slot: str
    storage: str
    delete: bool = False
    format: str | None = None
    digest: str | None = None


class GuestMoves:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        inventory: GuestInventory,
        runner: GuestRunner,
        volumes: GuestVolumes,
        storage: StorageService,
        provisioner: CtProvisioner,
        tasks: TaskService,
        events: EventBus,
        clock: Clock,
    ) -> None:
        self._inventory = inventory
        self._runner = runner
        self._volumes = volumes
        self._storage = storage
        self._provisioner = provisioner
        self._tasks = tasks
        self._events = events
        self._clock = clock

    async def start(self, kind: GuestKind, guest_id: int, move: Move, *, user: str) -> str:
        """Everything that can be refused is refused at once; the rest is a task, whose UPID is returned."""
        guest = self._inventory.get(guest_id, kind)
        self._inventory.require_unlocked(guest)
        guest_config.check_digest(guest.stored.record.config, move.digest)
        self._check(guest, move)

        async def work(task: TaskHandle) -> None:
            async with guest.hold(f"move {move.slot} by {user}", log=task.log):
                self._inventory.require_unlocked(guest)
                await self._move(guest, move, task)

        word = "move_volume" if kind is GuestKind.LXC else "qmmove"
        return await self._tasks.run(word, object_id=str(guest_id), user=user, work=work)

    async def recover(self, guest: GuestRuntime) -> None:
        """Remove the volume of a move that a crash interrupted."""
        before = guest.stored.record.moving
        if before is None:
            return
        named = self._inventory.volumes_of_others(None)
        strays = [volume for volume in await self._volumes.of_guest(guest.guest_id)
                  if str(volume) not in before and volume not in named]  # fmt: skip
        log.warning("%s: a move was interrupted, removing %s", guest.label, ", ".join(map(str, strays)) or "nothing")
        await self._volumes.remove(strays, log.info)
        await self._inventory.table.replace(guest.stored, moving=None)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _check(self, guest: GuestRuntime, move: Move) -> tuple[DiskConfig, VolumeId]:
        config = guest.stored.record.config
        text = config.get(move.slot, "")
        if not text or not guest_config.is_disk_slot(guest.kind, move.slot):
            raise InvalidParameter({"disk": f"{guest.label} has no disk '{move.slot}'"})
        disk = guest_config.parse_disk(guest.kind, move.slot, text)
        if not isinstance(disk.volume, Existing) or disk.is_cdrom or disk.is_unused or disk.volume.owner is None:
            raise InvalidParameter({"disk": f"{guest.label}: '{move.slot}' is no volume that can be moved"})
        volume = disk.volume.volume_id
        content = ContentType.ROOTDIR if guest.kind is GuestKind.LXC else ContentType.IMAGES
        if content not in self._storage.backend(move.storage).content_types:
            raise InvalidParameter({"storage": f"storage '{move.storage}' does not support content type '{content}'"})
        wanted = VolumeFormat(move.format) if move.format else None
        if volume.storage == move.storage and (wanted is None or volume.name.endswith(f".{wanted}")):
            raise InvalidParameter({"storage": f"{volume} is there already"})
        for name, kept in guest.stored.record.snapshots.items():
            if volume in {each for _, each in guest_config.referenced_volumes(guest.kind, kept.config)}:
                raise Conflict(f"{guest.label}: volume {volume} belongs to snapshot '{name}': remove that first")
        if guest.kind is GuestKind.QEMU and guest.state is not GuestState.STOPPED:
            raise Unsupported(f"{guest.label} is running: its disks are moved while it is off")
        return disk, volume

    async def _move(self, guest: GuestRuntime, move: Move, task: TaskHandle) -> None:
        disk, volume = self._check(guest, move)
        before = [str(each) for each in await self._volumes.of_guest(guest.guest_id)]
        await self._inventory.table.replace(guest.stored, moving=before)
        made: list[VolumeId] = []
        try:
            copy = self._copy_tree if guest.kind is GuestKind.LXC else self._copy_image
            await copy(guest, disk, volume, move, made, task)
        except BaseException:
            if not _names(guest, made):
                await to_its_end(self._undo(guest, made, task.log), name=f"undo the move of {volume}")
            raise
        if move.delete:
            await to_its_end(self._delete_old(guest, volume, task.log), name=f"delete {volume}")

    async def _undo(self, guest: GuestRuntime, made: list[VolumeId], log_line: LogLine) -> None:
        await self._volumes.remove(made, log_line)
        await self._inventory.table.replace(guest.stored, moving=None)

    async def _copy_image(
        self,
        guest: GuestRuntime,
        disk: DiskConfig,
        volume: VolumeId,
        move: Move,
        made: list[VolumeId],
        task: TaskHandle,
    ) -> None:
        opened = await self._storage.open(volume)
        backend = self._storage.backend(move.storage)
        format_ = VolumeFormat(move.format) if move.format else opened.format
        made.append(
            await backend.clone(
                opened, guest.guest_id, format=format_, full=True, log=task.log, content=ContentType.IMAGES
            )
        )
        await to_its_end(self._take_over(guest, disk, volume, made[0]), name=f"take over {made[0]}")

    async def _copy_tree(
        self,
        guest: GuestRuntime,
        disk: DiskConfig,
        volume: VolumeId,
        move: Move,
        made: list[VolumeId],
        task: TaskHandle,
    ) -> None:
        opened = await self._storage.open(volume)
        backend = self._storage.backend(move.storage)
        format_ = VolumeFormat(move.format) if move.format else opened.format
        size = opened.size_bytes or disk.size_bytes
        if format_ is VolumeFormat.RAW and not size:
            raise InvalidParameter({"format": f"{volume} has no size: a directory cannot become an image"})
        made.append(await backend.create(guest.guest_id, format=format_, size_bytes=size, content=ContentType.ROOTDIR))
        target = await self._storage.open(made[0])
        runs = guest.state is not GuestState.STOPPED
        tree = CtTree(slot=disk.slot, prefix="", volume=None if runs else opened)
        stood: float | None = None
        try:
            async with self._provisioner.copying(guest.guest_id, tree, target) as copy:
                await self._passes(copy, runs=runs, log_line=task.log)
                if runs:
                    stood = self._clock.monotonic()
                    await to_its_end(self._shut_down(guest, task.log), name=f"shut {guest.label} down")
                    done = await copy.again()
                    task.log(f"last pass: {done.files} files, {done.bytes >> 10} KiB in {done.seconds:.2f} s")
            # only now: what was copied from and to is mounted no more, and may be mounted again
            await to_its_end(self._take_over(guest, disk, volume, made[0]), name=f"take over {made[0]}")
        finally:
            if stood is not None and guest.state is GuestState.STOPPED:
                await to_its_end(self._runner.launch(guest, task.log), name=f"start {guest.label} again")
                task.log(f"it was away for {self._clock.monotonic() - stood:.2f} s, its shutdown included")

    async def _shut_down(self, guest: GuestRuntime, log_line: LogLine) -> None:
        began = self._clock.monotonic()
        await self._runner.shutdown(guest, timeout_s=SHUTDOWN_LIMIT_S[GuestKind.LXC], force=True, log_line=log_line)
        log_line(f"it has shut down in {self._clock.monotonic() - began:.2f} s")

    @staticmethod
    async def _passes(copy: TreeCopy, *, runs: bool, log_line: LogLine) -> None:
        """Copy until a pass is short; one is enough where nothing changes."""
        for number in range(1, PASSES_LIMIT + 1 if runs else 2):
            done = await copy.again()
            log_line(f"pass {number}: {done.files} files, {done.bytes >> 10} KiB in {done.seconds:.2f} s")
            if done.seconds < SHORT_PASS_S and number > 1:
                return

    async def _take_over(self, guest: GuestRuntime, disk: DiskConfig, old: VolumeId, new: VolumeId) -> None:
        size = (await self._storage.backend(new.storage).info(new)).size_bytes
        config = dict(guest.stored.record.config)
        config[disk.slot] = guest_config.print_disk(guest.kind, disk, new, size)
        config[guest_config.free_unused_slot(config)] = str(old)
        await self._inventory.table.replace(guest.stored, config=config, moving=None)
        self._tell(guest)

    async def _delete_old(self, guest: GuestRuntime, old: VolumeId, log_line: LogLine) -> None:
        config = {key: text for key, text in guest.stored.record.config.items()
                  if not (key.startswith("unused") and text == str(old))}  # fmt: skip
        if problems := await self._volumes.remove([old], log_line):
            raise Conflict(f"{guest.label}: moved, but {'; '.join(problems)}")
        await self._inventory.table.replace(guest.stored, config=config)
        self._tell(guest)

    def _tell(self, guest: GuestRuntime) -> None:
        self._events.publish(GuestConfigChanged(guest_id=guest.guest_id, kind=guest.kind))


def _names(guest: GuestRuntime, made: list[VolumeId]) -> bool:
    """Whether the guest's configuration names the new volume already."""
    named = {volume for _, volume in guest_config.owned_volumes(guest.kind, guest.guest_id, guest.stored.record.config)}
    return bool(made) and made[0] in named
