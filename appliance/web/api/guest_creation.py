"""Listing, creating, cloning and removing guests of both kinds."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.errors import InvalidParameter
from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.model.volume import VolumeId
from appliance.services import guest_config
from appliance.web.api.guest_params import (
    ALLOCATE,
    BandwidthLimit,
    DeleteParams,
    PoolName,
    SnapshotName,
    StorageName,
    Upid,
    check_allocate,
    check_config_change,
    check_node,
    check_readable,
    check_skiplock,
    parse_config,
    public_keys,
    refuse,
    stored_config,
)
from appliance.web.api.guest_rows import GuestRow, config_schema, has_serial, list_row
from appliance.web.registry import LOGGED_IN, Allow, Call, GuestParams, NodeParams, PveBool, Resource, Rest, Vmid

STOP_BEFORE_REMOVAL_LIMIT_S = 45.0
DEFAULT_ROOT_GIB = 4
PASSWORD_LENGTH_MIN = 5


class ListParams(NodeParams, kw_only=True):
    """How much to tell; figures are always there, they cost nothing here."""

    full: Annotated[PveBool, Meta(description="also whether a VM has a serial port")] = False


class CreateParams(NodeParams, kw_only=True):
    """What both kinds take. Every other parameter is a configuration key."""

    vmid: Vmid
    pool: PoolName | None = None
    storage: StorageName | None = None
    start: Annotated[PveBool, Meta(description="start it when it is made")] = False
    force: Annotated[PveBool, Meta(description="restore over the guest that has this id")] = False
    unique: PveBool = False
    bwlimit: BandwidthLimit | None = None
    ha_managed: PveBool = msgspec.field(name="ha-managed", default=False)
    config: Rest = msgspec.field(default_factory=dict)


class CreateVmParams(CreateParams, kw_only=True):
    """What a new VM takes."""

    archive: Annotated[str, Meta(max_length=255)] | None = None
    import_working_storage: StorageName | None = msgspec.field(name="import-working-storage", default=None)
    live_restore: PveBool = msgspec.field(name="live-restore", default=False)


class CreateCtParams(CreateParams, kw_only=True):
    """What a new container takes."""

    ostemplate: Annotated[str, Meta(max_length=255, description="volume of the template: local:vztmpl/x.tar.zst")]
    password: (
        Annotated[str, Meta(max_length=511, description="root's password inside; only its hash is kept")] | None
    ) = None
    ssh_public_keys: Annotated[str, Meta(max_length=65536, description="root's SSH keys, one a line")] | None = (
        msgspec.field(name="ssh-public-keys", default=None)
    )
    ignore_unpack_errors: PveBool = msgspec.field(name="ignore-unpack-errors", default=False)
    restore: PveBool = False


class CloneParams(GuestParams, kw_only=True):
    """What both kinds take."""

    newid: Vmid
    description: Annotated[str, Meta(max_length=8192)] | None = None
    full: Annotated[PveBool, Meta(description="a copy of its own; default unless it is a template")] | None = None
    pool: PoolName | None = None
    snapname: (
        Annotated[
            SnapshotName,
            Meta(description="the snapshot to clone, also while it runs; linked (full=0) of containers only"),
        ]
        | None
    ) = None
    storage: StorageName | None = None
    target: Annotated[str, Meta(max_length=63)] | None = None
    bwlimit: BandwidthLimit | None = None


class CloneVmParams(CloneParams, kw_only=True):
    """What a VM's clone takes."""

    name: Annotated[str, Meta(max_length=253)] | None = None
    format: Annotated[str, Meta(max_length=8)] | None = None


class CloneCtParams(CloneParams, kw_only=True):
    """What a container's clone takes."""

    hostname: Annotated[str, Meta(max_length=253)] | None = None


