"""API tokens: what `/access/users/{userid}/token` does. Every method checks its caller.

A token acts for its user; with privilege separation (the default) it has only what both it and its user have. Its
secret is a random UUID, shown once and kept as SHA-256: 122 random bits need no slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Callable, Sequence

import msgspec

from appliance.clock import Clock
from appliance.errors import Conflict, InvalidParameter, NotAuthenticated
from appliance.services.directory import Directory, SubjectKind, Token, User
from appliance.services.directory_store import DirectoryStore
from appliance.services.guard import Guard, is_active
from appliance.services.identity import Identity, check_token_name, parse_auth_id
from appliance.services.users import token_reply

TOKENS_LIMIT = 128
COMMENT_LIMIT = 2048
HEADER_LIMIT = 512
_SCHEME = "PVEAPIToken"
_INVALID = "permission denied - invalid API token"

Reply = dict[str, object]


class TokenService:
    """API tokens of users."""

    def __init__(self, store: DirectoryStore, guard: Guard, clock: Clock) -> None:
        self._store = store
        self._guard = guard
        self._clock = clock

    def verify(self, header: str) -> Identity:
        """The token an `Authorization` header names, `PVEAPIToken=user@realm!name=secret`. Raises `NotAuthenticated`."""
        scheme, value = header[: len(_SCHEME)], header[len(_SCHEME) :]
        name, _, secret = value[1:].strip().rpartition("=")
        if scheme != _SCHEME or value[:1] not in ("=", " ") or len(header) > HEADER_LIMIT or "!" not in name:
            raise NotAuthenticated(_INVALID)
        try:
            identity = parse_auth_id(name)
        except InvalidParameter as error:
            raise NotAuthenticated(_INVALID) from error
        user = self._store.directory.users.get(identity.user)
        token = user.tokens.get(identity.token or "") if user is not None else None
        right = hmac.compare_digest(digest_of(secret), token.digest if token is not None else digest_of(""))
        if not right or user is None or token is None or not self._usable(user, token):
            raise NotAuthenticated(_INVALID)
        return identity

    def is_usable(self, identity: Identity) -> bool:
        """Whether the user, and the token if it is one, may still act."""
        user = self._store.directory.users.get(identity.user)
        if user is None or identity.token is None:
            return user is not None and is_active(user, self._clock.now())
        token = user.tokens.get(identity.token)
        return token is not None and self._usable(user, token)

    def _usable(self, user: User, token: Token) -> bool:
        now = self._clock.now()
        return is_active(user, now) and not 0 < token.expire <= now

    def list(self, caller: Identity, user_id: str) -> list[Reply]:
        """The user's tokens."""
        self._check_sees(caller, user_id)
        user = self._store.directory.user(user_id)
        return [{"tokenid": name, **token_reply(user, name)} for name in sorted(user.tokens)]

    def get(self, caller: Identity, user_id: str, name: str) -> Reply:
        """One token. Raises `NotFound`."""
        self._check_sees(caller, user_id)
        self._store.directory.token(user_id, name)
        return token_reply(self._store.directory.user(user_id), name)

    async def create(
        self, caller: Identity, user_id: str, name: str, *, privsep: bool = True, expire: int = 0, comment: str = ""
    ) -> Reply:
        """Make a token; the reply's `value` is its secret, told only now. Raises `Conflict` when there is one."""
        check_token_name(name)
        _check_comment(comment)
        secret = str(uuid.uuid4())
        token = Token(digest=digest_of(secret), privsep=privsep, expire=expire, comment=comment)

        def change(user: User) -> User:
            if name in user.tokens:
                raise Conflict(f"token '{user_id}!{name}' already exists")
            if len(user.tokens) >= TOKENS_LIMIT:
                raise Conflict(f"user '{user_id}' has {TOKENS_LIMIT} tokens already")
            return _with_token(user, name, token)

        directory = await self._edit(caller, user_id, change)
        info = token_reply(directory.user(user_id), name)
        return {"full-tokenid": f"{user_id}!{name}", "value": secret, "info": info}

    async def update(
        self,
        caller: Identity,
        user_id: str,
        name: str,
        *,
        privsep: bool | None = None,
        expire: int | None = None,
        comment: str | None = None,
        delete: Sequence[str] = (),
        regenerate: bool = False,
    ) -> Reply:
        """Change a token; `regenerate` makes a new secret, told in the reply, and ends the old one."""
        if unknown := [option for option in delete if option != "comment"]:
            raise InvalidParameter({"delete": f"unknown option '{unknown[0][:64]}'"})
        comment = "" if "comment" in delete else comment
        _check_comment(comment or "")
        secret = str(uuid.uuid4())
        given = {
            "privsep": privsep,
            "expire": expire,
            "comment": comment,
            "digest": digest_of(secret) if regenerate else None,
        }
        changes = {field: value for field, value in given.items() if value is not None}

        def change(user: User) -> User:
            token = self._store.directory.token(user_id, name)
            return _with_token(user, name, msgspec.structs.replace(token, **changes))

        directory = await self._edit(caller, user_id, change)
        reply = token_reply(directory.user(user_id), name)
        return {**reply, "full-tokenid": f"{user_id}!{name}", "value": secret} if regenerate else reply

    async def delete(self, caller: Identity, user_id: str, name: str) -> None:
        """Delete the token and its ACL entries."""

        def edit(directory: Directory) -> Directory:
            self._check_changes(caller, user_id)
            directory.token(user_id, name)
            user = directory.user(user_id)
            left = {key: token for key, token in user.tokens.items() if key != name}
            directory = directory.without_subject(SubjectKind.TOKEN, f"{user_id}!{name}")
            return directory.with_user(user_id, msgspec.structs.replace(user, tokens=left))

        await self._store.edit(edit)

    async def _edit(self, caller: Identity, user_id: str, change: Callable[[User], User]) -> Directory:
        def edit(directory: Directory) -> Directory:
            self._check_changes(caller, user_id)
            return directory.with_user(user_id, change(directory.user(user_id)))

        return await self._store.edit(edit)

    def _check_sees(self, caller: Identity, user_id: str) -> None:
        if not self._guard.is_self(caller, user_id):
            self._guard.check_user_group(caller, user_id, "User.Modify")

    def _check_changes(self, caller: Identity, user_id: str) -> None:
        self._check_sees(caller, user_id)
        self._guard.check_not_stronger(caller, user_id)


def digest_of(secret: str) -> str:
    """How a token's secret is kept."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _with_token(user: User, name: str, token: Token) -> User:
    return msgspec.structs.replace(user, tokens={**user.tokens, name: token})


def _check_comment(comment: str) -> None:
    if len(comment) > COMMENT_LIMIT:
        raise InvalidParameter({"comment": f"longer than {COMMENT_LIMIT} characters"})
