"""What the resources of virtual machines and containers share: parameters, and the checks a pattern cannot express."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.errors import InvalidParameter, PermissionDenied
from appliance.model.guest import GuestId, GuestKind
from appliance.model.volume import VolumeId
from appliance.services import backup_names, guest_config
from appliance.web.registry import Allow, Call, GuestParams, PveBool

AUDIT = Allow("/vms/{vmid}", "VM.Audit")
POWER = Allow("/vms/{vmid}", "VM.PowerMgmt")
ALLOCATE = Allow("/vms/{vmid}", "VM.Allocate")

Upid = Annotated[str, Meta(description="the task that does it: UPID:NODE:…")]
Digest = Annotated[str, Meta(max_length=40, description="refuse if the configuration is not this one any more")]
StorageName = Annotated[str, Meta(pattern=r"^[a-zA-Z][a-zA-Z0-9_.-]{0,99}$", description="a storage")]
PoolName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,2}$",
        max_length=256,
        description="a pool",
    ),
]
SnapshotName = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=40, description="a snapshot")]
TimeoutS = Annotated[int, Meta(ge=0, le=86_400, description="seconds to wait")]
BandwidthLimit = Annotated[float, Meta(ge=0, description="KiB/s; only a running VM's disk on its way is limited here")]
SkipLock = Annotated[PveBool, Meta(description="act in spite of the configuration's `lock`; needs Sys.Modify on /")]


class SkipLockParams(GuestParams, kw_only=True):
    """A guest, and whether its `lock` is ignored."""

    skiplock: SkipLock = False


class SnapshotParams(GuestParams, kw_only=True):
    """A guest's snapshot."""

    snapname: SnapshotName


def check_skiplock(call: Call, skiplock: bool) -> None:
    """`skiplock` is for whoever may modify the system (in PVE: root@pam only)."""
    if skiplock:
        call.check(*guest_config.SYSTEM)


def refuse(call_path: str, given: Mapping[str, object]) -> None:
    """Raises `InvalidParameter` naming every parameter of `given` that has a value: PVE's, not supported here."""
    errors = {name: f"not supported by this appliance yet ({call_path})" for name, value in given.items() if value}
    if errors:
        raise InvalidParameter(errors)


def stored_config(call: Call, kind: GuestKind, vmid: int) -> tuple[dict[str, str], str]:
    """The guest's configuration and digest. Raises `NotFound` for the other kind, too."""
    return call.services.guests.config(GuestId(vmid), kind)


async def parse_config(kind: GuestKind, raw: Mapping[str, str]) -> dict[str, str]:
    """`guest_config.parse` in a thread: a clear password in it takes a while to hash."""
    return await asyncio.to_thread(guest_config.parse, kind, raw)


def check_config_change(
    call: Call,
    kind: GuestKind,
    vmid: int,
    *,
    old: Mapping[str, str],
    put: Mapping[str, str],
    delete: Sequence[str] = (),
    pool: str | None = None,
) -> None:
    """Raises `PermissionDenied` unless the caller may make this change."""
    for requirement in guest_config.required(kind, vmid, old=old, put=put, delete=delete, pool=pool):
        call.check_any(*requirement.alternatives)


def check_allocate(call: Call, vmid: int, pool: str | None) -> None:
    """A new guest needs VM.Allocate on its id or on the pool it goes into."""
    alternatives = [(f"/vms/{vmid}", "VM.Allocate")] + ([(f"/pool/{pool}", "VM.Allocate")] if pool else [])
    call.check_any(*alternatives)
    if pool and not call.has(f"/pool/{pool}", "Pool.Audit"):
        call.check(f"/pool/{pool}", "VM.Allocate")


def check_node(call: Call, name: str, target: str | None) -> None:
    """`target` may only be this node. Raises `InvalidParameter` naming `name`."""
    if target not in (None, "", call.node, "localhost"):
        raise InvalidParameter({name: f"node '{target}' does not exist"})


def check_readable(call: Call, volume: VolumeId) -> None:
    """A backup holds everything of its guest: who may not back that up must own the storage."""
    if call.has(f"/storage/{volume.storage}", "Datastore.Allocate"):
        return
    call.check(f"/storage/{volume.storage}", "Datastore.AllocateSpace", "Datastore.Audit", any_of=True)
    backup = backup_names.parse(volume.name)
    if backup is None:
        raise PermissionDenied(f"Permission check failed (/storage/{volume.storage}, Datastore.Allocate)")
    call.check(f"/vms/{backup.guest_id}", "VM.Backup")


def public_keys(text: str | None) -> tuple[str, ...]:
    """SSH public keys, one a line. Raises `InvalidParameter`."""
    try:
        return guest_config.ssh_key_lines(text or "")
    except ValueError as error:
        raise InvalidParameter({"ssh-public-keys": str(error)}) from error


class DeleteParams(GuestParams, kw_only=True):
    """How thoroughly."""

    purge: Annotated[
        PveBool, Meta(description="accepted as in PVE: pool membership and permissions always go with the guest")
    ] = False
    destroy_unreferenced_disks: Annotated[
        PveBool, Meta(description="remove also the volumes of its id that no configuration names")
    ] = msgspec.field(name="destroy-unreferenced-disks", default=False)
    skiplock: SkipLock = False
    force: Annotated[PveBool, Meta(description="stop it first when it runs")] = False
