"""Logging in and out in the browser: GET and POST /login, POST /logout, POST /session/renew.

The ticket lives in a cookie that scripts cannot read and other sites cannot send; the CSRF token stands in each page.
Pages renew both while they are open (a ticket lasts two hours).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web

from appliance.errors import NotAuthenticated, PermissionDenied, TooManyRequests, UserError
from appliance.web import dispatch, keys, proxy
from appliance.web.middleware import COOKIE
from appliance.web.pages.render import voice

if TYPE_CHECKING:
    from appliance.services.login import Login

FIELD_LIMIT = 4096


async def show_login(request: web.Request) -> web.StreamResponse:
    """GET /login: the form, or onwards for who is logged in already."""
    caller = request[keys.CALLER]
    if caller.identity is not None and caller.ticket:
        return _redirect(request, _target(request.query.get("next", "")))
    return await _form(request, target=request.query.get("next", ""))


async def log_in(request: web.Request) -> web.StreamResponse:
    """POST /login: password first, then the second factor where there is one."""
    _check_same_site(request)
    form = await request.post()
    fields = {name: str(form.get(name, ""))[:FIELD_LIMIT] for name in ("username", "realm", "password", "next")}
    fields |= {name: str(form.get(name, ""))[:FIELD_LIMIT] for name in ("otp", "challenge")}
    username = fields["username"].strip()
    user = username if "@" in username else f"{username}@{fields['realm'] or 'pve'}"
    access = request.app[keys.SERVICES].access
    remote = request[keys.CALLER].remote
    try:
        if fields["challenge"]:
            code = fields["otp"].strip().replace(" ", "")
            answer = code if ":" in code else f"{'totp' if code.isdecimal() else 'recovery'}:{code}"
            login = await access.login(user, answer, challenge=fields["challenge"], remote=remote)
        else:
            login = await access.login(user, fields["password"], remote=remote)
    except UserError as error:
        return await _form(request, target=fields["next"], username=username, error=_words(error, fields["challenge"]),
                           status=int(error.status))  # fmt: skip
    if login.need_tfa:
        return await _form(request, target=fields["next"], username=login.username, challenge=login.ticket)
    response = _redirect(request, _target(fields["next"]))
    _set_cookie(request, response, login)
    return response


async def log_out(request: web.Request) -> web.StreamResponse:
    """POST /logout: the ticket is worth nothing afterwards, on every page."""
    caller = request[keys.CALLER]
    if caller.identity is not None and caller.ticket:
        form = await request.post()
        services = request.app[keys.SERVICES]
        services.access.verify_csrf(caller.ticket, str(form.get("csrf", "")))
        await services.access.logout(caller.ticket)
        await services.audit.record(
            who=caller.identity.auth_id, remote=caller.remote, action="logout", target="/access/ticket", outcome="ok"
        )
    response = _redirect(request, "/login")
    response.del_cookie(COOKIE, path=_cookie_path(request))
    return response


async def renew(request: web.Request) -> web.StreamResponse:
    """POST /session/renew: a fresh cookie, and the CSRF token that goes with it, for a page that stays open."""
    caller = request[keys.CALLER]
    identity = keys.require_identity(caller)
    if not caller.ticket:
        raise NotAuthenticated("no session to renew")
    dispatch.check_csrf(request, caller)
    login = await request.app[keys.SERVICES].access.login(identity.user, caller.ticket, remote=caller.remote)
    response = web.json_response({"csrf": login.csrf})
    _set_cookie(request, response, login)
    return response


async def _form(
    request: web.Request, *, target: str, username: str = "", challenge: str = "", error: str = "", status: int = 200
) -> web.Response:
    context = {
        "next": target, "username": username, "challenge": challenge, "error": error, "title": "Log in",
        "node": request.app[keys.SERVICES].config.node_name,
    }  # fmt: skip
    html = await voice(request).page("pages/login.html", context)
    return web.Response(text=html, status=status, content_type="text/html", charset="utf-8")


def _check_same_site(request: web.Request) -> None:
    """Another site must not log a browser in as somebody else. Raises `PermissionDenied`."""
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] not in proxy.hosts(request):
        raise PermissionDenied("log in from the appliance's own page")


def _words(error: UserError, challenge: str) -> str:
    if isinstance(error, TooManyRequests):
        return f"Too many attempts. Try again in {max(1, round(error.retry_after_s))} s."
    if not isinstance(error, NotAuthenticated):
        return error.message
    if challenge:
        return "That code was not accepted. Log in again with a fresh one."
    return "User name or password is wrong."


def _target(wanted: str) -> str:
    """Only paths of this site: "//host" and "\\host" are addresses of others."""
    return wanted if wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and wanted.isprintable() else "/"


def _redirect(request: web.Request, location: str) -> web.Response:
    return web.Response(status=303, headers={"Location": proxy.prefix(request) + location})


def _set_cookie(request: web.Request, response: web.Response, login: Login) -> None:
    response.set_cookie(
        COOKIE, quote(login.ticket, safe=""), path=_cookie_path(request), secure=True, httponly=True, samesite="Strict"
    )


def _cookie_path(request: web.Request) -> str:
    """Below a prefix the ticket is not shown to whatever else the host publishes."""
    return proxy.prefix(request) or "/"
