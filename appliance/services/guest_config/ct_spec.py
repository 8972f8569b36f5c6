"""From a container's configuration texts to the `CtSpec` the container engine starts from. Defaults are PVE's.

One default differs on purpose: containers are unprivileged unless `unprivileged=0` is given (PVE's API default is 0, its
own dialogs and all current clients send 1).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from appliance.errors import InvalidParameter
from appliance.model.guest import (
    CtDevice,
    CtMount,
    CtSecurity,
    CtSpec,
    GuestId,
    GuestKind,
    IoLimit,
    MountKind,
    NicSpec,
)
from appliance.services.guest_config import applications
from appliance.services.guest_config.ct_schema import CT_KEYS
from appliance.services.guest_config.disks import DiskConfig, disks
from appliance.services.guest_config.parsing import parse_one
from appliance.services.guest_config.values import NOT_SUPPORTED, is_true
from appliance.services.guest_config.volumes import EmptyTray, Existing, HostPath, Memory

_FEATURES = ("nesting", "keyctl", "fuse", "mknod", "force_rw_sys")
_MEGABYTE = 1_000_000
_PRIVILEGED_ONLY = ("mknod", "mount")
TMPFS_BYTES = 64 << 20
"""The size of a file system in memory that names none."""


def to_ct_spec(guest_id: int, config: Mapping[str, str], *, id_base: int, id_count: int) -> CtSpec:
    """The container that `config` (stored texts, as `parse` made them) describes. Raises `InvalidParameter`.

    `id_base`, `id_count` are the host ids set aside for it; a privileged container ignores them (base 0). Works before
    allocation too: a volume still to be made is `STORAGE:new`.
    """
    unprivileged = is_true(_text(config, "unprivileged"))
    mounts = {disk.slot: _mount(disk) for disk in disks(GuestKind.LXC, config) if not disk.is_unused}
    if "rootfs" not in mounts:
        raise InvalidParameter({"rootfs": "property is missing and it is not optional"})
    _check_paths(mounts)
    features = _parts(config, "features")
    if unprivileged and (wrong := [name for name in _PRIVILEGED_ONLY if features.get(name, "0") != "0"]):
        reason = "the kernel lets no unprivileged container do that; give it devices by dev0, file systems by mp0"
        raise InvalidParameter({"features": f"{wrong[0]}: {reason}"})
    return CtSpec(
        guest_id=GuestId(guest_id),
        hostname=config.get("hostname") or f"CT{guest_id}",
        arch=_text(config, "arch"),
        os_type=_text(config, "ostype"),
        id_base=id_base if unprivileged else 0,
        id_count=id_count,
        cores=int(config["cores"]) if config.get("cores") else None,
        cpu_limit=float(_text(config, "cpulimit")),
        cpu_units=int(_text(config, "cpuunits")),
        memory_mib=int(_text(config, "memory")),
        swap_mib=int(_text(config, "swap")),
        root=mounts.pop("rootfs"),
        mounts=tuple(sorted(mounts.values(), key=lambda mount: mount.path.count("/"))),
        nics=_nics(config),
        nameserver=config.get("nameserver", ""),
        search_domain=config.get("searchdomain", ""),
        features=frozenset(name for name in _FEATURES if is_true(features.get(name, "0"))),
        devices=tuple(_device(slot, config[slot]) for slot in _family(config, "dev")),
        pids=int(config.get("pids", "0")),
        io_limit=_io_limit(_parts(config, "iolimit")),
        security=_security(_parts(config, "security")),
        time_zone=config.get("timezone", ""),
        locale=config.get("locale", ""),
        tty_count=int(_text(config, "tty")),
        command=_command(config),
        environment=dict(pair.split("=", 1) for pair in config.get("env", "").split("\0") if pair),
        application=applications.to_application(config),
    )


def _text(config: Mapping[str, str], name: str) -> str:
    return config.get(name) or CT_KEYS.default(name)


def _parts(config: Mapping[str, str], name: str) -> Mapping[str, str]:
    return parse_one(GuestKind.LXC, name, config[name]) if config.get(name) else {}


def _family(config: Mapping[str, str], stem: str) -> list[str]:
    """The keys of a family that are set, by number."""
    return sorted(
        (key for key in config if key.startswith(stem) and key[len(stem) :].isdecimal()),
        key=lambda key: int(key[len(stem) :]),
    )


def _device(slot: str, text: str) -> CtDevice:
    values = parse_one(GuestKind.LXC, slot, text)
    return CtDevice(
        slot=slot,
        path=values["path"],
        mode=int(values.get("mode", "0660"), 8),
        uid=int(values.get("uid", "0")),
        gid=int(values.get("gid", "0")),
        read_only=is_true(values.get("deny-write", "0")),
    )


def _io_limit(values: Mapping[str, str]) -> IoLimit:
    return IoLimit(
        read_bytes=round(float(values.get("mbps_rd", "0")) * _MEGABYTE),
        write_bytes=round(float(values.get("mbps_wr", "0")) * _MEGABYTE),
        read_operations=int(values.get("iops_rd", "0")),
        write_operations=int(values.get("iops_wr", "0")),
    )


def _security(values: Mapping[str, str]) -> CtSecurity:
    return CtSecurity(
        seccomp=values.get("seccomp", "default"),
        apparmor=values.get("apparmor", "default"),
        dropped=frozenset(name for name in values.get("drop", "").split(";") if name),
    )


def _mount(disk: DiskConfig) -> CtMount:
    kind, size_bytes = MountKind.VOLUME, disk.size_bytes
    match disk.volume:
        case Existing(volume_id):
            volume = str(volume_id)
        case HostPath(path):
            volume, kind = path, MountKind.HOST_PATH
        case Memory():
            volume, kind, size_bytes = "", MountKind.MEMORY, disk.size_bytes or TMPFS_BYTES
        case EmptyTray():
            raise InvalidParameter({disk.slot: "a container needs a volume here"})
        case request:
            volume = f"{request.storage}:new"
    return CtMount(
        slot=disk.slot,
        volume=volume,
        path="/" if disk.slot == "rootfs" else disk.options["mp"],
        size_bytes=size_bytes,
        read_only=is_true(disk.options.get("ro", "0")),
        kind=kind,
        options=frozenset(word for word in disk.options.get("mountoptions", "").split(";") if word),
        map_ids=is_true(disk.options.get("idmap", "0")),
    )


def _check_paths(mounts: Mapping[str, CtMount]) -> None:
    seen: dict[str, str] = {}
    for mount in mounts.values():
        if mount.path in seen:
            raise InvalidParameter({mount.slot: f"'{mount.path}' is the path of {seen[mount.path]} already"})
        seen[mount.path] = mount.slot


def _nics(config: Mapping[str, str]) -> tuple[NicSpec, ...]:
    nics = tuple(_nic(slot, parse_one(GuestKind.LXC, slot, config[slot]), config) for slot in _family(config, "net"))
    names = [nic.name for nic in nics]
    for nic in nics:
        if names.count(nic.name) > 1:
            raise InvalidParameter({nic.slot: f"interface name '{nic.name}' is used twice"})
        if nic.name == "lo":
            raise InvalidParameter({nic.slot: "interface name 'lo' is taken by the loopback device"})
    return nics


def _nic(slot: str, values: Mapping[str, str], config: Mapping[str, str]) -> NicSpec:
    rate = float(values.get("rate", "0"))
    if "bridge" not in values:
        raise InvalidParameter({slot: f"a bridge is needed: interfaces without one are {NOT_SUPPORTED}"})
    return NicSpec(
        slot=slot,
        model="veth",
        mac=values.get("hwaddr", ""),
        bridge=values["bridge"],
        firewall=is_true(values.get("firewall", "0")),
        vlan=int(values["tag"]) if "tag" in values else None,
        rate_mbyte_s=rate if rate > 0 else None,
        mtu=int(values["mtu"]) if "mtu" in values else None,
        link_down=is_true(values.get("link_down", "0")),
        name=values["name"],
        ip=values.get("ip", ""),
        gateway=values.get("gw", ""),
        ip6=values.get("ip6", ""),
        gateway6=values.get("gw6", ""),
        host_managed=is_true(values.get("host-managed", "1" if applications.is_application(config) else "0")),
    )


def _command(config: Mapping[str, str]) -> tuple[str, ...]:
    text = config.get("entrypoint", "")
    try:
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidParameter({"entrypoint": f"cannot be split into arguments: {error}"}) from error
    return () if command == ("/sbin/init",) else command
