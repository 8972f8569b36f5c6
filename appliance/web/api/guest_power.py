"""Status and power of guests of both kinds: …/status/{current,start,stop,shutdown,reboot,reset,suspend,resume}."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.model.guest import GuestId, GuestKind
from appliance.web.api.guest_params import (
    AUDIT,
    POWER,
    SkipLock,
    SkipLockParams,
    StorageName,
    TimeoutS,
    Upid,
    check_skiplock,
    refuse,
    stored_config,
)
from appliance.web.api.guest_rows import GuestStatus, status_row
from appliance.web.registry import Call, GuestParams, PveBool, Resource


class StartVmParams(SkipLockParams, kw_only=True):
    """Those of a migration's target are refused."""

    timeout: TimeoutS | None = None
    force_cpu: str | None = msgspec.field(name="force-cpu", default=None)
    machine: Annotated[str, Meta(max_length=40)] | None = None
    migratedfrom: str | None = None
    migration_network: str | None = None
    migration_type: str | None = None
    nets_host_mtu: str | None = msgspec.field(name="nets-host-mtu", default=None)
    stateuri: Annotated[str, Meta(max_length=128)] | None = None
    targetstorage: str | None = None
    with_conntrack_state: PveBool = msgspec.field(name="with-conntrack-state", default=False)


class StartCtParams(SkipLockParams, kw_only=True):
    """How to start a container."""

    debug: Annotated[PveBool, Meta(description="more messages; the container's log is always kept")] = False


class StopParams(SkipLockParams, kw_only=True):
    """How to stop by force."""

    timeout: TimeoutS | None = None
    keep_active: Annotated[PveBool, Meta(description="keep volumes active; they always are")] = msgspec.field(
        name="keepActive", default=False
    )
    overrule_shutdown: Annotated[PveBool, Meta(description="end a shutdown that is under way; a stop always does")] = (
        msgspec.field(name="overrule-shutdown", default=False)
    )
    migratedfrom: str | None = None


class ShutdownParams(SkipLockParams, kw_only=True):
    """How to shut down in order."""

    timeout: TimeoutS | None = None
    force_stop: Annotated[PveBool, Meta(description="stop by force when the time is over")] = msgspec.field(
        name="forceStop", default=False
    )
    keep_active: PveBool = msgspec.field(name="keepActive", default=False)


class RebootParams(GuestParams, kw_only=True):
    """How to reboot in order."""

    timeout: TimeoutS | None = None


class SuspendParams(SkipLockParams, kw_only=True):
    """How to pause."""

    todisk: Annotated[PveBool, Meta(description="save the memory and stop")] = False
    statestorage: StorageName | None = None


class ResumeParams(GuestParams, kw_only=True):
    """How to go on."""

    skiplock: SkipLock = False
    nocheck: PveBool = False


def declare(api: Resource, kind: GuestKind) -> None:
    """Add the methods every kind has."""
    base, noun = f"/nodes/{{node}}/{kind}/{{vmid}}/status", "VM" if kind is GuestKind.QEMU else "container"

    @api.get(f"{base}/current", summary=f"What a {noun} does now", allow=AUDIT, returns=GuestStatus)
    async def current(call: Call, params: GuestParams) -> dict[str, object]:
        """Figures are sampled every few seconds; reading them never waits for the guest."""
        config, _ = stored_config(call, kind, params.vmid)
        row = status_row(call.services.guests.get(GuestId(params.vmid), kind), config)
        if kind is GuestKind.LXC:
            row |= call.services.guests.applications.status(GuestId(params.vmid))
        return row

    @api.post(f"{base}/stop", summary=f"Stop a {noun} by force", allow=POWER, returns=Upid)
    async def stop(call: Call, params: StopParams) -> str:
        """Like pulling the plug. A stop overrules a shutdown under way; one of a stopped guest succeeds."""
        check_skiplock(call, params.skiplock)
        refuse("migration", {"migratedfrom": params.migratedfrom})
        return await call.services.guests.power.stop(kind, params.vmid, user=call.user, skip_lock=params.skiplock)

    @api.post(f"{base}/shutdown", summary=f"Shut a {noun} down in order", allow=POWER, returns=Upid)
    async def shutdown(call: Call, params: ShutdownParams) -> str:
        """Fails when the guest does not end within `timeout`, unless `forceStop`."""
        check_skiplock(call, params.skiplock)
        return await call.services.guests.power.shutdown(
            kind,
            params.vmid,
            user=call.user,
            timeout_s=params.timeout,
            force_stop=params.force_stop,
            skip_lock=params.skiplock,
        )

    @api.post(f"{base}/reboot", summary=f"Shut a {noun} down in order and start it again", allow=POWER, returns=Upid)
    async def reboot(call: Call, params: RebootParams) -> str:
        """Applies changes of the configuration."""
        return await call.services.guests.power.reboot(kind, params.vmid, user=call.user, timeout_s=params.timeout)

    @api.post(f"{base}/suspend", summary=f"Pause a {noun}", allow=POWER, returns=Upid)
    async def suspend(call: Call, params: SuspendParams) -> str:
        """It stays in memory and executes nothing."""
        check_skiplock(call, params.skiplock)
        refuse("suspending to disk", {"todisk": params.todisk, "statestorage": params.statestorage})
        return await call.services.guests.power.suspend(kind, params.vmid, user=call.user, skip_lock=params.skiplock)

    @api.post(f"{base}/resume", summary=f"Let a paused {noun} go on", allow=POWER, returns=Upid)
    async def resume(call: Call, params: ResumeParams) -> str:
        """Of one that runs, it succeeds."""
        check_skiplock(call, params.skiplock)
        return await call.services.guests.power.resume(kind, params.vmid, user=call.user, skip_lock=params.skiplock)


def declare_for_vms(api: Resource) -> None:
    """Add the methods only VMs have, or have with other parameters."""
    base = "/nodes/{node}/qemu/{vmid}/status"

    @api.post(f"{base}/start", summary="Start a VM", allow=POWER, returns=Upid)
    async def start(call: Call, params: StartVmParams) -> str:
        """The task ends when it executes."""
        check_skiplock(call, params.skiplock)
        refuse(
            "starting otherwise than configured",
            {
                "force-cpu": params.force_cpu,
                "machine": params.machine,
                "migratedfrom": params.migratedfrom,
                "migration_network": params.migration_network,
                "migration_type": params.migration_type,
                "nets-host-mtu": params.nets_host_mtu,
                "stateuri": params.stateuri,
                "targetstorage": params.targetstorage,
                "with-conntrack-state": params.with_conntrack_state,
            },
        )
        return await call.services.guests.power.start(
            GuestKind.QEMU, params.vmid, user=call.user, skip_lock=params.skiplock
        )

    @api.post(f"{base}/reset", summary="Reset a VM", allow=POWER, returns=Upid)
    async def reset(call: Call, params: SkipLockParams) -> str:
        """As by the button: the guest is not asked."""
        check_skiplock(call, params.skiplock)
        return await call.services.guests.power.reset(
            GuestKind.QEMU, params.vmid, user=call.user, skip_lock=params.skiplock
        )


def declare_for_containers(api: Resource) -> None:
    """Add the methods containers have with other parameters."""

    @api.post("/nodes/{node}/lxc/{vmid}/status/start", summary="Start a container", allow=POWER, returns=Upid)
    async def start(call: Call, params: StartCtParams) -> str:
        """The task ends when its first process runs."""
        check_skiplock(call, params.skiplock)
        return await call.services.guests.power.start(
            GuestKind.LXC, params.vmid, user=call.user, skip_lock=params.skiplock
        )
