"""Consoles outside a guest's page: one in a window of its own, up to sixteen side by side."""

from __future__ import annotations

from aiohttp import web

from appliance.errors import NotFound, PermissionDenied
from appliance.model.guest import GuestKind
from appliance.web.pages import areas, guest_tabs
from appliance.web.pages.contexts import guest_head
from appliance.web.pages.visit import Visit, visited
from appliance.web.ws.viewers import VIEWERS

TILES_LIMIT = 16


@visited
async def pop_out(visit: Visit) -> web.StreamResponse:
    """GET /console/{vmid}?show=display"""
    viewer, guest_id = visit.viewer, visit.number("vmid")
    guest = viewer.guest(guest_id)
    if not viewer.rights(guest_id).console:
        raise PermissionDenied(f"You need VM.Console on /vms/{guest_id} for this.")
    ports = guest_tabs.consoles(viewer, guest_id)
    show = (
        "display"
        if guest.kind is GuestKind.QEMU and (visit.request.query.get("show") == "display" or not ports)
        else "console"
    )
    if show == "console" and not ports:
        raise NotFound(f"console of guest {guest_id}")
    context = guest_head(viewer, guest_id) | {
        "title": f"{guest.name} ({guest_id})", "show": show, "consoles": ports, "user": viewer.identity.user,
        "csrf": viewer.services.access.csrf_token(visit.ticket), "viewers": visit.request.app[VIEWERS].of(guest_id),
    }  # fmt: skip
    return await visit.part("pages/pop_out.html", context)


@visited
async def tiles(visit: Visit) -> web.StreamResponse:
    """GET /consoles?guest=100&guest=101: those chosen; without, the first ones that run."""
    viewer = visit.viewer
    choices = [
        guest for guest in viewer.guests() if guest_tabs.is_up(guest.state) and viewer.rights(guest.guest_id).console
    ]
    asked = {text for each in visit.request.query.getall("guest", []) for text in each.split(",")}
    wanted = [guest for guest in choices if not asked or str(guest.guest_id) in asked]
    shown = [(guest, guest_tabs.consoles(viewer, guest.guest_id)) for guest in wanted[:TILES_LIMIT]]
    return await visit.page(
        "consoles",
        active="consoles",
        title="Consoles",
        crumbs=areas.trail(here="Consoles"),
        choices=choices,
        chosen={guest.guest_id for guest, _ in shown},
        tiles=shown,
        left_out=len(wanted) > TILES_LIMIT,
    )
