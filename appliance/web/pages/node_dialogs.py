"""Dialogs about the node: all its guests at once, and the bridge the appliance made. Their forms post to the public API."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from appliance.errors import NotFound, PermissionDenied
from appliance.model.guest import GuestState
from appliance.web.pages.visit import Visit, visited

ALL_ACTIONS: Final = ("start", "stop")


@visited
async def all_guests(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/node/all/{action}: start those that start with the host, or shut all down."""
    viewer, action = visit.viewer, visit.request.match_info["action"]
    if action not in ALL_ACTIONS:
        raise NotFound(f"action '{action[:40]}'")
    if not viewer.may("/", "VM.PowerMgmt"):
        raise PermissionDenied("You need VM.PowerMgmt on / for this.")
    guests = [guest for guest in viewer.services.guests.list() if not guest.template]
    stopped = [guest for guest in guests if guest.state is GuestState.STOPPED]
    context = {
        "action": action,
        "node": viewer.node,
        "running": len(guests) - len(stopped),
        "stopped": len(stopped),
        "onboot": sum(guest.onboot for guest in stopped),
    }
    return await visit.part("dialogs/node_all.html", context)


@visited
async def bridge(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/node/bridge: the settings of the managed bridge."""
    viewer, network = visit.viewer, visit.viewer.services.network
    name = viewer.services.config.bridge
    if not viewer.may(f"/nodes/{viewer.node}", "Sys.Modify"):
        raise PermissionDenied(f"You need Sys.Modify on /nodes/{viewer.node} for this.")
    if not network.is_managed(name):
        raise NotFound(f"a bridge of the appliance's own: {name} belongs to the host")
    interface = await network.interface(name)
    cidr = next((text for text in interface.addresses if ":" not in text), "")
    context = {
        "bridge": interface, "cidr": cidr, "comment": network.comment, "digest": network.digest, "node": viewer.node,
    }  # fmt: skip
    return await visit.part("dialogs/node_bridge.html", context)
