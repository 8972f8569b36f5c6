"""Moving a guest's volumes to another storage."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.model.guest import GuestKind
from appliance.services.guest_moves import Move
from appliance.web.api.guest_params import BandwidthLimit, Digest, StorageName, Upid, refuse
from appliance.web.registry import Allow, Call, GuestParams, PveBool, Resource, Vmid

_MAY_MOVE = Allow("/vms/{vmid}", "VM.Config.Disk")


class MoveParams(GuestParams, kw_only=True):
    """What both kinds take."""

    storage: StorageName | None = None
    delete: Annotated[PveBool, Meta(description="remove the old volume; else it stays as unused")] = False
    digest: Digest | None = None
    bwlimit: BandwidthLimit | None = None
    target_vmid: Vmid | None = msgspec.field(name="target-vmid", default=None)
    target_digest: Digest | None = msgspec.field(name="target-digest", default=None)


class MoveVolumeParams(MoveParams, kw_only=True):
    """Which volume of a container."""

    volume: Annotated[str, Meta(pattern=r"^(rootfs|mp\d{1,3}|unused\d{1,3})$", description="rootfs, mp0 …")]
    target_volume: Annotated[str, Meta(max_length=16)] | None = msgspec.field(name="target-volume", default=None)


class MoveDiskParams(MoveParams, kw_only=True):
    """Which disk of a VM."""

    disk: Annotated[str, Meta(pattern=r"^[a-z]+\d{1,3}$", description="scsi0, virtio1 …")]
    format: Literal["raw", "qcow2"] | None = None
    target_disk: Annotated[str, Meta(max_length=16)] | None = msgspec.field(name="target-disk", default=None)


def declare(api: Resource, kind: GuestKind) -> None:
    """Add the method of one kind."""
    if kind is GuestKind.LXC:

        @api.post("/nodes/{node}/lxc/{vmid}/move_volume", summary="Move a volume of a container", allow=_MAY_MOVE,
                  returns=Upid)  # fmt: skip
        async def move_volume(call: Call, params: MoveVolumeParams) -> str:
            """One that runs goes on while its files are copied, and stands shortly for what has changed since."""
            refuse("volumes given to other guests", {"target-volume": params.target_volume})
            return await _move(call, kind, params, params.volume, None)

        return

    @api.post("/nodes/{node}/qemu/{vmid}/move_disk", summary="Move a disk of a VM", allow=_MAY_MOVE, returns=Upid)
    async def move_disk(call: Call, params: MoveDiskParams) -> str:
        """One that runs in QEMU goes on meanwhile; a native machine must be off. To the same storage in another format, too."""
        refuse("disks given to other guests", {"target-disk": params.target_disk})
        return await _move(call, kind, params, params.disk, params.format)


async def _move(call: Call, kind: GuestKind, params: MoveParams, slot: str, format_: str | None) -> str:
    refuse("volumes given to other guests", {"target-vmid": params.target_vmid, "target-digest": params.target_digest})
    config, _ = call.services.guests.config(params.vmid, kind)
    storage = params.storage or config.get(slot, "").partition(":")[0]
    call.check(f"/storage/{storage}", "Datastore.AllocateSpace")
    move = Move(
        slot=slot,
        storage=storage,
        delete=params.delete,
        format=format_,
        digest=params.digest,
        bytes_per_s=int((params.bwlimit or 0) * 1024),
    )
    return await call.services.guests.moves.start(kind, params.vmid, move, user=call.user)
