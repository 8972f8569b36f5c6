"""Volumes of guests moved to another storage. The old one stays as unused, or goes with `delete`.

A container's tree is copied in passes; one that runs goes on meanwhile, and stands only for its shutdown, the last pass and
its start. The image of a VM that is off is copied; one that runs goes on, and its engine mirrors: once every write is on both,
the configuration names the new volume, and only then does the engine switch over, so that whenever the configuration is read
its volume is the right one. What a crash interrupts is ended at the next start, by what the configuration says by then; the
other volume goes if it was the new one (`GuestRecord.moving` says which volumes there were before).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from appliance.clock import Clock
from appliance.errors import Conflict, HostError, InvalidParameter, Unsupported
from appliance.events import EventBus, GuestConfigChanged
from appliance.model.guest import CtTree, GuestKind, GuestState
from appliance.model.volume import ContentType, OpenedVolume, VolumeFormat, VolumeId
from appliance.services import guest_config
from appliance.services.guest_config import DiskConfig, Existing
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_power import SHUTDOWN_LIMIT_S
from appliance.services.guest_runner import GuestRunner
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.guest_volumes import GuestVolumes
from appliance.services.ports import LogLine
from appliance.services.ports.ct_trees import CtProvisioner, TreeCopy
from appliance.services.ports.disk_moves import DiskMirror, DiskMover
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
    bytes_per_s: int = 0
    """At most so fast, where a running guest is copied; 0: no limit."""


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
        """Remove the volumes that a move or a restoration left when a crash interrupted it."""
        before = guest.stored.record.moving
        if before is None:
            return
        if guest.kind is GuestKind.QEMU and guest.state is not GuestState.STOPPED:
            await self._settle(guest, _mover(guest), before)
        named = self._inventory.volumes_of_others(None)
        strays = [volume for volume in await self._volumes.of_guest(guest.guest_id)
                  if str(volume) not in before and volume not in named]  # fmt: skip
        names = ", ".join(map(str, strays)) or "nothing"
        log.warning("%s: work on its volumes was interrupted, removing %s", guest.label, names)
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
            _mover(guest)
            if move.slot == "efidisk0":
                raise Unsupported(f"{guest.label} is running: '{move.slot}' is moved while it is off")
        return disk, volume

    async def _move(self, guest: GuestRuntime, move: Move, task: TaskHandle) -> None:
        disk, volume = self._check(guest, move)
        before = [str(each) for each in await self._volumes.of_guest(guest.guest_id)]
        made: list[VolumeId] = []
        try:
            await self._inventory.table.replace(guest.stored, moving=before)
            if guest.kind is GuestKind.LXC:
                copy = self._copy_tree
            else:
                copy = self._copy_image if guest.state is GuestState.STOPPED else self._mirror_image
            await copy(guest, disk, volume, move, made, task)
        except BaseException:
            if not _names(guest, made):
                await to_its_end(self._undo(guest, made, task.log), name=f"undo the move of {volume}")
            raise
        if move.delete and guest.stored.record.moving is None:
            await to_its_end(self._delete_old(guest, volume, task.log), name=f"delete {volume}")

    async def _undo(self, guest: GuestRuntime, made: list[VolumeId], log_line: LogLine) -> None:
        await self._volumes.remove(made, log_line)
        await self._inventory.table.replace(guest.stored, moving=None)

    async def _image(self, volume: VolumeId, move: Move) -> tuple[OpenedVolume, VolumeFormat]:
        """A disk image to be moved, and the format it shall have."""
        opened = await self._storage.open(volume)
        return opened, VolumeFormat(move.format) if move.format else opened.format

    async def _copy_image(
        self,
        guest: GuestRuntime,
        disk: DiskConfig,
        volume: VolumeId,
        move: Move,
        made: list[VolumeId],
        task: TaskHandle,
    ) -> None:
        opened, format_ = await self._image(volume, move)
        backend = self._storage.backend(move.storage)
        made.append(
            await backend.clone(
                opened, guest.guest_id, format=format_, full=True, log=task.log, content=ContentType.IMAGES
            )
        )
        await to_its_end(self._take_over(guest, disk, volume, made[0]), name=f"take over {made[0]}")

    async def _mirror_image(
        self,
        guest: GuestRuntime,
        disk: DiskConfig,
        volume: VolumeId,
        move: Move,
        made: list[VolumeId],
        task: TaskHandle,
    ) -> None:
        opened, format_ = await self._image(volume, move)
        backend = self._storage.backend(move.storage)
        size = opened.size_bytes
        made.append(await backend.create(guest.guest_id, format=format_, size_bytes=size, content=ContentType.IMAGES))
        task.log(f"mirroring {volume} to {made[0]} while it runs")
        target = await self._storage.open(made[0])
        async with _mover(guest).mirroring(disk.slot, target, bytes_per_s=move.bytes_per_s) as mirror:
            await self._in_step(guest, mirror, task)
            task.log("both hold the same, switching over")
            # whole, whoever interrupts: what the configuration says and what is in use are one thing
            await to_its_end(self._switch(guest, disk, volume, made[0], mirror), name=f"switch to {made[0]}")

    @staticmethod
    async def _in_step(guest: GuestRuntime, mirror: DiskMirror, task: TaskHandle) -> None:
        """Raises `Conflict` when a stop is asked for meanwhile: it shall not wait for this."""
        copied = asyncio.ensure_future(mirror.in_step(task.progress))
        overruled = asyncio.ensure_future(guest.overruled.wait())
        try:
            await asyncio.wait((copied, overruled), return_when=asyncio.FIRST_COMPLETED)
        finally:
            overruled.cancel()
            if not copied.done():
                copied.cancel()
                await asyncio.wait((copied,))
        if copied.cancelled():
            raise Conflict(f"{guest.label}: move overruled by a stop")
        copied.result()

    async def _switch(
        self, guest: GuestRuntime, disk: DiskConfig, old: VolumeId, new: VolumeId, mirror: DiskMirror
    ) -> None:
        was = guest.stored.record
        await self._take_over(guest, disk, old, new, moving=was.moving)
        try:
            known = await mirror.switch()
        except HostError:
            await self._inventory.table.replace(guest.stored, config=was.config, started=was.started)
            self._tell(guest)
            raise
        if known:
            await self._inventory.table.replace(guest.stored, moving=None)
        else:
            log.error("%s: %s: whether it stands on %s is known at the next start", guest.label, disk.slot, new)

    async def _settle(self, guest: GuestRuntime, mover: DiskMover, before: Collection[str]) -> None:
        """End the mirroring that a killed appliance left: the configuration's volume is the right one, unless the engine
        tells that it could not be switched to."""
        config, started = guest.stored.record.config, guest.stored.record.started
        keep = {
            slot: str(volume)
            for slot, volume in guest_config.owned_volumes(guest.kind, guest.guest_id, config)
            if str(volume) not in before and not slot.startswith("unused")
        }
        stands_on = await mover.settle_mirrors(keep)
        for slot, volume in keep.items():
            in_use = stands_on.get(slot, "")
            if in_use in ("", str((await self._storage.open(VolumeId.parse(volume))).path)):
                continue
            for key, old in list(config.items()):
                if key.startswith("unused") and str((await self._storage.open(VolumeId.parse(old))).path) == in_use:
                    log.error("%s: %s could not be switched to %s: it stays on %s", guest.label, slot, volume, old)
                    config = _with_volume(guest.kind, config, slot, VolumeId.parse(old))
                    del config[key]
                    started = started and _with_volume(guest.kind, started, slot, VolumeId.parse(old))
        if config != guest.stored.record.config:
            await self._inventory.table.replace(guest.stored, config=config, started=started)
            self._tell(guest)

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

    async def _take_over(
        self,
        guest: GuestRuntime,
        disk: DiskConfig,
        old: VolumeId,
        new: VolumeId,
        *,
        moving: Sequence[str] | None = None,
    ) -> None:
        size = (await self._storage.backend(new.storage).info(new)).size_bytes
        config = dict(guest.stored.record.config)
        config[disk.slot] = guest_config.print_disk(guest.kind, disk, new, size)
        config[guest_config.free_unused_slot(config)] = str(old)
        started = guest.stored.record.started
        if (
            started is not None and moving is not None
        ):  # it runs on: what else of the disk waits for its next start still does
            started = _with_volume(guest.kind, started, disk.slot, new)
        await self._inventory.table.replace(guest.stored, config=config, started=started, moving=moving)
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


def _mover(guest: GuestRuntime) -> DiskMover:
    """The running VM as one whose disks move. Raises `Unsupported`, `Conflict` when it could not be taken over."""
    if guest.running is None:
        raise Conflict(f"{guest.label} runs, but cannot be reached")
    if not isinstance(guest.running, DiskMover):
        raise Unsupported(f"{guest.label} is running, natively: its disks are moved while it is off")
    return guest.running


def _with_volume(kind: GuestKind, config: Mapping[str, str], slot: str, volume: VolumeId) -> dict[str, str]:
    """The configuration with another volume in a slot it has."""
    if slot not in config:
        return dict(config)
    disk = guest_config.parse_disk(kind, slot, config[slot])
    return {**config, slot: guest_config.print_disk(kind, disk, volume, disk.size_bytes)}


def _names(guest: GuestRuntime, made: list[VolumeId]) -> bool:
    """Whether the guest's configuration names the new volume already."""
    named = {volume for _, volume in guest_config.owned_volumes(guest.kind, guest.guest_id, guest.stored.record.config)}
    return bool(made) and made[0] in named
