"""Guests: identity, state, figures and the specifications an engine starts from.

A *specification* is what a guest's configuration means: typed, complete, defaults filled in. Services make it from the
PVE property strings (`services/guest_config.py`); engines read it and nothing else. *Resources* are the host's side of
one start: opened volumes, tap devices, callbacks. Devices are matched between the two by slot ("scsi0", "net1").
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NewType

from appliance.model.application import Application
from appliance.model.volume import OpenedVolume

GuestId = NewType("GuestId", int)
"""PVE's VMID: 100 to 999999999, unique in the cluster over both kinds."""

GUEST_ID_MIN, GUEST_ID_MAX = 100, 999_999_999


class GuestKind(StrEnum):
    """PVE's path words for a virtual machine and a container."""

    QEMU = "qemu"
    LXC = "lxc"

    @property
    def prefix(self) -> str:
        """The word for messages: `vm 100`, `ct 101`."""
        return "vm" if self is GuestKind.QEMU else "ct"


class GuestState(StrEnum):
    """The life of a guest on its node. The allowed moves are in `services/lifecycle.py`."""

    STOPPED = "stopped"  # nothing of it runs
    STARTING = "starting"  # resources are being made, the engine launches it
    RUNNING = "running"  # its vCPUs or init process run
    PAUSED = "paused"  # it exists in memory and does not execute
    STOPPING = "stopping"  # an orderly or hard stop is under way, or its remains are being removed


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStats:
    """One disk or NIC of a running guest: who moves its data, and how much was read from and written to a disk."""

    data_plane: str
    read_bytes: int = 0
    written_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestStats:
    """Figures of one running guest. Counters rise since its start; times in seconds, sizes in bytes."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    memory_max_bytes: int = 0
    disk_read_bytes: int = 0
    disk_write_bytes: int = 0
    net_in_bytes: int = 0
    net_out_bytes: int = 0
    disk_used_bytes: int = 0
    processes: int = 0
    devices: Mapping[str, DeviceStats] = field(default_factory=dict)  # by slot, where the engine tells them apart
    oom_kills: int = 0
    """Processes the kernel has killed in it, because its memory limit was reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NicSpec:
    """A network interface. `slot` is "net0"; `model` is a VM's device ("virtio") or "veth"."""

    slot: str
    model: str
    mac: str
    bridge: str
    firewall: bool = False
    vlan: int | None = None
    rate_mbyte_s: float | None = None
    mtu: int | None = None
    link_down: bool = False
    queues: int = 1
    # addressing ("dhcp", "manual", "auto" or CIDR); a VM's is what its cloud-init drive tells it. `name`: containers only
    name: str = ""
    ip: str = ""
    gateway: str = ""
    ip6: str = ""
    gateway6: str = ""
    host_managed: bool = False
    """Whether the host sets its addresses in a container's network: nothing inside has to."""


# --- virtual machines -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class VmDisk:
    """A disk or CD-ROM. `slot` is "virtio0", "scsi1", "ide2", "sata0" or "efidisk0"; `volume` None is an empty drive.
    `aio` is how the host shall do its I/O ("native", "threads", "io_uring"); "" is the engine's choice."""

    slot: str
    volume: str | None
    cdrom: bool = False
    cloudinit: bool = False
    cache: str = "none"
    discard: bool = False
    ssd: bool = False
    iothread: bool = False
    read_only: bool = False
    serial: str = ""
    size_bytes: int = 0
    aio: str = ""

    def host_io(self, *, direct: bool, io_uring: bool) -> str:
        """How QEMU's block layer reads and writes the image: "native", "threads" or "io_uring". As `aio` wishes, where that
        can be: native wants `direct`, io_uring a host that has it."""
        possible = {"threads", *(["native"] if direct else []), *(["io_uring"] if io_uring else [])}
        if self.aio in possible:
            return self.aio
        # a buffered read that finds its page in memory needs no thread with io_uring
        return "native" if direct else "io_uring" if io_uring else "threads"

    @property
    def bus(self) -> str:
        """ "virtio", "scsi", "ide", "sata" or "efidisk"."""
        return self.slot.rstrip("0123456789")

    @property
    def index(self) -> int:
        """The number in the slot's name."""
        return int(self.slot[len(self.bus) :])


