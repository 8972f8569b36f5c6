"""Users: what `/access/users` and `/access/password` do. Every method checks its caller.

Replies are mappings with Proxmox VE's field names.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from appliance.command import run
from appliance.errors import Conflict, InvalidParameter
from appliance.services.directory import Directory, SubjectKind, User
from appliance.services.directory_store import DirectoryStore
from appliance.services.guard import Guard
from appliance.services.identity import Identity, check_user_id, split_user_id
from appliance.services.passwords import Passwords, check_new_password
from appliance.services.realms import PAM, PVE, Realms
from appliance.services.totp import FAILURE_LIMIT

_EMAIL = re.compile(r"[^\s@]+@[^\s@]+")
_LIMITS = {"comment": 2048, "email": 254, "firstname": 1024, "lastname": 1024}
CHPASSWD_TIMEOUT_S = 20.0
EPOCH_RANGE = 1 << 40

Reply = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserChange:
    """What may be set of a user; None leaves it as it is."""

    enable: bool | None = None
    expire: int | None = None
    firstname: str | None = None
    lastname: str | None = None
    email: str | None = None
    comment: str | None = None

    def apply(self, user: User) -> User:
        """The user with the change. Raises `InvalidParameter`."""
        given = {name: getattr(self, name) for name in self.__slots__ if getattr(self, name) is not None}
        wrong = {
            name: f"longer than {limit} characters"
            for name, limit in _LIMITS.items()
            if len(given.get(name, "")) > limit
        }
        wrong |= {
            name: "control characters are not allowed"
            for name in ("firstname", "lastname", "email")
            if any(ord(character) < 0x20 for character in given.get(name, ""))
        }
        if given.get("email") and _EMAIL.fullmatch(given["email"]) is None:
            wrong["email"] = "not an e-mail address"
        if wrong:
            raise InvalidParameter(wrong)
        return msgspec.structs.replace(user, **given)


class UserService:
    """Users and their passwords."""

    def __init__(self, store: DirectoryStore, guard: Guard, passwords: Passwords, realms: Realms) -> None:
        self._store = store
        self._guard = guard
        self._passwords = passwords
        self._realms = realms

    def list(self, caller: Identity, *, enabled: bool | None = None, full: bool = False) -> list[Reply]:
        """The users whom the caller may see, themself always."""
        directory = self._store.directory
        visible = self._guard.users_with(caller, "User.Modify", "Sys.Audit")
        found: list[Reply] = []
        for user_id, user in sorted(directory.users.items()):
            if (visible is None or user_id in visible) and (enabled is None or user.enable == enabled):
                row: Reply = {"userid": user_id, **_user_reply(user), "realm-type": split_user_id(user_id)[1]}
                if full:
                    row["groups"] = ",".join(directory.groups_of(user_id))
                    row["tokens"] = [{"tokenid": name, **token_reply(user, name)} for name in sorted(user.tokens)]
                found.append(row)
        return found

    def get(self, caller: Identity, user_id: str) -> Reply:
        """One user. Raises `NotFound`."""
        self._guard.check_user_group(caller, user_id, "User.Modify", "Sys.Audit")
        directory = self._store.directory
        user = directory.user(user_id)
        tokens = {name: token_reply(user, name) for name in sorted(user.tokens)}
        return {**_user_reply(user), "groups": directory.groups_of(user_id), "tokens": tokens}

    async def create(
        self,
        caller: Identity,
        user_id: str,
        change: UserChange,
        *,
        password: str | None = None,
        groups: Sequence[str] = (),
    ) -> None:
        """Raises `Conflict` when there is such a user, `NotFound` for an unknown group."""
        self._check_create(caller, user_id, groups)
        realm = split_user_id(user_id)[1]
        self._realms.check_exists(realm)
        if password is not None and realm != PVE:
            raise InvalidParameter({"password": f"users of realm {realm} have their password on the host"})
        stored = await self._passwords.hash(check_new_password(password)) if password is not None else None

        def edit(directory: Directory) -> Directory:
            self._check_create(caller, user_id, groups)
            if user_id in directory.users:
                raise Conflict(f"user '{user_id}' already exists")
            # tickets of a namesake who was deleted are bound to that one's epoch
            created = change.apply(User(password=stored, session_epoch=secrets.randbelow(EPOCH_RANGE)))
            return _join_groups(directory.with_user(user_id, created), user_id, groups)

        await self._store.edit(edit)

    def _check_create(self, caller: Identity, user_id: str, groups: Sequence[str]) -> None:
        check_user_id(user_id)
        self._guard.check_realm(caller, user_id)
        self._guard.check_group_list(caller, groups, "User.Modify")
        self._guard.check_group_not_stronger(caller, groups)

    async def update(
        self,
        caller: Identity,
        user_id: str,
        change: UserChange,
        *,
        groups: Sequence[str] | None = None,
        append: bool = False,
    ) -> None:
        """Change fields; `groups` replaces the memberships, or adds to them with `append`."""

        def edit(directory: Directory) -> Directory:
            self._guard.check_user_group(caller, user_id, "User.Modify")
            self._guard.check_not_stronger(caller, user_id)
            if groups is not None:
                left = [] if append else [name for name in directory.groups_of(user_id) if name not in groups]
                self._guard.check_group_list(caller, [*groups, *left], "User.Modify")
                self._guard.check_group_not_stronger(caller, groups)
            user = change.apply(directory.user(user_id))
            if change.enable is False:
                user = msgspec.structs.replace(user, session_epoch=user.session_epoch + 1)
            directory = directory.with_user(user_id, user)
            if groups is not None and not append:
                directory = _leave_groups(directory, user_id)
            return _join_groups(directory, user_id, groups or ())

        await self._store.edit(edit)

    async def delete(self, caller: Identity, user_id: str) -> None:
        """Delete the user with tokens, second factors, memberships and ACL entries."""

        def edit(directory: Directory) -> Directory:
            self._guard.check_realm(caller, user_id)
            self._guard.check_user_group(caller, user_id, "User.Modify")
            self._guard.check_not_stronger(caller, user_id)
            tokens = [f"{user_id}!{name}" for name in directory.user(user_id).tokens]
            directory = _leave_groups(directory, user_id)
            directory = directory.without_subject(SubjectKind.USER, user_id).without_subject(SubjectKind.TOKEN, *tokens)
            return replace(directory, users={key: user for key, user in directory.users.items() if key != user_id})

        await self._store.edit(edit)

    async def set_password(
        self, caller: Identity, user_id: str, password: str, *, confirmation: str | None = None
    ) -> None:
        """Set a password and end the user's sessions. Tokens may not.

        Users set their own, managers that of their users. All but administrators who change somebody else's must
        confirm with their own present password. Raises `NotAuthenticated` when that is wrong.
        """
        check_new_password(password)
        self.check_may_set_password(caller, user_id)
        await self.confirm(caller, user_id, confirmation, parameter="confirmation-password")
        name, realm = split_user_id(user_id)
        if realm == PAM:
            await run(["chpasswd"], stdin=f"{name}:{password}\n".encode(), timeout_s=CHPASSWD_TIMEOUT_S)
        stored = await self._passwords.hash(password) if realm != PAM else None

        def edit(directory: Directory) -> Directory:
            self.check_may_set_password(caller, user_id)
            user = directory.user(user_id)
            changed = msgspec.structs.replace(user, password=stored, session_epoch=user.session_epoch + 1, revoked=())
            return directory.with_user(user_id, changed)

        await self._store.edit(edit)

    def check_may_set_password(self, caller: Identity, user_id: str) -> None:
        """Raises `PermissionDenied`, `NotFound`."""
        self._guard.check_no_token(caller)
        if not self._guard.is_self(caller, user_id):
            self._guard.check_realm(caller, user_id)
            self._guard.check_user_group(caller, user_id, "User.Modify")
            self._guard.check_not_stronger(caller, user_id)
            if split_user_id(user_id)[1] == PAM:  # an account of the host itself
                self._guard.check(caller, "/", "Permissions.Modify", "Sys.Modify")
        self._store.directory.user(user_id)

    async def confirm(self, caller: Identity, user_id: str, password: str | None, *, parameter: str) -> None:
        """The caller proves again who they are, unless an administrator acts on somebody else."""
        if self._guard.is_administrator(caller) and caller.user != user_id:
            return
        if password is None:
            raise InvalidParameter({parameter: "your own password is required to modify this user"})
        await self._realms.confirm(caller.user, password)


def token_reply(user: User, name: str) -> Reply:
    """What may be told of a token: never its secret."""
    token = user.tokens[name]
    return {"privsep": token.privsep, "expire": token.expire, "comment": token.comment or None}


def _user_reply(user: User) -> Reply:
    texts = {name: getattr(user, name) or None for name in ("firstname", "lastname", "email", "comment")}
    tfa: Reply = {"keys": "x"} if user.totp or user.recovery is not None else {}
    if user.totp_failures >= FAILURE_LIMIT:
        tfa["totp-locked"] = True
    return {"enable": user.enable, "expire": user.expire, **texts, **tfa}


def _join_groups(directory: Directory, user_id: str, groups: Sequence[str]) -> Directory:
    for name in dict.fromkeys(groups):
        group = directory.group(name)
        if user_id not in group.members:
            members = tuple(sorted((*group.members, user_id)))
            directory = directory.with_group(name, msgspec.structs.replace(group, members=members))
    return directory


def _leave_groups(directory: Directory, user_id: str) -> Directory:
    for name in directory.groups_of(user_id):
        group = directory.groups[name]
        members = tuple(member for member in group.members if member != user_id)
        directory = directory.with_group(name, msgspec.structs.replace(group, members=members))
    return directory
