"""Who may change what in a guest's configuration: a pure table, with PVE's privileges. Nothing is reserved to one user.

most keys          VM.Config.{CPU,Memory,Network,Options,HWType,Disk,CDROM,Cloudinit} on /vms/ID
a new volume       Datastore.AllocateSpace on /storage/STORAGE
an ISO, template   Datastore.AllocateSpace or Datastore.Audit on its storage; so for an import
another's disk     VM.Config.Disk on /vms/OWNER, or Datastore.Allocate on its storage
any other volume   Datastore.Allocate on its storage (backups and snippets hold other people's secrets)
a bridge           SDN.Use on /sdn/zones/localnetwork/BRIDGE (and /TAG)
the host's RNG     Mapping.Use on /mapping/hwrng
a shared directory Mapping.Use on /mapping/dir/ID
args, lock, hook scripts, privileged containers and their features, a container's devices, paths of the host and
another confinement: Sys.Modify on / as well (PVE: root@pam only)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from appliance.model.guest import GuestKind
from appliance.model.volume import ContentType, VolumeId
from appliance.services.guest_config.disks import DiskConfig, is_disk_slot, parse_disk
from appliance.services.guest_config.parsing import canonical_key, key_table, parse_one
from appliance.services.guest_config.values import is_true
from appliance.services.guest_config.volumes import Allocate, CloudInitDrive, Existing, HostPath, Import

SYSTEM = ("/", "Sys.Modify")
_HOST_RNG = ("/mapping/hwrng", "Mapping.Use")
_FOR_EVERYBODY = frozenset({ContentType.ISO, ContentType.VZTMPL, ContentType.IMPORT})
_FOR_NOBODY = frozenset({ContentType.BACKUP, ContentType.SNIPPETS})
_SYSTEMS_OWN = frozenset({"dev", "hookscript", "security"})
_EITHER_NETWORK_OR_CLOUDINIT = frozenset({"ipconfig", "nameserver", "searchdomain"})


@dataclass(frozen=True, slots=True)
class Requirement:
    """Met when the caller holds one of the (ACL path, privilege) pairs."""

    alternatives: tuple[tuple[str, str], ...]


def required(
    kind: GuestKind,
    guest_id: int,
    *,
    old: Mapping[str, str],
    put: Mapping[str, str],
    delete: Sequence[str] = (),
    pool: str | None = None,
) -> list[Requirement]:
    """Everything a caller must be allowed for changing `old` by `put` (from `parse`) and `delete`; each one once.

    While a guest is created into `pool`, a privilege on the pool does as well as one on the guest. Raises
    `InvalidParameter` for disk and NIC texts that cannot be read.
    """
    privileged = put.get("unprivileged", old.get("unprivileged")) == "0"
    rules = _Rules(kind, guest_id, pool, privileged)
    found: dict[Requirement, None] = {}
    for name, text in put.items():
        for requirement in rules.of_key(name, old.get(name, ""), text):
            found[requirement] = None
    for name in delete:
        key = canonical_key(kind, name)
        for requirement in rules.of_key(key, old.get(key, ""), ""):
            found[requirement] = None
    return list(found)


def restored_over(
    kind: GuestKind, guest_id: int, *, old: Mapping[str, str], new: Mapping[str, str], asked: Collection[str]
) -> list[Requirement]:
    """What replacing `old` by `new` out of a backup needs, besides VM.Backup on the guest.

    With that a guest may become again what it was, as in PVE: what the backup changes needs no VM.Config.* on the guest.
    What the host gives (space, bridges, directories), what is the system's, and the keys that the request `asked` for need what
    they always need. Raises as `required` does.
    """
    changed = {key: text for key, text in new.items() if old.get(key) != text}
    gone = [key for key in old if key not in new and (known := key_table(kind).find(key)) and not known.read_only]
    of_all = {key: new[key] for key in ("unprivileged",) if key in new}
    archived = required(kind, guest_id, old=old, put=of_all | changed, delete=gone)
    own = required(kind, guest_id, old=old, put={key: changed[key] for key in asked if key in changed})
    return list(dict.fromkeys([*(need for need in archived if not _is_config_of(guest_id, need)), *own]))


def _is_config_of(guest_id: int, need: Requirement) -> bool:
    return all(path == f"/vms/{guest_id}" and word.startswith("VM.Config.") for path, word in need.alternatives)


def volume_requirement(guest_id: int, volume_id: VolumeId) -> Requirement | None:
    """What reading or attaching an existing volume needs; None for the guest's own."""
    owner, folder = Existing(volume_id).owner, volume_id.name.partition("/")[0]
    storage = f"/storage/{volume_id.storage}"
    if folder in _FOR_EVERYBODY:
        return Requirement(((storage, "Datastore.AllocateSpace"), (storage, "Datastore.Audit")))
    if owner is None or folder in _FOR_NOBODY:
        return Requirement(((storage, "Datastore.Allocate"),))
    if owner == guest_id:
        return None
    return Requirement(((f"/vms/{owner}", "VM.Config.Disk"), (storage, "Datastore.Allocate")))


def bridge_requirements(kind: GuestKind, config: Mapping[str, str]) -> list[Requirement]:
    """What a guest of this configuration needs on its bridges and shared directories, for who makes one as a copy."""
    rules = _Rules(kind, 0, None, privileged=False)
    keys = {name: key.name for name in config if (key := key_table(kind).find(name)) is not None}
    networks = (need for name in config if keys.get(name) == "net" for need in rules.of_bridge(name, "", config[name]))
    shares = (rules.of_share(name, "", config[name]) for name in config if keys.get(name) == "virtiofs")
    return list(dict.fromkeys([*networks, *(need for needs in shares for need in needs)]))


