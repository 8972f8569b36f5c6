"""The OCI runtime configuration (config.json, runtime-spec 1.0.2) of a container. Pure: a specification in, a dict out.

A *system container*: PID 1 is the distribution's init, with the mounts, devices and capabilities systemd asks of a
container manager (systemd's CONTAINER_INTERFACE), all namespaces its own. The network namespace is made by the runtime
inside the user namespace, so that the container's root owns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.ct import confinement
from appliance.kernel.cgroup_limits import CPU_PERIOD_US, cpu_quota_us, cpu_shares, cpu_weight
from appliance.model.guest import CtDevice, CtMount, CtSpec, MountKind

OCI_VERSION = "1.0.2"
DEVICES = "devices"
"""The directory of a bundle that holds the device nodes made for its container."""
_MOUNT_OPTIONS = frozenset({"noatime", "noexec", "nosuid"})
MIB = 1 << 20
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LXCFS_FILES = ("cpuinfo", "diskstats", "loadavg", "meminfo", "stat", "swaps", "uptime")
_FUSE_DEVICE = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 0, "gid": 0}

Mount = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What of the host shapes a configuration."""

    cgroup2: bool
    swap_limit: bool
    """Whether the kernel can limit swap (v1: memory.memsw files)."""
    lxcfs_files: Mapping[str, Path]
    """Name in /proc to the file that shows the container's own figures; empty where lxcfs is not mounted."""
    permitted_capabilities: Sequence[str]
    pids_limit: int
    apparmor_profile: str = ""
    """The profile of containers, loaded; empty where the host has no AppArmor."""
    mounts_at_root_only: bool = False
    """As the runtime's."""


def container_config(
    spec: CtSpec,
    *,
    host: HostFacts,
    bundle: Path,
    cgroup: str,
    joined: Mapping[str, Path],
    device_rules: Sequence[Mapping[str, object]] = (),
) -> dict[str, object]:
    """The whole of config.json. Volumes are expected mounted at `bundle`/SLOT; `cgroup` is absolute in each hierarchy.

    `joined` names, by kind, the namespaces that exist already; the runtime makes the others. `device_rules` are those of
    the devices of the host it has (`devices.py`).
    """
    privileged = spec.id_base == 0
    nesting = "nesting" in spec.features
    return {
        "ociVersion": OCI_VERSION,
        "hostname": spec.hostname,
        "process": _process(spec, host),
        "root": {"path": str(bundle / spec.root.slot), "readonly": spec.root.read_only},
        "mounts": [
            *_kernel_mounts(writable_sys="force_rw_sys" in spec.features),
            *(_uncovered(at_root=host.mounts_at_root_only) if nesting else ()),
            *_lxcfs_mounts(host),
            *(_mount_point(each, bundle) for each in sorted(spec.mounts, key=lambda m: m.path.count("/"))),
            *(_device_mount(each, bundle) for each in spec.devices),
        ],
        "linux": {
            "namespaces": [
                {"type": kind} | ({"path": str(joined[kind])} if kind in joined else {})
                for kind in _namespaces(privileged=privileged)
            ],
            **({} if privileged else _id_mappings(spec)),
            "cgroupsPath": cgroup,
            "resources": resources(spec, host, device_rules),
            "devices": [_FUSE_DEVICE] if "fuse" in spec.features else [],
            **_seccomp(spec),
            "maskedPaths": confinement.masked_paths(nesting=nesting),
            "readonlyPaths": confinement.read_only_paths(privileged=privileged),
        },
    }


def resources(spec: CtSpec, host: HostFacts, device_rules: Sequence[Mapping[str, object]] = ()) -> dict[str, object]:
    """The cgroup limits. 0 means no limit, as in PVE's configuration; swap counts on top of memory there."""
    rules = [*_device_rules(spec), *device_rules]
    limits: dict[str, object] = {"devices": rules, "pids": {"limit": spec.pids or host.pids_limit}}
    if spec.memory_mib:
        memory = {"limit": spec.memory_mib * MIB}
        if host.swap_limit:
            memory["swap"] = (spec.memory_mib + spec.swap_mib) * MIB
        limits["memory"] = memory
    cpu: dict[str, int] = {}
    ceilings = [limit for limit in (spec.cores, spec.cpu_limit) if limit]
    if ceilings:
        cpu |= {"period": CPU_PERIOD_US, "quota": cpu_quota_us(min(ceilings))}
    if host.cgroup2:
        limits["unified"] = {"cpu.weight": str(cpu_weight(spec.cpu_units))}
    else:
        cpu["shares"] = cpu_shares(spec.cpu_units)
    if cpu:
        limits["cpu"] = cpu
    return limits


