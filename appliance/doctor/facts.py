"""The host as the doctor sees it. Everything here reads; nothing is made, changed or started for longer than a question.

What cannot be read is a fact, too: no function raises for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import platform
import shutil
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.config import DEFAULT_DATA_DIR, default_run_dir
from appliance.ct.host import LXCFS
from appliance.errors import ApplianceError
from appliance.kernel import hugepages, kvm_capabilities
from appliance.kernel.cgroups import CgroupLayout
from appliance.kernel.kvm_capabilities import KvmCapabilities
from appliance.kernel.virtualization import open_error
from appliance.qemu.capabilities import HostFacts, probe_host
from appliance.services import host_facts
from appliance.state.data_format import FILE_NAME as FORMAT_FILE
from appliance.vmm.boot import firmware

CONTROLLERS = ("cpu", "memory", "pids", "io")
DEVICES = ("/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock", "/dev/fuse")
LIBRARIES = ("libnftables.so.1", "libpam.so.0", "libcrypt.so.1")
PROGRAMS = (
    "apparmor_parser", "conmon", "crun", "dhcpcd", "dnsmasq", "grub-bios-setup", "grub-mkimage", "lxcfs", "mcopy", "mkfs.ext4",
    "mkfs.vfat",
    "mmdebstrap", "qemu-img", "qemu-storage-daemon", "runc", "sfdisk", "xz", "zstd",
)  # fmt: skip
ADMIN_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Not on the path of everybody who asks."""
SOCKET_NAME = "api.sock"
_ANSWER_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that `checks.py` decides by. Empty strings and mappings mean that there is nothing."""

    is_root: bool = True
    system: str = ""
    """Of os-release, "Debian GNU/Linux 12 (bookworm)"."""
    kernel: str = ""
    memory_bytes: int = 0
    kvm: KvmCapabilities = field(default_factory=KvmCapabilities)
    qemu: HostFacts = field(default_factory=HostFacts)
    no_seabios: str = ""
    shared_memory_pages: str = ""
    """`hugepages.shared_memory_policy`."""
    programs: Mapping[str, str] = field(default_factory=dict)
    """Of `PROGRAMS`, those that are installed, and where."""
    libraries: frozenset[str] = frozenset()
    device_errors: Mapping[str, str] = field(default_factory=dict)
    cgroup2: bool = True
    controllers: frozenset[str] = frozenset()
    user_namespaces: int = 0
    lxcfs_mounted: bool = True
    security_modules: tuple[str, ...] = ()
    data_dir: Path = DEFAULT_DATA_DIR
    data_free_bytes: int = 0
    data_total_bytes: int = 0
    data_format: str = ""
    """What the data directory says; empty when there is none."""
    data_problem: str = ""
    certificate_ends: float = 0.0
    serves: bool = False
    """Whether the appliance of that data directory answers on its socket."""
    unit_state: str = ""
    """systemd's word for appliance.service; empty without the package or systemd."""


async def gather(data_dir: Path, *, run_dir: Path | None = None) -> Facts:
    """Look at everything."""
    qemu = await probe_host()
    return await asyncio.to_thread(_look, data_dir, run_dir or default_run_dir(data_dir), qemu)


def _look(data_dir: Path, run_dir: Path, qemu: HostFacts) -> Facts:
    layout = CgroupLayout.detect()
    free, total = _space(data_dir)
    data_format, data_problem = _data_format(data_dir)
    return Facts(
        is_root=os.geteuid() == 0,
        system=_system(),
        kernel=platform.release(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kvm=kvm_capabilities.probe(),
        qemu=qemu,
        no_seabios=firmware.problem(),
        shared_memory_pages=hugepages.shared_memory_policy(),
        programs=_programs(),
        libraries=frozenset(_libraries()),
        device_errors={device: open_error(device) for device in DEVICES},
        cgroup2=layout.pure_v2,
        controllers=frozenset(
            name for name in CONTROLLERS if layout.tree_of("blkio" if _v1_io(layout, name) else name)
        ),
        user_namespaces=_number("/proc/sys/user/max_user_namespaces"),
        lxcfs_mounted=LXCFS.is_mount(),
        security_modules=tuple(_read("/sys/kernel/security/lsm").strip().split(",")) if _apparmor() else (),
        data_dir=data_dir,
        data_free_bytes=free,
        data_total_bytes=total,
        data_format=data_format,
        data_problem=data_problem,
        certificate_ends=_certificate_ends(data_dir),
        serves=_answers(run_dir / SOCKET_NAME),
        unit_state=_unit_state(),
    )


def _v1_io(layout: CgroupLayout, name: str) -> bool:
    return name == "io" and not layout.pure_v2


def _programs() -> dict[str, str]:
    path = os.pathsep.join([os.environ.get("PATH", ""), *ADMIN_PATHS])
    return {name: found for name in PROGRAMS if (found := shutil.which(name, path=path))}


def _libraries() -> Iterable[str]:
    for name in LIBRARIES:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            yield name


def _apparmor() -> bool:
    return _read("/sys/module/apparmor/parameters/enabled").strip() == "Y"


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _space(directory: Path) -> tuple[int, int]:
    """(free, in all) of the file system that holds it, or would."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        usage = shutil.disk_usage(directory)
    except OSError:
        return 0, 0
    return usage.free, usage.total


def _data_format(data_dir: Path) -> tuple[str, str]:
    try:
        return (data_dir / FORMAT_FILE).read_text(errors="replace").partition("\n")[0], ""
    except FileNotFoundError:
        return "", ""
    except OSError as error:
        return "", f"{data_dir}: {error.strerror}"


def _certificate_ends(data_dir: Path) -> float:
    try:
        return min((entry.not_after for entry in host_facts.read_certificates(data_dir / "pki")), default=0)
    except (ApplianceError, OSError):
        return 0.0


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        client.settimeout(_ANSWER_TIMEOUT_S)
        try:
            client.connect(str(path))
            client.sendall(b"GET /api2/json/version HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return client.recv(64).startswith(b"HTTP/1.")
        except OSError:
            return False


def _unit_state() -> str:
    """Where systemd runs: whether it has the unit's control group. Asking systemctl would start a process."""
    if not Path("/run/systemd/system").is_dir() or not Path("/usr/lib/systemd/system/appliance.service").exists():
        return ""
    groups = ("/sys/fs/cgroup/system.slice/appliance.service", "/sys/fs/cgroup/systemd/system.slice/appliance.service")
    return "active" if any(_read(f"{group}/cgroup.procs").strip() for group in groups) else "inactive"


def _number(path: str) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
