"""The list of guests (the first page) and the page of one guest with its tabs."""

from __future__ import annotations

from aiohttp import web

from appliance.errors import NotFound
from appliance.model.guest import GuestKind
from appliance.web import keys
from appliance.web.pages import areas, contexts
from appliance.web.pages.guest_window import Wanted
from appliance.web.pages.visit import Visit, visited

TABS = {
    GuestKind.QEMU: ("summary", "console", "display", "hardware", "tasks"),
    GuestKind.LXC: ("summary", "console", "hardware", "tasks"),
}
TAB_WORDS = {
    "summary": "Summary", "console": "Console", "display": "Display", "hardware": "Configuration", "tasks": "Tasks",
}  # fmt: skip


@visited
async def show_list(visit: Visit) -> web.StreamResponse:
    """GET /"""
    viewer = visit.viewer
    wanted = Wanted.of(visit.request.query)
    context = await contexts.guest_list(viewer, wanted) | await contexts.host(viewer)
    topics = f"guests:{wanted.query}" + (" host" if viewer.sees_node else "")
    table = visit.request.app[keys.TABLE]
    context["has_snapshots"] = any(method.path.endswith("/qemu/{vmid}/snapshot") for method in table.methods())
    return await visit.page("guests", active="guests", title="Guests", topics=topics, **context)


@visited
async def show_guest(visit: Visit) -> web.StreamResponse:
    """GET /guests/{vmid} and /guests/{vmid}/{tab}"""
    guest_id, tab = visit.number("vmid"), visit.request.match_info.get("tab", "summary")
    context = contexts.guest_head(visit.viewer, guest_id)
    guest = visit.viewer.guest(guest_id)
    may_look = visit.viewer.rights(guest_id).console
    tabs = [name for name in TABS[guest.kind] if may_look or name not in ("console", "display")]
    if tab not in tabs:
        raise NotFound(f"page '{tab[:40]}' of guest {guest_id}")
    match tab:
        case "hardware":
            context |= contexts.guest_config_rows(visit.viewer, guest_id)
        case "tasks":
            # the frame's own "tasks" are the drawer's
            context["guest_tasks"] = (await contexts.guest_tasks(visit.viewer, guest_id))["tasks"]
        case "console":
            context["consoles"] = _consoles(visit, guest_id)
    return await visit.page(
        f"guest_{tab}",
        active="guests",
        title=f"{guest.name} ({guest_id})",
        topics=f"guest:{guest_id}:{tab}",
        crumbs=areas.trail(
            (guest.node, "/node"), (f"{guest.name} ({guest_id})", f"/guests/{guest_id}"), here=TAB_WORDS[tab]
        ),
        tab=tab,
        tabs=[(name, TAB_WORDS[name]) for name in tabs],
        **context,
    )


def _consoles(visit: Visit, guest_id: int) -> list[str]:
    """The serial ports a VM has; a container has one console."""
    guest = visit.viewer.guest(guest_id)
    if guest.kind is GuestKind.LXC:
        return ["console"]
    config, _ = visit.viewer.services.guests.config(guest.guest_id)
    return [f"serial{index}" for index in range(4) if f"serial{index}" in config]