def copy_requirements(kind: GuestKind, config: Mapping[str, str]) -> list[Requirement]:
    """What somebody needs who makes another guest of this configuration: its bridges, and what the system gives it."""
    system = any(
        kind is GuestKind.LXC
        and (key := key_table(kind).find(name)) is not None
        and (key.name in _SYSTEMS_OWN or (is_disk_slot(kind, name) and _is_host_path(kind, name, text)))
        for name, text in config.items()
    )
    return [*bridge_requirements(kind, config), *([Requirement((SYSTEM,))] if system else [])]


def space_requirement(storage: str) -> Requirement:
    """What making a volume on `storage` needs."""
    return Requirement(((f"/storage/{storage}", "Datastore.AllocateSpace"),))


@dataclass(frozen=True, slots=True)
class _Rules:
    kind: GuestKind
    guest_id: int
    pool: str | None
    privileged: bool

    def of_key(self, name: str, old: str, new: str) -> Iterator[Requirement]:
        key = key_table(self.kind).find(name)
        if key is None:
            return
        if is_disk_slot(self.kind, name):
            yield from self._disk(name, old, new)
        elif key.name == "net":
            yield self._on_guest("VM.Config.Network")
            yield from self.of_bridge(name, old, new)
        elif name in ("kernel", "initrd") and self.kind is GuestKind.QEMU:
            yield self._on_guest("VM.Config.HWType")
            if new and new != old and (needed := volume_requirement(self.guest_id, VolumeId.parse(new))):
                yield needed
        elif name == "rng0":
            yield self._on_guest("VM.Config.HWType")
            if _is_host_rng(new) and not _is_host_rng(old):
                yield Requirement((_HOST_RNG, SYSTEM))
        elif key.name == "virtiofs":
            yield self._on_guest("VM.Config.Disk")
            yield from self.of_share(name, old, new)
        elif key.privilege == "Cloudinit" and key.name in _EITHER_NETWORK_OR_CLOUDINIT:
            yield self._on_guest("VM.Config.Cloudinit", "VM.Config.Network")
        elif key.privilege:
            yield self._on_guest(f"VM.Config.{key.privilege}")
        else:
            yield from self._special(name, old, new)

    def _on_guest(self, *privileges: str) -> Requirement:
        paths = [f"/vms/{self.guest_id}"] + ([f"/pool/{self.pool}"] if self.pool else [])
        return Requirement(tuple((path, privilege) for path in paths for privilege in privileges))

    def _disk(self, name: str, old: str, new: str) -> Iterator[Requirement]:
        before = parse_disk(self.kind, name, old) if old else None
        after = parse_disk(self.kind, name, new) if new else None
        for disk in (before, after):
            if disk is not None:
                yield self._on_guest(_disk_privilege(disk))
        if after is None or (before is not None and before.volume == after.volume):
            return
        match after.volume:
            case Allocate(storage) | CloudInitDrive(storage):
                yield space_requirement(storage)
            case Import(storage, source):
                yield space_requirement(storage)
                if needed := volume_requirement(self.guest_id, source):
                    yield needed
            case Existing(volume_id):
                if needed := volume_requirement(self.guest_id, volume_id):
                    yield needed
            case HostPath():
                yield Requirement((SYSTEM,))

    def of_bridge(self, name: str, old: str, new: str) -> Iterator[Requirement]:
        before = parse_one(self.kind, name, old) if old else {}
        after = parse_one(self.kind, name, new) if new else {}
        bridge, tag = after.get("bridge"), after.get("tag")
        if bridge and (bridge, tag) != (before.get("bridge"), before.get("tag")):
            path = f"/sdn/zones/localnetwork/{bridge}" + (f"/{tag}" if tag else "")
            yield Requirement(((path, "SDN.Use"),))

    def of_share(self, name: str, old: str, new: str) -> Iterator[Requirement]:
        before, after = (parse_one(self.kind, name, text).get("dirid") if text else None for text in (old, new))
        if after and after != before:
            yield Requirement(((f"/mapping/dir/{after}", "Mapping.Use"),))

    def _special(self, name: str, old: str, new: str) -> Iterator[Requirement]:
        match name:
            case "args":
                yield self._on_guest("VM.Config.HWType")
                yield Requirement((SYSTEM,))
            case "freeze":
                yield self._on_guest("VM.PowerMgmt")
            case "unprivileged":
                yield self._on_guest("VM.Config.Options")
                if new == "0" and old != "0":
                    yield Requirement((SYSTEM,))
            case "features":
                yield self._on_guest("VM.Allocate")
                given = _features(self.kind, new) - _features(self.kind, old)
                if given if self.privileged else given - {"nesting"}:
                    yield Requirement((SYSTEM,))
            case _:
                yield self._on_guest("VM.Config.Options")
                yield Requirement((SYSTEM,))


def _disk_privilege(disk: DiskConfig) -> str:
    if disk.is_cloudinit and not disk.is_unused:
        return "VM.Config.Cloudinit"
    return "VM.Config.CDROM" if disk.is_cdrom else "VM.Config.Disk"


def _is_host_path(kind: GuestKind, name: str, text: str) -> bool:
    return isinstance(parse_disk(kind, name, text).volume, HostPath)


def _is_host_rng(text: str) -> bool:
    return bool(text) and parse_one(GuestKind.QEMU, "rng0", text).get("source") == "/dev/hwrng"


def _features(kind: GuestKind, text: str) -> set[str]:
    values = parse_one(kind, "features", text) if text else {}
    return {name for name, value in values.items() if is_true(value)} | ({"mount"} & values.keys())
