"""/access/tfa: second factors."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.web.api.access_params import OwnPassword, UserParams
from appliance.web.registry import LOGGED_IN, Call, PveBool, Resource

api = Resource()

Description = Annotated[str, Meta(max_length=255)]
EntryId = Annotated[str, Meta(max_length=64, description="the entry's id")]


class Entry(msgspec.Struct, kw_only=True):
    """A second factor, without its secret."""

    id: str
    type: Literal["totp", "recovery"]
    description: str
    created: int
    enable: bool


class UserEntries(msgspec.Struct, kw_only=True):
    """The second factors of one user."""

    userid: str
    entries: list[Entry]
    totp_locked: bool | None = msgspec.field(name="totp-locked", default=None)


class AddedEntry(msgspec.Struct, kw_only=True):
    """A new entry; `recovery` are the keys, shown only now."""

    id: str
    recovery: list[str] | None = None


class TfaTypes(msgspec.Struct, kw_only=True):
    """Which kinds of second factor a user has."""

    types: list[str] | None = None
    user: str | None = None


class AddParams(UserParams, kw_only=True):
    """A new second factor."""

    type: Literal["totp", "u2f", "webauthn", "recovery", "yubico"]
    description: Description = ""
    totp: Annotated[str, Meta(max_length=2048, description="the generator as otpauth:// URI")] | None = None
    value: Annotated[str, Meta(max_length=64, description="a present code of the generator")] | None = None
    challenge: Annotated[str, Meta(max_length=4096, description="accepted for compatibility")] | None = None
    password: OwnPassword | None = None


class EntryParams(UserParams, kw_only=True):
    """Names an entry."""

    id: EntryId


class UpdateParams(EntryParams, kw_only=True):
    """A changed entry."""

    description: Description | None = None
    enable: PveBool | None = None
    password: OwnPassword | None = None


class DeleteParams(EntryParams, kw_only=True):
    """An entry to delete."""

    password: OwnPassword | None = None


class TypeParams(UserParams, kw_only=True):
    """Whose kinds."""

    multiple: Annotated[PveBool, Meta(description="all kinds as a list")] = False


@api.get("/access/tfa", summary="Second factors of all users", allow=LOGGED_IN, returns=list[UserEntries])
async def list_all(call: Call) -> object:
    """Of the users the caller manages or audits, and their own."""
    return call.services.access.tfa.list_all(call.identity)


@api.get("/access/tfa/{userid}", summary="Second factors of one user", allow=LOGGED_IN, returns=list[Entry])
async def list_entries(call: Call, params: UserParams) -> object:
    """One's own, or those of a user one manages or audits."""
    return call.services.access.tfa.of_user(call.identity, params.userid)


@api.get("/access/tfa/{userid}/{id}", summary="One second factor", allow=LOGGED_IN, returns=Entry)
async def read_entry(call: Call, params: EntryParams) -> object:
    """Without its secret."""
    return call.services.access.tfa.get(call.identity, params.userid, params.id)


@api.post("/access/tfa/{userid}", summary="Add a second factor", allow=LOGGED_IN, returns=AddedEntry)
async def add_entry(call: Call, params: AddParams) -> object:
    """A generator (type totp) with a present code of it, or recovery keys. API tokens may not."""
    return await call.services.access.tfa.add(
        call.identity,
        params.userid,
        params.type,
        description=params.description,
        uri=params.totp,
        value=params.value,
        password=params.password,
    )


@api.put("/access/tfa/{userid}/{id}", summary="Change a second factor", allow=LOGGED_IN)
async def update_entry(call: Call, params: UpdateParams) -> None:
    """Describe it, enable or disable it."""
    await call.services.access.tfa.update(
        call.identity,
        params.userid,
        params.id,
        description=params.description,
        enable=params.enable,
        password=params.password,
    )


@api.delete("/access/tfa/{userid}/{id}", summary="Delete a second factor", allow=LOGGED_IN)
async def delete_entry(call: Call, params: DeleteParams) -> None:
    """API tokens may not."""
    await call.services.access.tfa.delete(call.identity, params.userid, params.id, password=params.password)


@api.get("/access/users/{userid}/tfa", summary="Kinds of second factor a user has", allow=LOGGED_IN, returns=TfaTypes)
async def read_types(call: Call, params: TypeParams) -> TfaTypes:
    """`types` with `multiple`, else `user` where there is a generator."""
    types = list(call.services.access.tfa.types(call.identity, params.userid))
    if params.multiple:
        return TfaTypes(types=types)
    return TfaTypes(user="oath" if "totp" in types else None)


@api.put("/access/users/{userid}/unlock-tfa", summary="Let a user try codes again", allow=LOGGED_IN, returns=bool)
async def unlock(call: Call, params: UserParams) -> bool:
    """After too many wrong codes. Tells whether they were locked."""
    return await call.services.access.tfa.unlock(call.identity, params.userid)
