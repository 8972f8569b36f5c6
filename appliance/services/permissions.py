"""Who may do what: evaluation of the ACL tree exactly as Proxmox VE does it (pveum(1), "Inheritance"). Pure.

    for each level of the path, from / down:
        the entries of the token, else of the user, else of the user's groups (all together)
        that stand on the path itself or propagate, if there are any, REPLACE what was found above
    NoAccess among what is left cancels the rest
    a guest or storage in pools adds the roles held on /pool/POOL; NoAccess from a pool cancels all
    a token without privilege separation is its user; one with it has what both it and its user have

Every privilege carries whether it propagates, which matters only for handing it on (`PUT /access/acl`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from appliance.errors import InvalidParameter
from appliance.services.directory import Directory, SubjectKind
from appliance.services.identity import Identity
from appliance.services.roles import BUILTIN_ROLES, NO_ACCESS

PATH_LIMIT = 512
CACHE_LIMIT = 65_536

_NAME = r"[A-Za-z0-9._-]+"
_CHARACTERS = re.compile(r"[A-Za-z0-9._/-]+")
_KNOWN_PATH = re.compile(
    rf"""/ | /access(?:/groups(?:/{_NAME})? | /realm(?:/{_NAME})?)? | /nodes(?:/{_NAME})?
    | /pool(?:/{_NAME}){{0,3}} | /storage(?:/{_NAME})? | /vms(?:/[1-9][0-9]{{2,8}})? | /mapping(?:/{_NAME}){{0,2}}
    | /sdn(?: /zones(?:/{_NAME}(?:/{_NAME}(?:/[1-9][0-9]{{0,3}})?)?)?
            | /(?:controllers|dns|fabrics|ipams|prefix-lists|route-maps)(?:/[A-Za-z0-9_-]+)?)?""",
    re.VERBOSE,
)

TOP_PATHS = ("/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms", "/mapping")

RoleSet = Mapping[str, bool]
"""Role's name to whether it propagates."""

PrivilegeSet = Mapping[str, bool]
"""Privilege's name to whether it propagates."""

_NOTHING: PrivilegeSet = {}


def normalize_path(text: str) -> str | None:
    """The path with single slashes and none at the end; None when it is no path (bad characters, `.` or `..`)."""
    if not text or len(text) > PATH_LIMIT or _CHARACTERS.fullmatch(text) is None:
        return None
    parts = [part for part in text.split("/") if part]
    if any(part in (".", "..") for part in parts):
        return None
    return "/" + "/".join(parts)


def check_acl_path(text: str) -> str:
    """The normalized path if objects can live there. Raises `InvalidParameter`."""
    path = normalize_path(text)
    if path is None or _KNOWN_PATH.fullmatch(path) is None:
        raise InvalidParameter({"path": f"invalid ACL path {text[:PATH_LIMIT]!r}"})
    return path


def levels(path: str) -> Iterator[str]:
    """The normalized path's ancestors from / down to itself."""
    yield "/"
    if path == "/":
        return
    end = path.find("/", 1)
    while end != -1:
        yield path[:end]
        end = path.find("/", end + 1)
    yield path


@dataclass(slots=True)
class _Node:
    """The ACL entries of one path."""

    users: dict[str, dict[str, bool]] = field(default_factory=dict)
    groups: dict[str, dict[str, bool]] = field(default_factory=dict)
    tokens: dict[str, dict[str, bool]] = field(default_factory=dict)

    def table(self, kind: SubjectKind) -> dict[str, dict[str, bool]]:
        match kind:
            case SubjectKind.USER:
                return self.users
            case SubjectKind.GROUP:
                return self.groups
            case SubjectKind.TOKEN:
                return self.tokens


