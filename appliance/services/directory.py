"""The directory of who there is and who may do what: users, tokens, groups, roles, ACL, pools. Values only.

A `Directory` is one immutable snapshot; an edit is a pure function from snapshot to snapshot, and `directory_store.py`
turns the difference into one transaction. The structs are also the documents' saved form (JSON): fields are only ever
added, with defaults.

Everything about a user, secrets included, is one document, so that creating, revoking and counting are each one write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec

from appliance.errors import NotFound
from appliance.services.roles import BUILTIN_ROLES


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the saved structs."""


class Token(Record, frozen=True, kw_only=True):
    """An API token. `digest` is SHA-256 (hex) of its secret, a random UUID; `expire` in epoch seconds, 0 is never."""

    digest: str
    privsep: bool = True
    expire: int = 0
    comment: str = ""


class Totp(Record, frozen=True, kw_only=True):
    """A time-based one-time password generator (RFC 6238). Codes up to `last_counter` are used up."""

    secret: str
    digits: int = 6
    period_s: int = 30
    algorithm: str = "SHA1"
    description: str = ""
    created: int = 0
    enable: bool = True
    last_counter: int = 0


class Recovery(Record, frozen=True, kw_only=True):
    """A set of one-time recovery keys, as salted SHA-256 (hex); a used key's place is empty."""

    salt: str
    digests: tuple[str, ...]
    created: int = 0
    enable: bool = True


class Revoked(Record, frozen=True, kw_only=True):
    """A ticket given up before its end: its digest, and when it would have ended (epoch seconds)."""

    digest: str
    until: int


class User(Record, frozen=True, kw_only=True):
    """A user of either realm. `password` is an argon2 hash (realm pve only); `expire` epoch seconds, 0 is never.

    Tickets are bound to `session_epoch`: raising it ends every session of the user.
    """

    enable: bool = True
    expire: int = 0
    firstname: str = ""
    lastname: str = ""
    email: str = ""
    comment: str = ""
    password: str | None = None
    session_epoch: int = 0
    revoked: tuple[Revoked, ...] = ()
    tokens: dict[str, Token] = {}
    totp: dict[str, Totp] = {}
    recovery: Recovery | None = None
    totp_failures: int = 0


class Group(Record, frozen=True, kw_only=True):
    """A group of users."""

    comment: str = ""
    members: tuple[str, ...] = ()


class Role(Record, frozen=True, kw_only=True):
    """A custom role."""

    privileges: tuple[str, ...] = ()


class Pool(Record, frozen=True, kw_only=True):
    """A resource pool. A guest is in at most one pool, a storage in any number."""

    comment: str = ""
    guests: tuple[int, ...] = ()
    storages: tuple[str, ...] = ()


class SubjectKind(StrEnum):
    """Whom an ACL entry is about."""

    USER = "user"
    GROUP = "group"
    TOKEN = "token"  # noqa: S105  not a secret


class AclEntry(Record, frozen=True, kw_only=True, order=True):
    """Subject has role on path and, if it propagates, below it."""

    path: str
    kind: SubjectKind
    subject: str
    role: str
    propagate: bool = True


@dataclass(frozen=True, slots=True)
class Directory:
    """One snapshot. The mappings are never changed in place."""

    users: Mapping[str, User] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    custom_roles: Mapping[str, Role] = field(default_factory=dict)
    pools: Mapping[str, Pool] = field(default_factory=dict)
    acl: tuple[AclEntry, ...] = ()

    def user(self, user_id: str) -> User:
        """Raises `NotFound`."""
        if (user := self.users.get(user_id)) is None:
            raise NotFound(f"user '{user_id}'")
        return user

    def token(self, user_id: str, name: str) -> Token:
        """Raises `NotFound`."""
        if (token := self.user(user_id).tokens.get(name)) is None:
            raise NotFound(f"token '{user_id}!{name}'")
        return token

    def group(self, name: str) -> Group:
        """Raises `NotFound`."""
        if (group := self.groups.get(name)) is None:
            raise NotFound(f"group '{name}'")
        return group

    def pool(self, name: str) -> Pool:
        """Raises `NotFound`."""
        if (pool := self.pools.get(name)) is None:
            raise NotFound(f"pool '{name}'")
        return pool

    def role(self, name: str) -> frozenset[str]:
        """The privileges of a built-in or custom role. Raises `NotFound`."""
        if name in BUILTIN_ROLES:
            return BUILTIN_ROLES[name]
        if (role := self.custom_roles.get(name)) is None:
            raise NotFound(f"role '{name}'")
        return frozenset(role.privileges)

    def groups_of(self, user_id: str) -> list[str]:
        """The groups the user is a member of, sorted."""
        return sorted(name for name, group in self.groups.items() if user_id in group.members)

    def with_user(self, user_id: str, user: User) -> Directory:
        """This snapshot with the user created or replaced."""
        return replace(self, users={**self.users, user_id: user})

    def with_group(self, name: str, group: Group) -> Directory:
        """This snapshot with the group created or replaced."""
        return replace(self, groups={**self.groups, name: group})

    def with_pool(self, name: str, pool: Pool) -> Directory:
        """This snapshot with the pool created or replaced."""
        return replace(self, pools={**self.pools, name: pool})

    def without_subject(self, kind: SubjectKind, *subjects: str) -> Directory:
        """This snapshot without the ACL entries of the subjects, so that a later namesake inherits nothing."""
        acl = tuple(entry for entry in self.acl if entry.kind is not kind or entry.subject not in subjects)
        return replace(self, acl=acl)

    def without_path(self, path: str) -> Directory:
        """This snapshot without the ACL entries on exactly this path: the object is gone."""
        return replace(self, acl=tuple(entry for entry in self.acl if entry.path != path))
