"""/access/domains: the realms users come from. Two are built in; others cannot be added yet and the reply says so."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.errors import Conflict, Unsupported
from appliance.services.realms import BUILTIN
from appliance.web.registry import ANYONE, Allow, Call, Resource, Rest

api = Resource()

ALLOCATE = Allow("/access/realm", "Realm.Allocate")
RealmName = Annotated[str, Meta(max_length=32, description="the realm's name")]


class RealmRow(msgspec.Struct, kw_only=True):
    """A realm, as the login page shows it."""

    realm: str
    type: str
    comment: str
    default: bool | None = None


class Realm(msgspec.Struct, kw_only=True):
    """One realm's settings."""

    type: str
    comment: str
    default: bool | None = None


class RealmParams(msgspec.Struct, kw_only=True):
    """Names a realm."""

    realm: RealmName


class CreateParams(RealmParams, kw_only=True):
    """A new realm."""

    type: Annotated[str, Meta(max_length=32, description="ldap, ad, openid …")]
    settings: Rest = msgspec.field(default_factory=dict)


class UpdateParams(RealmParams, kw_only=True):
    """Changed settings of a realm."""

    settings: Rest = msgspec.field(default_factory=dict)


@api.get("/access/domains", summary="Realms", allow=ANYONE, returns=list[RealmRow])
async def list_realms(call: Call) -> list[RealmRow]:
    """Needs no login: the login page asks."""
    return [
        RealmRow(realm=realm.realm, type=realm.type, comment=realm.comment, default=realm.default or None)
        for realm in BUILTIN
    ]


@api.post("/access/domains", summary="Add a realm", allow=ALLOCATE)
async def create_realm(call: Call, params: CreateParams) -> None:
    """Not available: always answers 501."""
    raise Unsupported(f"realm '{params.realm}': realms of type '{params.type}' are not available, only pam and pve")


@api.get("/access/domains/{realm}", summary="One realm", returns=Realm,
         allow=Allow("/access/realm", "Realm.Allocate", "Sys.Audit", any_of=True))  # fmt: skip
async def read_realm(call: Call, params: RealmParams) -> Realm:
    """Its settings."""
    realm = call.services.access.realms.check_exists(params.realm)
    return Realm(type=realm.type, comment=realm.comment, default=realm.default or None)


@api.put("/access/domains/{realm}", summary="Change a realm", allow=ALLOCATE)
async def update_realm(call: Call, params: UpdateParams) -> None:
    """Not available: always answers 501 for a realm that exists."""
    call.services.access.realms.check_exists(params.realm)
    raise Unsupported(f"realm '{params.realm}': the settings of built-in realms cannot be changed")


@api.delete("/access/domains/{realm}", summary="Delete a realm", allow=ALLOCATE)
async def delete_realm(call: Call, params: RealmParams) -> None:
    """The built-in ones stay."""
    call.services.access.realms.check_exists(params.realm)
    raise Conflict(f"realm '{params.realm}' is built in and cannot be deleted")


@api.post("/access/domains/{realm}/sync", summary="Fetch users from a realm", allow=ALLOCATE)
async def sync_realm(call: Call, params: UpdateParams) -> None:
    """Not available: always answers 501 for a realm that exists."""
    call.services.access.realms.check_exists(params.realm)
    raise Unsupported(f"realm '{params.realm}': users of built-in realms are not synchronized from anywhere")
