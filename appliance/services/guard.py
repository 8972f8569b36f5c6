"""The checks behind access control's own methods, named as Proxmox VE's API declares them (`userid-group`, `perm-modify` …).

Two rules stand in for the special user Proxmox VE has. No account is special here; what an account *can do* is:
- Whoever holds a `STRONG` privilege somewhere (permissions, the system) can be changed only by those who hold it there
  too: no reset of an administrator's password by a user manager.
- The last enabled user with Permissions.Modify on / cannot be removed, disabled or stripped.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.errors import Conflict, PermissionDenied
from appliance.services.directory import Directory, SubjectKind, User
from appliance.services.directory_store import DirectoryStore
from appliance.services.identity import Identity, split_user_id
from appliance.services.permissions import Permissions
from appliance.services.roles import PERMISSIONS_MODIFY

STRONG = frozenset({PERMISSIONS_MODIFY, "Sys.Modify", "Sys.PowerMgmt", "Realm.Allocate"})
GROUPS_PATH = "/access/groups"

_SUBSTITUTES = (
    ("/storage/", "Datastore.Allocate"),
    ("/vms/", "VM.Allocate"),
    ("/pool/", "Pool.Allocate"),
)


def is_active(user: User, now: float) -> bool:
    """Whether the user may log in at all: enabled and not expired."""
    return user.enable and not 0 < user.expire <= now


class Guard:
    """Permission checks on the newest snapshot; each raises `PermissionDenied` naming path and privilege."""

    def __init__(self, store: DirectoryStore) -> None:
        self._store = store

    @property
    def permissions(self) -> Permissions:
        """The evaluator in force now."""
        return self._store.permissions

    def has(self, caller: Identity, path: str, privilege: str) -> bool:
        """Whether the caller holds the privilege on the path."""
        return privilege in self.permissions.names(caller, path)

    def has_any(self, caller: Identity, path: str, privileges: Sequence[str]) -> bool:
        """Whether the caller holds one of the privileges on the path."""
        return not self.permissions.names(caller, path).isdisjoint(privileges)

    def check(self, caller: Identity, path: str, *privileges: str, require_all: bool = True) -> None:
        """The caller must hold all the privileges on the path (or one, unless `require_all`)."""
        held = self.permissions.names(caller, path)
        if require_all:
            for privilege in privileges:
                if privilege not in held:
                    raise denied(path, privilege)
        elif held.isdisjoint(privileges):
            raise denied(path, "|".join(privileges))

    def is_self(self, caller: Identity, user_id: str) -> bool:
        """Whether the caller is this very user; a token never is."""
        return caller == Identity(user_id)

    def check_no_token(self, caller: Identity) -> None:
        """Refuse API tokens: a leaked one must not take over its user."""
        if caller.token is not None:
            raise PermissionDenied("Permission check failed (API tokens may not do this)")

    def is_administrator(self, caller: Identity) -> bool:
        """Whether the caller may hand out any permission."""
        return self.has(caller, "/", PERMISSIONS_MODIFY)

    def check_realm(self, caller: Identity, user_id: str) -> None:
        """`userid-param Realm.AllocateUser`: on the realm of the user."""
        self.check(caller, f"/access/realm/{split_user_id(user_id)[1]}", "Realm.AllocateUser")

    def groups_with(self, caller: Identity, *privileges: str) -> list[str]:
        """The groups on which the caller holds one of the privileges."""
        return [
            group
            for group in self._store.directory.groups
            if self.has_any(caller, f"{GROUPS_PATH}/{group}", privileges)
        ]

    def users_with(self, caller: Identity, *privileges: str) -> set[str] | None:
        """The users in those groups, the caller's own always; None means all of them."""
        if self.has_any(caller, GROUPS_PATH, privileges):
            return None
        groups = self._store.directory.groups
        found = {member for group in self.groups_with(caller, *privileges) for member in groups[group].members}
        return found | ({caller.user} if caller.token is None else set())

    def check_user_group(self, caller: Identity, user_id: str, *privileges: str) -> None:
        """`userid-group`: one of the privileges on all groups, or on a group the user is in. `NotFound` comes after."""
        if not self.has_any(caller, GROUPS_PATH, privileges):
            groups = self._store.directory.groups
            if not any(user_id in groups[group].members for group in self.groups_with(caller, *privileges)):
                raise denied(GROUPS_PATH, "|".join(privileges))
        self._store.directory.user(user_id)

    def check_group_list(self, caller: Identity, groups: Sequence[str], *privileges: str) -> None:
        """`userid-group` with `groups_param`: on all groups, or on each that is named (and one must be)."""
        if self.has_any(caller, GROUPS_PATH, privileges):
            return
        if not groups:
            raise denied(GROUPS_PATH, "|".join(privileges))
        for group in groups:
            self.check(caller, f"{GROUPS_PATH}/{group}", *privileges, require_all=False)

    def check_modifies_acl(self, caller: Identity, path: str) -> None:
        """`perm-modify`: Permissions.Modify, or the privilege to allocate the kind of object the path is.

        Who may hand out any permission on / may everywhere, also where an entry of their own shut them out: with no
        special user to come to the rescue, an administrator must be able to take such an entry back.
        """
        if self.is_administrator(caller):
            return
        wanted = [PERMISSIONS_MODIFY]
        wanted += [privilege for prefix, privilege in _SUBSTITUTES if path.startswith(prefix)]
        self.check(caller, path, *wanted, require_all=False)

    def modifies_acl(self, caller: Identity, path: str) -> bool:
        """Whether `check_modifies_acl` would pass."""
        try:
            self.check_modifies_acl(caller, path)
        except PermissionDenied:
            return False
        return True

    def check_not_stronger(self, caller: Identity, user_id: str) -> None:
        """The user must not hold a strong privilege where the caller does not."""
        if self.is_self(caller, user_id):
            return
        permissions, target = self.permissions, Identity(user_id)
        for path in permissions.paths():
            if above := (permissions.names(target, path) & STRONG) - permissions.names(caller, path):
                raise denied(path, f"{min(above)}, which '{user_id}' holds")

    def check_group_not_stronger(self, caller: Identity, groups: Sequence[str]) -> None:
        """The groups must not hand their members a strong privilege where the caller does not hold it."""
        directory = self._store.directory
        for entry in directory.acl:
            if entry.kind is SubjectKind.GROUP and entry.subject in groups:
                strong = directory.role(entry.role) & STRONG
                if above := strong - self.permissions.names(caller, entry.path):
                    raise denied(entry.path, f"{min(above)}, which group '{entry.subject}' gives")


def denied(path: str, privileges: str) -> PermissionDenied:
    """The error, in the words of Proxmox VE."""
    return PermissionDenied(f"Permission check failed ({path}, {privileges})")


def require_administrator(old: Directory, new: Directory, now: float) -> None:
    """Refuse (`Conflict`) a change after which nobody who can log in holds Permissions.Modify on /."""
    if (
        new.acl is old.acl
        and new.users is old.users
        and new.groups is old.groups
        and new.custom_roles is old.custom_roles
    ):
        return
    if _has_administrator(old, now) and not _has_administrator(new, now):
        raise Conflict("access control: this would leave no enabled user with Permissions.Modify on /")


def _has_administrator(directory: Directory, now: float) -> bool:
    permissions = Permissions(directory)
    return any(
        PERMISSIONS_MODIFY in permissions.names(Identity(user_id), "/")
        for user_id, user in directory.users.items()
        if is_active(user, now)
    )
