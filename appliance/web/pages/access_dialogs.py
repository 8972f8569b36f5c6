"""Dialogs of access control: users, groups, roles, grants, pools, tokens, second factors."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from aiohttp import web

from appliance.errors import NotFound
from appliance.lazy import LazyModule
from appliance.services.roles import PRIVILEGES
from appliance.web.pages import access_pages
from appliance.web.pages.visit import Visit, visited

if TYPE_CHECKING:
    import markupsafe
    import pyotp
    import segno
else:
    markupsafe = LazyModule("markupsafe")
    pyotp = LazyModule("pyotp")
    segno = LazyModule("segno")

ISSUER = "appliance"
NAME_LIMIT = 200
LOSSES: Final = {
    "user": "Their permissions, tokens and second factors go with them. What they made stays.",
    "group": "What is granted to the group is no longer granted to its members. The users stay.",
    "role": "A role that is granted somewhere cannot be deleted: take it away there first.",
    "pool": "Only an empty pool can be deleted. What is granted on it goes with it.",
    "token": "Programs that use this token are locked out at once.",
    "factor": "The next login works without it.",
}


@visited
async def user(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/user?user=USER"""
    access, viewer = visit.viewer.services.access, visit.viewer
    name = _given(visit, "user")
    known = {**access.users.get(viewer.identity, name), "userid": name} if name else {}
    found = access_pages.filled([known], *access_pages.USER_FIELDS)[0] if name else {}
    groups = [str(row["groupid"]) for row in access.groups.list(viewer.identity)]
    members = known.get("groups") or []
    return await visit.part("dialogs/access_user.html", {"user": found, "groups": groups, "members": members})


