"""Who may do what: users, groups, roles, permissions, pools, and what somebody may in the end; and one's own account."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from appliance.errors import ApplianceError, NotFound
from appliance.services.permissions import levels, normalize_path
from appliance.services.roles import PRIVILEGES
from appliance.web.pages import areas
from appliance.web.pages.contexts import Context
from appliance.web.pages.viewer import Viewer
from appliance.web.pages.visit import Visit, visited

TABS: Final[Mapping[str, str]] = {
    "users": "Users", "groups": "Groups", "roles": "Roles", "permissions": "Permissions", "pools": "Pools",
    "effective": "Who may what",
}  # fmt: skip
PATHS_LIMIT = 2000
USER_FIELDS: Final = (
    "userid", "enable", "expire", "realm-type", "groups", "tokens", "firstname", "lastname", "email", "comment", "keys",
    "totp-locked",
)  # fmt: skip
FACTOR_FIELDS: Final = ("id", "type", "description", "created", "enable")
TOKEN_FIELDS: Final = ("tokenid", "comment", "expire", "privsep")


@dataclass(frozen=True, slots=True)
class Held:
    """A privilege somebody holds on a path."""

    name: str
    propagates: bool


@dataclass(frozen=True, slots=True)
class Why:
    """An entry of the access control list that concerns them there."""

    path: str
    subject: str
    role: str
    counts: bool
    """Whether it has an effect: an entry further down replaces those above it."""


@visited
async def show(visit: Visit) -> web.StreamResponse:
    """GET /access and /access/{tab}"""
    tab = visit.request.match_info.get("tab", "users")
    if tab not in TABS:
        raise NotFound(f"page '{tab[:40]}' of access")
    query = visit.request.query
    context = await tab_context(visit.viewer, tab, user=query.get("user", ""), path=query.get("path", ""))
    return await visit.page(
        "access",
        active="access",
        title=TABS[tab],
        crumbs=areas.trail(("Access", "/access"), here=TABS[tab]),
        topics=f"access:{tab}" if tab != "effective" else "",
        access_tab=tab,
        access_tabs=TABS,
        **context,
    )


async def tab_context(viewer: Viewer, tab: str, *, user: str = "", path: str = "") -> Context:
    """What a tab shows: only what the viewer may see."""
    if tab == "effective":
        return effective(viewer, user=user, path=path)
    make = _TABS.get(tab)
    if make is None:
        raise NotFound(f"page '{tab[:40]}' of access")
    return {"me": viewer.identity.user, **await make(viewer)}


async def _users(viewer: Viewer) -> Context:
    access = viewer.services.access
    rows = filled(access.users.list(viewer.identity, full=True), *USER_FIELDS)
    return {"users": rows, "may_modify": may_manage(viewer), "realms": realms(viewer)}


async def _groups(viewer: Viewer) -> Context:
    return {
        "groups": filled(viewer.services.access.groups.list(viewer.identity), "groupid", "users", "comment"),
        "may_modify": viewer.may("/access/groups", "Group.Allocate"),
    }


async def _roles(viewer: Viewer) -> Context:
    return {"roles": viewer.services.access.roles.list(), "may_modify": viewer.may("/access", "Sys.Modify")}


async def _permissions(viewer: Viewer) -> Context:
    return {"entries": viewer.services.access.acl.list(viewer.identity)}


async def _pools(viewer: Viewer) -> Context:
    guests = {guest.guest_id: guest for guest in viewer.guests()}
    pools = [
        {
            "name": name, "comment": pool.comment, "storages": list(pool.storages),
            "guests": [guests[vmid] for vmid in sorted(guests) if guests[vmid].pool == name or vmid in pool.guests],
            "may_change": viewer.may(f"/pool/{name}", "Pool.Allocate"),
        }
        for name, pool in viewer.services.access.pools.visible(viewer.identity)
    ]  # fmt: skip
    return {"pools": pools, "may_modify": viewer.may("/pool", "Pool.Allocate")}


_TABS: Final[Mapping[str, Callable[[Viewer], Awaitable[Context]]]] = {
    "users": _users,
    "groups": _groups,
    "roles": _roles,
    "permissions": _permissions,
    "pools": _pools,
}


def effective(viewer: Viewer, *, user: str, path: str) -> Context:
    """What `user` (the viewer, if "") may on `path`, and by which entries; with no path, on every path that has any."""
    access = viewer.services.access
    user = user.strip() or viewer.identity.user
    problem, held, by_path = "", [], {}
    normal = normalize_path(path.strip()) if path.strip() else None
    why: Sequence[Why] = ()
    try:
        if path.strip() and normal is None:
            problem = "This is no path of the access control list."
        elif normal:
            found = access.acl.permissions(viewer.identity, auth_id=user, path=normal).get(normal, {})
            held = [Held(name, bool(propagates)) for name, propagates in sorted(found.items())]
            why = reasons(viewer, user, normal)
        else:
            by_path = dict(list(access.acl.permissions(viewer.identity, auth_id=user, path=None).items())[:PATHS_LIMIT])
    except ApplianceError as error:
        problem = error.message
    return {
        "who": user, "path": path.strip(), "held": held, "why": why, "by_path": by_path, "problem": problem,
        "people": subjects(viewer), "known_paths": known_paths(viewer), "all_privileges": sorted(PRIVILEGES),
    }  # fmt: skip


def reasons(viewer: Viewer, user: str, path: str) -> Sequence[Why]:
    """The entries that name the user or one of their groups on the path or above it, nearest last.

    For each level the user's own entries replace those of their groups, and a nearer level replaces those above.
    """
    access = viewer.services.access
    owner = user.partition("!")[0]
    groups = _groups_of(viewer, owner)
    rows = [row for row in access.acl.list(viewer.identity) if str(row["path"]) in set(levels(path))]
    mine = [row for row in rows if row["ugid"] == user or (row["type"] == "group" and row["ugid"] in groups)]
    mine = [row for row in mine if row["path"] == path or row["propagate"]]
    mine.sort(key=lambda row: str(row["path"]).count("/") if row["path"] != "/" else 0)
    nearest = str(mine[-1]["path"]) if mine else ""
    own_there = any(row["path"] == nearest and row["type"] != "group" for row in mine)
    return [
        Why(str(row["path"]), str(row["ugid"]), str(row["roleid"]),
            row["path"] == nearest and (row["type"] != "group" or not own_there))
        for row in mine
    ]  # fmt: skip


def _groups_of(viewer: Viewer, user: str) -> frozenset[str]:
    for row in viewer.services.access.users.list(viewer.identity, full=True):
        if row["userid"] == user:
            groups = row.get("groups") or ""
            return frozenset(str(groups).split(",")) - {""}
    return frozenset()


def subjects(viewer: Viewer) -> Sequence[str]:
    """Users and tokens the viewer may ask about."""
    found: list[str] = []
    for row in viewer.services.access.users.list(viewer.identity, full=True):
        found.append(str(row["userid"]))
        tokens = row.get("tokens")
        if isinstance(tokens, list):
            found += [f"{row['userid']}!{token['tokenid']}" for token in tokens]
    return found


def known_paths(viewer: Viewer) -> Sequence[str]:
    """Paths worth offering: of what the viewer sees, and of entries."""
    found = ["/", "/vms", "/storage", "/nodes", f"/nodes/{viewer.node}", "/access", "/access/groups", "/pool", "/sdn"]
    found += [f"/vms/{guest.guest_id}" for guest in viewer.guests()]
    found += [f"/storage/{config.storage_id}" for config in viewer.storages()]
    found += [f"/pool/{name}" for name, _ in viewer.services.access.pools.visible(viewer.identity)]
    found += [str(row["path"]) for row in viewer.services.access.acl.list(viewer.identity)]
    return list(dict.fromkeys(found))[:PATHS_LIMIT]


def filled(rows: Sequence[Mapping[str, object]], *names: str) -> list[dict[str, object]]:
    """Replies with every one of these fields: what is not set is left out of them, and None for templates."""
    return [{name: row.get(name) for name in names} for row in rows]


def may_manage(viewer: Viewer) -> bool:
    """Whether there is any use in showing the buttons that change users."""
    return viewer.may("/access/groups", "User.Modify") or viewer.may("/access", "User.Modify")


def realms(viewer: Viewer) -> Sequence[str]:
    """Where users may come from."""
    return ["pve", "pam"]


@visited
async def show_account(visit: Visit) -> web.StreamResponse:
    """GET /account: one's own settings."""
    viewer = visit.viewer
    return await visit.page(
        "account", active="account", title="My account", topics="access:account", **await account(viewer)
    )


async def account(viewer: Viewer) -> Context:
    """One's own profile, second factors and tokens."""
    access, user = viewer.services.access, viewer.identity.user
    profile: Mapping[str, object] = {}
    with contextlib.suppress(ApplianceError):  # root@pam need not be in the directory
        profile = filled([access.users.get(viewer.identity, user)], *USER_FIELDS)[0]
    return {
        "me": user,
        "profile": profile,
        "is_local": user.endswith("@pve"),
        "factors": filled(access.tfa.of_user(viewer.identity, user), *FACTOR_FIELDS) if profile else [],
        "tokens": filled(access.tokens.list(viewer.identity, user), *TOKEN_FIELDS) if profile else [],
        "my_rights": access.acl.permissions(viewer.identity, auth_id=user, path="/").get("/", {}),
    }
