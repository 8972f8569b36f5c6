"""A guest's disks as typed values, and the texts that replace a request once its volume is made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from appliance.errors import InvalidParameter
from appliance.model.guest import GuestKind
from appliance.model.volume import VolumeId
from appliance.services.guest_config import parsing
from appliance.services.guest_config.sizes import format_size, parse_size
from appliance.services.guest_config.vm_devices import DISK_BUSES
from appliance.services.guest_config.volumes import (
    Allocate,
    CloudInitDrive,
    EmptyTray,
    Existing,
    HostPath,
    Import,
    Memory,
    VolumeRef,
    parse_volume,
)

_VM_SLOT = re.compile(rf"(?:{'|'.join(DISK_BUSES)})[0-9]+|efidisk0|unused[0-9]+")
_ORDER = (*DISK_BUSES, "efidisk", "rootfs", "mp", "unused")
_CT_SLOT = re.compile(r"rootfs|(?:mp|unused)[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskConfig:
    """One disk key: its slot, what volume it means, and its options (normalised; without file, size, import-from)."""

    slot: str
    volume: VolumeRef
    size_bytes: int
    options: Mapping[str, str]

    @property
    def is_unused(self) -> bool:
        """Whether it is a volume no device uses."""
        return self.slot.startswith("unused")

    @property
    def is_cdrom(self) -> bool:
        """Whether the guest sees a CD-ROM drive: media=cdrom, an empty tray or a cloud-init drive."""
        if isinstance(self.volume, Existing) and self.volume.is_cloudinit:
            return not self.is_unused
        return self.options.get("media") == "cdrom" or isinstance(self.volume, EmptyTray | CloudInitDrive)

    @property
    def is_cloudinit(self) -> bool:
        """Whether it is, or will be, a generated cloud-init drive."""
        return isinstance(self.volume, CloudInitDrive) or (
            isinstance(self.volume, Existing) and self.volume.is_cloudinit
        )

    @property
    def needs_volume(self) -> bool:
        """Whether a volume is still to be made for it."""
        return isinstance(self.volume, Allocate | Import | CloudInitDrive)


def is_disk_slot(kind: GuestKind, name: str) -> bool:
    """Whether the key names a disk (`scsi0`, `mp1`, `rootfs`, `efidisk0`, `unused3`)."""
    return (_VM_SLOT if kind is GuestKind.QEMU else _CT_SLOT).fullmatch(name) is not None


def parse_disk(kind: GuestKind, slot: str, text: str) -> DiskConfig:
    """The disk key `slot` as a typed value. Raises `InvalidParameter` naming `slot`."""
    values = parsing.parse_one(kind, slot, text)
    name = values.pop("file", "") or values.pop("volume", "")
    size = values.pop("size", "")
    try:
        volume = parse_volume(
            name,
            import_from=values.pop("import-from", ""),
            mount_point=slot.startswith("mp"),
            trees=kind is GuestKind.LXC,
        )
        _check_combination(slot, volume, values)
    except ValueError as error:
        raise InvalidParameter({slot: f"invalid format - {error}"}) from error
    size_bytes = parse_size(size) if size else 0
    if isinstance(volume, Allocate):
        size_bytes = volume.size_bytes
    return DiskConfig(slot=slot, volume=volume, size_bytes=size_bytes, options=values)


def print_disk(kind: GuestKind, disk: DiskConfig, volume_id: VolumeId, size_bytes: int) -> str:
    """The canonical text of `disk` once `volume_id` of `size_bytes` stands for its request.

    `scsi0=local:8,iothread=1,format=qcow2` becomes `local:100/vm-100-disk-0.qcow2,iothread=1,size=8G`.
    """
    values = {key: value for key, value in disk.options.items() if key != "format"}
    values["volume" if kind is GuestKind.LXC else "file"] = str(volume_id)
    if disk.is_cdrom:
        values["media"] = "cdrom"
    if size_bytes and not disk.is_unused:
        values["size"] = format_size(size_bytes)
    return parsing.print_one(kind, disk.slot, values)


def disks(kind: GuestKind, config: Mapping[str, str]) -> Iterator[DiskConfig]:
    """Every disk key of a configuration, in the order PVE makes their volumes. Raises `InvalidParameter`."""
    for slot in sorted((key for key in config if is_disk_slot(kind, key)), key=_rank):
        yield parse_disk(kind, slot, config[slot])


def referenced_volumes(kind: GuestKind, config: Mapping[str, str]) -> list[tuple[str, VolumeId]]:
    """(slot, volume) of every existing volume the configuration names: disks, unused ones, ISO images, a kernel."""
    found = [(disk.slot, disk.volume.volume_id) for disk in disks(kind, config) if isinstance(disk.volume, Existing)]
    if kind is GuestKind.QEMU:
        found += [(key, VolumeId.parse(config[key])) for key in ("kernel", "initrd") if config.get(key)]
    return found


def owned_volumes(kind: GuestKind, guest_id: int, config: Mapping[str, str]) -> list[tuple[str, VolumeId]]:
    """The referenced volumes that belong to this guest by their name, and go with it when it is removed."""
    return [
        (disk.slot, disk.volume.volume_id)
        for disk in disks(kind, config)
        if isinstance(disk.volume, Existing) and disk.volume.owner == guest_id
    ]


def _check_combination(slot: str, volume: VolumeRef, options: Mapping[str, str]) -> None:
    if isinstance(volume, EmptyTray) and options.get("media", "cdrom") != "cdrom":
        raise ValueError("a disk without a volume must be media=cdrom")
    if options.get("idmap") and not isinstance(volume, HostPath):
        raise ValueError("idmap is for directories of the host: ids on volumes are always the container's own")
    if isinstance(volume, HostPath | Memory) and options.get("backup") == "1":
        raise ValueError("only volumes are part of backups")
    if isinstance(volume, EmptyTray | CloudInitDrive) and not slot.startswith(("ide", "sata", "scsi")):
        raise ValueError(f"{slot} cannot be a CD-ROM drive")
    if options.get("media") == "cdrom":
        if isinstance(volume, Allocate | Import):
            raise ValueError("a CD-ROM drive needs an existing volume")
        if slot.startswith("virtio"):
            raise ValueError("virtio disks cannot be CD-ROM drives")


def _rank(slot: str) -> tuple[int, int]:
    family = slot.rstrip("0123456789")
    return _ORDER.index(family), int(slot[len(family) :] or 0)
