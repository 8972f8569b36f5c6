"""What every request passes: an id, who sent it, and the only mapping of errors to HTTP.

Outermost first: `errors` (one of the three supervisors with a broad `except`), `authentication`. Response headers are
added by `add_headers` when the reply is about to leave, websockets included.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from urllib.parse import unquote

import msgspec
from aiohttp import web

from appliance.errors import (
    ApplianceError,
    HostError,
    InvalidParameter,
    NotAuthenticated,
    PermissionDenied,
    TooManyRequests,
    UserError,
)
from appliance.services.identity import Identity
from appliance.web import keys, proxy

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COOKIE = "PVEAuthCookie"
TOKEN_SCHEME = "PVEAPIToken"  # noqa: S105  the header's scheme, not a secret
LOCAL_ADMIN = Identity("root@pam")
REASON_LIMIT = 200
_NOT_IN_A_REASON = re.compile(r"[^\x20-\x7e]+")
_REQUEST_PREFIX = secrets.token_hex(3)
_request_numbers = itertools.count(1)

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
# no HSTS: with the appliance's own CA it would make a browser's certificate warning impossible to pass
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception into a reply. Nothing below writes an error reply itself."""
    request[keys.REQUEST_ID] = f"{_REQUEST_PREFIX}-{next(_request_numbers):x}"
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        return _reply(request, HTTPStatus(error.status), error.reason, {})
    except ApplianceError as error:
        if keys.UPGRADED in request:
            return request[keys.UPGRADED]
        return _reply_to(request, error)
    except (ConnectionResetError, BrokenPipeError):
        raise  # the client went away: aiohttp closes quietly
    except Exception as error:
        log.exception("request %s: %s %s failed", request[keys.REQUEST_ID], request.method, request.path)
        if keys.UPGRADED in request:
            return request[keys.UPGRADED]
        text = f"internal error in request {request[keys.REQUEST_ID]}: {type(error).__name__}"
        return _reply(request, HTTPStatus.INTERNAL_SERVER_ERROR, text, {})


@web.middleware
async def authentication(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find out who calls: API token, else cookie, else the UNIX socket's peer. Wrong credentials are judged later."""
    request[keys.CALLER] = await _caller_of(request)
    return await handler(request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Security headers on everything; nothing of the API is ever cached (a `on_response_prepare` signal)."""
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    if (request_id := request.get(keys.REQUEST_ID)) is not None:
        response.headers["X-Request-Id"] = request_id


def reason_phrase(text: str) -> str:
    """`text` as one line of printable ASCII of at most 200 characters, as the status line of HTTP/1.1 allows."""
    line = _NOT_IN_A_REASON.sub(" ", text.replace("…", "...")).strip()
    return line if len(line) <= REASON_LIMIT else line[: REASON_LIMIT - 3] + "..."


def check_origin(request: web.Request, caller: keys.Caller) -> None:
    """A browser lets any site open a websocket with our cookie: its Origin must be ours. Raises `PermissionDenied`.

    Browsers always send an Origin with a websocket (RFC 6455 §4.1); PVE's other clients send none and may pass.
    """
    origin = request.headers.get("Origin")
    if caller.ticket and origin is not None and origin.partition("://")[2] not in proxy.hosts(request):
        raise PermissionDenied(f"websocket from another origin: {reason_phrase(origin)}")


def session_holds(request: web.Request) -> bool:
    """Whether whoever opened this websocket would still be let in: asked again whenever access control has changed."""
    caller = request[keys.CALLER]
    if caller.identity is None:
        return False
    if caller.remote == keys.LOCAL:  # the host's own root: nobody can be logged out of their own machine
        return True
    return request.app[keys.SERVICES].access.still_holds(caller.identity, caller.ticket)


async def _caller_of(request: web.Request) -> keys.Caller:
    access = request.app[keys.SERVICES].access
    remote = proxy.remote(request) or keys.LOCAL
    authorization = request.headers.get("Authorization", "")
    ticket = unquote(request.cookies.get(COOKIE, ""))
    try:
        if authorization.startswith(TOKEN_SCHEME):
            return keys.Caller(await access.verify_token(authorization), remote)
        if ticket:
            return keys.Caller(access.verify_ticket(ticket), remote, ticket=ticket)
    except UserError as error:
        return keys.Caller(None, remote, refusal=error)
    if _is_local_admin(request):
        return keys.Caller(LOCAL_ADMIN, keys.LOCAL)
    return keys.Caller(None, remote, refusal=NotAuthenticated("No ticket"))


def _is_local_admin(request: web.Request) -> bool:
    """The UNIX socket is 0600: besides root only the user the appliance runs as, who owns everything it has, gets here."""
    sock = request.transport.get_extra_info("socket") if request.transport else None
    if sock is None or sock.family != socket.AF_UNIX:
        return False
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())


def _reply_to(request: web.Request, error: ApplianceError) -> web.Response:
    if isinstance(error, HostError):
        log.error("request %s: %s %s: %s", request[keys.REQUEST_ID], request.method, request.path, error)
    details = error.errors if isinstance(error, InvalidParameter) else {}
    response = _reply(request, error.status, error.message, details)
    if isinstance(error, TooManyRequests):
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return response


def _reply(request: web.Request, status: HTTPStatus, text: str, details: dict[str, str]) -> web.Response:
    reason = reason_phrase(text) or status.phrase
    response: web.Response
    if request.path.startswith("/api2/") or "text/html" not in request.headers.get("Accept", ""):
        body: dict[str, object] = {"data": None, "message": text}
        if details:
            body["errors"] = details
        response = web.Response(
            status=status,
            reason=reason,
            body=msgspec.json.encode(body),
            content_type="application/json",
            charset="utf-8",
        )
    else:
        response = web.Response(status=status, reason=reason, text=f"{int(status)} {text}\n")
    if request.body_exists and not request.content.at_eof():
        response.force_close()  # whatever the client still sends is not read
    return response
