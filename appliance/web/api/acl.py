"""/access/roles, /access/acl and /access/permissions: who may do what."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.errors import InvalidParameter
from appliance.services.acl import AclChange
from appliance.web.api.access_params import RoleName
from appliance.web.registry import LOGGED_IN, Allow, Call, PveBool, PveList, Resource

api = Resource()

MODIFY = Allow("/access", "Sys.Modify")
PathText = Annotated[str, Meta(max_length=512, description="an ACL path: /, /vms/100, /storage/local, /pool/web …")]


class RoleRow(msgspec.Struct, kw_only=True):
    """A role; `privs` is a comma list, `special` marks built-in ones."""

    roleid: str
    privs: str
    special: bool


class AclRow(msgspec.Struct, kw_only=True):
    """Somebody has a role on a path."""

    path: str
    type: Literal["user", "group", "token"]
    ugid: str
    roleid: str
    propagate: bool


class RoleParams(msgspec.Struct, kw_only=True):
    """Names a role."""

    roleid: RoleName


class CreateRoleParams(RoleParams, kw_only=True):
    """A new role."""

    privs: Annotated[PveList, Meta(description="privileges")] = ()


class UpdateRoleParams(CreateRoleParams, kw_only=True):
    """A changed role."""

    append: Annotated[PveBool, Meta(description="keep the present privileges too")] = False


class AclParams(msgspec.Struct, kw_only=True):
    """Grant roles, or with `delete` take them away."""

    path: PathText
    roles: Annotated[PveList, Meta(description="roles")]
    users: Annotated[PveList, Meta(description="user ids")] = ()
    groups: Annotated[PveList, Meta(description="groups")] = ()
    tokens: Annotated[PveList, Meta(description="token ids")] = ()
    propagate: Annotated[PveBool, Meta(description="also below the path")] = True
    delete: Annotated[PveBool, Meta(description="take away instead")] = False


class PermissionParams(msgspec.Struct, kw_only=True):
    """Whose permissions, where."""

    userid: Annotated[str, Meta(max_length=130, description="user or token id; without, the caller")] | None = None
    path: PathText | None = None


@api.get("/access/roles", summary="Roles", allow=LOGGED_IN, returns=list[RoleRow])
async def list_roles(call: Call) -> object:
    """Built-in and custom ones."""
    return call.services.access.roles.list()


@api.post("/access/roles", summary="Create a role", allow=MODIFY)
async def create_role(call: Call, params: CreateRoleParams) -> None:
    """Names beginning with "PVE" are reserved."""
    await call.services.access.roles.create(call.identity, params.roleid, params.privs)


@api.get("/access/roles/{roleid}", summary="A role's privileges", allow=LOGGED_IN, returns=dict[str, bool])
async def read_role(call: Call, params: RoleParams) -> object:
    """Each privilege with the value 1."""
    return call.services.access.roles.get(params.roleid)


@api.put("/access/roles/{roleid}", summary="Change a role", allow=MODIFY)
async def update_role(call: Call, params: UpdateRoleParams) -> None:
    """Replaces its privileges, unless `append`. Built-in roles cannot be changed."""
    await call.services.access.roles.update(call.identity, params.roleid, params.privs, append=params.append)


@api.delete("/access/roles/{roleid}", summary="Delete a role", allow=MODIFY)
async def delete_role(call: Call, params: RoleParams) -> None:
    """Refused while a permission names it."""
    await call.services.access.roles.delete(call.identity, params.roleid)


@api.get("/access/acl", summary="Permissions granted", allow=LOGGED_IN, returns=list[AclRow])
async def list_acl(call: Call) -> object:
    """On the paths whose permissions the caller may change; Sys.Audit on /access shows all."""
    return call.services.access.acl.list(call.identity)


@api.put("/access/acl", summary="Grant or take away roles on a path", allow=LOGGED_IN)
async def update_acl(call: Call, params: AclParams) -> None:
    """Needs Permissions.Modify on the path; or the privilege to allocate the object, to hand on what one has there."""
    if not params.roles:
        raise InvalidParameter({"roles": "property is missing and it is not optional"})
    change = AclChange(
        path=params.path,
        roles=params.roles,
        users=params.users,
        groups=params.groups,
        tokens=params.tokens,
        propagate=params.propagate,
        delete=params.delete,
    )
    await call.services.access.acl.change(call.identity, change)


@api.get("/access/permissions", summary="Effective permissions", allow=LOGGED_IN, returns=dict[str, dict[str, bool]])
async def read_permissions(call: Call, params: PermissionParams) -> object:
    """Path to privilege to whether it propagates. One's own and one's tokens'; Sys.Audit on /access shows anybody's."""
    return call.services.access.acl.permissions(call.identity, auth_id=params.userid, path=params.path)
