"""What of a disk or NIC is made in a QEMU that runs, and in which order: the parts of hot-plug. Pure.

    disk   block node, its I/O thread, its own SCSI controller, the device      NIC   back end, the device
Parts are made in order and taken away in reverse; a device goes when its guest has let go of it. Names and places are those
of the command line (`drives`, `devices`), so that nothing changes at the next start.

The guest is told by ACPI (the root bus of i440fx, and bridges that were there when it started) or by the virtio SCSI
controller. The root bus of q35 and virt takes nothing while they run, IDE and SATA neither.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from appliance.errors import Unsupported
from appliance.model.guest import NicSpec, VmDisk, VmSpec
from appliance.model.volume import OpenedVolume
from appliance.qemu import pci
from appliance.qemu.devices import Devices, netdev, nic_device
from appliance.qemu.drives import SCSI_CONTROLLERS, block_node, bus_of, drive_device, iothread_of, node_name
from appliance.qemu.launch import I440FX

_DEVICE, _NODE, _OBJECT, _NETDEV = "device", "blockdev", "object", "netdev"
_UNMAKE: Final = {_NODE: ("blockdev-del", "node-name"), _OBJECT: ("object-del", "id"), _NETDEV: ("netdev_del", "id")}
_MAKE: Final = {_DEVICE: "device_add", _NODE: "blockdev-add", _OBJECT: "object-add", _NETDEV: "netdev_add"}


@dataclass(frozen=True, slots=True)
class Part:
    """One thing in QEMU, by name."""

    kind: str
    name: str
    options: Mapping[str, Any]

    @property
    def is_device(self) -> bool:
        """It is asked for with `device_del`, and goes later."""
        return self.kind == _DEVICE

    def make(self) -> tuple[str, dict[str, Any]]:
        """The QMP command and its arguments."""
        return _MAKE[self.kind], {key: value for key, value in self.options.items() if value is not None}

    def unmake(self) -> tuple[str, dict[str, Any]]:
        """Likewise."""
        if self.is_device:
            return "device_del", {"id": self.name}
        command, key = _UNMAKE[self.kind]
        return command, {key: self.name}


def disk_parts(
    spec: VmSpec,
    disk: VmDisk,
    volume: OpenedVolume | None,
    present: Collection[str],
    *,
    buffered: bool = False,
    stands_on: str = "",
) -> list[Part]:
    """`present` are the names of QEMU's devices now. Without a volume: for taking it out, names only. `stands_on` is its node
    where that has another name than at first.

    Raises `Unsupported` where this machine cannot."""
    devices = _devices(spec)
    thread = iothread_of(devices.spec, disk)
    parts: list[Part] = []
    if volume is not None:
        node = block_node(disk, volume, buffered=buffered)
        _require_place(disk, devices, present)
    else:
        node = {}
    parts.append(Part(_NODE, stands_on or node_name(disk.slot), node))
    if thread:
        parts.append(Part(_OBJECT, thread, {"qom-type": "iothread", "id": thread}))
    place = bus_of(devices.spec, disk, devices)
    if _has_own_controller(spec, disk):
        controller = str(place["bus"]).partition(".")[0]
        where = {"driver": SCSI_CONTROLLERS[spec.scsi_controller], "id": controller, **devices.place(controller)}
        parts.append(Part(_DEVICE, controller, where | {"iothread": thread}))
    return [*parts, Part(_DEVICE, disk.slot, drive_device(disk, volume, place, thread, devices))]


def nic_parts(spec: VmSpec, nic: NicSpec, tap: str, present: Collection[str], *, vhost: bool) -> list[Part]:
    """Raises `Unsupported`."""
    devices = _devices(spec)
    _require_bus(nic.slot, nic.slot, devices, present)
    driver, options = nic_device(nic, devices, boot_roms=frozenset())
    device = {"driver": driver, "id": nic.slot, **devices.place(nic.slot), **options}
    return [Part(_NETDEV, nic.slot, netdev(nic, tap, vhost=vhost)), Part(_DEVICE, nic.slot, device)]


def nic_parts_to_remove(nic: NicSpec) -> list[Part]:
    """Names only."""
    return [Part(_NETDEV, nic.slot, {}), Part(_DEVICE, nic.slot, {})]


def _devices(spec: VmSpec) -> Devices:
    return Devices(replace(spec, boot_order=()))  # an order is the firmware's matter, at the next start


def _has_own_controller(spec: VmSpec, disk: VmDisk) -> bool:
    return disk.bus == "scsi" and spec.scsi_controller == "virtio-scsi-single"


def _require_place(disk: VmDisk, devices: Devices, present: Collection[str]) -> None:
    if disk.bus == "virtio":
        _require_bus(disk.slot, disk.slot, devices, present)
        return
    controller = str(bus_of(devices.spec, disk, devices).get("bus", "")).partition(".")[0]
    if disk.bus != "scsi" or not devices.spec.scsi_controller.startswith("virtio-scsi"):
        raise Unsupported(f"{disk.slot}: only virtio and virtio-scsi disks can be plugged while it runs")
    if _has_own_controller(devices.spec, disk):
        _require_bus(disk.slot, controller, devices, present)
    elif controller not in present:
        raise Unsupported(f"{disk.slot}: it was started without a SCSI controller")


def _require_bus(slot: str, device: str, devices: Devices, present: Collection[str]) -> None:
    try:
        bus = pci.address_of(device).bus
    except KeyError as error:
        raise Unsupported(f"{slot}: there is no such slot") from error
    if bus == pci.ROOT and devices.board != I440FX:
        raise Unsupported(f"{slot}: the root bus of {devices.board} takes nothing while it runs")
    if bus != pci.ROOT and f"bridge{bus}" not in present:
        raise Unsupported(f"{slot}: it was started without the PCI bridge that this slot is on")