def declare(api: Resource, kind: GuestKind) -> None:
    """Add the methods both kinds have."""
    base, noun = f"/nodes/{{node}}/{kind}", "VM" if kind is GuestKind.QEMU else "container"

    @api.get(base, summary=f"The {noun}s of this node", allow=LOGGED_IN, returns=list[GuestRow])
    async def list_guests(call: Call, params: ListParams) -> list[dict[str, object]]:
        """Those the caller may see (VM.Audit)."""
        guests = call.services.guests
        look_inside = params.full and kind is GuestKind.QEMU
        return [
            list_row(guest, has_serial=look_inside and has_serial(guests.config(guest.guest_id)[0]))
            for guest in guests.list(kind)
            if call.has(f"/vms/{guest.guest_id}", "VM.Audit")
        ]

    @api.delete(f"{base}/{{vmid}}", summary=f"Remove a {noun} and its volumes", allow=ALLOCATE, returns=Upid)
    async def remove(call: Call, params: DeleteParams) -> str:
        """It must be stopped, and not protected."""
        check_skiplock(call, params.skiplock)
        guest = call.services.guests.get(GuestId(params.vmid), kind)
        if params.force and guest.state is not GuestState.STOPPED:
            call.check(f"/vms/{params.vmid}", "VM.PowerMgmt")
            upid = await call.services.guests.power.stop(kind, params.vmid, user=call.user, skip_lock=params.skiplock)
            await call.services.tasks.wait(upid, timeout_s=STOP_BEFORE_REMOVAL_LIMIT_S)
        return await call.services.guests.creation.destroy(
            kind,
            params.vmid,
            unreferenced=params.destroy_unreferenced_disks,
            user=call.user,
            skip_lock=params.skiplock,
        )


def declare_for_vms(api: Resource) -> None:
    """Add what only VMs have, or have with other parameters."""
    kind = GuestKind.QEMU

    @api.post("/nodes/{node}/qemu", summary="Create a VM", allow=LOGGED_IN, returns=Upid,
              rest_schema=lambda: config_schema(kind))  # fmt: skip
    async def create(call: Call, params: CreateVmParams) -> str:
        """VM.Allocate on the id or the pool, and the privilege of each key. Volumes are made in the task.

        With `archive` and `force` over a VM that is there: stopped, not protected; VM.Backup on it does, too. Its disks in
        the backup's slots are removed once the new ones are whole, other disks become unused, snapshots are lost.
        """
        refuse("restoring into a running guest", {"live-restore": params.live_restore})
        if params.archive:
            return await _restore(call, kind, params, archive=params.archive)
        _only_of_backups(params)
        config = await _prepare(call, kind, params, params.config)
        return await call.services.guests.creation.create(
            kind, params.vmid, config, user=call.user, start=params.start, pool=params.pool
        )

    @api.post("/nodes/{node}/qemu/{vmid}/clone", summary="Clone a VM", returns=Upid,
              allow=Allow("/vms/{vmid}", "VM.Clone"))  # fmt: skip
    async def clone(call: Call, params: CloneVmParams) -> str:
        """A full copy, or a linked one: of a template, or of a container's snapshot."""
        return await _clone(call, kind, params, name=params.name, format_=params.format)


def declare_for_containers(api: Resource) -> None:
    """Add what only containers have, or have with other parameters."""
    kind = GuestKind.LXC

    @api.post("/nodes/{node}/lxc", summary="Create a container", allow=LOGGED_IN, returns=Upid,
              rest_schema=lambda: config_schema(kind))  # fmt: skip
    async def create(call: Call, params: CreateCtParams) -> str:
        """VM.Allocate on the id or the pool, and the privilege of each key. Unprivileged unless told otherwise.

        With `restore` and `force` over a container that is there: stopped, not protected; VM.Backup on it does, too. Its
        volumes are removed once the new ones are whole, what is not in the backup becomes unused, snapshots are lost.
        """
        if params.restore:
            return await _restore(call, kind, params, ostemplate=params.ostemplate)
        _only_of_backups(params)
        refuse("a damaged template is never used", {"ignore-unpack-errors": params.ignore_unpack_errors})
        template = _template(call, params)
        _check_password(params.password)
        keys = public_keys(params.ssh_public_keys)
        # of an image, the root is what changes over the image's layers
        size = 0 if await call.services.images.find(VolumeId.parse(template)) else DEFAULT_ROOT_GIB
        root = {"rootfs": f"{params.storage or 'local'}:{size}"}
        config = await _prepare(call, kind, params, root | params.config)
        return await call.services.guests.creation.create(
            kind,
            params.vmid,
            config,
            user=call.user,
            start=params.start,
            pool=params.pool,
            template=template,
            password=params.password,
            ssh_keys=keys,
        )

    @api.post("/nodes/{node}/lxc/{vmid}/clone", summary="Clone a container", returns=Upid,
              allow=Allow("/vms/{vmid}", "VM.Clone"))  # fmt: skip
    async def clone(call: Call, params: CloneCtParams) -> str:
        """A full copy, or a linked one: of a template, or of a container's snapshot."""
        return await _clone(call, kind, params, name=params.hostname, format_=None)