@dataclass(frozen=True, slots=True, kw_only=True)
class VmShare:
    """A directory of the host that the guest mounts: `mount -t virtiofs MAPPING /mnt`. `slot` is "virtiofs0"; `cache` is
    "auto", "always", "metadata" or "never"."""

    slot: str
    mapping: str
    cache: str = "auto"
    direct_io: bool = False
    acl: bool = False
    xattr: bool = False

    @property
    def index(self) -> int:
        """The number in the slot's name."""
        return int(self.slot.removeprefix("virtiofs"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaNode:
    """A node of the guest's memory: which vCPUs are near to it, and where on the host it shall be. `policy` is
    "preferred", "bind" or "interleave", of `host_nodes`; both are empty when the host may choose."""

    index: int
    cpus: tuple[int, ...]
    memory_mib: int
    host_nodes: tuple[int, ...] = ()
    policy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBacking:
    """What the host makes a guest's memory of. `hugepages` is PVE's word: "" (none), "2", "1024" (MiB) or "any";
    `keep_hugepages`: they stay reserved after the guest. `prealloc`: all of it is taken at the start."""

    hugepages: str = ""
    keep_hugepages: bool = False
    prealloc: bool = False
    numa: tuple[NumaNode, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudInitSpec:
    """What the cloud-init drive tells the guest. `ip_configs` maps NIC index to "ip=dhcp" or "ip=CIDR,gw=…"."""

    user: str = ""
    password_hash: str = ""
    ssh_keys: tuple[str, ...] = ()
    ip_configs: Mapping[int, str] = field(default_factory=dict)
    nameserver: str = ""
    search_domain: str = ""
    upgrade: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """A virtual machine, complete. Memory in MiB; `balloon_min_mib` None means no balloon device."""

    guest_id: GuestId
    name: str
    uuid: str
    engine: str = ""  # "", "qemu" or "native": "" lets the host choose
    arch: str = "x86_64"  # or "aarch64"
    machine: str = "i440fx"  # "i440fx", "q35" or "virt"
    firmware: str = "seabios"  # or "ovmf"
    accelerator: str = "auto"  # "auto", "kvm", "tcg"
    cpu_model: str = ""
    cpu_flags: tuple[str, ...] = ()
    sockets: int = 1
    cores: int = 1
    vcpus: int = 1
    cpu_limit: float = 0.0
    cpu_units: int = 100
    memory_mib: int = 512
    balloon_min_mib: int | None = None
    memory_backing: MemoryBacking = MemoryBacking()
    shares: tuple[VmShare, ...] = ()
    disks: tuple[VmDisk, ...] = ()
    efi_disk: VmDisk | None = None
    scsi_controller: str = "virtio-scsi-pci"
    nics: tuple[NicSpec, ...] = ()
    serials: tuple[int, ...] = ()
    display: str = "std"  # "std", "virtio", "cirrus", "vmware", "none", "serial0"
    boot_order: tuple[str, ...] = ()
    rng: bool = False
    agent: bool = False
    acpi: bool = True
    tablet: bool = True
    local_time: bool = False
    os_type: str = "other"
    keyboard: str = ""
    cloud_init: CloudInitSpec | None = None
    extra_args: tuple[str, ...] = ()
    # volumes of a kernel and an initial RAM disk to boot directly, "" for none, and the kernel's command line
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    vsock: bool = (
        False  # a socket device; native: UNIX sockets in its run directory, or the host's AF_VSOCK ("offload")
    )
    data_plane: str = "auto"  # native machine: "auto", "python" or "offload" (vhost, vhost-user)
    watchdog: str = (
        ""  # what an i6300ESB does when it expires: "reset", "shutdown", "poweroff", "pause", "none"; "": no device
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """A snapshot `name` with the memory of a machine, kept in the image of `slot`; `slots` all have a snapshot `name`."""

    name: str
    slot: str
    slots: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VmResources:
    """The host's side of one start of a VM, by slot. `taps` maps "net0" to an existing tap device's name.

    `disks` also has "kernel" and "initrd" where the specification names them. `state` is a snapshot with the machine's
    memory, to go on from instead of booting. `directories` maps "virtiofs0" to what is shared.
    """

    disks: Mapping[str, OpenedVolume] = field(default_factory=dict)
    taps: Mapping[str, str] = field(default_factory=dict)
    state: SavedState | None = None
    directories: Mapping[str, Path] = field(default_factory=dict)


# --- containers -------------------------------------------------------------------------------------------------


class MountKind(StrEnum):
    """What a container's mount point shows."""

    VOLUME = "volume"  # a volume of a storage
    HOST_PATH = "path"  # a directory or file of the host
    MEMORY = "tmpfs"  # a file system in the container's memory


@dataclass(frozen=True, slots=True, kw_only=True)
class CtMount:
    """A file system of a container. `slot` is "rootfs" or "mp0"; `path` is absolute inside ("/" for rootfs).

    `volume` is a volume's name, or the host's path. `options` are PVE's words: "noexec", "nosuid" … `map_ids`: of a
    host path, whether owners on the host are the container's own ids.
    """

    slot: str
    volume: str
    path: str
    size_bytes: int = 0
    read_only: bool = False
    kind: MountKind = MountKind.VOLUME
    options: frozenset[str] = frozenset()
    map_ids: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CtDevice:
    """A device node of the host that a container has, under the same path. `mode`: access bits."""

    slot: str
    path: str
    mode: int = 0o660
    uid: int = 0
    gid: int = 0
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IoLimit:
    """Disk traffic per second, of each disk; 0: no limit."""

    read_bytes: int = 0
    write_bytes: int = 0
    read_operations: int = 0
    write_operations: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CtSecurity:
    """A confinement other than the usual. `seccomp` is "default", "strict" or "none"; `dropped` have no prefix."""

    seccomp: str = "default"
    apparmor: str = "default"
    dropped: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class CtSpec:
    """A container, complete. Ids 0…id_count-1 inside are id_base… outside (id_base 0: privileged)."""

    guest_id: GuestId
    hostname: str
    arch: str = "amd64"
    os_type: str = "debian"
    id_base: int = 100_000
    id_count: int = 65_536
    cores: int | None = None
    cpu_limit: float = 0.0
    cpu_units: int = 100
    memory_mib: int = 512
    swap_mib: int = 512
    root: CtMount
    mounts: tuple[CtMount, ...] = ()
    nics: tuple[NicSpec, ...] = ()
    nameserver: str = ""
    search_domain: str = ""
    features: frozenset[str] = frozenset()  # "nesting", "keyctl", "fuse", "mknod", "force_rw_sys"
    devices: tuple[CtDevice, ...] = ()
    pids: int = 0  # processes and threads; 0: the engine's limit
    io_limit: IoLimit = IoLimit()
    security: CtSecurity = CtSecurity()
    time_zone: str = ""  # "Area/City", "host", or "" to leave it alone
    locale: str = ""
    tty_count: int = 2
    command: tuple[str, ...] = ()  # empty: /sbin/init
    environment: Mapping[str, str] = field(default_factory=dict)
    application: Application | None = None  # made of an image: `command` is its program


@dataclass(frozen=True, slots=True, kw_only=True)
class CtResources:
    """The host's side of one start of a container.

    `open()` is awaited once, while the container's shim comes up: it maps "rootfs", "mp0" to opened volumes, and may be cut
    short. `connect(path)` is awaited once the network namespace at `path` exists, while the container is being created and
    before its first process runs: it makes the NICs in there.
    """

    open: Callable[[], Awaitable[Mapping[str, OpenedVolume]]]
    connect: Callable[[Path], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CtTree:
    """A file system of a container for its archive: its place inside ("" is the root), and the volume with its content.

    Without `volume`: what is mounted in `slot` of the container that runs.
    """

    slot: str
    prefix: str
    volume: OpenedVolume | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CtCredentials:
    """What is written into a new container's root file system. `password_hash` is a crypt(3) string."""

    password_hash: str = ""
    ssh_keys: tuple[str, ...] = ()


# --- what an engine tells ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can do on this host. `available` maps a feature to True; `missing` maps one to the reason."""

    engine: str
    version: str
    available: frozenset[str] = frozenset()
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the engine can start guests at all: "start" is available."""
        return "start" in self.available


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitReason:
    """Why a guest no longer runs. `kind` is "shutdown" (its own wish or an orderly stop), "stopped" (we killed it),
    "reset" (asked for a restart), "crashed" (it or its engine died); `detail` is one line for people."""

    kind: str
    detail: str
    exit_code: int | None = None
    """Of a container's first process: its status, or 128 and the signal's number."""
    asked: bool = False
    """Whether it was stopped, or asked to end."""
