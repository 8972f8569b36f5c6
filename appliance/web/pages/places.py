"""The page of a storage, and the one that is shown where there is none."""

from __future__ import annotations

from aiohttp import web

from appliance.errors import NotFound
from appliance.model.volume import ContentType
from appliance.web.pages import areas, contexts
from appliance.web.pages.visit import Visit, visited


@visited
async def show_storage(visit: Visit) -> web.StreamResponse:
    """GET /storage/{storage}?content=TYPE"""
    viewer = visit.viewer
    storages = viewer.storages()
    name = visit.request.match_info["storage"]
    content = visit.request.query.get("content", "")
    context = await contexts.storage_content(visit.viewer, name, content)
    kinds = [kind for kind in ContentType if kind in visit.viewer.storage(name).content_types]
    return await visit.page(
        "storage",
        active="storage",
        title=f"Storage {name}",
        crumbs=areas.trail(("Storage", "/storage"), here=name),
        topics=f"storage:{name}:{content}",
        storages=storages,
        kinds=kinds,
        may_allocate=viewer.may("/storage", "Datastore.Allocate"),
        may_back_up=viewer.may(f"/storage/{name}", "Datastore.AllocateSpace"),
        **context,
    )


async def show_nothing(request: web.Request) -> web.StreamResponse:
    """GET of any other address: a page for browsers, the plain error for programs."""
    if "text/html" not in request.headers.get("Accept", ""):
        raise web.HTTPNotFound
    return await _say_so(request)


@visited
async def _say_so(visit: Visit) -> web.StreamResponse:
    raise NotFound(f"page '{visit.request.path[:100]}'")
