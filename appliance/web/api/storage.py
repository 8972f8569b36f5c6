"""/storage and /nodes/{node}/storage: configurations and states of storages. Their volumes: `storage_content.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from appliance.errors import Conflict, HostError, InvalidParameter
from appliance.model.volume import ContentType, StorageUsage
from appliance.services import backup_names, storage_config
from appliance.services.storage_config import StorageConfig, StorageDocument
from appliance.web.registry import LOGGED_IN, Allow, Call, NodeParams, PveList, Resource

api = Resource()

StorageId = Annotated[str, msgspec.Meta(description="the storage's name", max_length=100)]
READ = Allow("/storage/{storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)


class StorageParams(msgspec.Struct, kw_only=True):
    """Names one storage's configuration."""

    storage: StorageId


class NodeStorageParams(NodeParams, kw_only=True):
    """Names one storage of a node."""

    storage: StorageId


class ListParams(msgspec.Struct, kw_only=True):
    """GET /storage."""

    type: str | None = None


class ChangeParams(StorageParams, kw_only=True):
    """What may be changed of a storage."""

    content: Annotated[PveList, msgspec.Meta(description="content types it may hold")] | None = None
    nodes: Annotated[PveList, msgspec.Meta(description="nodes it exists on; all when empty")] | None = None
    disable: bool | None = None
    shared: bool | None = None
    is_mountpoint: Annotated[str, msgspec.Meta(max_length=10)] | None = None
    prune_backups: str | None = msgspec.field(name="prune-backups", default=None)


class CreateParams(ChangeParams, kw_only=True):
    """POST /storage."""

    type: Annotated[str, msgspec.Meta(description="'dir': a directory of this host")]
    path: Annotated[str, msgspec.Meta(max_length=500)] | None = None
    mkdir: bool = True
    create_base_path: bool = msgspec.field(name="create-base-path", default=True)
    create_subdirs: bool = msgspec.field(name="create-subdirs", default=True)


class UpdateParams(ChangeParams, kw_only=True):
    """PUT /storage/{storage}."""

    delete: PveList = ()
    digest: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class NodeListParams(NodeParams, kw_only=True):
    """GET /nodes/{node}/storage."""

    storage: StorageId | None = None
    content: PveList = ()
    enabled: bool = False
    format: bool = False
    target: Annotated[str, msgspec.Meta(max_length=63, description="only this node is known")] | None = None


class Created(msgspec.Struct, kw_only=True):
    """Answer of POST and PUT."""

    storage: str
    type: str


class Formats(msgspec.Struct, kw_only=True):
    """Formats of new disks."""

    default: str = "qcow2"
    supported: tuple[str, ...] = ("qcow2", "raw", "subvol")


class StorageStatus(msgspec.Struct, kw_only=True):
    """State of a storage on a node. Sizes in bytes; zero where it is not active."""

    storage: str
    type: str
    content: str
    enabled: bool
    active: bool
    shared: bool
    total: int = 0
    used: int = 0
    avail: int = 0
    used_fraction: float = 0.0
    formats: Formats | None = None


@api.get("/storage", summary="Storages of the configuration", allow=LOGGED_IN, returns=list[dict[str, object]])
async def list_configs(call: Call, params: ListParams) -> Sequence[dict[str, object]]:
    """Those the caller may use or audit."""
    return [
        storage_config.to_api(config)
        for config in call.services.storage.storages()
        if params.type in (None, config.kind) and may_see(call, config.storage_id)
    ]


@api.post("/storage", summary="Add a storage", allow=Allow("/storage", "Datastore.Allocate"), returns=Created)
async def create(call: Call, params: CreateParams) -> Created:
    """Only `dir` exists on this appliance. The directory is made when it is missing."""
    if params.path is None and params.type in storage_config.SUPPORTED_TYPES:
        raise InvalidParameter({"path": "property is missing and it is not optional"})
    document = StorageDocument(
        type=params.type,
        path=params.path or "",
        content=storage_config.parse_content(params.content or storage_config.DEFAULT_CONTENT),
        nodes=params.nodes or (),
        disable=bool(params.disable),
        shared=bool(params.shared),
        is_mountpoint=_mountpoint(params.is_mountpoint),
        prune_backups=_rules(params.prune_backups or ""),
    )
    config = await call.services.storage.create_storage(params.storage, document)
    return Created(storage=config.storage_id, type=config.kind)


@api.get(
    "/storage/{storage}",
    summary="Configuration of a storage",
    allow=Allow("/storage/{storage}", "Datastore.Allocate"),
    returns=dict[str, object],
)
async def read_config(call: Call, params: StorageParams) -> dict[str, object]:
    """Its parameters and their digest."""
    return storage_config.to_api(call.services.storage.storage(params.storage))


