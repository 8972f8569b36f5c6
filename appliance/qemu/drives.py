"""Disks, CD-ROMs and their controllers as arguments. Pure.

A drive in slot S is the device S over the block node `drive-S`; `block_resize` and statistics use those names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from appliance.errors import HostError
from appliance.model.guest import VmDisk, VmResources, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.qemu.devices import Devices
from appliance.qemu.firmware import VarsStore
from appliance.qemu.launch import Q35, Launch
from appliance.qemu.options import as_json

# cache mode: (bypass the host's page cache, ignore flushes, the guest sees a volatile write cache)
_CACHE = {
    "none": (True, False, True),
    "writeback": (False, False, True),
    "writethrough": (False, False, False),
    "directsync": (True, False, False),
    "unsafe": (False, True, True),
}
CACHE_MODES = frozenset(_CACHE)
SCSI_CONTROLLERS = {
    "virtio-scsi-pci": "virtio-scsi-pci",
    "virtio-scsi-single": "virtio-scsi-pci",
    "lsi": "lsi53c895a",
    "lsi53c810": "lsi53c810",
    "megasas": "megasas",
    "pvscsi": "pvscsi",
}
_LSI_TARGETS = 7
SLOT_LIMITS = {"ide": 4, "sata": 6, "scsi": 31, "virtio": 16}


def needs_direct_io(disk: VmDisk) -> bool:
    """Whether its cache mode opens the image with O_DIRECT."""
    return not disk.cdrom and _CACHE[disk.cache][0]


def node_name(slot: str) -> str:
    """The block node of a slot."""
    return f"drive-{slot}"


def slot_of(node: str) -> str:
    """The slot of a drive's block node, moved or not (`mirror`)."""
    return node.removeprefix(node_name("")).partition(".")[0]


def drive_arguments(spec: VmSpec, resources: VmResources, launch: Launch, devices: Devices) -> Iterator[str]:
    """All drives of the VM with their controllers."""
    controllers: set[str] = set()
    for disk in spec.disks:
        volume = _volume_of(spec, disk, resources)
        if volume is not None:
            yield from ("-blockdev", as_json(block_node(disk, volume, buffered=disk.slot in launch.buffered)))
        if disk.bus == "virtio":
            yield from devices.bridge_for(disk.slot)
        iothread = iothread_of(spec, disk)
        if iothread:
            yield from ("-object", as_json({"qom-type": "iothread", "id": iothread}))
        bus = bus_of(spec, disk, devices)
        controller = str(bus.get("bus", "")).partition(".")[0]
        if controller not in controllers and disk.bus in ("scsi", "sata"):
            controllers.add(controller)
            yield from _controller(spec, disk, controller, iothread, devices)
        yield from ("-device", as_json(drive_device(disk, volume, bus, iothread, devices)))


def iothread_of(spec: VmSpec, disk: VmDisk) -> str | None:
    """The name of the disk's own I/O thread, if it is to have one."""
    single = disk.bus == "scsi" and spec.scsi_controller == "virtio-scsi-single"
    return f"iothread-{disk.slot}" if disk.iothread and (disk.bus == "virtio" or single) else None


def vars_node(store: VarsStore) -> dict[str, Any]:
    """The block node `pflash1`: exactly the template's size, however large the volume is."""
    file = {"driver": _protocol(str(store.path)), "filename": str(store.path)}
    inner = file if store.format is VolumeFormat.RAW else {"driver": store.format.value, "file": file}
    return {"driver": "raw", "node-name": "pflash1", "size": store.size_bytes, "file": inner}


def _volume_of(spec: VmSpec, disk: VmDisk, resources: VmResources) -> OpenedVolume | None:
    volume = resources.disks.get(disk.slot)
    if volume is None and disk.volume is not None:
        raise HostError(f"vm {spec.guest_id}: {disk.slot}: volume {disk.volume} was not opened")
    return volume


def _protocol(path: str) -> str:
    return "host_device" if path.startswith("/dev/") else "file"


def block_node(disk: VmDisk, volume: OpenedVolume, *, buffered: bool) -> dict[str, Any]:
    """What is behind a drive."""
    direct, no_flush, _ = _CACHE["writeback" if disk.cdrom else disk.cache]
    direct = direct and not buffered
    common: dict[str, Any] = {
        "read-only": disk.cdrom or disk.read_only or volume.read_only,
        "cache": {"direct": direct, "no-flush": no_flush},
        "discard": "unmap" if disk.discard else "ignore",
    }
    file = {
        "driver": _protocol(str(volume.path)),
        "filename": str(volume.path),
        "aio": disk.host_io(direct=direct, io_uring=disk.aio == "io_uring"),
        **common,
    }
    zeroes = None if disk.cdrom else ("unmap" if disk.discard else "on")
    node = {"driver": volume.format.value, "node-name": node_name(disk.slot), "file": file, **common}
    return node | ({"detect-zeroes": zeroes} if zeroes else {})


def bus_of(spec: VmSpec, disk: VmDisk, devices: Devices) -> Mapping[str, object]:
    """Where the drive plugs in, and which of the controller's places it takes."""
    index = disk.index
    match disk.bus:
        case "ide" if devices.board == Q35:
            return {"bus": f"ide.{index}", "unit": 0}  # the board's AHCI: one drive a port
        case "ide":
            return {"bus": f"ide.{index // 2}", "unit": index % 2}
        case "sata":
            return {"bus": f"ahci0.{index}"}
        case "scsi" if spec.scsi_controller == "virtio-scsi-single":
            return {"bus": f"virtioscsi{index}.0", "channel": 0, "scsi-id": 0, "lun": index}
        case "scsi" if spec.scsi_controller == "virtio-scsi-pci":
            return {"bus": "scsihw0.0", "channel": 0, "scsi-id": 0, "lun": index}
        case "scsi" if spec.scsi_controller.startswith("lsi"):
            return {"bus": f"scsihw{index // _LSI_TARGETS}.0", "scsi-id": index % _LSI_TARGETS}
        case "scsi":
            return {"bus": "scsihw0.0", "scsi-id": index}
        case _:
            return devices.place(disk.slot)


def _controller(spec: VmSpec, disk: VmDisk, controller: str, iothread: str | None, devices: Devices) -> Iterator[str]:
    if disk.bus == "sata":
        yield from devices.add("ich9-ahci", "ahci0")
    else:
        yield from devices.add(SCSI_CONTROLLERS[spec.scsi_controller], controller, {"iothread": iothread})


def drive_device(
    disk: VmDisk,
    volume: OpenedVolume | None,
    bus: Mapping[str, object],
    iothread: str | None,
    devices: Devices,
) -> dict[str, object]:
    """The drive itself."""
    on_scsi, is_virtio = disk.bus == "scsi", disk.bus == "virtio"
    driver = "virtio-blk-pci" if is_virtio else f"{'scsi' if on_scsi else 'ide'}-{'cd' if disk.cdrom else 'hd'}"
    is_disk = not disk.cdrom or is_virtio
    return {
        "driver": driver,
        "id": disk.slot,
        **bus,
        "drive": node_name(disk.slot) if volume is not None else None,
        "serial": disk.serial or None,
        "write-cache": ("on" if _CACHE[disk.cache][2] else "off") if is_disk else None,
        "rotation_rate": 1 if disk.ssd and is_disk and not is_virtio else None,
        "iothread": iothread if is_virtio else None,
        "bootindex": devices.boot_index(disk.slot),
    }
