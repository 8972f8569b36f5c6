"""How a configuration changes: what creation fills in, and what an update with `put` and `delete` leads to. Pure.

A disk that is deleted or replaced is not lost: its volume moves to the next free `unusedN`. Deleting `unusedN` asks
for the volume's removal. A volume that is attached again leaves its `unusedN`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from appliance.errors import Conflict, InvalidParameter
from appliance.model.guest import GuestKind
from appliance.model.volume import VolumeId
from appliance.services.guest_config import parsing
from appliance.services.guest_config.disks import DiskConfig, disks, is_disk_slot, parse_disk
from appliance.services.guest_config.parsing import canonical_key, key_table
from appliance.services.guest_config.schema import UNKNOWN_KEY
from appliance.services.guest_config.vm_spec import boot_slots
from appliance.services.guest_config.volumes import Existing

_UNUSED_COUNT = 256
_NOT_DELETABLE = {GuestKind.QEMU: frozenset({"smbios1"}), GuestKind.LXC: frozenset({"rootfs", "unprivileged", "arch"})}
_FIXED_AFTER_CREATION = {GuestKind.QEMU: frozenset[str](), GuestKind.LXC: frozenset({"unprivileged", "arch"})}


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePlan:
    """What an update leads to. `config` may still hold requests for volumes (`local:8`) and NICs without a MAC.

    `removed` are the volumes whose `unusedN` was deleted: to be destroyed. `generated` are cloud-init drives that were
    detached: to be destroyed too, they can be made again. `changed` names every key that differs.
    """

    config: dict[str, str]
    removed: tuple[VolumeId, ...]
    changed: frozenset[str]


def create_config(
    kind: GuestKind, guest_id: int, config: Mapping[str, str], *, new_uuid: Callable[[], uuid.UUID], now: float
) -> dict[str, str]:
    """A new guest's configuration: `config` (from `parse`) with what PVE writes down at creation."""
    filled = {key: value for key, value in config.items() if value}
    if kind is GuestKind.LXC:
        filled.setdefault("hostname", f"CT{guest_id}")
        for name in ("arch", "ostype", "memory", "swap", "unprivileged"):
            filled.setdefault(name, key_table(kind).default(name))
        return filled
    if "uuid" not in _smbios(filled):
        filled["smbios1"] = parsing.print_one(kind, "smbios1", {**_smbios(filled), "uuid": str(new_uuid())})
    filled.setdefault("boot", "order=" + ";".join(boot_slots(filled)))
    if filled["boot"] == "order=":
        del filled["boot"]
    filled["meta"] = f"ctime={int(now)}"
    return with_generation_id({"vmgenid": "1", **filled}, new_uuid)


def clone_config(
    kind: GuestKind,
    guest_id: int,
    config: Mapping[str, str],
    *,
    name: str | None,
    new_uuid: Callable[[], uuid.UUID],
    new_mac: Callable[[], str],
    now: float,
) -> dict[str, str]:
    """The configuration of a clone, its volumes still the original's: new identity, MACs and name; no lock, no past."""
    dropped = {"lock", "template", "parent", "snaptime", "vmstate", "meta", "protection"}
    copy = {key: value for key, value in config.items() if key not in dropped and not key.startswith("unused")}
    copy[name_key(kind)] = name or f"{'Copy-of-' + _name(kind, config, guest_id)}"
    mac_key = "macaddr" if kind is GuestKind.QEMU else "hwaddr"
    for slot in _nic_slots(copy):
        values = parsing.parse_one(kind, slot, copy[slot])
        copy[slot] = parsing.print_one(kind, slot, {**values, mac_key: new_mac()})
    if kind is GuestKind.LXC:
        return copy
    copy["smbios1"] = parsing.print_one(kind, "smbios1", {**_smbios(copy), "uuid": str(new_uuid())})
    copy["meta"] = f"ctime={int(now)}"
    return with_generation_id({**copy, "vmgenid": "1"}, new_uuid) if "vmgenid" in copy else copy


def fill_macs(kind: GuestKind, config: Mapping[str, str], new_mac: Callable[[], str]) -> dict[str, str]:
    """The configuration with a MAC address in every NIC that has none."""
    filled = dict(config)
    mac_key = "macaddr" if kind is GuestKind.QEMU else "hwaddr"
    for slot in _nic_slots(config):
        values = parsing.parse_one(kind, slot, config[slot])
        if mac_key not in values:
            filled[slot] = parsing.print_one(kind, slot, {**values, mac_key: new_mac()})
    return filled


def plan_update(
    kind: GuestKind,
    config: Mapping[str, str],
    put: Mapping[str, str],
    delete: Sequence[str] = (),
    *,
    new_uuid: Callable[[], uuid.UUID] = uuid.uuid4,
) -> UpdatePlan:
    """What `put` (from `parse`) and `delete` (key names) make of `config`. Raises `InvalidParameter`.

    Deleting a key that is not set is not an error, as in PVE; deleting one that does not exist is.
    """
    names = [canonical_key(kind, name) for name in delete]
    _check_names(kind, config, put, names)
    after = dict(config)
    removed: list[VolumeId] = []
    for name in names:
        text = after.pop(name, None)
        if text is not None and is_disk_slot(kind, name):
            removed += _let_go(kind, after, parse_disk(kind, name, text))
    for name, value in put.items():
        old = after.pop(name, None)
        if value:
            after[name] = value
        if old is not None and is_disk_slot(kind, name):
            removed += _replace_disk(kind, after, parse_disk(kind, name, old))
    _forget_reattached(kind, after)
    if kind is GuestKind.QEMU:
        after = with_generation_id(after, new_uuid)
    changed = frozenset(key for key in {*config, *after} if config.get(key) != after.get(key))
    return UpdatePlan(config=after, removed=tuple(removed), changed=changed)


