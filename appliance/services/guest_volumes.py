"""Volumes of guests: what a configuration asks for is made, and what failed or was removed is taken away again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from appliance.errors import ApplianceError, Conflict, InvalidParameter, NotFound
from appliance.model.guest import CtTree, GuestId, GuestKind
from appliance.model.volume import ContentType, OpenedVolume, VolumeFormat, VolumeId
from appliance.services import guest_config
from appliance.services.guest_config import Allocate, CloudInitDrive, DiskConfig, Existing, Import
from appliance.services.ports import LogLine
from appliance.services.ports.ct_trees import CtProvisioner
from appliance.services.storage import StorageService
from appliance.storage.directory import DirectoryBackend
from appliance.tasks import to_its_end

log = logging.getLogger(__name__)

_CONTENT = {GuestKind.QEMU: ContentType.IMAGES, GuestKind.LXC: ContentType.ROOTDIR}

CLOUDINIT_BYTES = 4 << 20
EFI_VARS_BYTES = 4 << 20


@dataclass(slots=True)
class Made:
    """A configuration whose requests have become volumes, and the volumes made for it, to be undone on failure."""

    config: dict[str, str]
    volumes: list[VolumeId] = field(default_factory=list)


class GuestVolumes:
    """Makes and removes the volumes of guests. Holds no state; the caller holds the guest's lock."""

    def __init__(self, storage: StorageService, provisioner: CtProvisioner) -> None:
        self._storage = storage
        self._provisioner = provisioner

    async def make(
        self,
        kind: GuestKind,
        guest_id: GuestId,
        config: Mapping[str, str],
        *,
        in_use: frozenset[VolumeId],
        log_line: LogLine,
        root_base: str = "",
        root_layers: Sequence[str] = (),
    ) -> Made:
        """Make every volume that `config` asks for; all of them or none. Existing ones are checked.

        `in_use` are the volumes of other guests: attaching one of them is a `Conflict`. `root_base` is the layer a
        container's root begins with, `root_layers` all of an image's.
        """
        made = Made(dict(config))
        try:
            for disk in guest_config.disks(kind, config):
                base = root_base if disk.slot == "rootfs" else ""
                layers = root_layers if disk.slot == "rootfs" else ()
                await self._one(kind, guest_id, disk, made, in_use, log_line, base, layers)
        except BaseException:
            await to_its_end(self.remove(made.volumes, log_line), name=f"undo volumes of {guest_id}")
            raise
        return made

    async def clone(
        self,
        kind: GuestKind,
        guest_id: GuestId,
        config: Mapping[str, str],
        *,
        full: bool,
        storage: str | None,
        log_line: LogLine,
        snapshot: str = "",
    ) -> Made:
        """`config` is the original's, or what its `snapshot` keeps: every disk that belongs to it is cloned for `guest_id`, all
        or none."""
        made = Made(dict(config))
        try:
            for disk in list(guest_config.disks(kind, config)):
                await self._clone_one(kind, guest_id, disk, made, full, storage, log_line, snapshot)
        except BaseException:
            await to_its_end(self.remove(made.volumes, log_line), name=f"undo volumes of {guest_id}")
            raise
        return made

    async def remove(self, volumes: Iterable[VolumeId], log_line: LogLine) -> list[str]:
        """Delete each; what cannot be deleted is told to `log_line` and returned as one line each."""
        problems = []
        for volume in volumes:
            try:
                await self._storage.backend(volume.storage).delete(volume)
                log_line(f"removed volume {volume}")
            except NotFound:
                continue
            except ApplianceError as error:
                problems.append(f"volume {volume} stays: {error}")
                log_line(problems[-1])
        return problems

    async def check_removable(self, volumes: Sequence[VolumeId]) -> None:
        """Raises `Conflict` when one is protected or has linked clones: all stay then. Missing ones do not matter."""
        for storage in sorted({volume.storage for volume in volumes}):
            try:
                infos = await self._storage.backend(storage).list()
            except NotFound:
                continue
            for info in infos:
                if info.parent in volumes and info.volume_id not in volumes:
                    raise Conflict(f"volume {info.parent} has a linked clone: {info.volume_id}")
                if info.volume_id in volumes and info.protected:
                    raise Conflict(f"volume {info.volume_id} is protected")

    async def of_guest(self, guest_id: GuestId) -> list[VolumeId]:
        """Every volume of any storage that carries this guest's id."""
        return [volume for _, volume in await self.all(guest_id)]

    async def all(self, guest_id: GuestId | None = None) -> list[tuple[int, VolumeId]]:
        """The volumes of guests of any storage, each with the guest's id it carries."""
        found: set[tuple[int, VolumeId]] = set()
        for storage in self._storage.backends():
            for content in (ContentType.IMAGES, ContentType.ROOTDIR):
                if content in storage.content_types:
                    infos = await storage.list(content, guest_id)
                    found |= {(info.guest_id, info.volume_id) for info in infos if info.guest_id is not None}
        return sorted(found)

    async def open_root(self, config: Mapping[str, str]) -> OpenedVolume:
        """The root volume of a container."""
        disk = guest_config.parse_disk(GuestKind.LXC, "rootfs", config["rootfs"])
        if not isinstance(disk.volume, Existing):
            raise InvalidParameter({"rootfs": "names no volume"})
        return await self._storage.open(disk.volume.volume_id)

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _one(
        self,
        kind: GuestKind,
        guest_id: GuestId,
        disk: DiskConfig,
        made: Made,
        in_use: frozenset[VolumeId],
        log_line: LogLine,
        base: str,
        layers: Sequence[str],
    ) -> None:
        match disk.volume:
            case Allocate(storage, size_bytes):
                volume = await self._create(kind, guest_id, disk, storage, size_bytes, base, layers)
            case Import(storage, source):
                log_line(f"{disk.slot}: importing {source}")
                backend = self._backend(kind, disk, storage)
                opened = await self._storage.open(source)
                volume = await backend.clone(
                    opened, guest_id, format=_format(kind, disk), full=True, log=log_line, content=_CONTENT[kind]
                )
            case CloudInitDrive(storage):
                volume = await self._storage.backend(storage).create(
                    guest_id,
                    format=VolumeFormat.RAW,
                    size_bytes=CLOUDINIT_BYTES,
                    content=ContentType.IMAGES,
                    label="cloudinit",
                )
            case Existing(volume_id):
                await self._check_existing(kind, guest_id, disk, volume_id, made, in_use)
                return
            case _:
                return
        made.volumes.append(volume)
        info = await self._storage.backend(volume.storage).info(volume)
        made.config[disk.slot] = guest_config.print_disk(kind, disk, volume, info.size_bytes)
        log_line(f"{disk.slot}: made volume {volume}")

    async def _create(
        self,
        kind: GuestKind,
        guest_id: GuestId,
        disk: DiskConfig,
        storage: str,
        size_bytes: int,
        base: str,
        layers: Sequence[str],
    ) -> VolumeId:
        backend, content = self._backend(kind, disk, storage), _CONTENT[kind]
        if disk.slot == "efidisk0":
            return await backend.create(
                guest_id, format=VolumeFormat.RAW, size_bytes=EFI_VARS_BYTES, content=content, label="disk"
            )
        format_ = _format(kind, disk, size_bytes)
        return await backend.create(
            guest_id, format=format_, size_bytes=size_bytes, content=content, base=base, layers=layers
        )

    def root_storage(self, config: Mapping[str, str]) -> DirectoryBackend | None:
        """Where a container's root will be made as a directory; None when it is an image or there already."""
        disk = guest_config.parse_disk(GuestKind.LXC, "rootfs", config["rootfs"])
        if isinstance(disk.volume, Allocate) and not disk.volume.size_bytes:
            return self._backend(GuestKind.LXC, disk, disk.volume.storage)
        return None

    def _backend(self, kind: GuestKind, disk: DiskConfig, storage: str) -> DirectoryBackend:
        """A storage that may hold this disk. Raises `NotFound`, `Conflict`, `InvalidParameter`."""
        backend, content = self._storage.backend(storage), _CONTENT[kind]
        if content not in backend.content_types:
            raise InvalidParameter({disk.slot: f"storage '{storage}' does not support content type '{content.value}'"})
        return backend

    async def _check_existing(
        self,
        kind: GuestKind,
        guest_id: GuestId,
        disk: DiskConfig,
        volume_id: VolumeId,
        made: Made,
        in_use: frozenset[VolumeId],
    ) -> None:
        if volume_id in in_use and not disk.is_cdrom:
            raise Conflict(f"{disk.slot}: volume {volume_id} is used by another guest")
        opened = await self._storage.open(volume_id)
        if not disk.is_cdrom and not disk.is_unused and opened.size_bytes != disk.size_bytes:
            made.config[disk.slot] = guest_config.print_disk(kind, disk, volume_id, opened.size_bytes)

    async def _clone_one(
        self,
        kind: GuestKind,
        guest_id: GuestId,
        disk: DiskConfig,
        made: Made,
        full: bool,
        storage: str | None,
        log_line: LogLine,
        snapshot: str,
    ) -> None:
        if not isinstance(disk.volume, Existing) or disk.is_unused or disk.volume.owner is None:
            return
        backend = self._backend(kind, disk, storage or disk.volume.volume_id.storage)
        if disk.is_cloudinit:
            volume = await backend.create(
                guest_id,
                format=VolumeFormat.RAW,
                size_bytes=CLOUDINIT_BYTES,
                content=ContentType.IMAGES,
                label="cloudinit",
            )
        else:
            source = disk.volume.volume_id
            if snapshot:
                opened = await self._storage.backend(source.storage).open_snapshot(source, snapshot)
            else:
                opened = await self._storage.open(source)
            if opened.layers is not None and backend.storage_id != source.storage:
                await self._clone_tree(guest_id, disk, opened, backend, made, log_line)
                return
            of = f"{source} as of snapshot '{snapshot}'" if snapshot else str(source)
            log_line(f"{disk.slot}: {'full' if full else 'linked'} clone of {of}")
            format_ = opened.format if full else (VolumeFormat.QCOW2 if kind is GuestKind.QEMU else opened.format)
            volume = await backend.clone(
                opened, guest_id, format=format_, full=full, log=log_line, content=_CONTENT[kind]
            )
        made.volumes.append(volume)
        info = await self._storage.backend(volume.storage).info(volume)
        made.config[disk.slot] = guest_config.print_disk(kind, disk, volume, info.size_bytes)

    async def _clone_tree(
        self,
        guest_id: GuestId,
        disk: DiskConfig,
        source: OpenedVolume,
        backend: DirectoryBackend,
        made: Made,
        log_line: LogLine,
    ) -> None:
        """What layers on another storage show, as a directory of its own: layers do not leave their storage."""
        size = source.size_bytes
        volume = await backend.create(
            guest_id, format=VolumeFormat.SUBVOL, size_bytes=size, content=ContentType.ROOTDIR
        )
        made.volumes.append(volume)
        log_line(f"{disk.slot}: copying {source.volume_id} to {volume}")
        target = await self._storage.open(volume)
        tree = CtTree(slot=disk.slot, prefix="", volume=source)
        async with self._provisioner.copying(guest_id, tree, target) as copy:
            await copy.again()
        made.config[disk.slot] = guest_config.print_disk(GuestKind.LXC, disk, volume, size)


def _format(kind: GuestKind, disk: DiskConfig, size_bytes: int = 1) -> VolumeFormat:
    """The format asked for, else qcow2 for VMs (snapshots, linked clones) and for containers raw (a real size limit),
    or with size 0 a directory."""
    if kind is GuestKind.LXC:
        return VolumeFormat.RAW if size_bytes else VolumeFormat.SUBVOL
    return VolumeFormat(disk.options.get("format", "qcow2"))


def volumes_in_use(configs: Iterable[tuple[GuestKind, Mapping[str, str]]]) -> frozenset[VolumeId]:
    """Every volume the configurations name, CD-ROM images included. Configurations no longer understood are skipped."""
    found: set[VolumeId] = set()
    for kind, config in configs:
        try:
            found.update(volume for _, volume in guest_config.referenced_volumes(kind, config))
        except InvalidParameter as error:
            log.warning("volumes of a damaged configuration are not known: %s", error)
    return frozenset(found)


def owned(kind: GuestKind, guest_id: GuestId, config: Mapping[str, str]) -> Sequence[VolumeId]:
    """The volumes that go when this guest is destroyed: those named for it."""
    return [volume for _, volume in guest_config.owned_volumes(kind, guest_id, config)]
