"""/nodes/{node}/startall and stopall: all guests of the node in their order. The host's shutdown goes through stopall.

Needs VM.PowerMgmt on / for all of them, or on each guest that is named, as in Proxmox VE.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from appliance.web.registry import Call, NodeParams, PveBool, Resource, Vmid

api = Resource()

POWER = "VM.PowerMgmt"
Guests = Annotated[tuple[Vmid, ...], msgspec.Meta(description="only these; all when empty")]
Workers = Annotated[int, msgspec.Meta(ge=1, le=64, description="has no effect: guests of one order go together")]


class AllParams(NodeParams, kw_only=True):
    """Which guests."""

    vms: Guests = ()
    max_workers: Workers | None = msgspec.field(name="max-workers", default=None)


class StartAllParams(AllParams, kw_only=True):
    """Without `force` only guests with onboot."""

    force: Annotated[PveBool, msgspec.Meta(description="also guests without onboot")] = False


class StopAllParams(AllParams, kw_only=True):
    """How to stop. Each guest's own `startup … down=` says how long its orderly shutdown may take."""

    force_stop: Annotated[PveBool, msgspec.Meta(description="end by force what does not shut down in time")] = (
        msgspec.field(name="force-stop", default=True)
    )
    timeout: Annotated[int, msgspec.Meta(ge=0, le=7200, description="has no effect: see startup's down")] | None = None


def _check(call: Call, params: AllParams) -> None:
    for path in [f"/vms/{vmid}" for vmid in params.vms] or ["/"]:
        call.check(path, POWER)


@api.post("/nodes/{node}/startall", summary="Start all guests in their order", allow=_check, returns=str)
async def start_all(call: Call, params: StartAllParams) -> str:
    """One task for all; a guest that does not start is a warning of it."""
    return await call.services.guests.power.start_all(user=call.user, guest_ids=params.vms or None, force=params.force)


@api.post("/nodes/{node}/stopall", summary="Shut all guests down, against their order", allow=_check, returns=str)
async def stop_all(call: Call, params: StopAllParams) -> str:
    """One task for all; what a host that shuts down calls first."""
    return await call.services.guests.power.stop_all(
        user=call.user, guest_ids=params.vms or None, force_stop=params.force_stop
    )
