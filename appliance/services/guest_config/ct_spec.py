"""From a container's configuration texts to the `CtSpec` the container engine starts from. Defaults are PVE's.

One default differs on purpose: containers are unprivileged unless `unprivileged=0` is given (PVE's API default is 0, its
own dialogs and all current clients send 1).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from appliance.errors import InvalidParameter
from appliance.model.guest import CtMount, CtSpec, GuestId, GuestKind, NicSpec
from appliance.services.guest_config.ct_schema import CT_KEYS
from appliance.services.guest_config.disks import DiskConfig, disks
from appliance.services.guest_config.parsing import parse_one
from appliance.services.guest_config.values import NOT_SUPPORTED, is_true
from appliance.services.guest_config.volumes import EmptyTray, Existing

_FEATURES = ("nesting", "keyctl", "fuse")


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
    features = parse_one(GuestKind.LXC, "features", config["features"]) if config.get("features") else {}
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
        tty_count=int(_text(config, "tty")),
        command=_command(config),
        environment=dict(pair.split("=", 1) for pair in config.get("env", "").split("\0") if pair),
    )


def _text(config: Mapping[str, str], name: str) -> str:
    return config.get(name) or CT_KEYS.default(name)


def _mount(disk: DiskConfig) -> CtMount:
    match disk.volume:
        case Existing(volume_id):
            volume = str(volume_id)
        case EmptyTray():
            raise InvalidParameter({disk.slot: "a container needs a volume here"})
        case request:
            volume = f"{request.storage}:new"
    return CtMount(
        slot=disk.slot,
        volume=volume,
        path="/" if disk.slot == "rootfs" else disk.options["mp"],
        size_bytes=disk.size_bytes,
        read_only=is_true(disk.options.get("ro", "0")),
    )


def _check_paths(mounts: Mapping[str, CtMount]) -> None:
    seen: dict[str, str] = {}
    for mount in mounts.values():
        if mount.path in seen:
            raise InvalidParameter({mount.slot: f"'{mount.path}' is the path of {seen[mount.path]} already"})
        seen[mount.path] = mount.slot


def _nics(config: Mapping[str, str]) -> tuple[NicSpec, ...]:
    slots = sorted((key for key in config if key[:3] == "net" and key[3:].isdecimal()), key=lambda key: int(key[3:]))
    nics = tuple(_nic(slot, parse_one(GuestKind.LXC, slot, config[slot])) for slot in slots)
    names = [nic.name for nic in nics]
    for nic in nics:
        if names.count(nic.name) > 1:
            raise InvalidParameter({nic.slot: f"interface name '{nic.name}' is used twice"})
        if nic.name == "lo":
            raise InvalidParameter({nic.slot: "interface name 'lo' is taken by the loopback device"})
    return nics


def _nic(slot: str, values: Mapping[str, str]) -> NicSpec:
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
    )


def _command(config: Mapping[str, str]) -> tuple[str, ...]:
    text = config.get("entrypoint", "")
    try:
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidParameter({"entrypoint": f"cannot be split into arguments: {error}"}) from error
    return () if command == ("/sbin/init",) else command
