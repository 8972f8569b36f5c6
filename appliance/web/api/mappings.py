"""/cluster/mapping/dir: directories of the nodes that guests share by virtio-fs, each under one name."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.services.directory_mappings import DirectoryMapping, MappingChange, parse_rows
from appliance.web.registry import LOGGED_IN, Allow, Call, PveList, Resource

api = Resource()

_PRIVILEGES = ("Mapping.Use", "Mapping.Modify", "Mapping.Audit")
MappingId = Annotated[str, Meta(max_length=64, description="the mapping's name")]
Rows = Annotated[PveList, Meta(description="an entry for each node: node=NAME,path=DIRECTORY")]
Description = Annotated[str, Meta(max_length=4096, description="what it is for")]


class MappingParams(msgspec.Struct, kw_only=True):
    """Names a mapping."""

    id: MappingId


class ListParams(msgspec.Struct, kw_only=True):
    """All of them."""

    check_node: Annotated[str, Meta(max_length=63, description="check them for this node")] | None = msgspec.field(
        name="check-node", default=None
    )


class CreateParams(MappingParams, kw_only=True):
    """A new mapping."""

    map: Rows
    description: Description = ""


class UpdateParams(MappingParams, kw_only=True):
    """A changed one."""

    map: Rows | None = None
    description: Description | None = None
    delete: Annotated[PveList, Meta(description="what to set back: description")] = ()
    digest: Annotated[str, Meta(max_length=64)] | None = None


class Check(msgspec.Struct, kw_only=True):
    """What is wrong with a mapping on the node that was asked about."""

    severity: Literal["warning", "error"]
    message: str


class Mapping(msgspec.Struct, kw_only=True):
    """One mapping."""

    id: str
    map: list[str]
    description: str | None = None
    digest: str
    checks: list[Check] | None = None


@api.get("/cluster/mapping/dir", summary="Mappings of directories", allow=LOGGED_IN, returns=list[Mapping])
async def list_mappings(call: Call, params: ListParams) -> list[Mapping]:
    """Those the caller may use, audit or modify; with `check-node`, what is wrong with each there."""
    mappings = call.services.directory_mappings
    found: list[Mapping] = []
    for stored in await mappings.all():
        if not any(call.has(f"/mapping/dir/{stored.id}", privilege) for privilege in _PRIVILEGES):
            continue
        row = _shown(stored.id, stored.value)
        if params.check_node is not None:
            node = call.node if params.check_node == "localhost" else params.check_node
            problem = await mappings.problem(stored.value, node)
            row.checks = [Check(severity="error", message=problem)] if problem else []
        found.append(row)
    return found


@api.post("/cluster/mapping/dir", summary="Map a directory", allow=Allow("/mapping/dir", "Mapping.Modify"))
async def create(call: Call, params: CreateParams) -> None:
    """Guests whose owner has Mapping.Use on it may then share the directory: `virtiofs0=ID`."""
    await call.services.directory_mappings.create(
        params.id, description=params.description, paths=parse_rows(params.map)
    )


@api.get("/cluster/mapping/dir/{id}", summary="A mapping of a directory",
         allow=Allow("/mapping/dir/{id}", *_PRIVILEGES, any_of=True), returns=Mapping)  # fmt: skip
async def read(call: Call, params: MappingParams) -> Mapping:
    """With its digest."""
    return _shown(params.id, await call.services.directory_mappings.get(params.id))


@api.put("/cluster/mapping/dir/{id}", summary="Change a mapping", allow=Allow("/mapping/dir/{id}", "Mapping.Modify"))
async def update(call: Call, params: UpdateParams) -> None:
    """Guests that run keep the directory they were started with."""
    paths = None if params.map is None else parse_rows(params.map)
    change = MappingChange(description=params.description, paths=paths, delete=params.delete)
    await call.services.directory_mappings.update(params.id, change, digest=params.digest or "")


@api.delete("/cluster/mapping/dir/{id}", summary="Forget a mapping", allow=Allow("/mapping/dir", "Mapping.Modify"))
async def delete(call: Call, params: MappingParams) -> None:
    """The directory stays. Guests that name the mapping do not start any more."""
    await call.services.directory_mappings.delete(params.id)


def _shown(name: str, mapping: DirectoryMapping) -> Mapping:
    return Mapping(id=name, map=mapping.rows, description=mapping.description or None, digest=mapping.digest())
