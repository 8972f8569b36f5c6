"""One look at the host: /proc, statvfs and uname as values. Parsers are pure; `read_*` block and belong into a thread."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.services import pressure

PROC = Path("/proc")
EFI = Path("/sys/firmware/efi")
SECURE_BOOT = EFI / "efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
SECTOR_BYTES = 512
_WHOLE_DISK = re.compile(r"(?:[sv]d|xvd|hd)[a-z]+|nvme\d+n\d+|mmcblk\d+")
_VIRTUAL_INTERFACE = re.compile(r"lo|tap|veth|ve\d|ta\d|vmbr|ifb|docker|br-|fw|dummy")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuInfo:
    """The processors. `cores` counts all sockets' cores, `cpus` hardware threads. `hvm`: vmx or svm is there."""

    model: str = "unknown"
    sockets: int = 1
    cores: int = 1
    cpus: int = 1
    mhz: float = 0.0
    flags: str = ""
    hvm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelInfo:
    """uname(2)."""

    sysname: str
    release: str
    version: str
    machine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """What does not change while the host runs."""

    cpu: CpuInfo
    kernel: KernelInfo
    boot_mode: str  # "efi" or "legacy-bios"
    secure_boot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Counters and gauges at one moment. CPU times in clock ticks since boot, sizes in bytes."""

    cpu_total: int
    cpu_idle: int
    cpu_iowait: int
    load: tuple[float, float, float]
    memory_total_bytes: int
    memory_free_bytes: int
    memory_available_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int
    rootfs_total_bytes: int
    rootfs_free_bytes: int
    rootfs_available_bytes: int
    uptime_s: float
    net_in_bytes: int
    net_out_bytes: int
    disk_read_bytes: int = 0
    disk_write_bytes: int = 0
    pressure: Mapping[str, float] = field(default_factory=dict)


def parse_cpu_times(stat: str) -> tuple[int, int, int]:
    """(total, idle, iowait) of /proc/stat's first line (proc(5)); guest time is within user time already."""
    fields = [int(field) for field in stat.split("\n", 1)[0].split()[1:9]]
    fields += [0] * (8 - len(fields))
    return sum(fields), fields[3], fields[4]


def parse_memory(meminfo: str) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found: dict[str, int] = {}
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        parts = rest.split()
        if parts and parts[0].isdigit():
            found[name] = int(parts[0]) * (1024 if parts[-1] == "kB" else 1)
    return found


def parse_cpuinfo(text: str, *, machine: str) -> CpuInfo:
    """/proc/cpuinfo. Architectures that name no model get the machine's name."""
    first: dict[str, str] = {}
    cores: set[tuple[str, str]] = set()
    cpus = 0
    for block in text.strip().split("\n\n"):
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        if "processor" not in fields:
            continue
        cpus += 1
        first = first or fields
        cores.add((fields.get("physical id", "0"), fields.get("core id", fields["processor"])))
    flags = first.get("flags", first.get("Features", ""))
    mhz = first.get("cpu MHz", "0")
    return CpuInfo(
        model=first.get("model name", first.get("Model", machine)),
        sockets=len({physical for physical, _ in cores}) or 1,
        cores=len(cores) or 1,
        cpus=cpus or 1,
        mhz=float(mhz) if re.fullmatch(r"[\d.]+", mhz) else 0.0,
        flags=flags,
        hvm=not {"vmx", "svm"}.isdisjoint(flags.split()),
    )


def parse_network(text: str) -> tuple[int, int]:
    """Bytes (in, out) of /proc/net/dev's interfaces that are neither loopback nor a guest's."""
    received = sent = 0
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = rest.split()
        if _VIRTUAL_INTERFACE.match(name.strip()) is None and len(fields) >= 9:
            received, sent = received + int(fields[0]), sent + int(fields[8])
    return received, sent


def parse_disks(text: str) -> tuple[int, int]:
    """Bytes (read, written) of /proc/diskstats' whole disks (kernel Documentation/admin-guide/iostats.rst)."""
    read = written = 0
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 10 and _WHOLE_DISK.fullmatch(fields[2]) is not None:
            read, written = read + int(fields[5]) * SECTOR_BYTES, written + int(fields[9]) * SECTOR_BYTES
    return read, written


def read_sample(root: Path = Path("/")) -> Sample:
    """Look now. Blocks for well under a millisecond. Raises `OSError`."""
    total, idle, iowait = parse_cpu_times((PROC / "stat").read_text())
    memory = parse_memory((PROC / "meminfo").read_text())
    load = (PROC / "loadavg").read_text().split()
    file_system = os.statvfs(root)
    net_in, net_out = parse_network((PROC / "net/dev").read_text())
    disk_read, disk_write = parse_disks((PROC / "diskstats").read_text())
    return Sample(
        cpu_total=total,
        cpu_idle=idle,
        cpu_iowait=iowait,
        load=(float(load[0]), float(load[1]), float(load[2])),
        memory_total_bytes=memory.get("MemTotal", 0),
        memory_free_bytes=memory.get("MemFree", 0),
        memory_available_bytes=memory.get("MemAvailable", memory.get("MemFree", 0)),
        swap_total_bytes=memory.get("SwapTotal", 0),
        swap_free_bytes=memory.get("SwapFree", 0),
        rootfs_total_bytes=file_system.f_blocks * file_system.f_frsize,
        rootfs_free_bytes=file_system.f_bfree * file_system.f_frsize,
        rootfs_available_bytes=file_system.f_bavail * file_system.f_frsize,
        uptime_s=float((PROC / "uptime").read_text().split()[0]),
        net_in_bytes=net_in,
        net_out_bytes=net_out,
        disk_read_bytes=disk_read,
        disk_write_bytes=disk_write,
        pressure=pressure.read_host(),
    )


def read_host() -> HostInfo:
    """What does not change. Raises `OSError`."""
    name = os.uname()
    try:
        secure = SECURE_BOOT.read_bytes()[4:5] == b"\1"
    except OSError:
        secure = False
    return HostInfo(
        cpu=parse_cpuinfo((PROC / "cpuinfo").read_text(), machine=name.machine),
        kernel=KernelInfo(sysname=name.sysname, release=name.release, version=name.version, machine=name.machine),
        boot_mode="efi" if EFI.exists() else "legacy-bios",
        secure_boot=secure,
    )
