"""The route table of the whole web side, on one screen. `server.py` listens; `middleware.py` guards."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from appliance.services.login import REMOTE_BURST, REMOTE_REFILL_S
from appliance.services.ratelimit import FailureLimiter
from appliance.web import dispatch, keys, middleware, openapi, prometheus
from appliance.web.api import (
    absent,
    access,
    aplinfo,
    applications,
    audit,
    backup,
    cluster,
    figures,
    hardware,
    images,
    lxc,
    mappings,
    network,
    node_guests,
    nodes,
    qemu,
    setup,
    storage,
    storage_content,
    tasks,
    terminals,
    version,
)
from appliance.web.api import resources as resources_api
from appliance.web.pages.render import RENDERER, Renderer
from appliance.web.pages.routes import routes as pages
from appliance.web.pages.viewer import KEPT, Kept
from appliance.web.registry import Resource
from appliance.web.services import Services
from appliance.web.sockets import SocketRegistry
from appliance.web.static import StaticFiles
from appliance.web.table import ApiTable
from appliance.web.ws import events
from appliance.web.ws.viewers import VIEWERS, ConsoleViewers

CLIENT_BODY_LIMIT_BYTES = 1 << 20

RESOURCES: Sequence[Resource] = (
    version.api,
    cluster.api,
    resources_api.api,
    *access.RESOURCES,
    nodes.api,
    node_guests.api,
    figures.api,
    hardware.api,
    network.api,
    qemu.api,
    lxc.api,
    applications.api,
    storage.api,
    storage_content.api,
    backup.api,
    images.api,
    aplinfo.api,
    tasks.api,
    audit.api,
    setup.api,
    terminals.api,
    mappings.api,
    absent.api,
)


def build_application(
    services: Services,
    *,
    static: StaticFiles | None = None,
    resources: Sequence[Resource] = RESOURCES,
    table: ApiTable | None = None,
) -> web.Application:
    """The aiohttp application over `services`. `static` is scanned beforehand, in a thread."""
    app = web.Application(
        middlewares=[middleware.errors, middleware.authentication], client_max_size=CLIENT_BODY_LIMIT_BYTES
    )
    app[keys.SERVICES] = services
    app[keys.TABLE] = table or ApiTable(resources)
    app[keys.SOCKETS] = SocketRegistry()
    app[VIEWERS] = ConsoleViewers(services.events)
    app[keys.DOCUMENTS] = keys.Documents()
    app[keys.STRANGERS] = FailureLimiter(burst=REMOTE_BURST, refill_s=REMOTE_REFILL_S)
    app[resources_api.KEPT] = resources_api.Kept()
    app[keys.STATIC] = static or StaticFiles(services.config.static_dir)
    app[KEPT] = Kept()
    app[RENDERER] = Renderer(services.config.templates_dir, app[keys.STATIC])
    app.router.add_routes(
        [
            web.route("*", dispatch.JSON_PREFIX, dispatch.handle),
            web.route("*", dispatch.JSON_PREFIX + "/{tail:.*}", dispatch.handle),
            web.get("/api2/openapi.json", openapi.serve_document),
            web.get("/api-docs", openapi.serve_page),
            web.get("/metrics", prometheus.serve),
            web.get("/ws/events", events.serve),
            web.get("/static/{name:.+}", app[keys.STATIC].serve),
            *pages(),
        ]
    )
    app.on_response_prepare.append(middleware.add_headers)
    app.on_shutdown.append(_close_sockets)
    return app


async def _close_sockets(app: web.Application) -> None:
    await app[keys.SOCKETS].close_all()
