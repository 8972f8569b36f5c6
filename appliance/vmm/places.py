"""Which PCI slot each device of a native machine has. Pure.

Shared directories are where the last disks would be: virtiofs0 in virtio15's slot, virtiofs1 in virtio14's, and so on.
Slots never depend on what else a machine has, so that a guest's interfaces keep their names. Slot 0 is the host bridge's,
31 the chipset's (`pci.bus`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from appliance.errors import InvalidParameter
from appliance.model.guest import NicSpec, VmDisk, VmShare

SLOTS: Final = {
    "display": 1,
    "rng": 2,
    "agent": 3,
    "balloon": 4,
    "watchdog": 5,
    "vsock": 6,
    "cloudinit": 7,
    "tablet": 30,
}
FIRST_DISK_SLOT, DISK_SLOTS = 8, 16
FIRST_NIC_SLOT, NIC_SLOTS = 24, 6


def disk_slot(disk: VmDisk) -> int:
    """Of a disk. Raises `InvalidParameter` for one that has none."""
    if disk.cloudinit:
        return SLOTS["cloudinit"]
    if disk.bus != "virtio" or disk.index >= DISK_SLOTS:
        raise InvalidParameter({disk.slot: f"the native machine has virtio0 to virtio{DISK_SLOTS - 1}"})
    return FIRST_DISK_SLOT + disk.index


def nic_slot(nic: NicSpec) -> int:
    """Of a NIC. Raises `InvalidParameter` for one that has none."""
    index = int(nic.slot.removeprefix("net"))
    if index >= NIC_SLOTS:
        raise InvalidParameter({nic.slot: f"the native machine has net0 to net{NIC_SLOTS - 1}"})
    return FIRST_NIC_SLOT + index


def share_slot(share: VmShare) -> int:
    """Of a shared directory."""
    return FIRST_DISK_SLOT + DISK_SLOTS - 1 - share.index


def share_problem(share: VmShare, disks: Iterable[VmDisk]) -> str:
    """Why it has no slot; "" when it has."""
    slot = share_slot(share)
    for disk in disks:
        if disk.bus == "virtio" and not disk.cloudinit and FIRST_DISK_SLOT + disk.index == slot:
            return f"has the PCI slot of {disk.slot}: use another number for one of them"
    return ""
