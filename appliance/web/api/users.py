"""/access/users and their API tokens."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.errors import InvalidParameter
from appliance.services.users import UserChange
from appliance.web.api.access_params import Comment, Expire, NewPassword, TokenName, UserParams
from appliance.web.registry import LOGGED_IN, Call, PveBool, PveList, Resource

api = Resource()


class TokenInfo(msgspec.Struct, kw_only=True):
    """A token without its secret."""

    privsep: bool
    expire: int
    comment: str | None = None


class TokenRow(TokenInfo, kw_only=True):
    """A token in a list."""

    tokenid: str


class TokenSecret(msgspec.Struct, kw_only=True):
    """A new token: `value` is its secret and shown only now."""

    full_tokenid: str = msgspec.field(name="full-tokenid")
    value: str
    info: TokenInfo


class UpdatedToken(TokenInfo, kw_only=True):
    """A changed token; `value` only after `regenerate`."""

    value: str | None = None
    full_tokenid: str | None = msgspec.field(name="full-tokenid", default=None)


class User(msgspec.Struct, kw_only=True):
    """One user. `keys` is "x" where a second factor is set up."""

    enable: bool
    expire: int
    groups: list[str]
    tokens: dict[str, TokenInfo]
    firstname: str | None = None
    lastname: str | None = None
    email: str | None = None
    comment: str | None = None
    keys: str | None = None


class UserRow(msgspec.Struct, kw_only=True):
    """A user in a list; `groups` and `tokens` with `full` only."""

    userid: str
    enable: bool
    expire: int
    realm_type: str = msgspec.field(name="realm-type")
    groups: str | None = None
    tokens: list[TokenRow] | None = None
    firstname: str | None = None
    lastname: str | None = None
    email: str | None = None
    comment: str | None = None
    keys: str | None = None
    totp_locked: bool | None = msgspec.field(name="totp-locked", default=None)


class ListParams(msgspec.Struct, kw_only=True):
    """Which users."""

    enabled: Annotated[PveBool, Meta(description="only enabled ones, or only disabled ones")] | None = None
    full: Annotated[PveBool, Meta(description="with groups and tokens")] = False


class UserFields(UserParams, kw_only=True):
    """What can be set of a user."""

    enable: Annotated[PveBool, Meta(description="whether the user may log in")] | None = None
    expire: Expire | None = None
    firstname: Annotated[str, Meta(max_length=1024)] | None = None
    lastname: Annotated[str, Meta(max_length=1024)] | None = None
    email: Annotated[str, Meta(max_length=254)] | None = None
    comment: Comment | None = None
    keys: Annotated[str, Meta(max_length=4096, description="second factors are set at /access/tfa")] | None = None

    def change(self) -> UserChange:
        """For the service. Raises `InvalidParameter` for keys, which would not protect as their sender believes."""
        if self.keys not in (None, "", "x"):
            raise InvalidParameter({"keys": "second factors are set at /access/tfa"})
        return UserChange(
            enable=self.enable,
            expire=self.expire,
            firstname=self.firstname,
            lastname=self.lastname,
            email=self.email,
            comment=self.comment,
        )


class CreateParams(UserFields, kw_only=True):
    """A new user."""

    password: Annotated[NewPassword, Meta(description="first password (realm pve)")] | None = None
    groups: Annotated[PveList, Meta(description="groups to join")] = ()


class UpdateParams(UserFields, kw_only=True):
    """A changed user."""

    groups: Annotated[PveList, Meta(description="the user's groups from now on")] | None = None
    append: Annotated[PveBool, Meta(description="keep the present groups too")] = False


class TokenParams(UserParams, kw_only=True):
    """Names a token."""

    tokenid: TokenName


class CreateTokenParams(TokenParams, kw_only=True):
    """A new token."""

    privsep: Annotated[PveBool, Meta(description="only what is granted to the token itself, and its user has")] = True
    expire: Expire = 0
    comment: Comment = ""


class UpdateTokenParams(TokenParams, kw_only=True):
    """A changed token."""

    privsep: PveBool | None = None
    expire: Expire | None = None
    comment: Comment | None = None
    regenerate: Annotated[PveBool, Meta(description="make a new secret, which ends the old one")] = False
    delete: Annotated[PveList, Meta(description="settings to delete: comment")] = ()


@api.get("/access/users", summary="Users", allow=LOGGED_IN, returns=list[UserRow])
async def list_users(call: Call, params: ListParams) -> object:
    """Those in groups on which the caller has User.Modify or Sys.Audit, and themself."""
    return call.services.access.users.list(call.identity, enabled=params.enabled, full=params.full)


@api.post("/access/users", summary="Create a user", allow=LOGGED_IN)
async def create_user(call: Call, params: CreateParams) -> None:
    """Needs Realm.AllocateUser on the realm, and User.Modify on the groups (on /access/groups without any)."""
    await call.services.access.users.create(
        call.identity, params.userid, params.change(), password=params.password, groups=params.groups
    )


@api.get("/access/users/{userid}", summary="One user", allow=LOGGED_IN, returns=User)
async def read_user(call: Call, params: UserParams) -> object:
    """Needs User.Modify or Sys.Audit on a group of the user."""
    return call.services.access.users.get(call.identity, params.userid)


@api.put("/access/users/{userid}", summary="Change a user", allow=LOGGED_IN)
async def update_user(call: Call, params: UpdateParams) -> None:
    """Needs User.Modify on a group of the user and on the groups named."""
    if params.append and params.groups is None:
        raise InvalidParameter({"append": "missing property - 'append' requires this property: groups"})
    await call.services.access.users.update(
        call.identity, params.userid, params.change(), groups=params.groups, append=params.append
    )


@api.delete("/access/users/{userid}", summary="Delete a user", allow=LOGGED_IN)
async def delete_user(call: Call, params: UserParams) -> None:
    """With tokens, second factors and permissions. Needs Realm.AllocateUser on the realm and User.Modify on a group."""
    await call.services.access.users.delete(call.identity, params.userid)


@api.get("/access/users/{userid}/token", summary="API tokens of a user", allow=LOGGED_IN, returns=list[TokenRow])
async def list_tokens(call: Call, params: UserParams) -> object:
    """One's own, or those of a user one manages."""
    return call.services.access.tokens.list(call.identity, params.userid)


