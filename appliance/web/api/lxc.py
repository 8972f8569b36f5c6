"""/nodes/{node}/lxc: containers. What both kinds of guests share is in the guest_* modules; here is the rest."""

from __future__ import annotations

import msgspec

from appliance.errors import CommandFailed
from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.services import ct_interfaces
from appliance.web.api import guest_configuration, guest_creation, guest_moves, guest_power, guest_snapshots, lxc_inside
from appliance.web.api.guest_params import AUDIT
from appliance.web.registry import Call, GuestParams, Resource

api = Resource()

guest_creation.declare(api, GuestKind.LXC)
guest_creation.declare_for_containers(api)
guest_power.declare(api, GuestKind.LXC)
guest_power.declare_for_containers(api)
guest_configuration.declare(api, GuestKind.LXC)
guest_snapshots.declare(api, GuestKind.LXC)
guest_moves.declare(api, GuestKind.LXC)
lxc_inside.declare(api)


class Address(msgspec.Struct, kw_only=True, rename={"address": "ip-address", "type": "ip-address-type"}):
    """An address; `type` is inet or inet6."""

    address: str
    type: str
    prefix: int


class Interface(msgspec.Struct, kw_only=True, rename={"mac": "hardware-address", "addresses": "ip-addresses"}):
    """A network interface inside; `inet` and `inet6` are its first addresses with their prefix."""

    name: str
    hwaddr: str
    mac: str
    inet: str | None = None
    inet6: str | None = None
    addresses: list[Address]


@api.get("/nodes/{node}/lxc/{vmid}/interfaces", summary="The network interfaces inside a container", allow=AUDIT,
         returns=list[Interface])  # fmt: skip
async def list_interfaces(call: Call, params: GuestParams) -> list[dict[str, object]]:
    """Empty for a container that does not run."""
    guests = call.services.guests
    if guests.get(GuestId(params.vmid), GuestKind.LXC).state is GuestState.STOPPED:
        return []
    running = guests.running(GuestId(params.vmid), GuestKind.LXC)
    try:
        return await ct_interfaces.interfaces(running.pid)
    except CommandFailed:
        if running.state is GuestState.STOPPED:
            return []
        raise
