"""Roles and the access control list: what `/access/roles`, `/access/acl` and `/access/permissions` do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from appliance.errors import Conflict, InvalidParameter, NotFound
from appliance.services.directory import AclEntry, Directory, Role, SubjectKind
from appliance.services.directory_store import DirectoryStore
from appliance.services.guard import STRONG, Guard
from appliance.services.identity import Identity, parse_auth_id
from appliance.services.permissions import check_acl_path, normalize_path
from appliance.services.roles import (
    BUILTIN_ROLES,
    NO_ACCESS,
    PERMISSIONS_MODIFY,
    check_privileges,
    check_role_name,
    is_reserved,
)

ACCESS_PATH = "/access"
_AREAS = {
    "vms": re.compile(r"VM\.|Permissions\.Modify"),
    "access": re.compile(r"User\.|Group\.|Permissions\.Modify"),
    "storage": re.compile(r"Datastore\.|Permissions\.Modify"),
    "nodes": re.compile(r"Sys\.|Permissions\.Modify"),
    "sdn": re.compile(r"SDN\.|Permissions\.Modify"),
    "dc": re.compile(r"Sys\.Audit|Sys\.Modify|SDN\."),
    "mapping": re.compile(r"Mapping\.|Permissions\.Modify"),
}

Reply = dict[str, object]


class RoleService:
    """Built-in and custom roles. Anybody who is logged in may read them."""

    def __init__(self, store: DirectoryStore, guard: Guard) -> None:
        self._store = store
        self._guard = guard

    def list(self) -> list[Reply]:
        """All roles with their privileges, built-in ones marked `special`."""
        directory = self._store.directory
        names = sorted({*BUILTIN_ROLES, *directory.custom_roles})
        return [
            {"roleid": name, "privs": ",".join(sorted(directory.role(name))), "special": name in BUILTIN_ROLES}
            for name in names
        ]

    def get(self, name: str) -> dict[str, bool]:
        """The role's privileges. Raises `NotFound`."""
        return dict.fromkeys(sorted(self._store.directory.role(name)), True)

    async def create(self, caller: Identity, name: str, privileges: Sequence[str]) -> None:
        """Raises `Conflict` when there is such a role."""
        check_role_name(name)
        wanted = Role(privileges=check_privileges(privileges))

        def edit(directory: Directory) -> Directory:
            self._check_writes(caller, wanted.privileges)
            if name in BUILTIN_ROLES or name in directory.custom_roles:
                raise Conflict(f"role '{name}' already exists")
            if is_reserved(name):
                raise InvalidParameter({"roleid": "names beginning with 'PVE' are reserved for built-in roles"})
            return _with_role(directory, name, wanted)

        await self._store.edit(edit)

    async def update(self, caller: Identity, name: str, privileges: Sequence[str], *, append: bool = False) -> None:
        """Replace the privileges, or add to them."""
        wanted = check_privileges(privileges)

        def edit(directory: Directory) -> Directory:
            self._check_writes(caller, wanted)
            _check_changeable(directory, name)
            old = directory.role(name)
            return _with_role(directory, name, Role(privileges=tuple(sorted({*old, *wanted} if append else wanted))))

        await self._store.edit(edit)

    async def delete(self, caller: Identity, name: str) -> None:
        """Raises `Conflict` while an ACL entry names the role: without the entry, what is granted above would apply."""

        def edit(directory: Directory) -> Directory:
            self._check_writes(caller, ())
            _check_changeable(directory, name)
            if used := [entry.path for entry in directory.acl if entry.role == name]:
                raise Conflict(f"role '{name}' is in use on {used[0]}")
            roles = {key: role for key, role in directory.custom_roles.items() if key != name}
            return replace(directory, custom_roles=roles)

        await self._store.edit(edit)

    def _check_writes(self, caller: Identity, privileges: Sequence[str]) -> None:
        """Sys.Modify on /access; and who may not hand out strong privileges may not put them into a role either."""
        self._guard.check(caller, ACCESS_PATH, "Sys.Modify")
        if not STRONG.isdisjoint(privileges):
            self._guard.check(caller, "/", PERMISSIONS_MODIFY)


@dataclass(frozen=True, slots=True, kw_only=True)
class AclChange:
    """One request to grant (or take away) roles on a path."""

    path: str
    roles: Sequence[str]
    users: Sequence[str] = ()
    groups: Sequence[str] = ()
    tokens: Sequence[str] = ()
    propagate: bool = True
    delete: bool = False

    def subjects(self) -> list[tuple[SubjectKind, str]]:
        """Whom it is about. Raises `InvalidParameter` when nobody is."""
        found = [(SubjectKind.USER, user) for user in self.users]
        found += [(SubjectKind.GROUP, group) for group in self.groups]
        found += [(SubjectKind.TOKEN, token) for token in self.tokens]
        if not found:
            text = "either 'users', 'groups' or 'tokens' is required."
            raise InvalidParameter({"users": text, "groups": text, "tokens": text})
        return found


