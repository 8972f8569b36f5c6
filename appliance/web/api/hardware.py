"""/nodes/{node}: what the host is made of and what runs on it: disks, PCI devices, services. Read only."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.services import host_inventory
from appliance.services.host_inventory import Disk, HostService, PciDevice
from appliance.web.registry import Allow, Call, NodeParams, PveBool, Resource

api = Resource()

SYS_AUDIT = Allow("/nodes/{node}", "Sys.Audit")
HIDDEN_CLASSES = "05;06;0b"


class DiskParams(NodeParams, kw_only=True):
    """Which disks."""

    include_partitions: Annotated[PveBool, Meta(description="list partitions too")] = msgspec.field(
        name="include-partitions", default=False
    )
    skipsmart: Annotated[PveBool, Meta(description="accepted: the health of disks is not read")] = False
    type: Annotated[Literal["unused"], Meta(description="only disks nothing uses")] | None = None


class DiskRow(msgspec.Struct, kw_only=True):
    """A disk, or with `parent` a partition. `health` is UNKNOWN: SMART is not read."""

    devpath: str
    size: int
    type: Literal["hdd", "ssd", "partition"]
    model: str | None = None
    vendor: str | None = None
    serial: str | None = None
    wwn: str | None = None
    used: str | None = None
    mounted: bool | None = None
    gpt: bool = False
    parent: str | None = None
    health: str = "UNKNOWN"


class PciParams(NodeParams, kw_only=True):
    """Which devices."""

    blacklist: Annotated[str, Meta(max_length=256, description="class codes to leave out, separated by semicolons")] = (
        msgspec.field(name="pci-class-blacklist", default=HIDDEN_CLASSES)
    )
    verbose: Annotated[PveBool, Meta(description="with names, driver and subsystem")] = True


class PciRow(msgspec.Struct, kw_only=True):
    """A PCI function; numbers as 0x…"""

    id: str
    class_: str = msgspec.field(name="class")
    vendor: str
    device: str
    iommugroup: int
    vendor_name: str | None = None
    device_name: str | None = None
    subsystem_vendor: str | None = None
    subsystem_device: str | None = None


class ServiceRow(msgspec.Struct, kw_only=True):
    """A unit of systemd."""

    service: str
    name: str
    desc: str
    state: str
    active_state: str = msgspec.field(name="active-state")
    unit_state: str = msgspec.field(name="unit-state")


@api.get("/nodes/{node}/disks/list", summary="Disks of the host", allow=SYS_AUDIT, returns=list[DiskRow])
async def list_disks(call: Call, params: DiskParams) -> list[DiskRow]:
    """Whole disks the kernel knows, by name."""
    rows: list[DiskRow] = []
    for disk in await asyncio.to_thread(host_inventory.read_disks):
        if params.type == "unused" and disk.used:
            continue
        rows.append(disk_row(disk))
        if params.include_partitions:
            rows += [
                DiskRow(devpath=f"/dev/{name}", size=0, type="partition", parent=disk.path) for name in disk.partitions
            ]
    return rows


def disk_row(disk: Disk) -> DiskRow:
    """PVE's form."""
    return DiskRow(
        devpath=disk.path,
        size=disk.size_bytes,
        type="hdd" if disk.rotational else "ssd",
        model=disk.model or None,
        vendor=disk.vendor or None,
        serial=disk.serial or None,
        wwn=disk.wwn or None,
        used=disk.used or None,
        mounted=bool(disk.mounts) or None,
    )


@api.get("/nodes/{node}/hardware/pci", summary="PCI devices of the host", allow=SYS_AUDIT, returns=list[PciRow])
async def list_pci(call: Call, params: PciParams) -> list[PciRow]:
    """By address; bridges, memory controllers and processors are left out unless asked for."""
    hidden = tuple(code for code in params.blacklist.replace(",", ";").split(";") if code)
    devices = await asyncio.to_thread(host_inventory.read_pci)
    return [pci_row(device, verbose=params.verbose) for device in devices if not device.class_id.startswith(hidden)]


def pci_row(device: PciDevice, *, verbose: bool) -> PciRow:
    """PVE's form."""
    row = PciRow(
        id=device.address,
        class_=f"0x{device.class_id}",
        vendor=f"0x{device.vendor}",
        device=f"0x{device.device}",
        iommugroup=device.iommu_group,
    )
    if verbose:
        row.vendor_name, row.device_name = device.vendor_name or None, device.device_name or None
        row.subsystem_vendor = f"0x{device.subsystem_vendor}" if device.subsystem_vendor else None
        row.subsystem_device = f"0x{device.subsystem_device}" if device.subsystem_device else None
    return row


@api.get("/nodes/{node}/services", summary="Services of the host", allow=SYS_AUDIT, returns=list[ServiceRow])
async def list_services(call: Call, params: NodeParams) -> list[ServiceRow]:
    """systemd's units, by name; none where the host runs without systemd."""
    return [service_row(service) for service in await host_inventory.read_services()]


def service_row(service: HostService) -> ServiceRow:
    """PVE's form."""
    return ServiceRow(
        service=service.name,
        name=service.name,
        desc=service.description,
        state=service.sub,
        active_state=service.active,
        unit_state=service.unit_file,
    )
