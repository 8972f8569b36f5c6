"""Which PCI slot each device of a native machine has. Pure.

Slots never depend on what else a machine has, so that a guest's interfaces keep their names. Slot 0 is the host bridge's,
31 the chipset's (`pci.bus`).
"""

from __future__ import annotations

from typing import Final

from appliance.errors import InvalidParameter
from appliance.model.guest import NicSpec, VmDisk

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
