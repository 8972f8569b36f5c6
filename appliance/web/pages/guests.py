"""The list of guests (the first page) and the page of one guest with its tabs."""

from __future__ import annotations

from urllib.parse import quote

from aiohttp import web

from appliance.errors import NotFound
from appliance.web.pages import areas, backups, contexts, guest_rows, guest_tabs
from appliance.web.pages.guest_window import Wanted
from appliance.web.pages.visit import Visit, visited
from appliance.web.ws.viewers import VIEWERS


@visited
async def show_list(visit: Visit) -> web.StreamResponse:
    """GET /"""
    viewer = visit.viewer
    wanted = Wanted.of(visit.request.query)
    context = (
        await contexts.guest_list(viewer, wanted) | await contexts.host(viewer) | await contexts.setup_offer(viewer)
    )
    topics = f"guests:{wanted.query}" + (" host" if viewer.sees_node else "")
    context["rows"] = await guest_rows.of_page(viewer, visit.renderer, contexts.guest_window_of(viewer, wanted).guests)
    context["may_back_up"] = bool(backups.targets(viewer))
    return await visit.page("guests", active="guests", title="Guests", topics=topics, **context)


@visited
async def show_guest(visit: Visit) -> web.StreamResponse:
    """GET /guests/{vmid} and /guests/{vmid}/{tab}"""
    guest_id, tab = visit.number("vmid"), visit.request.match_info.get("tab", "summary")
    context = contexts.guest_head(visit.viewer, guest_id)
    guest = visit.viewer.guest(guest_id)
    tabs = guest_tabs.tabs(visit.viewer, guest_id)
    if tab not in dict(tabs):
        raise NotFound(f"page '{tab[:40]}' of guest {guest_id}")
    kind = visit.request.query.get("kind", "")[:100] if tab == "tasks" else ""
    context |= await guest_tabs.context(visit.viewer, guest_id, tab, kind)
    context["viewers"] = visit.request.app[VIEWERS].of(guest_id)
    return await visit.page(
        f"guest_{tab}",
        active="guests",
        title=f"{guest.name} ({guest_id})",
        topics=f"guest:{guest_id}:{tab}" + (f":{quote(kind)}" if kind else ""),
        crumbs=areas.trail(
            (guest.node, "/node"), (f"{guest.name} ({guest_id})", f"/guests/{guest_id}"), here=dict(tabs)[tab]
        ),
        tab=tab,
        tabs=tabs,
        **context,
    )
