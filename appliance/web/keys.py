"""What hangs on the aiohttp application and on each request, typed. Set by `application.py` and `middleware.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from appliance.errors import NotAuthenticated

if TYPE_CHECKING:
    from appliance.errors import UserError
    from appliance.services.identity import Identity
    from appliance.services.ratelimit import FailureLimiter
    from appliance.web.services import Services
    from appliance.web.sockets import SocketRegistry
    from appliance.web.static import StaticFiles
    from appliance.web.table import ApiTable

LOCAL = "local"
"""The `remote` of requests that came over the UNIX socket."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as far as the middleware could tell.

    `identity` is None when there were no credentials, or wrong ones, which `refusal` then explains. `ticket` is the
    login ticket when it came in a cookie: such a request may have been forged by another site unless it proves otherwise.
    """

    identity: Identity | None
    remote: str
    ticket: str = ""
    refusal: UserError | None = None


@dataclass(slots=True)
class Documents:
    """What is made from the table once, at the first request."""

    json: bytes | None = None
    page: str | None = None
    explorer: str | None = None


SERVICES: web.AppKey[Services] = web.AppKey("services")
STATIC: web.AppKey[StaticFiles] = web.AppKey("static")
DOCUMENTS: web.AppKey[Documents] = web.AppKey("documents")
TABLE: web.AppKey[ApiTable] = web.AppKey("table")
SOCKETS: web.AppKey[SocketRegistry] = web.AppKey("sockets")
STRANGERS: web.AppKey[FailureLimiter] = web.AppKey("strangers")
"""Rows of the audit log about callers who are not logged in, by address."""
CALLER: web.RequestKey[Caller] = web.RequestKey("caller")
UPGRADED: web.RequestKey[web.WebSocketResponse] = web.RequestKey("upgraded")
"""The websocket a request has become: from then on no HTTP reply is possible."""
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id")


def require_identity(caller: Caller) -> Identity:
    """The caller's identity. Raises `NotAuthenticated` (or what else refused the credentials)."""
    if caller.identity is None:
        raise caller.refusal or NotAuthenticated("No ticket")
    return caller.identity
