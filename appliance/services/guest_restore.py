"""Guests made again from a backup, under any free VMID (over a guest: `guest_replacement.py`). What an archive says is as
hostile as a template.

The configuration comes out of the archive first, is checked as a request's would be, and is what the caller's privileges are
checked against. Then a guest is created as always: the VMID is reserved, volumes are made, filled, named; or all is undone.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import ApplianceError, InvalidParameter, NotFound
from appliance.model.guest import GuestId, GuestKind
from appliance.model.volume import ContentType, OpenedVolume, VolumeFormat, VolumeId
from appliance.services import backup_names, guest_config
from appliance.services.guest_backup import VM_CONFIG_NAME, image_name
from appliance.services.guest_config import DiskConfig, Existing
from appliance.services.guest_creation import GuestCreation
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_runner import GuestRunner
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.guest_volumes import GuestVolumes, Made
from appliance.services.ports.ct_trees import CtProvisioner
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskHandle
from appliance.tasks import to_its_end

CT_CONFIG_NAME = "etc/vzdump/pct.conf"
GIB = 1 << 30
_NOT_RESTORED = frozenset({"lock", "parent", "snaptime", "vmstate", "digest", "meta", "template", "vmgenid"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoration:
    """What a backup leads to. `config`: with requests for volumes; `images`: a VM's disks by slot, filled from the archive;
    `archived`: the slots of a container that the archive has content for."""

    volume: VolumeId
    kind: GuestKind
    config: dict[str, str]
    images: Mapping[str, tuple[DiskConfig, str]] = field(default_factory=dict)
    archived: frozenset[str] = frozenset()

    @property
    def slots(self) -> frozenset[str]:
        """The slots whose content comes from the backup."""
        return self.archived | self.images.keys()


class GuestRestore:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        inventory: GuestInventory,
        runner: GuestRunner,
        creation: GuestCreation,
        volumes: GuestVolumes,
        storage: StorageService,
        provisioner: CtProvisioner,
        clock: Clock,
    ) -> None:
        self._inventory = inventory
        self._runner = runner
        self._creation = creation
        self._volumes = volumes
        self._storage = storage
        self._provisioner = provisioner
        self._clock = clock

    async def read_config(self, volume: VolumeId) -> str:
        """The configuration in a backup, as text. Raises `NotFound`, `InvalidParameter`."""
        path, kind = await self._archive(volume)
        name = CT_CONFIG_NAME if kind is GuestKind.LXC else VM_CONFIG_NAME
        return (await self._provisioner.read_archived(path, name)).decode(errors="replace")

    async def plan(
        self, kind: GuestKind, volume: VolumeId, params: Mapping[str, str], *, storage: str | None, unique: bool
    ) -> Restoration:
        """What the backup `volume` with the request's own keys `params` would make. Nothing is made yet.

        `unique` gives its NICs new addresses. Raises `InvalidParameter` for an archive of another kind or a bad one.
        """
        path, archived_kind = await self._archive(volume)
        if archived_kind is not kind:
            raise InvalidParameter({"archive": f"{volume} is a backup of a {archived_kind.prefix}"})
        saved = guest_config.conf_text.from_text(await self.read_config(volume))
        saved = {key: text for key, text in saved.items() if not key.startswith("unused") and key not in _NOT_RESTORED}
        known = {key: text for key, text in saved.items() if guest_config.key_table(kind).find(key) is not None}
        disks = {key: text for key, text in known.items() if guest_config.is_disk_slot(kind, key)}
        plain = guest_config.parse(kind, {key: text for key, text in known.items() if key not in disks})
        if unique:
            plain = _without_macs(kind, plain)
            plain.pop("smbios1", None)
        config = {**plain, **params}
        if kind is GuestKind.LXC:
            return self._plan_ct(volume, config, disks, params, storage)
        return await self._plan_vm(volume, path, config, disks, params, storage)

    async def start(self, guest_id: GuestId, plan: Restoration, *, user: str, pool: str | None, start: bool) -> str:
        """Make it in a task; returns the UPID."""
        config = self.config_of(guest_id, plan)

        async def build(guest: GuestRuntime, task: TaskHandle) -> None:
            task.log(f"restoring {plan.volume}")
            await self._creation.publish_made(guest, await self.make(guest, config, plan, task))
            if start:
                await self._runner.launch(guest, task.log)

        return await self._creation.begin(plan.kind, guest_id, config, build, task_kind="restore", pool=pool, user=user)

    def config_of(self, guest_id: GuestId, plan: Restoration) -> dict[str, str]:
        """The whole configuration, with requests for volumes, without a VM's images. Raises `InvalidParameter`."""
        config = guest_config.create_config(
            plan.kind,
            guest_id,
            guest_config.fill_macs(plan.kind, plan.config, self._inventory.mac_source()),
            new_uuid=uuid.uuid4,
            now=self._clock.now(),
        )
        guest_config.check(plan.kind, guest_id, config | {slot: f"{each[1]}:1" for slot, each in plan.images.items()})
        return config

    async def make(self, guest: GuestRuntime, config: Mapping[str, str], plan: Restoration, task: TaskHandle) -> Made:
        """The volumes of `config` (from `config_of`) made and filled from the backup, beside what the guest has. The caller
        holds its lock, and undoes what was made when this fails."""
        path, _ = await self._archive(plan.volume)
        in_use = self._inventory.volumes_of_others(guest.guest_id)
        made = await self._volumes.make(plan.kind, guest.guest_id, config, in_use=in_use, log_line=task.log)
        if plan.kind is GuestKind.LXC:
            await self._fill_ct(made, path, plan, task)
        else:
            await self._fill_vm(guest, made, path, plan, task)
        return made

    # --- inside: containers -------------------------------------------------------------------------------------------

    def _plan_ct(
        self,
        volume: VolumeId,
        config: dict[str, str],
        disks: Mapping[str, str],
        params: Mapping[str, str],
        storage: str | None,
    ) -> Restoration:
        archived = set()
        for slot, text in disks.items():
            disk = guest_config.parse_disk(GuestKind.LXC, slot, text)
            is_volume = isinstance(disk.volume, Existing)
            if is_volume and (slot == "rootfs" or disk.options.get("backup") == "1"):
                archived.add(slot)
            if slot in params:
                continue
            config[slot] = self._request(disk, storage) if is_volume else text
        if "rootfs" not in config:
            raise InvalidParameter({"archive": f"{volume}: its configuration has no rootfs"})
        return Restoration(volume=volume, kind=GuestKind.LXC, config=config, archived=frozenset(archived))

    def _request(self, disk: DiskConfig, storage: str | None) -> str:
        """A new volume like the one of the backup: of its size, or a directory as it was."""
        assert isinstance(disk.volume, Existing)
        wanted = storage or self._known_storage(disk.volume.volume_id.storage, ContentType.ROOTDIR)
        is_tree = disk.volume.volume_id.name.endswith(f".{VolumeFormat.SUBVOL}") or not disk.size_bytes
        size = "0" if is_tree else f"{disk.size_bytes / GIB:.9f}".rstrip("0").rstrip(".")
        return guest_config.print_one(GuestKind.LXC, disk.slot, {**disk.options, "volume": f"{wanted}:{size}"})

    async def _fill_ct(self, made: Made, archive: Path, plan: Restoration, task: TaskHandle) -> None:
        places = {
            disk.slot: (disk.options.get("mp", "").strip("/"), disk.volume.volume_id)
            for disk in guest_config.disks(GuestKind.LXC, made.config)
            if isinstance(disk.volume, Existing) and disk.slot in plan.archived
        }
        elsewhere = [place for place, _ in places.values() if place]
        for slot, (place, volume) in places.items():
            task.log(f"{slot}: filling {volume}")
            inner = [other for other in elsewhere if other != place and (not place or other.startswith(f"{place}/"))]
            exclude = [*inner, "etc/vzdump"] if not place else inner
            opened = await self._storage.open(volume)
            await self._provisioner.unpack_backup(opened, archive, below=place, exclude=exclude, log=task.log)

    # --- inside: VMs --------------------------------------------------------------------------------------------------

    async def _plan_vm(
        self,
        volume: VolumeId,
        archive: Path,
        config: dict[str, str],
        disks: Mapping[str, str],
        params: Mapping[str, str],
        storage: str | None,
    ) -> Restoration:
        images: dict[str, tuple[DiskConfig, str]] = {}
        for slot, text in disks.items():
            if slot in params:
                continue
            disk = guest_config.parse_disk(GuestKind.QEMU, slot, text)
            if disk.is_cloudinit:
                wanted = storage or self._known_storage(_storage_of(disk), ContentType.IMAGES)
                config[slot] = f"{wanted}:cloudinit"
            elif disk.is_cdrom:
                config[slot] = text if await self._is_there(disk) else "none,media=cdrom"
            elif isinstance(disk.volume, Existing) and disk.options.get("backup", "1") == "1":
                wanted = storage or self._known_storage(_storage_of(disk), ContentType.IMAGES)
                images[slot] = (disk, wanted)
        return Restoration(volume=volume, kind=GuestKind.QEMU, config=config, images=images)

    async def _fill_vm(
        self, guest: GuestRuntime, made: Made, archive: Path, plan: Restoration, task: TaskHandle
    ) -> None:
        if not plan.images:
            return
        try:
            async with self._storage.backend(plan.volume.storage).backups.scratch() as directory:
                place = OpenedVolume(volume_id=None, path=directory, format=VolumeFormat.SUBVOL, size_bytes=0)
                await self._provisioner.unpack_backup(place, archive, below="", exclude=[VM_CONFIG_NAME], log=task.log)
                for slot, (disk, storage) in plan.images.items():
                    backend = self._storage.backend(storage)
                    volume_format = VolumeFormat.RAW if slot == "efidisk0" else VolumeFormat.QCOW2
                    volume = await backend.backups.adopt_image(
                        directory / image_name(slot), guest.guest_id, format=volume_format, log=task.log
                    )
                    made.volumes.append(volume)
                    size_bytes = (await backend.info(volume)).size_bytes
                    made.config[slot] = guest_config.print_disk(GuestKind.QEMU, disk, volume, size_bytes)
        except BaseException:
            await to_its_end(self._volumes.remove(made.volumes, task.log), name=f"undo volumes of {guest.guest_id}")
            raise

    # --- inside: both -------------------------------------------------------------------------------------------------

    async def _archive(self, volume: VolumeId) -> tuple[Path, GuestKind]:
        info = await self._storage.backend(volume.storage).info(volume)
        backup = backup_names.parse(volume.name)
        if info.content is not ContentType.BACKUP or backup is None:
            raise InvalidParameter({"archive": f"{volume} is not a backup"})
        return (await self._storage.open(volume)).path, backup.kind

    def _known_storage(self, storage: str, content: ContentType) -> str:
        """The storage of the backup's disk where there is one like it here, else the first that takes such volumes."""
        fitting = [each.storage_id for each in self._storage.backends() if content in each.content_types]
        if storage in fitting:
            return storage
        if not fitting:
            raise NotFound(f"storage for '{content}'")
        return fitting[0]

    async def _is_there(self, disk: DiskConfig) -> bool:
        if not isinstance(disk.volume, Existing):
            return True
        try:
            await self._storage.open(disk.volume.volume_id)
        except ApplianceError:
            return False
        return True


def _storage_of(disk: DiskConfig) -> str:
    assert isinstance(disk.volume, Existing)
    return disk.volume.volume_id.storage


def _without_macs(kind: GuestKind, config: Mapping[str, str]) -> dict[str, str]:
    mac_key = "macaddr" if kind is GuestKind.QEMU else "hwaddr"
    fresh = dict(config)
    for key in config:
        if key.startswith("net") and key[3:].isdecimal():
            values = guest_config.parse_one(kind, key, config[key])
            values.pop(mac_key, None)
            fresh[key] = guest_config.print_one(kind, key, values)
    return fresh