class AclService:
    """The access control list and what follows from it."""

    def __init__(self, store: DirectoryStore, guard: Guard) -> None:
        self._store = store
        self._guard = guard

    def list(self, caller: Identity) -> list[Reply]:
        """The entries of the paths whose permissions the caller may change (all with Sys.Audit on /access)."""
        all_visible = self._guard.has(caller, ACCESS_PATH, "Sys.Audit")
        entries = self._store.directory.acl
        visible = {entry.path for entry in entries if all_visible or self._guard.modifies_acl(caller, entry.path)}
        return [
            {
                "path": entry.path,
                "type": entry.kind.value,
                "ugid": entry.subject,
                "roleid": entry.role,
                "propagate": entry.propagate,
            }
            for entry in entries
            if entry.path in visible
        ]

    async def change(self, caller: Identity, change: AclChange) -> None:
        """Grant or take away. Raises `NotFound` for an unknown role or subject.

        Who may allocate the object but not modify permissions can hand on only what they have there themself.
        """
        path = normalize_path(change.path) if change.delete else check_acl_path(change.path)
        if path is None:
            raise InvalidParameter({"path": f"invalid ACL path '{change.path[:128]}'"})
        subjects = change.subjects()

        def edit(directory: Directory) -> Directory:
            self._guard.check_modifies_acl(caller, path)
            for role in change.roles:
                self._check_hands_on(caller, path, role, directory.role(role), change)
            for kind, subject in subjects:
                _check_subject(directory, kind, subject)
            keys = {(path, kind, subject, role) for kind, subject in subjects for role in change.roles}
            kept = [entry for entry in directory.acl if (entry.path, entry.kind, entry.subject, entry.role) not in keys]
            if not change.delete:
                kept += [
                    AclEntry(path=where, kind=kind, subject=subject, role=role, propagate=change.propagate)
                    for where, kind, subject, role in keys
                ]
            return replace(directory, acl=tuple(sorted(kept)))

        await self._store.edit(edit)

    def _check_hands_on(
        self, caller: Identity, path: str, role: str, privileges: frozenset[str], change: AclChange
    ) -> None:
        held = self._guard.permissions.privileges(caller, path)
        if PERMISSIONS_MODIFY in held or self._guard.is_administrator(caller):
            return
        verb = "remove" if change.delete else "add"
        if role == NO_ACCESS or not privileges <= held.keys():
            text = f"cannot {verb} role '{role}': requires Permissions.Modify or a superset of its privileges on {path}"
            raise InvalidParameter({"roles": text})
        if change.propagate and not change.delete and not all(held[privilege] for privilege in privileges):
            text = f"cannot add role '{role}' with propagation: your own privileges on {path} do not propagate"
            raise InvalidParameter({"roles": text})

    def permissions(
        self, caller: Identity, *, auth_id: str | None = None, path: str | None = None
    ) -> Mapping[str, Mapping[str, bool]]:
        """Path to privilege to whether it propagates: the caller's own, their tokens', or (Sys.Audit) anybody's."""
        target = caller if auth_id is None else parse_auth_id(auth_id)
        if target != caller and caller != Identity(target.user):
            self._guard.check(caller, ACCESS_PATH, "Sys.Audit")
        evaluator = self._guard.permissions
        if path is None:
            found = {known: evaluator.privileges(target, known) for known in evaluator.paths()}
            return {known: privileges for known, privileges in found.items() if privileges}
        if (normalized := normalize_path(path)) is None:
            raise InvalidParameter({"path": f"invalid ACL path '{path[:128]}'"})
        return {normalized: evaluator.privileges(target, normalized)}

    def capabilities(self, caller: Identity) -> Mapping[str, Mapping[str, bool]]:
        """What user interfaces show or hide: per area, the privileges held anywhere in it (`cap` of a login's reply)."""
        found: dict[str, dict[str, bool]] = {area: {} for area in _AREAS}
        for path in self._guard.permissions.paths():
            top = path.split("/")[1] or "dc"
            areas = ("vms", "storage") if top == "pool" else (top,)
            for privilege in self._guard.permissions.names(caller, path):
                for area in areas:
                    if area in _AREAS and _AREAS[area].match(privilege):
                        found[area][privilege] = True
        return found


def _with_role(directory: Directory, name: str, role: Role) -> Directory:
    return replace(directory, custom_roles={**directory.custom_roles, name: role})


def _check_changeable(directory: Directory, name: str) -> None:
    if name in BUILTIN_ROLES:
        raise Conflict(f"role '{name}' is built in and cannot be changed")
    directory.role(name)


def _check_subject(directory: Directory, kind: SubjectKind, subject: str) -> None:
    match kind:
        case SubjectKind.USER:
            directory.user(subject)
        case SubjectKind.GROUP:
            directory.group(subject)
        case SubjectKind.TOKEN:
            identity = parse_auth_id(subject, parameter="tokens")
            if identity.token is None:
                raise NotFound(f"token '{subject}'")
            directory.token(identity.user, identity.token)
