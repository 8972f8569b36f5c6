"""/cluster/resources: everything in one list, asked for often. Rows are encoded once and kept until something happens.

What is kept holds for one caller (permissions), for at most `KEEP_S` (running guests' uptime), and only while the event
bus is silent: a client that has just changed something reads its change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from appliance.model.guest import GuestKind, GuestState
from appliance.web.registry import LOGGED_IN, Call, Resource

if TYPE_CHECKING:
    from appliance.services.guest_view import GuestView

api = Resource()

KEEP_S = 1.0
KEEP_LIMIT = 256

STATUS = {
    GuestState.STOPPED: "stopped",
    GuestState.STARTING: "stopped",
    GuestState.RUNNING: "running",
    GuestState.PAUSED: "paused",
    GuestState.STOPPING: "running",
}
"""PVE's words; "paused" is what it shows for a suspended guest."""


class ResourceRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One row. Sizes in bytes, times in seconds, `cpu` as a share of `maxcpu`; fields that do not apply are absent."""

    id: str
    type: Literal["node", "storage", "pool", "qemu", "lxc"]
    node: str | None = None
    name: str | None = None
    vmid: int | None = None
    status: str | None = None
    template: int | None = None
    cpu: float | None = None
    maxcpu: float | None = None
    mem: int | None = None
    maxmem: int | None = None
    disk: int | None = None
    maxdisk: int | None = None
    diskread: int | None = None
    diskwrite: int | None = None
    netin: int | None = None
    netout: int | None = None
    uptime: int | None = None
    tags: str | None = None
    pool: str | None = None
    lock: str | None = None
    storage: str | None = None
    plugintype: str | None = None
    content: str | None = None
    shared: int | None = None
    level: str | None = None


class ResourceParams(msgspec.Struct, kw_only=True):
    """Which rows."""

    type: Annotated[Literal["vm", "storage", "node", "sdn"], Meta(description="only rows of this type")] | None = None


@dataclass(frozen=True, slots=True)
class _Kept:
    published: int
    until: float
    rows: msgspec.Raw


@dataclass(slots=True)
class Kept:
    """Encoded lists by caller and type; at most `KEEP_LIMIT`."""

    lists: dict[tuple[str, str | None], _Kept] = field(default_factory=dict)


KEPT: web.AppKey[Kept] = web.AppKey("kept_resources")
"""Where the application holds them."""


@api.get("/cluster/resources", summary="Nodes, guests, storages and pools", allow=LOGGED_IN, returns=list[ResourceRow])
async def list_resources(call: Call, params: ResourceParams) -> msgspec.Raw:
    """Only what the caller may see."""
    kept = call.request.app[KEPT].lists
    key = (call.identity.auth_id, params.type)
    published, now = call.services.events.published, call.services.clock.monotonic()
    known = kept.get(key)
    if known is not None and known.published == published and now < known.until:
        return known.rows
    rows: list[ResourceRow] = []
    if params.type in (None, "vm"):
        rows += guest_rows(call.services.guests.list(), lambda path: call.has(path, "VM.Audit"))
    if params.type in (None, "node"):
        rows += await _node_rows(call)
    if params.type in (None, "storage"):
        rows += await _storage_rows(call)
    if params.type is None:
        rows += _pool_rows(call)
    encoded = msgspec.Raw(msgspec.json.encode(rows))
    if len(kept) >= KEEP_LIMIT:
        kept.clear()
    kept[key] = _Kept(published, now + KEEP_S, encoded)
    return encoded


def guest_rows(guests: Iterable[GuestView], visible: Callable[[str], bool]) -> list[ResourceRow]:
    """The rows of the guests whose ACL path is `visible`."""
    return [guest_row(guest) for guest in guests if visible(f"/vms/{guest.guest_id}")]


def guest_row(guest: GuestView) -> ResourceRow:
    """One guest. Figures of one that does not run are zero, as PVE has them."""
    stats = guest.stats
    kind: Literal["qemu", "lxc"] = "qemu" if guest.kind is GuestKind.QEMU else "lxc"
    return ResourceRow(
        id=f"{kind}/{guest.guest_id}",
        type=kind,
        node=guest.node,
        name=guest.name,
        vmid=guest.guest_id,
        status=STATUS[guest.state],
        template=int(guest.template),
        cpu=round(guest.cpu_ratio, 6),
        maxcpu=guest.cpus,
        mem=stats.memory_bytes if stats else 0,
        maxmem=guest.maxmem,
        disk=stats.disk_used_bytes if stats else 0,
        maxdisk=guest.maxdisk,
        diskread=stats.disk_read_bytes if stats else 0,
        diskwrite=stats.disk_write_bytes if stats else 0,
        netin=stats.net_in_bytes if stats else 0,
        netout=stats.net_out_bytes if stats else 0,
        uptime=guest.uptime_s,
        tags=";".join(guest.tags) if guest.tags else None,
        pool=guest.pool,
        lock=guest.lock,
    )


async def _node_rows(call: Call) -> list[ResourceRow]:
    """Everybody sees that the node is there; its figures need Sys.Audit."""
    row = ResourceRow(id=f"node/{call.node}", type="node", node=call.node, status="online", level="")
    if call.has(f"/nodes/{call.node}", "Sys.Audit"):
        status = await call.services.node.status()
        row.cpu, row.maxcpu = status.cpu_ratio, status.cpu_count
        row.mem, row.maxmem = status.memory_used_bytes, status.memory_total_bytes
        row.disk, row.maxdisk = status.rootfs_used_bytes, status.rootfs_total_bytes
        row.uptime = int(status.uptime_s)
    return [row]


async def _storage_rows(call: Call) -> list[ResourceRow]:
    rows: list[ResourceRow] = []
    for storage in call.services.storage.storages():
        path = f"/storage/{storage.storage_id}"
        if not (call.has(path, "Datastore.Audit") or call.has(path, "Datastore.AllocateSpace")):
            continue
        row = ResourceRow(
            id=f"storage/{call.node}/{storage.storage_id}",
            type="storage",
            node=call.node,
            storage=storage.storage_id,
            status="available" if storage.active else "unknown",
            plugintype=storage.kind,
            content=",".join(sorted(storage.content_types)),
            shared=int(storage.document.shared),
        )
        if (usage := call.services.storage.cached_usage(storage.storage_id)) is not None:
            row.disk, row.maxdisk = usage.used_bytes, usage.total_bytes
        rows.append(row)
    return rows


def _pool_rows(call: Call) -> list[ResourceRow]:
    return [
        ResourceRow(id=f"/pool/{name}", type="pool", pool=name)
        for name, _ in call.services.access.pools.visible(call.identity)
    ]
