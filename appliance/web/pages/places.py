"""The pages of the node and of storages."""

from __future__ import annotations

from aiohttp import web

from appliance.errors import HostError, PermissionDenied
from appliance.model.volume import ContentType
from appliance.version import PVE_API_VERSION
from appliance.web.pages import contexts
from appliance.web.pages.visit import Visit, visited


@visited
async def show_node(visit: Visit) -> web.StreamResponse:
    """GET /node"""
    context = await contexts.node(visit.viewer)
    network = visit.viewer.services.network
    try:
        interfaces = [each for each in await network.interfaces() if not each.loopback]
        problem = network.problem
    except HostError as error:
        interfaces, problem = [], error.message
    return await visit.page(
        "node", active="node", title=visit.viewer.node, topics="node", interfaces=interfaces, network_problem=problem,
        pve_version=PVE_API_VERSION, **context,
    )  # fmt: skip


@visited
async def show_storage(visit: Visit) -> web.StreamResponse:
    """GET /storage and /storage/{storage}?content=TYPE"""
    storages = visit.viewer.storages()
    name = visit.request.match_info.get("storage", "")
    if not storages and not name:
        raise PermissionDenied("You may see no storage.")
    name = name or storages[0].storage_id
    content = visit.request.query.get("content", "")
    context = await contexts.storage_content(visit.viewer, name, content)
    kinds = [kind for kind in ContentType if kind in visit.viewer.storage(name).content_types]
    return await visit.page(
        "storage",
        active="storage",
        title=f"Storage {name}",
        topics=f"storage:{name}:{content}",
        storages=storages,
        kinds=kinds,
        **context,
    )
