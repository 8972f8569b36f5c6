"""/pools: guests and storages grouped for permissions. Nested pools (`a/b`) are named by parameter, not in the path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.services.pools import PoolChange
from appliance.web.api.access_params import Comment
from appliance.web.api.resources import ResourceRow, guest_row
from appliance.web.registry import LOGGED_IN, Call, PveBool, PveList, Resource, Vmid

if TYPE_CHECKING:
    from appliance.services.directory import Pool as PoolRecord

api = Resource()

PoolName = Annotated[str, Meta(max_length=128, description="the pool's name; a/b is b in a")]
MemberType = Annotated[Literal["qemu", "lxc", "storage"], Meta(description="only members of this type")]


class Pool(msgspec.Struct, kw_only=True):
    """One pool with its members."""

    members: list[ResourceRow]
    comment: str | None = None


class PoolRow(msgspec.Struct, kw_only=True):
    """A pool in a list; members only where one pool was asked for."""

    poolid: str
    comment: str | None = None
    members: list[ResourceRow] | None = None


class PoolParams(msgspec.Struct, kw_only=True):
    """Names a pool."""

    poolid: PoolName


class ReadParams(PoolParams, kw_only=True):
    """A pool and which of its members."""

    type: MemberType | None = None


class ListParams(msgspec.Struct, kw_only=True):
    """All pools, or one with its members."""

    poolid: PoolName | None = None
    type: MemberType | None = None


class CreateParams(PoolParams, kw_only=True):
    """A new pool."""

    comment: Comment = ""


class UpdateParams(PoolParams, kw_only=True):
    """Members to add, or with `delete` to remove."""

    comment: Comment | None = None
    vms: Annotated[tuple[Vmid, ...], Meta(description="guests")] = ()
    storage: Annotated[PveList, Meta(description="storages")] = ()
    allow_move: Annotated[PveBool, Meta(description="take guests out of the pool they are in")] = msgspec.field(
        name="allow-move", default=False
    )
    delete: Annotated[PveBool, Meta(description="remove instead of add")] = False


@api.get("/pools", summary="Pools, or one with its members", allow=LOGGED_IN, returns=list[PoolRow])
async def list_pools(call: Call, params: ListParams) -> list[PoolRow]:
    """Those on which the caller has Pool.Audit."""
    pools = call.services.access.pools
    if params.poolid is None:
        found = pools.visible(call.identity)
        return [PoolRow(poolid=name, comment=pool.comment or None) for name, pool in found]
    pool = pools.get(call.identity, params.poolid)
    members = _members(call, pool, params.type)
    return [PoolRow(poolid=params.poolid, comment=pool.comment or None, members=members)]


@api.get("/pools/{poolid}", summary="One pool with its members", allow=LOGGED_IN, returns=Pool)
async def read_pool(call: Call, params: ReadParams) -> Pool:
    """Needs Pool.Audit on it."""
    pool = call.services.access.pools.get(call.identity, params.poolid)
    return Pool(comment=pool.comment or None, members=_members(call, pool, params.type))


@api.post("/pools", summary="Create a pool", allow=LOGGED_IN)
async def create_pool(call: Call, params: CreateParams) -> None:
    """Needs Pool.Allocate on its path. A pool it nests in must exist."""
    await call.services.access.pools.create(call.identity, params.poolid, comment=params.comment)


@api.put("/pools", summary="Change a pool", allow=LOGGED_IN)
async def update_pool(call: Call, params: UpdateParams) -> None:
    """Needs Pool.Allocate on it, and the right to change permissions of each member added or removed."""
    await _update(call, params)


@api.put("/pools/{poolid}", summary="Change a pool", allow=LOGGED_IN)
async def update_named_pool(call: Call, params: UpdateParams) -> None:
    """As PUT /pools."""
    await _update(call, params)


@api.delete("/pools", summary="Delete a pool", allow=LOGGED_IN)
async def delete_pool(call: Call, params: PoolParams) -> None:
    """An empty one. Needs Pool.Allocate on it."""
    await call.services.access.pools.delete(call.identity, params.poolid)


@api.delete("/pools/{poolid}", summary="Delete a pool", allow=LOGGED_IN)
async def delete_named_pool(call: Call, params: PoolParams) -> None:
    """As DELETE /pools."""
    await call.services.access.pools.delete(call.identity, params.poolid)


async def _update(call: Call, params: UpdateParams) -> None:
    change = PoolChange(
        comment=params.comment,
        guests=params.vms,
        storages=params.storage,
        delete=params.delete,
        allow_move=params.allow_move,
    )
    await call.services.access.pools.update(call.identity, params.poolid, change)


def _members(call: Call, pool: PoolRecord, kind: str | None) -> list[ResourceRow]:
    """The members that exist; a pool may remember storages that are gone."""
    rows: list[ResourceRow] = []
    guests = {int(guest.guest_id): guest for guest in call.services.guests.list()}
    for guest_id in pool.guests:
        guest = guests.get(guest_id)
        if guest is not None and kind in (None, guest.kind.value):
            rows.append(guest_row(guest))
    if kind in (None, "storage"):
        known = {storage.storage_id for storage in call.services.storage.storages()}
        rows += [
            ResourceRow(id=f"storage/{call.node}/{name}", type="storage", node=call.node, storage=name)
            for name in pool.storages
            if name in known
        ]
    return rows
