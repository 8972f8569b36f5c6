"""Backups of guests: an archive of all volumes and the configuration at one moment, in a storage that holds backups.

    snapshot   running: a temporary snapshot is read while the guest goes on; where volumes have none, as suspend
    suspend    running: it stands still while it is read
    stop       running: it is shut down, read, started again
A container's archive is a tar of its trees with PVE's `etc/vzdump/pct.conf` in it; a VM's is a tar of `qemu-server.conf` and
one qcow2 image a disk. An archive appears when it is whole; what is unfinished at a crash goes at the next start.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import ApplianceError, HostError, Unsupported
from appliance.model.guest import CtTree, GuestKind, GuestState
from appliance.model.volume import ContentType, OpenedVolume, VolumeId, VolumeInfo
from appliance.services import backup_names, guest_config
from appliance.services.guest_config import DiskConfig, Existing
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_runner import GuestRunner
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.guest_snapshots import GuestSnapshots
from appliance.services.guest_standstill import standing_still
from appliance.services.ports import LogLine
from appliance.services.ports.ct_trees import CtProvisioner
from appliance.services.snapshot_records import TEMPORARY
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskHandle, TaskService
from appliance.storage.directory import DirectoryBackend
from appliance.tasks import to_its_end

log = logging.getLogger(__name__)

VM_CONFIG_NAME = "qemu-server.conf"
STANDARD_EXCLUDES = ("tmp/*", "var/tmp/*", "var/run/*")
_TAR_COMPRESSORS = {"zstd": "zstd -q -T1", "gzip": "gzip", "": ""}
_NOT_KEPT = frozenset({"lock", "parent", "snaptime", "vmstate", "template"})


class Source(Enum):
    """What is read."""

    SNAPSHOT = "snapshot"  # the temporary snapshot; the guest goes on
    STILL = "still"  # the volumes of a guest that runs and stands still
    STOPPED = "stopped"  # the volumes of a guest that does not run


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupJob:
    """What one call asks for. `keep`: which backups of each guest stay afterwards; empty: all."""

    guest_ids: Sequence[int]
    storage: str
    mode: str = "snapshot"
    compress: str = ""
    notes: str = ""
    protected: bool = False
    keep: Mapping[str, int] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    stop_wait_s: float = 600.0


class GuestBackups:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        inventory: GuestInventory,
        runner: GuestRunner,
        snapshots: GuestSnapshots,
        storage: StorageService,
        provisioner: CtProvisioner,
        tasks: TaskService,
        clock: Clock,
        node: str,
    ) -> None:
        self._inventory = inventory
        self._runner = runner
        self._snapshots = snapshots
        self._storage = storage
        self._provisioner = provisioner
        self._tasks = tasks
        self._clock = clock
        self._node = node

    async def start(self, job: BackupJob, *, user: str) -> str:
        """Back all up, one after the other, in one task; returns its UPID. One that fails does not keep the others."""
        backend = self._storage.backend(job.storage)
        if ContentType.BACKUP not in backend.content_types:
            raise Unsupported(f"storage '{job.storage}' does not support content type 'backup'")
        for guest_id in job.guest_ids:
            self._inventory.get(guest_id)

        async def work(task: TaskHandle) -> None:
            failed: list[str] = []
            for number, guest_id in enumerate(job.guest_ids):
                task.progress(number / len(job.guest_ids))
                try:
                    await self._one(self._inventory.get(guest_id), job, backend, task)
                except ApplianceError as error:
                    failed.append(str(guest_id))
                    task.log(f"ERROR: Backup of {guest_id} failed - {error}")
            if failed:
                raise HostError(f"job errors: {', '.join(failed)}")

        object_id = str(job.guest_ids[0]) if len(job.guest_ids) == 1 else ""
        return await self._tasks.run("vzdump", object_id=object_id, user=user, work=work)

    async def prune(
        self, storage: str, keep: Mapping[str, int], *, guest_id: int | None, kind: str | None
    ) -> list[VolumeId]:
        """Remove the backups of a storage that no rule of `keep` keeps; which they were."""
        backend = self._storage.backend(storage)
        removed = [info.volume_id for info, mark in await self.marks(storage, keep, guest_id=guest_id, kind=kind)
                   if mark == "remove"]  # fmt: skip
        for volume in removed:
            await backend.delete(volume)
        return removed

    async def marks(
        self, storage: str, keep: Mapping[str, int], *, guest_id: int | None, kind: str | None
    ) -> list[tuple[VolumeInfo, str]]:
        """What `prune` would do with each backup."""
        infos = await self._storage.content(storage, ContentType.BACKUP, guest_id)
        wanted = [
            info
            for info in infos
            if kind is None or ((backup := backup_names.parse(info.volume_id.name)) is not None and backup.kind == kind)
        ]
        return backup_names.marks(wanted, keep)

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _one(self, guest: GuestRuntime, job: BackupJob, backend: DirectoryBackend, task: TaskHandle) -> None:
        began = self._clock.monotonic()
        task.log(f"Starting Backup of VM {guest.guest_id} ({guest.kind})")
        name = backup_names.file_name(guest.kind, guest.guest_id, self._clock.now(), job.compress)
        notes = backup_names.notes(
            job.notes, guest_id=guest.guest_id, name=self._inventory.summary(guest).name, node=self._node
        )
        async with self._readable(guest, job, task.log) as source:
            config = guest.stored.record.config

            async def make(path: Path) -> None:
                if guest.kind is GuestKind.LXC:
                    await self._pack_ct(guest, config, source, job, path, task.log)
                else:
                    await self._pack_vm(guest, config, source, job, backend, path, task.log)

            volume = await backend.backups.write(name, make, notes=notes, protected=job.protected)
        size = (await backend.info(volume)).size_bytes
        task.log(f"archive {volume}: {size / (1 << 20):.1f} MiB")
        if job.keep:
            for gone in await self.prune(job.storage, job.keep, guest_id=guest.guest_id, kind=guest.kind.value):
                task.log(f"pruned {gone}")
        task.log(f"Finished Backup of VM {guest.guest_id} ({self._clock.monotonic() - began:.1f} s)")

    @asynccontextmanager
    async def _readable(self, guest: GuestRuntime, job: BackupJob, log_line: LogLine) -> AsyncIterator[Source]:
        """Keep the guest's volumes from changing under whoever reads them, as the mode says."""
        runs = guest.state is not GuestState.STOPPED
        if runs and job.mode == "snapshot":
            if await self._snapshots.possible(guest.kind, guest.guest_id):
                async with self._snapshots.temporary(guest, log_line):
                    yield Source.SNAPSHOT
                return
            log_line("its volumes have no snapshots while it runs: it is suspended meanwhile")
        async with guest.hold("backup", log=log_line):
            self._inventory.require_unlocked(guest)
            if guest.state is GuestState.STOPPED:
                yield Source.STOPPED
            elif job.mode == "stop":
                async with self._shut_down(guest, job, log_line):
                    yield Source.STOPPED
            else:
                async with standing_still(guest, log_line):
                    yield Source.STILL

    @asynccontextmanager
    async def _shut_down(self, guest: GuestRuntime, job: BackupJob, log_line: LogLine) -> AsyncIterator[None]:
        await self._runner.shutdown(guest, timeout_s=job.stop_wait_s, force=True, log_line=log_line)
        try:
            yield
        finally:
            log_line("starting it again")
            await to_its_end(self._runner.launch(guest, log_line), name=f"start {guest.label} after its backup")

    async def _pack_ct(
        self,
        guest: GuestRuntime,
        config: Mapping[str, str],
        source: Source,
        job: BackupJob,
        target: Path,
        log_line: LogLine,
    ) -> None:
        trees: list[CtTree] = []
        for disk, volume in saved_disks(GuestKind.LXC, guest.guest_id, config):
            prefix = disk.options.get("mp", "").strip("/")
            backend = self._storage.backend(volume.storage)
            opened: OpenedVolume | None = None
            match source:
                case Source.SNAPSHOT:
                    opened = await backend.open_snapshot(volume, TEMPORARY)
                case Source.STOPPED:
                    opened = await backend.open(volume)
                case Source.STILL:
                    pass
            trees.append(CtTree(slot=disk.slot, prefix=prefix, volume=opened))
            log_line(f"{disk.slot}: {volume}")
        await self._provisioner.pack(
            guest.guest_id,
            trees,
            target,
            config=config_text(config),
            exclude=list(job.exclude),
            compress=job.compress,
            log=log_line,
        )

    async def _pack_vm(
        self,
        guest: GuestRuntime,
        config: Mapping[str, str],
        source: Source,
        job: BackupJob,
        backend: DirectoryBackend,
        target: Path,
        log_line: LogLine,
    ) -> None:
        async with backend.backups.scratch() as directory:
            names = [VM_CONFIG_NAME]
            await backend.backups.put_text(directory / VM_CONFIG_NAME, config_text(config))
            for disk, volume in saved_disks(GuestKind.QEMU, guest.guest_id, config):
                log_line(f"{disk.slot}: {volume}")
                names.append(image_name(disk.slot))
                await self._storage.backend(volume.storage).backups.export_disk(
                    volume,
                    directory / names[-1],
                    snapshot=TEMPORARY if source is Source.SNAPSHOT else "",
                    in_use=source is not Source.STOPPED,
                )
            await backend.backups.pack_scratch(directory, names, target, _TAR_COMPRESSORS[job.compress])


def saved_disks(kind: GuestKind, guest_id: int, config: Mapping[str, str]) -> list[tuple[DiskConfig, VolumeId]]:
    """What an archive holds: PVE's rule is every disk of a VM but those with `backup=0`, and of a container the root
    and the mount points with `backup=1`."""
    found: list[tuple[DiskConfig, VolumeId]] = []
    for slot, volume in guest_config.snapshot_volumes(kind, guest_id, config):
        disk = guest_config.parse_disk(kind, slot, config[slot])
        assert isinstance(disk.volume, Existing)
        default = "0" if slot.startswith("mp") else "1"
        if slot == "rootfs" or disk.options.get("backup", default) == "1":
            found.append((disk, volume))
    return found


def image_name(slot: str) -> str:
    """The image of a disk in a VM's archive."""
    return f"disk-{slot}.qcow2"


def config_text(config: Mapping[str, str]) -> str:
    """What an archive says of its guest."""
    kept = {key: value for key, value in config.items() if key not in _NOT_KEPT and not key.startswith("unused")}
    return guest_config.conf_text.to_text(kept)