@visited
async def password(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/password?user=USER"""
    return await visit.part("dialogs/access_password.html", {"userid": _whose(visit)})


@visited
async def group(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/group?name=GROUP"""
    name = _given(visit, "name")
    known = visit.viewer.services.access.groups.get(visit.viewer.identity, name) if name else {}
    found = access_pages.filled([{**known, "groupid": name}], "groupid", "comment")[0] if name else {}
    return await visit.part("dialogs/access_group.html", {"group": found})


@visited
async def role(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/role?name=ROLE"""
    name = _given(visit, "name")
    held = set(visit.viewer.services.access.roles.get(name)) if name else set()
    by_area: dict[str, list[str]] = {}
    for each in sorted(PRIVILEGES):
        by_area.setdefault(each.partition(".")[0], []).append(each)
    return await visit.part("dialogs/access_role.html", {"role": name, "held": held, "areas": list(by_area.items())})


@visited
async def grant(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/grant?path=PATH"""
    viewer, access = visit.viewer, visit.viewer.services.access
    people = access_pages.subjects(viewer)
    context = {
        "path": _given(visit, "path") or "/",
        "known_paths": access_pages.known_paths(viewer),
        "users": [each for each in people if "!" not in each],
        "tokens": [each for each in people if "!" in each],
        "groups": [str(row["groupid"]) for row in access.groups.list(viewer.identity)],
        "roles": [str(row["roleid"]) for row in access.roles.list()],
    }
    return await visit.part("dialogs/access_grant.html", context)


@visited
async def pool(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/pool?name=POOL"""
    viewer, name = visit.viewer, _given(visit, "name")
    found = viewer.services.access.pools.get(viewer.identity, name) if name else None
    context = {
        "name": name, "pool": found, "guests": viewer.guests(),
        "storages": [config.storage_id for config in viewer.storages()],
    }  # fmt: skip
    return await visit.part("dialogs/access_pool.html", context)


@visited
async def token(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/token?user=USER&name=TOKEN: a new one without a name."""
    found = _token(visit) if _given(visit, "name") else None
    return await visit.part("dialogs/access_token.html", {"userid": _whose(visit), "token": found})


@visited
async def secret(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/secret?user=USER&name=TOKEN: a new secret for a token."""
    return await visit.part("dialogs/access_secret.html", {"userid": _whose(visit), "token": _token(visit)})


@visited
async def factor(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/factor?user=USER&name=ID"""
    access, identity, userid = visit.viewer.services.access, visit.viewer.identity, _whose(visit)
    known = access.tfa.get(identity, userid, _given(visit, "name"))
    found = access_pages.filled([known], *access_pages.FACTOR_FIELDS)[0]
    is_local = identity.user.endswith("@pve")
    return await visit.part("dialogs/access_factor.html", {"userid": userid, "factor": found, "is_local": is_local})


@visited
async def tokens(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/tokens?user=USER"""
    access, identity, userid = visit.viewer.services.access, visit.viewer.identity, _whose(visit)
    context = {
        "userid": userid,
        "tokens": access_pages.filled(access.tokens.list(identity, userid), *access_pages.TOKEN_FIELDS),
        "factors": access_pages.filled(access.tfa.of_user(identity, userid), *access_pages.FACTOR_FIELDS),
    }
    return await visit.part("dialogs/access_tokens.html", context)


@visited
async def totp(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/totp?user=USER: a fresh key each time; it is worth nothing until a code proves it was taken."""
    userid = _whose(visit)
    secret = pyotp.random_base32()
    uri = pyotp.TOTP(secret).provisioning_uri(name=userid, issuer_name=f"{ISSUER} {visit.viewer.node}")
    context = {
        "userid": userid, "secret": " ".join(secret[at : at + 4] for at in range(0, len(secret), 4)), "uri": uri,
        "qr": picture(uri), "is_local": visit.viewer.identity.user.endswith("@pve"),
    }  # fmt: skip
    return await visit.part("dialogs/access_totp.html", context)


def picture(text: str) -> markupsafe.Markup:
    """A QR code as an SVG element, without a style or script of its own."""
    out = io.BytesIO()
    segno.make(text, error="m").save(out, kind="svg", scale=5, border=1, xmldecl=False, svgns=True, omitsize=False)
    return markupsafe.Markup(out.getvalue().decode())


@visited
async def recovery(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/recovery?user=USER"""
    is_local = visit.viewer.identity.user.endswith("@pve")
    return await visit.part("dialogs/access_recovery.html", {"userid": _whose(visit), "is_local": is_local})


@visited
async def delete(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/access/delete/{kind}?name=NAME&user=USER"""
    kind, name = visit.request.match_info["kind"], _given(visit, "name")
    if kind not in LOSSES or not name:
        raise NotFound(f"'{kind[:40]}' to delete")
    whose = quote(_given(visit, "user"), safe="")
    safe = quote(name, safe="")
    paths = {
        "user": f"/access/users/{safe}", "group": f"/access/groups/{safe}", "role": f"/access/roles/{safe}",
        "pool": f"/pools/{safe}", "token": f"/access/users/{whose}/token/{safe}", "factor": f"/access/tfa/{whose}/{safe}",
    }  # fmt: skip
    asks = kind == "factor" and visit.viewer.identity.user.endswith("@pve")
    context = {"name": name, "path": paths[kind], "loss": LOSSES[kind], "asks_password": asks}
    return await visit.part("dialogs/access_delete.html", context)


def _token(visit: Visit) -> dict[str, object]:
    """The token a dialog is about. Raises `NotFound`, `PermissionDenied`."""
    name = _given(visit, "name")
    known = visit.viewer.services.access.tokens.get(visit.viewer.identity, _whose(visit), name)
    return access_pages.filled([{**known, "tokenid": name}], *access_pages.TOKEN_FIELDS)[0]


def _given(visit: Visit, name: str) -> str:
    return visit.request.query.get(name, "")[:NAME_LIMIT]


def _whose(visit: Visit) -> str:
    """The user a dialog is about: oneself, if nobody is named."""
    return _given(visit, "user") or visit.viewer.identity.user
