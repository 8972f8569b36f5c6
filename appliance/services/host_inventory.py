"""What this host is made of and what runs on it: disks, PCI devices, services of systemd. Read when asked for, bounded.

`read_*` block (sysfs) and belong into a thread. Names come from the devices and are hostile text like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from appliance import command

BLOCK = Path("/sys/block")
PCI = Path("/sys/bus/pci/devices")
MOUNTS = Path("/proc/self/mountinfo")
PCI_IDS = Path("/usr/share/misc/pci.ids")
SYSTEMD = Path("/run/systemd/system")
SECTOR_BYTES = 512
TEXT_LIMIT = 256
IDS_LIMIT_BYTES = 4 << 20
SYSTEMCTL_TIMEOUT_S = 10.0
_NO_DISKS: Final = ("loop", "ram", "zram", "dm-", "sr", "fd", "nbd")
PCI_CLASSES: Final[Mapping[str, str]] = {
    "00": "Unclassified", "01": "Storage controller", "02": "Network controller", "03": "Display controller",
    "04": "Multimedia controller", "05": "Memory controller", "06": "Bridge", "07": "Communication controller",
    "08": "System peripheral", "09": "Input device", "0b": "Processor", "0c": "Serial bus controller",
    "0d": "Wireless controller", "10": "Encryption controller", "11": "Signal processing", "12": "Accelerator",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A whole disk. `used` says by what ("mounted", "partitions", "device mapper", "" for nothing)."""

    path: str
    size_bytes: int
    model: str = ""
    vendor: str = ""
    serial: str = ""
    wwn: str = ""
    rotational: bool = False
    removable: bool = False
    used: str = ""
    mounts: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PciDevice:
    """`class_id`, `vendor`, `device` are hexadecimal without 0x."""

    address: str
    class_id: str
    vendor: str
    device: str
    subsystem_vendor: str = ""
    subsystem_device: str = ""
    driver: str = ""
    iommu_group: int = -1
    vendor_name: str = ""
    device_name: str = ""

    @property
    def class_name(self) -> str:
        """For people."""
        return PCI_CLASSES.get(self.class_id[:2], "Other device")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostService:
    """One unit: "ssh", with systemd's words for how it is."""

    name: str
    description: str
    active: str
    sub: str
    unit_file: str


def read_disks(block: Path = BLOCK, mounts: Path = MOUNTS) -> Sequence[Disk]:
    """Every whole disk, by name. A device that goes meanwhile is left out. Raises `OSError`."""
    mounted = parse_mounts(mounts.read_text()) if mounts.exists() else {}
    found = []
    for directory in sorted(block.iterdir() if block.is_dir() else ()):
        if directory.name.startswith(_NO_DISKS):
            continue
        disk = _disk(directory, mounted)
        if disk is not None and disk.size_bytes:
            found.append(disk)
    return found


