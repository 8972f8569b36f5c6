"""/access/groups."""

from __future__ import annotations

import msgspec

from appliance.web.api.access_params import Comment, GroupName
from appliance.web.registry import LOGGED_IN, Allow, Call, Resource

api = Resource()

ALLOCATE = Allow("/access/groups", "Group.Allocate")


class Group(msgspec.Struct, kw_only=True):
    """One group."""

    members: list[str]
    comment: str | None = None


class GroupRow(msgspec.Struct, kw_only=True):
    """A group in a list; `users` is a comma list."""

    groupid: str
    users: str
    comment: str | None = None


class GroupParams(msgspec.Struct, kw_only=True):
    """Names a group."""

    groupid: GroupName


class WriteParams(GroupParams, kw_only=True):
    """A new or changed group."""

    comment: Comment | None = None


@api.get("/access/groups", summary="Groups", allow=LOGGED_IN, returns=list[GroupRow])
async def list_groups(call: Call) -> object:
    """Those on which the caller has User.Modify, Sys.Audit or Group.Allocate."""
    return call.services.access.groups.list(call.identity)


@api.post("/access/groups", summary="Create a group", allow=ALLOCATE)
async def create_group(call: Call, params: WriteParams) -> None:
    """Its members are set with the users."""
    await call.services.access.groups.create(call.identity, params.groupid, comment=params.comment or "")


@api.get("/access/groups/{groupid}", summary="One group", returns=Group,
         allow=Allow("/access/groups", "Sys.Audit", "Group.Allocate", any_of=True))  # fmt: skip
async def read_group(call: Call, params: GroupParams) -> object:
    """With its members."""
    return call.services.access.groups.get(call.identity, params.groupid)


@api.put("/access/groups/{groupid}", summary="Change a group's comment", allow=ALLOCATE)
async def update_group(call: Call, params: WriteParams) -> None:
    """Its members are set with the users."""
    await call.services.access.groups.update(call.identity, params.groupid, comment=params.comment)


@api.delete("/access/groups/{groupid}", summary="Delete a group", allow=ALLOCATE)
async def delete_group(call: Call, params: GroupParams) -> None:
    """With its permissions; its members stay."""
    await call.services.access.groups.delete(call.identity, params.groupid)