@api.put(
    "/storage/{storage}", summary="Change a storage", allow=Allow("/storage", "Datastore.Allocate"), returns=Created
)
async def update(call: Call, params: UpdateParams) -> Created:
    """The path cannot be changed. Names in `delete` go back to their defaults."""
    defaults = StorageDocument(content=storage_config.DEFAULT_CONTENT)
    changes: dict[str, object] = {}
    for name in params.delete:
        field = name.replace("-", "_")
        if field not in ("content", "nodes", "disable", "shared", "is_mountpoint", "prune_backups"):
            raise InvalidParameter({"delete": f"'{name}' cannot be deleted"})
        changes[field] = getattr(defaults, field)
    for field in ("nodes", "disable", "shared", "prune_backups"):
        if (value := getattr(params, field)) is not None:
            changes[field] = _rules(value) if field == "prune_backups" else value
    if params.content is not None:
        changes["content"] = storage_config.parse_content(params.content)
    if params.is_mountpoint is not None:
        changes["is_mountpoint"] = _mountpoint(params.is_mountpoint)
    config = await call.services.storage.update_storage(params.storage, changes, digest=params.digest)
    return Created(storage=config.storage_id, type=config.kind)


@api.delete("/storage/{storage}", summary="Forget a storage", allow=Allow("/storage", "Datastore.Allocate"))
async def delete(call: Call, params: StorageParams) -> None:
    """Its files stay where they are. Refused while guests have volumes on it, or name some, reachable or not."""
    named = [volume for volume in call.services.guests.named_volumes() if volume.storage == params.storage]
    if named:
        raise Conflict(f"storage '{params.storage}': guests name {len(named)} volumes of it, {min(named)} among them")
    await call.services.storage.delete_storage(params.storage)


@api.get("/nodes/{node}/storage", summary="Storages of a node", allow=LOGGED_IN, returns=list[StorageStatus])
async def list_states(call: Call, params: NodeListParams) -> Sequence[StorageStatus]:
    """With their usage; `content` keeps those that may hold one of these types, `enabled` those not disabled."""
    if params.target not in (None, "", call.node, "localhost"):
        raise InvalidParameter({"target": f"node '{params.target}' does not exist"})
    storage_config.parse_content(params.content)
    chosen = [
        config
        for config in call.services.storage.storages()
        if params.storage in (None, config.storage_id)
        and (config.enabled or not params.enabled)
        and (not params.content or config.content_types.intersection(params.content))
        and may_see(call, config.storage_id)
    ]
    return [await _status(call, config, formats=params.format) for config in chosen]


@api.get("/nodes/{node}/storage/{storage}", summary="Directory index", allow=READ, returns=list[dict[str, str]])
async def index(call: Call, params: NodeStorageParams) -> list[dict[str, str]]:
    """What is below this path."""
    call.services.storage.storage(params.storage)
    return [{"subdir": name} for name in ("content", "download-url", "status", "upload")]


@api.get("/nodes/{node}/storage/{storage}/status", summary="State of a storage", allow=READ, returns=StorageStatus)
async def read_status(call: Call, params: NodeStorageParams) -> StorageStatus:
    """Whether it can be used, and how full it is."""
    return await _status(call, call.services.storage.storage(params.storage), formats=False)


def may_see(call: Call, storage_id: str) -> bool:
    """Whether the caller has any privilege that shows a storage."""
    path = f"/storage/{storage_id}"
    return any(call.has(path, f"Datastore.{name}") for name in ("Audit", "AllocateSpace", "Allocate"))


def _rules(text: str) -> str:
    """Rules of pruning that can be followed. Raises `InvalidParameter`."""
    backup_names.parse_keep(text)
    return text


def _mountpoint(text: str | None) -> str:
    return "" if text in (None, "", "0", "no") else "yes"


async def _status(call: Call, config: StorageConfig, *, formats: bool) -> StorageStatus:
    usage, active = StorageUsage(total_bytes=0, used_bytes=0, available_bytes=0), config.active
    if active:
        try:
            usage = await call.services.storage.usage(config.storage_id)
        except HostError:  # the listing goes on; the reason is in the log of whoever uses the storage
            active = False
    holds_disks = config.content_types.intersection({ContentType.IMAGES, ContentType.ROOTDIR})
    return StorageStatus(
        storage=config.storage_id,
        type=config.kind,
        content=",".join(config.document.content),
        enabled=config.enabled,
        active=active,
        shared=config.document.shared,
        total=usage.total_bytes,
        used=usage.used_bytes,
        avail=usage.available_bytes,
        used_fraction=round(usage.used_bytes / usage.total_bytes, 6) if usage.total_bytes else 0.0,
        formats=Formats() if formats and holds_disks else None,
    )
