"""Figures of a guest's configuration that lists show."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.model.guest import GuestKind
from appliance.services.guest_config.disks import disks
from appliance.services.guest_config.vm_spec import boot_slots


def disk_bytes(kind: GuestKind, config: Mapping[str, str]) -> int:
    """The `maxdisk` figure: the root file system's size, or the size of the first boot disk, 0 when unknown."""
    found = {disk.slot: disk for disk in disks(kind, config)}
    if kind is GuestKind.LXC:
        return found["rootfs"].size_bytes if "rootfs" in found else 0
    for slot in boot_slots(config):
        if slot in found and not found[slot].is_cdrom:
            return found[slot].size_bytes
    return 0