def parse_mounts(text: str) -> Mapping[str, Sequence[str]]:
    """Mount points by "major:minor" (proc_pid_mountinfo(5)), escapes resolved."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) > 4:
            point = fields[4].encode().decode("unicode_escape", errors="replace")
            found.setdefault(fields[2], []).append(point[:TEXT_LIMIT])
    return found


def _disk(directory: Path, mounted: Mapping[str, Sequence[str]]) -> Disk | None:
    size = _text(directory / "size")
    if not size.isdecimal():
        return None
    partitions = sorted(each.name for each in directory.iterdir() if (each / "partition").exists())
    points = [*mounted.get(_text(directory / "dev"), ())]
    for name in partitions:
        points += mounted.get(_text(directory / name / "dev"), ())
    holders = [
        each for place in (directory, *(directory / name for name in partitions)) for each in _names(place / "holders")
    ]
    used = "mounted" if points else "device mapper" if holders else "partitions" if partitions else ""
    return Disk(
        path=f"/dev/{directory.name}",
        size_bytes=int(size) * SECTOR_BYTES,
        model=_text(directory / "device/model"),
        vendor=_text(directory / "device/vendor"),
        serial=_text(directory / "device/serial") or _text(directory / "serial"),
        wwn=_text(directory / "device/wwid") or _text(directory / "wwid"),
        rotational=_text(directory / "queue/rotational") == "1",
        removable=_text(directory / "removable") == "1",
        used=used,
        mounts=tuple(dict.fromkeys(points)),
        partitions=tuple(partitions),
    )


def read_pci(devices: Path = PCI, ids: Path = PCI_IDS) -> Sequence[PciDevice]:
    """Every PCI function, by address; with names where the host has pci.ids. Raises `OSError`."""
    found = [_pci(directory) for directory in sorted(devices.iterdir() if devices.is_dir() else ())]
    wanted = {(each.vendor, each.device) for each in found}
    names = _pci_names(ids, wanted)
    return [_with_names(each, names) for each in found]


def _pci(directory: Path) -> PciDevice:
    def number(name: str) -> str:
        return _text(directory / name).removeprefix("0x")

    group = directory / "iommu_group"
    driver = directory / "driver"
    return PciDevice(
        address=directory.name,
        class_id=number("class"),
        vendor=number("vendor"),
        device=number("device"),
        subsystem_vendor=number("subsystem_vendor"),
        subsystem_device=number("subsystem_device"),
        driver=driver.resolve().name if driver.exists() else "",
        iommu_group=int(name) if group.exists() and (name := group.resolve().name).isdecimal() else -1,
    )


def _with_names(device: PciDevice, names: Mapping[tuple[str, str], str]) -> PciDevice:
    vendor, product = names.get((device.vendor, ""), ""), names.get((device.vendor, device.device), "")
    return replace(device, vendor_name=vendor, device_name=product)


def _pci_names(ids: Path, wanted: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
    """Names of (vendor, "") and (vendor, device) from the list of the PCI ID project, if it is installed."""
    pairs = set(wanted)
    vendors = {vendor for vendor, _ in pairs}
    try:
        if ids.stat().st_size > IDS_LIMIT_BYTES:
            return {}
        text = ids.read_text(errors="replace")
    except OSError:
        return {}
    found: dict[tuple[str, str], str] = {}
    vendor = ""
    for line in text.splitlines():
        if line.startswith("C "):
            break
        if line.startswith(("\t\t", "#")):
            continue
        number, _, name = line.strip().partition("  ")
        if line.startswith("\t"):
            if (vendor, number) in pairs:
                found[vendor, number] = name[:TEXT_LIMIT]
        else:
            vendor = number
            if vendor in vendors:
                found[vendor, ""] = name[:TEXT_LIMIT]
    return found


async def read_services() -> Sequence[HostService]:
    """systemd's service units that are loaded, by name; none where the host was not booted with systemd.

    Raises `CommandFailed`, `TimedOut`.
    """
    if not await asyncio.to_thread(SYSTEMD.is_dir):
        return []
    fields = "Id,Description,ActiveState,SubState,UnitFileState,LoadState"
    argv = ["systemctl", "show", "--type=service", "--all", f"--property={fields}", "*.service", "--no-pager"]
    return parse_services((await command.run(argv, timeout_s=SYSTEMCTL_TIMEOUT_S)).text)


def parse_services(text: str) -> Sequence[HostService]:
    """The blocks of `systemctl show`; units that are not installed are left out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line)
        if fields.get("LoadState") != "loaded" or not fields.get("Id", "").endswith(".service"):
            continue
        found.append(
            HostService(
                name=fields["Id"].removesuffix(".service")[:TEXT_LIMIT],
                description=fields.get("Description", "")[:TEXT_LIMIT],
                active=fields.get("ActiveState", "unknown"),
                sub=fields.get("SubState", "unknown"),
                unit_file=fields.get("UnitFileState", "") or "unknown",
            )
        )
    return sorted(found, key=lambda service: service.name)


def _text(path: Path) -> str:
    """A small file of sysfs, "" when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(TEXT_LIMIT).decode(errors="replace").strip().strip("\0")
    except OSError:
        return ""


def _names(directory: Path) -> Sequence[str]:
    try:
        return [each.name for each in directory.iterdir()]
    except OSError:
        return []