class Permissions:
    """The permissions that follow from one `Directory`. Remembers answers, at most `CACHE_LIMIT`; loop thread only."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._nodes = _index_acl(directory)
        self._pools = _index_pools(directory)
        self._groups = _index_groups(directory)
        self._cache: dict[tuple[Identity, str], PrivilegeSet] = {}
        self._names: dict[tuple[Identity, str], frozenset[str]] = {}

    def names(self, identity: Identity, path: str) -> frozenset[str]:
        """The names of the privileges `identity` has on `path`; empty for what is no path or nobody."""
        key = (identity, path)
        if (known := self._names.get(key)) is None:
            normalized = normalize_path(path)
            known = frozenset(self.privileges(identity, normalized)) if normalized is not None else frozenset()
            if len(self._names) >= CACHE_LIMIT:
                self._names.clear()
            self._names[key] = known
        return known

    def privileges(self, identity: Identity, path: str) -> PrivilegeSet:
        """The privileges of `identity` on the normalized `path`, each with whether it propagates."""
        key = (identity, path)
        if (known := self._cache.get(key)) is None:
            known = self._evaluate(identity, path)
            if len(self._cache) >= CACHE_LIMIT:
                self._cache.clear()
            self._cache[key] = known
        return known

    def _evaluate(self, identity: Identity, path: str) -> PrivilegeSet:
        user = self._directory.users.get(identity.user)
        if user is None:
            return _NOTHING
        if identity.token is None:
            return self._privileges_of(self._roles_with_pools(identity, path))
        token = user.tokens.get(identity.token)
        if token is None:
            return _NOTHING
        of_user = self.privileges(Identity(identity.user), path)
        if not token.privsep:
            return of_user
        of_token = self._privileges_of(self._roles_with_pools(identity, path))
        return {name: of_user[name] and propagate for name, propagate in of_token.items() if name in of_user}

    def _privileges_of(self, roles: RoleSet) -> PrivilegeSet:
        found: dict[str, bool] = {}
        for role, propagate in roles.items():
            for name in self._role(role):
                found[name] = found.get(name, False) or propagate
        return found

    def _role(self, name: str) -> frozenset[str]:
        if name in BUILTIN_ROLES:
            return BUILTIN_ROLES[name]
        custom = self._directory.custom_roles.get(name)
        return frozenset(custom.privileges) if custom is not None else frozenset()

    def _roles_with_pools(self, identity: Identity, path: str) -> RoleSet:
        roles = self.roles(identity, path)
        pools = self._pools.get(path, ())
        if NO_ACCESS in roles or not pools:
            return roles
        # What comes by a pool holds for the member itself, so it never propagates.
        by_pool = {role: False for pool in pools for role in self.roles(identity, f"/pool/{pool}")}
        return {NO_ACCESS: False} if NO_ACCESS in by_pool else {**by_pool, **roles}

    def roles(self, identity: Identity, path: str) -> RoleSet:
        """The roles the ACL tree gives on the normalized path, pools and the token's user left aside."""
        roles: dict[str, bool] = {}
        for level in levels(path):
            node = self._nodes.get(level)
            if node is not None and (here := self._roles_at(node, identity, final=level == path)):
                roles = here
        return {NO_ACCESS: roles[NO_ACCESS]} if NO_ACCESS in roles else roles

    def _roles_at(self, node: _Node, identity: Identity, *, final: bool) -> dict[str, bool]:
        if identity.token is not None:
            return _effective(node.tokens.get(identity.auth_id), final=final)
        if of_user := _effective(node.users.get(identity.user), final=final):
            return of_user
        merged: dict[str, bool] = {}
        for group in self._groups.get(identity.user, ()):
            for role, propagate in _effective(node.groups.get(group), final=final).items():
                merged[role] = merged.get(role, False) or propagate
        return merged

    def pools_of(self, path: str) -> Sequence[str]:
        """The pools the guest or storage of this path is in."""
        return self._pools.get(path, ())

    def paths(self) -> list[str]:
        """Every path about which the directory says something, and the top ones."""
        return sorted({*TOP_PATHS, *self._nodes, *self._pools})


def _effective(entries: dict[str, bool] | None, *, final: bool) -> dict[str, bool]:
    if not entries:
        return {}
    return {role: propagate for role, propagate in entries.items() if final or propagate}


def _index_acl(directory: Directory) -> dict[str, _Node]:
    nodes: dict[str, _Node] = {}
    for entry in directory.acl:
        roles = nodes.setdefault(entry.path, _Node()).table(entry.kind).setdefault(entry.subject, {})
        roles[entry.role] = entry.propagate
    return nodes


def _index_pools(directory: Directory) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for name, pool in directory.pools.items():
        for guest_id in pool.guests:
            members.setdefault(f"/vms/{guest_id}", []).append(name)
        for storage in pool.storages:
            members.setdefault(f"/storage/{storage}", []).append(name)
    return members


def _index_groups(directory: Directory) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, group in directory.groups.items():
        for member in group.members:
            groups.setdefault(member, []).append(name)
    return groups