async def _prepare(call: Call, kind: GuestKind, params: CreateParams, raw: dict[str, str]) -> dict[str, str]:
    """The parsed configuration of a new guest that the caller may make."""
    refuse("high availability", {"ha-managed": params.ha_managed})
    check_allocate(call, params.vmid, params.pool)
    config = await parse_config(kind, raw)
    if kind is GuestKind.LXC and "unprivileged" not in config:
        config["unprivileged"] = "1"
    check_config_change(call, kind, params.vmid, old={}, put=config, pool=params.pool)
    return config


async def _restore(call: Call, kind: GuestKind, params: CreateParams, **named: str) -> str:
    """A guest from a backup, with the request's keys in place of the backup's; each key needs its privilege all the same."""
    refuse("high availability", {"ha-managed": params.ha_managed})
    over = params.force and any(guest.guest_id == params.vmid for guest in call.services.guests.list(kind))
    if over:
        call.check(f"/vms/{params.vmid}", "VM.Allocate", "VM.Backup", any_of=True)
        refuse("a guest that is restored over stays in its pool", {"pool": params.pool})
    else:
        check_allocate(call, params.vmid, params.pool)
    ((name, text),) = named.items()
    try:
        volume = VolumeId.parse(text)
    except InvalidParameter as error:
        raise InvalidParameter({name: "; ".join(error.errors.values())}) from error
    check_readable(call, volume)
    own = await parse_config(kind, params.config)
    plan = await call.services.guests.restores.plan(kind, volume, own, storage=params.storage, unique=params.unique)
    put = dict(plan.config)
    for slot, (_, storage) in plan.images.items():
        put[slot] = f"{storage}:1"  # its privileges are those of a new disk there
    if over:
        old, _ = stored_config(call, kind, params.vmid)
        for needed in guest_config.restored_over(kind, params.vmid, old=old, new=put, asked=own):
            call.check_any(*needed.alternatives)
        return await call.services.guests.replacements.start(
            GuestId(params.vmid), plan, user=call.user, start=params.start
        )
    check_config_change(call, kind, params.vmid, old={}, put=put, pool=params.pool)
    return await call.services.guests.restores.start(
        GuestId(params.vmid), plan, user=call.user, pool=params.pool, start=params.start
    )


def _only_of_backups(params: CreateParams) -> None:
    refuse("only of a backup", {"unique": params.unique, "force": params.force})


async def _clone(call: Call, kind: GuestKind, params: CloneParams, *, name: str | None, format_: str | None) -> str:
    guest = call.services.guests.get(GuestId(params.vmid), kind)
    check_allocate(call, params.newid, params.pool)
    check_node(call, "target", params.target)
    refuse("clones keep the format of their volumes", {"format": format_})
    snapshot = "" if params.snapname in (None, "current") else str(params.snapname)
    full = snapshot != "" or not guest.template if params.full is None else params.full
    if not full and params.storage:
        raise InvalidParameter({"storage": "parameter 'storage' not allowed for linked clones"})
    if snapshot:
        config = call.services.guests.snapshots.config(kind, params.vmid, snapshot)
    else:
        config, _ = stored_config(call, kind, params.vmid)
    for needed in guest_config.copy_requirements(kind, config):
        call.check_any(*needed.alternatives)
    for _, volume in guest_config.owned_volumes(kind, params.vmid, config):
        call.check_any(*guest_config.space_requirement(params.storage or volume.storage).alternatives)
    return await call.services.guests.creation.clone(
        kind,
        params.vmid,
        new_id=params.newid,
        name=name,
        description=params.description,
        full=full,
        storage=params.storage,
        pool=params.pool,
        user=call.user,
        snapshot=snapshot,
    )


def _template(call: Call, params: CreateCtParams) -> str:
    """The template's volume, which the caller may read."""
    try:
        volume = VolumeId.parse(params.ostemplate)
    except InvalidParameter as error:
        raise InvalidParameter({"ostemplate": "; ".join(error.errors.values())}) from error
    needed = guest_config.volume_requirement(params.vmid, volume)
    if needed is not None:
        call.check_any(*needed.alternatives)
    return str(volume)


def _check_password(password: str | None) -> None:
    if password is not None and (len(password) < PASSWORD_LENGTH_MIN or not password.isprintable()):
        raise InvalidParameter({"password": f"value must be at least {PASSWORD_LENGTH_MIN} printable characters long"})
