"""Configuration of guests of both kinds: read, write, resize, unlink, template, features."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, structs

from appliance.errors import ApplianceError, Conflict, InvalidParameter, TimedOut
from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.services import guest_config
from appliance.web.api.guest_params import (
    ALLOCATE,
    AUDIT,
    Digest,
    SkipLock,
    SkipLockParams,
    SnapshotName,
    Upid,
    check_config_change,
    check_skiplock,
    parse_config,
    refuse,
    stored_config,
)
from appliance.web.api.guest_rows import PendingRow, config_reply, config_schema, pending_rows
from appliance.web.registry import Allow, Call, GuestParams, PveBool, PveList, Resource, Rest

if TYPE_CHECKING:
    from appliance.services.ports import LogLine
    from appliance.services.tasks import TaskHandle

log = logging.getLogger(__name__)

_CONFIG_PRIVILEGES = {
    GuestKind.QEMU: ("Disk", "CDROM", "CPU", "Memory", "Network", "HWType", "Options", "Cloudinit"),
    GuestKind.LXC: ("Disk", "CPU", "Memory", "Network", "Options"),
}


class ReadParams(GuestParams, kw_only=True):
    """Which configuration."""

    current: Annotated[PveBool, Meta(description="what runs, without what waits for the next start")] = False
    snapshot: SnapshotName | None = None


class ChangeParams(GuestParams, kw_only=True):
    """What to change. Every other parameter is a configuration key."""

    delete: Annotated[PveList, Meta(description="keys to remove; a disk becomes unused")] = ()
    revert: Annotated[PveList, Meta(description="keys to take back to what the guest runs with")] = ()
    digest: Digest | None = None
    skiplock: SkipLock = False
    force: Annotated[PveBool, Meta(description="destroy the volumes of deleted disks, too")] = False
    config: Rest = msgspec.field(default_factory=dict)


class ChangeLaterParams(ChangeParams, kw_only=True):
    """As a task."""

    background_delay: (
        Annotated[int, Meta(ge=1, le=30, description="wait so many seconds for its end; null when it came")] | None
    ) = None


class ResizeParams(SkipLockParams, kw_only=True):
    """Which disk, how large."""

    disk: Annotated[str, Meta(pattern=r"^[a-z]+[0-9]{0,3}$", description="scsi0, rootfs, mp1 …")]
    size: Annotated[str, Meta(pattern=r"^\+?\d+(\.\d+)?[KMGT]?$", max_length=32, description="32G, or +5G to grow by")]
    digest: Digest | None = None


class UnlinkParams(GuestParams, kw_only=True):
    """Which disks."""

    idlist: Annotated[PveList, Meta(description="disk keys")]
    force: Annotated[PveBool, Meta(description="destroy the volumes, too")] = False


class TemplateParams(GuestParams, kw_only=True):
    """The whole guest becomes one."""

    disk: Annotated[str, Meta(max_length=16)] | None = None


class FeatureParams(GuestParams, kw_only=True):
    """What is asked for."""

    feature: Literal["snapshot", "clone", "copy"]
    snapname: SnapshotName | None = None


class Feature(msgspec.Struct, kw_only=True):
    """Whether it can be done, and where."""

    has_feature: bool = msgspec.field(name="hasFeature")
    nodes: list[str]


def declare(api: Resource, kind: GuestKind) -> None:
    """Add the methods both kinds have."""
    base, noun = f"/nodes/{{node}}/{kind}/{{vmid}}", "VM" if kind is GuestKind.QEMU else "container"
    may_change = Allow("/vms/{vmid}", *(f"VM.Config.{word}" for word in _CONFIG_PRIVILEGES[kind]), any_of=True)

    @api.get(f"{base}/config", summary=f"The configuration of a {noun}", allow=AUDIT, returns=dict[str, str | int])
    async def read_config(call: Call, params: ReadParams) -> dict[str, object]:
        """Flat keys and property strings, and their `digest`. Passwords are asterisks."""
        if params.snapshot not in (None, "current"):
            stored_config(call, kind, params.vmid)
            kept = call.services.guests.snapshots.config(kind, params.vmid, params.snapshot)
            return config_reply(kind, kept, guest_config.digest(kept))
        config, digest = stored_config(call, kind, params.vmid)
        if params.current:
            config = _running_config(config, call.services.guests.configuration.pending(kind, params.vmid))
        return config_reply(kind, config, digest)

    @api.get(f"{base}/pending", summary=f"The configuration of a {noun} with pending changes", allow=AUDIT,
             returns=list[PendingRow])  # fmt: skip
    async def read_pending(call: Call, params: GuestParams) -> list[PendingRow]:
        """One that waits for the next start has as `value` what runs, and as `pending` what is configured, or `delete`."""
        config, _ = stored_config(call, kind, params.vmid)
        return pending_rows(config, call.services.guests.configuration.pending(kind, params.vmid))

    @api.put(f"{base}/config", summary=f"Change the configuration of a {noun}", allow=may_change,
             rest_schema=lambda: config_schema(kind))  # fmt: skip
    async def write_config(call: Call, params: ChangeParams) -> None:
        """All or nothing; returns when done, volumes made included. Each key needs its own privilege.

        Disks and NICs of a running VM come and go at once where `hotplug` allows it and its engine can, else at the next
        start. A guest that takes or gives up one too late, or not at all, is an error that names the key; the change is
        written, and applies at the next start.
        """
        params = with_reverts(call, kind, params)
        put = await check_change(call, kind, params)
        await apply_change(call, kind, params, put)

    @api.put(f"{base}/resize", summary=f"Grow a disk of a {noun}", allow=Allow("/vms/{vmid}", "VM.Config.Disk"),
             returns=Upid)  # fmt: skip
    async def resize(call: Call, params: ResizeParams) -> str:
        """Live where it runs. Shrinking is refused."""
        check_skiplock(call, params.skiplock)
        config, _ = stored_config(call, kind, params.vmid)
        guest_config.check_digest(config, params.digest)
        _check_space(call, kind, params.disk, config)
        return await call.services.guests.configuration.resize(
            kind, params.vmid, slot=params.disk, size=params.size, user=call.user, skip_lock=params.skiplock
        )

    @api.post(f"{base}/template", summary=f"Make a {noun} a template", allow=ALLOCATE, returns=Upid)
    async def make_template(call: Call, params: TemplateParams) -> str:
        """It is never started again; clones are made of it. It must be stopped."""
        refuse("a template of one disk", {"disk": params.disk})
        return await call.services.guests.configuration.make_template(kind, params.vmid, user=call.user)

    @api.get(f"{base}/feature", summary=f"What can be done with a {noun}", allow=AUDIT, returns=Feature)
    async def read_feature(call: Call, params: FeatureParams) -> Feature:
        """`clone` is a linked clone, which needs a template; `copy` is a full one."""
        guest = call.services.guests.get(GuestId(params.vmid), kind)
        if params.feature == "snapshot":
            has = await call.services.guests.snapshots.possible(kind, params.vmid)
        else:
            if params.snapname:
                call.services.guests.snapshots.config(kind, params.vmid, params.snapname)
            has = params.feature == "copy" or (guest.template and not params.snapname)
        return Feature(has_feature=has, nodes=[call.node] if has else [])


def declare_for_vms(api: Resource) -> None:
    """Add the methods only VMs have."""
    kind, base = GuestKind.QEMU, "/nodes/{node}/qemu/{vmid}"
    may_change = Allow("/vms/{vmid}", *(f"VM.Config.{word}" for word in _CONFIG_PRIVILEGES[kind]), any_of=True)

    @api.post(f"{base}/config", summary="Change the configuration of a VM, as a task", allow=may_change, returns=Upid,
              rest_schema=lambda: config_schema(kind))  # fmt: skip
    async def write_config_later(call: Call, params: ChangeLaterParams) -> str | None:
        """What PUT does, without waiting for volumes that are made or removed."""
        params = with_reverts(call, kind, params)
        put = await check_change(call, kind, params)

        async def work(task: TaskHandle) -> None:
            await apply_change(call, kind, params, put, log_line=task.log)

        upid = await call.services.tasks.run("qmconfig", object_id=str(params.vmid), user=call.user, work=work)
        return await _end_within(call, upid, params.background_delay)

    @api.put(f"{base}/unlink", summary="Detach disks from a VM", allow=Allow("/vms/{vmid}", "VM.Config.Disk"))
    async def unlink(call: Call, params: UnlinkParams) -> None:
        """They become unused, or are destroyed with `force`."""
        if bad := [name for name in params.idlist if not guest_config.is_disk_slot(kind, name)]:
            raise InvalidParameter({"idlist": f"'{bad[0][:40]}' is no disk"})
        change = ChangeParams(vmid=params.vmid, delete=params.idlist, force=params.force)
        put = await check_change(call, kind, change)
        await apply_change(call, kind, change, put)


AnyChange = TypeVar("AnyChange", bound=ChangeParams)


def with_reverts(call: Call, kind: GuestKind, params: AnyChange) -> AnyChange:
    """`revert` as the writes and deletes it means. Raises `InvalidParameter` where it contradicts them."""
    if both := {*params.config, *params.delete}.intersection(params.revert):
        raise InvalidParameter({"revert": f"you can't use '{min(both)[:60]}' and '-revert' at the same time"})
    put, delete = call.services.guests.configuration.reverting(kind, params.vmid, params.revert)
    return structs.replace(params, config={**params.config, **put}, delete=(*params.delete, *delete), revert=())


def _running_config(config: Mapping[str, str], waiting: Sequence[guest_config.Pending]) -> dict[str, str]:
    running = {key: value for key, value in config.items() if key not in {each.key for each in waiting}}
    return running | {each.key: each.running for each in waiting if each.running is not None}


async def check_change(call: Call, kind: GuestKind, params: ChangeParams) -> dict[str, str]:
    """Everything that can be refused before anything happens; returns the parsed keys."""
    check_skiplock(call, params.skiplock)
    old, _ = stored_config(call, kind, params.vmid)
    put = await parse_config(kind, params.config)
    check_config_change(call, kind, params.vmid, old=old, put=put, delete=params.delete)
    guest_config.check_digest(old, params.digest)
    guest_config.plan_update(kind, old, put, params.delete)
    return put


async def apply_change(
    call: Call, kind: GuestKind, params: ChangeParams, put: dict[str, str], *, log_line: LogLine = log.info
) -> None:
    """Write it; with `force`, destroy the volumes of the disks that were deleted."""
    guests = call.services.guests
    before, _ = stored_config(call, kind, params.vmid)
    doomed = {volume for slot, volume in guest_config.referenced_volumes(kind, before) if slot in params.delete}
    is_live = kind is GuestKind.QEMU  # they are taken out first; what the guest keeps is not destroyed
    stopped = guests.get(GuestId(params.vmid), kind).state is GuestState.STOPPED
    if params.force and doomed and not (stopped or is_live):
        raise Conflict(f"{kind.prefix} {params.vmid} is running: shut it down before volumes are removed")
    skip_lock = params.skiplock
    await guests.configuration.update(
        kind, params.vmid, put=put, delete=params.delete, digest=params.digest, user=call.user, skip_lock=skip_lock,
        log_line=log_line,
    )  # fmt: skip
    if not params.force:
        return
    after, digest = stored_config(call, kind, params.vmid)
    unused = [
        slot
        for slot, volume in guest_config.referenced_volumes(kind, after)
        if slot.startswith("unused") and volume in doomed
    ]
    if unused:
        await guests.configuration.update(
            kind, params.vmid, put={}, delete=unused, digest=digest, user=call.user, skip_lock=skip_lock,
            log_line=log_line,
        )  # fmt: skip


def _check_space(call: Call, kind: GuestKind, slot: str, config: dict[str, str]) -> None:
    if slot in config and guest_config.is_disk_slot(kind, slot):
        volume = guest_config.parse_disk(kind, slot, config[slot]).volume
        if isinstance(volume, guest_config.Existing):
            call.check_any(*guest_config.space_requirement(volume.volume_id.storage).alternatives)


async def _end_within(call: Call, upid: str, delay_s: int | None) -> str | None:
    """The UPID, or None when the task ends well within `delay_s`. Raises when it fails meanwhile."""
    if delay_s is None:
        return upid
    try:
        info = await call.services.tasks.wait(upid, timeout_s=float(delay_s))
    except TimedOut:
        return upid
    if info.status is not None and info.status != "OK" and not info.status.startswith("WARNINGS"):
        raise ApplianceError(info.status)
    return None
