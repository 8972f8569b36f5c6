"""The pages of the guided set-up: GET /setup leads to the first step that is not done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from appliance.errors import ApplianceError, NotFound, PermissionDenied
from appliance.model.volume import ContentType
from appliance.services import setup_guide
from appliance.web import proxy
from appliance.web.api.setup import host_state
from appliance.web.pages.visit import Visit, visited

WORDS: Final[Mapping[str, str]] = {
    "password": "Password", "storage": "Storage", "network": "Network", "template": "First template",
}  # fmt: skip
DONE: Final = "done"


@visited
async def begin(visit: Visit) -> web.StreamResponse:
    """GET /setup"""
    _require(visit)
    state, _ = await setup_guide.read(visit.viewer.services.store)
    step = setup_guide.next_step(state, await host_state(visit.viewer.services)) or DONE
    return web.Response(status=303, headers={"Location": f"{proxy.prefix(visit.request)}/setup/{step}"})


@visited
async def show_step(visit: Visit) -> web.StreamResponse:
    """GET /setup/{step}"""
    _require(visit)
    step, services = visit.request.match_info["step"], visit.viewer.services
    if step not in (*WORDS, DONE):
        raise NotFound(f"step '{step[:40]}' of the set-up")
    state, _ = await setup_guide.read(services.store)
    host = await host_state(services)
    names = [*setup_guide.STEPS, DONE]
    context: dict[str, object] = {
        "step": step,
        "steps": [(each.name, WORDS[each.name], each.is_done) for each in setup_guide.steps(state, host)],
        "next": names[names.index(step) + 1] if step != DONE else "",
        "host": host,
    }
    match step:
        case "storage":
            lines = visit.viewer.storages()
            context["lines"] = [(config, services.storage.cached_usage(config.storage_id)) for config in lines]
        case "network":
            context |= {"bridge": services.config.bridge, "network_problem": services.network.problem}
            try:
                found = await services.network.interfaces()
                context["addresses"] = next(
                    (each.addresses for each in found if each.name == services.config.bridge), ()
                )
            except ApplianceError as error:
                context |= {"addresses": (), "network_problem": error.message}
        case "template":
            holds = (ContentType.VZTMPL, ContentType.IMPORT)
            context["templates"] = services.templates.list()
            context["targets"] = [
                each.storage_id
                for each in visit.viewer.storages()
                if each.active and set(holds) & set(each.content_types)
            ]
    return await visit.page(f"setup_{step}", active="", title="Set-up", topics="", **context)


def _require(visit: Visit) -> None:
    if not visit.viewer.may("/", "Sys.Modify"):
        raise PermissionDenied("You need Sys.Modify on / for this.")
