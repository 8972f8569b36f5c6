"""Snapshots of guests of both kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from appliance.model.guest import GuestKind
from appliance.services import guest_config
from appliance.web.api.guest_params import AUDIT, SnapshotParams, Upid, stored_config
from appliance.web.api.guest_rows import SnapshotRow, config_reply
from appliance.web.registry import Allow, Call, GuestParams, PveBool, Resource

_MAY_READ = Allow("/vms/{vmid}", "VM.Audit", "VM.Snapshot", "VM.Snapshot.Rollback", any_of=True)
_MAY_MAKE = Allow("/vms/{vmid}", "VM.Snapshot")
_MAY_RETURN = Allow("/vms/{vmid}", "VM.Snapshot", "VM.Snapshot.Rollback", any_of=True)

Description = Annotated[str, Meta(max_length=8192, description="a note on the snapshot")]


class NewSnapshotParams(SnapshotParams, kw_only=True):
    """What to save."""

    description: Description | None = None


class NewVmSnapshotParams(NewSnapshotParams, kw_only=True):
    """What to save of a VM."""

    vmstate: Annotated[PveBool, Meta(description="the memory of a running VM, too")] = False


class DescribeParams(SnapshotParams, kw_only=True):
    """What to say of it."""

    description: Description | None = None


class RollbackParams(SnapshotParams, kw_only=True):
    """What to return to."""

    start: Annotated[PveBool, Meta(description="start it afterwards; with its memory it always goes on")] = False


class RemoveSnapshotParams(SnapshotParams, kw_only=True):
    """What to remove."""

    force: Annotated[PveBool, Meta(description="forget it even if a volume's part of it cannot be removed")] = False


def declare(api: Resource, kind: GuestKind) -> None:
    """Add the methods of one kind."""
    base, noun = f"/nodes/{{node}}/{kind}/{{vmid}}", "VM" if kind is GuestKind.QEMU else "container"

    @api.get(f"{base}/snapshot", summary=f"The snapshots of a {noun}", allow=AUDIT, returns=list[SnapshotRow])
    async def list_snapshots(call: Call, params: GuestParams) -> Sequence[dict[str, object]]:
        """The last row, `current`, is the present state."""
        return call.services.guests.snapshots.list(kind, params.vmid)

    _declare_making(api, kind, base)

    @api.get(f"{base}/snapshot/{{snapname}}/config", summary="The configuration in a snapshot", allow=_MAY_READ,
             returns=dict[str, str | int])  # fmt: skip
    async def read_snapshot(call: Call, params: SnapshotParams) -> dict[str, object]:
        """With `description`, `parent`, `snaptime`. That of `current` is the present one."""
        config, digest = stored_config(call, kind, params.vmid)
        if params.snapname != "current":
            config = call.services.guests.snapshots.config(kind, params.vmid, params.snapname)
            digest = guest_config.digest(config)
        return config_reply(kind, config, digest)

    @api.put(f"{base}/snapshot/{{snapname}}/config", summary="Describe a snapshot", allow=_MAY_MAKE)
    async def describe_snapshot(call: Call, params: DescribeParams) -> None:
        """Its description is all that can be changed."""
        await call.services.guests.snapshots.describe(
            kind, params.vmid, params.snapname, params.description, user=call.user
        )

    @api.post(f"{base}/snapshot/{{snapname}}/rollback", summary=f"Return a {noun} to a snapshot", returns=Upid,
              allow=_MAY_RETURN)  # fmt: skip
    async def roll_back(call: Call, params: RollbackParams) -> str:
        """A running one is ended first. What has been written since is lost; volumes added since become unused."""
        return await call.services.guests.snapshots.roll_back(
            kind, params.vmid, params.snapname, start=params.start, user=call.user
        )

    @api.delete(f"{base}/snapshot/{{snapname}}", summary="Remove a snapshot", allow=_MAY_MAKE, returns=Upid)
    async def remove_snapshot(call: Call, params: RemoveSnapshotParams) -> str:
        """The present state, and other snapshots, stay as they are."""
        return await call.services.guests.snapshots.remove(
            kind, params.vmid, params.snapname, force=params.force, user=call.user
        )


def _declare_making(api: Resource, kind: GuestKind, base: str) -> None:
    """The two kinds differ in `vmstate`."""
    if kind is GuestKind.LXC:

        @api.post(f"{base}/snapshot", summary="Make a snapshot of a container", allow=_MAY_MAKE, returns=Upid)
        async def make_ct_snapshot(call: Call, params: NewSnapshotParams) -> str:
            """Of all its volumes and its configuration, at one moment: a running one is frozen meanwhile."""
            return await _make(call, kind, params, with_state=False)

        return

    @api.post(f"{base}/snapshot", summary="Make a snapshot of a VM", allow=_MAY_MAKE, returns=Upid)
    async def make_vm_snapshot(call: Call, params: NewVmSnapshotParams) -> str:
        """Of all its disks and its configuration, at one moment; with `vmstate` also of its memory."""
        return await _make(call, kind, params, with_state=params.vmstate)


async def _make(call: Call, kind: GuestKind, params: NewSnapshotParams, *, with_state: bool) -> str:
    return await call.services.guests.snapshots.create(
        kind,
        params.vmid,
        params.snapname,
        description=params.description or "",
        with_state=with_state,
        user=call.user,
    )