@api.get("/access/users/{userid}/token/{tokenid}", summary="One API token", allow=LOGGED_IN, returns=TokenInfo)
async def read_token(call: Call, params: TokenParams) -> object:
    """Without its secret, which nobody can read again."""
    return call.services.access.tokens.get(call.identity, params.userid, params.tokenid)


@api.post("/access/users/{userid}/token/{tokenid}", summary="Create an API token", allow=LOGGED_IN, returns=TokenSecret)
async def create_token(call: Call, params: CreateTokenParams) -> object:
    """The reply's `value` is the secret: it is shown only now. An API token needs User.Modify, also for its own user."""
    return await call.services.access.tokens.create(
        call.identity,
        params.userid,
        params.tokenid,
        privsep=params.privsep,
        expire=params.expire,
        comment=params.comment,
    )


@api.put("/access/users/{userid}/token/{tokenid}", summary="Change an API token", allow=LOGGED_IN, returns=UpdatedToken)
async def update_token(call: Call, params: UpdateTokenParams) -> object:
    """With `regenerate` the reply's `value` is the new secret."""
    return await call.services.access.tokens.update(
        call.identity,
        params.userid,
        params.tokenid,
        privsep=params.privsep,
        expire=params.expire,
        comment=params.comment,
        delete=params.delete,
        regenerate=params.regenerate,
    )


@api.delete("/access/users/{userid}/token/{tokenid}", summary="Delete an API token", allow=LOGGED_IN)
async def delete_token(call: Call, params: TokenParams) -> None:
    """With its permissions."""
    await call.services.access.tokens.delete(call.identity, params.userid, params.tokenid)