def _process(spec: CtSpec, host: HostFacts) -> dict[str, object]:
    names = confinement.capabilities(
        privileged=spec.id_base == 0,
        permitted=host.permitted_capabilities,
        mknod="mknod" in spec.features,
        dropped=spec.security.dropped,
    )
    environment = {"PATH": PATH, "TERM": "xterm-256color", "HOME": "/root", "container": "lxc", **spec.environment}
    return {
        "terminal": True,
        "user": {"uid": 0, "gid": 0},
        "args": list(spec.command) or ["/sbin/init"],
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
        "noNewPrivileges": False,
        **_apparmor(spec, host),
    }


def _seccomp(spec: CtSpec) -> dict[str, object]:
    if spec.security.seccomp == "none":
        return {}
    strict, nesting, keyctl = spec.security.seccomp == "strict", "nesting" in spec.features, "keyctl" in spec.features
    return {"seccomp": confinement.seccomp(arch=spec.arch, nesting=nesting, keyctl=keyctl, strict=strict)}


def _apparmor(spec: CtSpec, host: HostFacts) -> dict[str, object]:
    """None where the host has none: the runtime would refuse the word."""
    if not host.apparmor_profile:
        return {}
    named = spec.security.apparmor
    return {"apparmorProfile": host.apparmor_profile if named == "default" else named}


def _namespaces(*, privileged: bool) -> Sequence[str]:
    common = ("pid", "ipc", "uts", "mount", "network", "cgroup")
    return common if privileged else (*common, "user")


def _id_mappings(spec: CtSpec) -> dict[str, object]:
    mapping = [{"containerID": 0, "hostID": spec.id_base, "size": spec.id_count}]
    return {"uidMappings": mapping, "gidMappings": mapping}


def _device_rules(spec: CtSpec) -> list[Mapping[str, object]]:
    """Deny all; the runtime itself adds null, zero, full, random, urandom, tty, console, ptmx and pts."""
    rules: list[Mapping[str, object]] = [{"allow": False, "access": "rwm"}]
    if "fuse" in spec.features:
        rules.append({"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"})
    return rules


def device_rule(device: CtDevice, *, kind: str, major: int, minor: int) -> dict[str, object]:
    """What lets a container use a device of the host; `kind` is "c" or "b"."""
    access = "r" if device.read_only else "rw"
    return {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}


def _uncovered(*, at_root: bool) -> list[Mount]:
    """Copies with nothing on them, so that the kernel lets a container inside mount its own (mount_too_revealing)."""
    proc, sys = ("/.proc", "/.sys") if at_root else ("/dev/.lxc/proc", "/dev/.lxc/sys")
    return [_mount(proc, "proc", "nosuid", "noexec", "nodev"), _mount(sys, "sysfs", "nosuid", "noexec", "nodev")]


def _kernel_mounts(*, writable_sys: bool) -> list[Mount]:
    return [
        _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=64k", "nr_inodes=2048"),
        _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        _mount("/dev/shm", "tmpfs", "nosuid", "nodev", "mode=1777"),  # noqa: S108  inside, not ours
        _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "rw" if writable_sys else "ro", "nosuid", "noexec", "nodev"),
        _mount("/sys/fs/cgroup", "cgroup", "rw", "nosuid", "noexec", "nodev", "relatime"),
        _mount("/run", "tmpfs", "nosuid", "nodev", "mode=755"),
        _mount("/run/lock", "tmpfs", "nosuid", "nodev", "noexec", "mode=1777", "size=5m"),
    ]


def _lxcfs_mounts(host: HostFacts) -> list[Mount]:
    return [
        {"destination": f"/proc/{name}", "type": "bind", "source": str(path), "options": ["bind", "nosuid", "nodev"]}
        for name, path in host.lxcfs_files.items()
    ]


def _mount_point(mount: CtMount, bundle: Path) -> Mount:
    """Options of whole file systems (`rootfs.FILE_SYSTEM_OPTIONS`) are set where the volume is mounted."""
    options = ["nodev", *sorted(mount.options & _MOUNT_OPTIONS), *(["ro"] if mount.read_only else [])]
    if mount.kind is MountKind.MEMORY:
        return _mount(mount.path, "tmpfs", "nosuid", f"size={mount.size_bytes}", "mode=755", *options)
    if mount.kind is MountKind.HOST_PATH:
        options.insert(0, "nosuid")  # what the container makes set-id there, others of the host would run
    source = str(bundle / mount.slot)
    return {"destination": mount.path, "type": "bind", "source": source, "options": ["rbind", *options]}


def _device_mount(device: CtDevice, bundle: Path) -> Mount:
    """The node made for this container (`devices.py`); a user namespace may make none itself."""
    source = str(bundle / DEVICES / device.slot)
    return {"destination": device.path, "type": "bind", "source": source, "options": ["bind", "nosuid", "noexec"]}


def _mount(destination: str, kind: str, *options: str) -> Mount:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}