def check_digest(config: Mapping[str, str], expected: str | None) -> None:
    """Raises `Conflict` when `expected` is given and the configuration is another one by now."""
    if expected and expected != parsing.digest(config):
        raise Conflict("detected modified configuration - file changed by other user? Try again.")


def free_unused_slot(config: Mapping[str, str]) -> str:
    """The lowest free `unusedN`. Raises `Conflict` when all are taken."""
    for index in range(_UNUSED_COUNT):
        if f"unused{index}" not in config:
            return f"unused{index}"
    raise Conflict("no free unusedN key is left: remove some unused volumes first")


def _check_names(kind: GuestKind, config: Mapping[str, str], put: Mapping[str, str], delete: Sequence[str]) -> None:
    errors: dict[str, str] = {}
    for name in delete:
        key = key_table(kind).find(name)
        if key is None or key.read_only:
            errors["delete"] = f"unknown option '{name[:60]}'" if key is None else UNKNOWN_KEY
        elif name in put:
            errors["delete"] = f"you can't use '-{name}' and '-delete {name}' at the same time"
        elif name in _NOT_DELETABLE[kind]:
            errors["delete"] = f"unable to delete required option '{name}'"
    for name in put:
        if name in _FIXED_AFTER_CREATION[kind] and put[name] != config.get(name, key_table(kind).default(name)):
            errors[name] = "cannot be changed after creation"
        if kind is GuestKind.LXC and name == "rootfs" and not put[name]:
            errors[name] = "unable to delete required option 'rootfs'"
    if errors:
        raise InvalidParameter(errors)


def _let_go(kind: GuestKind, after: dict[str, str], disk: DiskConfig) -> list[VolumeId]:
    """Keep the volume of a removed disk key as unused; returns what is to be destroyed."""
    if not isinstance(disk.volume, Existing):
        return []
    volume_id = disk.volume.volume_id
    if disk.is_unused or disk.volume.is_cloudinit:
        return [volume_id]
    if disk.volume.owner is not None:
        after[free_unused_slot(after)] = str(volume_id)
    return []


def _replace_disk(kind: GuestKind, after: dict[str, str], old: DiskConfig) -> list[VolumeId]:
    new = parse_disk(kind, old.slot, after[old.slot]) if old.slot in after else None
    if new is not None and isinstance(old.volume, Existing) and new.volume == old.volume:
        return []
    if new is not None and old.is_cloudinit and new.is_cloudinit:
        return []  # the drive is made again in place
    if isinstance(old.volume, Existing) and _is_used(kind, after, old.volume.volume_id):
        return []
    return _let_go(kind, after, old)


def _is_used(kind: GuestKind, config: Mapping[str, str], volume_id: VolumeId) -> bool:
    return any(isinstance(disk.volume, Existing) and disk.volume.volume_id == volume_id for disk in disks(kind, config))


def _forget_reattached(kind: GuestKind, after: dict[str, str]) -> None:
    used: dict[VolumeId, str] = {}
    for disk in disks(kind, after):
        if isinstance(disk.volume, Existing) and not disk.is_unused and disk.volume.owner is not None:
            if disk.volume.volume_id in used:
                raise InvalidParameter({disk.slot: f"volume is in use by {used[disk.volume.volume_id]} already"})
            used[disk.volume.volume_id] = disk.slot
    for disk in list(disks(kind, after)):
        if disk.is_unused and isinstance(disk.volume, Existing) and disk.volume.volume_id in used:
            del after[disk.slot]


def _nic_slots(config: Mapping[str, str]) -> list[str]:
    return [key for key in config if key.startswith("net") and key[3:].isdecimal()]


def _smbios(config: Mapping[str, str]) -> dict[str, str]:
    return parsing.parse_one(GuestKind.QEMU, "smbios1", config["smbios1"]) if config.get("smbios1") else {}


def name_key(kind: GuestKind) -> str:
    """The key under which a guest's name is stored."""
    return "name" if kind is GuestKind.QEMU else "hostname"


def _name(kind: GuestKind, config: Mapping[str, str], guest_id: int) -> str:
    return config.get(name_key(kind)) or f"{kind.prefix.upper()}{guest_id}"


def with_generation_id(config: dict[str, str], new_uuid: Callable[[], uuid.UUID]) -> dict[str, str]:
    """The configuration with the request in `vmgenid` (1: a new one, 0: none) fulfilled."""
    if config.get("vmgenid") == "1":
        return {**config, "vmgenid": str(new_uuid())}
    if config.get("vmgenid") == "0":
        return {key: value for key, value in config.items() if key != "vmgenid"}
    return config
