"""One API request: find the method, who may call it, parse, run within its time, record, encode.

    match path → log in → CSRF → parameters → privilege → handler → audit → {"data": …}

Errors are raised, never written: `middleware.py` turns them into HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Iterator, Mapping

import msgspec
from aiohttp import web

from appliance.errors import ApplianceError, HostError, InvalidParameter, NotFound, ServiceStopping, TimedOut
from appliance.services.ratelimit import remote_key
from appliance.web import keys, wire
from appliance.web.body import read_parameters
from appliance.web.parameters import fields_of, parse
from appliance.web.registry import Allow, Call, Everyone, Method

log = logging.getLogger(__name__)

JSON_PREFIX = "/api2/json"
AUDIT_TIMEOUT_S = 5.0
AUDIT_DETAIL_LIMIT = 500
VALUE_LIMIT = 80
_SECRET = re.compile(r"pass|secret|key|ticket|otp|token|csrf|value|cicustom|totp|recovery|env|description|notes", re.I)
_URL_SECRETS = re.compile(r"(?<=://)[^/@\s]*@|(?<=\?)\S+")
"""The credentials of a URL, and its query, which may be a signature that opens the file."""
_LOCALHOST = "localhost"


async def handle(request: web.Request) -> web.StreamResponse:
    """The handler of everything below /api2/json. Raises `ApplianceError`."""
    services = request.app[keys.SERVICES]
    caller = request[keys.CALLER]
    match = request.app[keys.TABLE].match(request.method, request.rel_url.raw_path.removeprefix(JSON_PREFIX))
    call = Call(
        services=services,
        request=request,
        method=match.method,
        request_id=request[keys.REQUEST_ID],
        remote=caller.remote,
        identity_or_none=caller.identity,
    )
    raw: dict[str, object] = {}
    try:
        check_caller(call.method, caller, request)
        with _slow_requests_logged(call):
            result = await _run(call, match.parts, raw)
    except ApplianceError as error:
        await _record(call, raw, error)
        raise
    except Exception as error:
        await _record(call, raw, HostError(type(error).__name__))
        raise
    except asyncio.CancelledError:  # what it has done until now is done
        await _record(call, raw, ServiceStopping("cut off"))
        raise
    await _record(call, raw, None)
    if isinstance(result, web.StreamResponse):
        return result
    body = wire.encode_reply(result)
    return web.Response(body=body, content_type="application/json", charset="utf-8", headers=call.headers)


def check_caller(method: Method, caller: keys.Caller, request: web.Request) -> None:
    """Raises `NotAuthenticated` (for a missing CSRF token too) unless the method is open to anyone."""
    if isinstance(method.allow, Everyone) and not method.allow.must_log_in:
        return
    keys.require_identity(caller)
    if caller.ticket and method.verb != "GET":
        check_csrf(request, caller)


def check_csrf(request: web.Request, caller: keys.Caller) -> None:
    """A writing request authenticated by cookie must carry the token another site cannot know."""
    token = request.headers.get("CSRFPreventionToken", "")
    request.app[keys.SERVICES].access.verify_csrf(caller.ticket, token)


async def _run(call: Call, parts: Mapping[str, str], raw: dict[str, object]) -> object:
    method = call.method
    raw_parameters, call.upload_or_none = await read_parameters(call.request, method)
    raw.update(raw_parameters)
    _add_parts(call, parts, raw)
    params = parse(method.params, raw)
    _check_permission(call, params)
    work = method.handler(call, params) if method.takes_params else method.handler(call)
    if method.timeout_s is None:
        return await work
    limit = asyncio.timeout(method.timeout_s)
    try:
        async with limit:
            return await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimedOut(f"{method.verb} {call.request.path}", method.timeout_s) from error


def _add_parts(call: Call, parts: Mapping[str, str], raw: dict[str, object]) -> None:
    """The path's parts are parameters too. `{node}` must be this node and need not be declared."""
    declared = fields_of(call.method.params)
    for name, value in parts.items():
        if name in raw and str(raw[name]) != value:
            raise InvalidParameter({name: "duplicate parameter (already defined in URI with conflicting values)"})
        raw.pop(name, None)
        if name == "node":
            if value not in (_LOCALHOST, call.node):
                raise NotFound(f"node '{value}'")
            value = call.node
        if name in declared:
            raw[name] = value


def _check_permission(call: Call, params: msgspec.Struct) -> None:
    match call.method.allow:
        case Everyone():
            return
        case Allow() as allow:
            call.check(allow.object_path(params), *allow.privileges, any_of=allow.any_of)
        case check:
            check(call, params)


async def _record(call: Call, raw: Mapping[str, object], error: ApplianceError | None) -> None:
    """Every write and every refused access goes to the audit log; a log that fails is reported, not hidden.

    Strangers, who have changed nothing, cannot fill the disk with it: of each address only so many rows are written.
    """
    method, identity = call.method, call.identity_or_none
    if method.audited_by_service:
        return
    if method.verb == "GET" and (error is None or error.status not in (401, 403) or identity is None):
        return
    if identity is None and not _is_worth_a_row(call):
        return
    who = identity.auth_id if identity else "-"
    try:
        async with asyncio.timeout(AUDIT_TIMEOUT_S):
            await call.services.audit.record(
                who=who,
                remote=call.remote,
                action=f"{method.verb} {method.path}",
                target=call.request.path.removeprefix(JSON_PREFIX)[:AUDIT_DETAIL_LIMIT],
                outcome="ok" if error is None else f"{int(error.status)} {error.message}"[:AUDIT_DETAIL_LIMIT],
                detail=describe_parameters(method, raw),
            )
    except (HostError, TimeoutError) as failure:
        log.error("audit: %s %s by %s not recorded: %s", method.verb, call.request.path, who, failure)


def _is_worth_a_row(call: Call) -> bool:
    strangers, place, now = call.request.app[keys.STRANGERS], remote_key(call.remote), call.services.clock.monotonic()
    if strangers.wait_s(place, now) > 0:
        return False
    strangers.failed(place, now)
    return True


def describe_parameters(method: Method, raw: Mapping[str, object]) -> str:
    """Names and values for the audit log; what is unknown, long or may be secret is named only."""
    shown = (
        f"{name[:VALUE_LIMIT]}={_URL_SECRETS.sub('', str(value)) if _may_be_told(method, name, value) else '…'}"
        for name, value in raw.items()
    )
    return " ".join(shown)[:AUDIT_DETAIL_LIMIT]


def _may_be_told(method: Method, name: str, value: object) -> bool:
    """A misspelled "password" is a secret too: only values of parameters the method knows are told."""
    field = fields_of(method.params).get(name)
    if field is None or field.kind == "rest":
        known = name in method.rest_names or name.rstrip("0123456789") in method.rest_names
    else:
        known = not field.unlogged
    return known and not _SECRET.search(name) and len(str(value)) <= VALUE_LIMIT


@contextlib.contextmanager
def _slow_requests_logged(call: Call) -> Iterator[None]:
    begun = time.perf_counter()
    try:
        yield
    finally:
        log.debug("%s %s: %.1f ms", call.method.verb, call.request.path, (time.perf_counter() - begun) * 1e3)
