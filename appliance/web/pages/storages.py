"""The list of storages, and the dialogs that add, change and forget one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from appliance.errors import ApplianceError, PermissionDenied
from appliance.model.volume import ContentType
from appliance.web.pages import backups, contexts
from appliance.web.pages.backup_dialogs import KEEP_WORDS
from appliance.web.pages.viewer import Viewer
from appliance.web.pages.visit import Visit, visited

if TYPE_CHECKING:
    from appliance.model.volume import StorageUsage
    from appliance.services.storage_config import StorageConfig

WIDELY_USED = (ContentType.IMAGES, ContentType.ROOTDIR)


@dataclass(frozen=True, slots=True)
class StorageRow:
    """One storage. `usage` is None while it is not known, or cannot be."""

    config: StorageConfig
    usage: StorageUsage | None
    content: Sequence[ContentType]


async def listing(viewer: Viewer) -> contexts.Context:
    """The storages the viewer may see. Also pushed."""
    found = []
    for config in viewer.storages():
        usage = viewer.services.storage.cached_usage(config.storage_id) if config.active else None
        found.append(StorageRow(config, usage, [kind for kind in ContentType if kind in config.content_types]))
    return {
        "storage_rows": found,
        "content_words": contexts.CONTENT_WORDS,
        "may_allocate": viewer.may("/storage", "Datastore.Allocate"),
    }


@visited
async def show_list(visit: Visit) -> web.StreamResponse:
    """GET /storage"""
    context = await listing(visit.viewer)
    if not context["storage_rows"] and not context["may_allocate"]:
        raise PermissionDenied("You may see no storage.")
    return await visit.page("storages", active="storage", title="Storage", topics="storages", **context)


@visited
async def add(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/add-storage"""
    return await visit.part("dialogs/storage.html", _fields(visit.viewer) | {"storage": None, "keep": {}})


@visited
async def edit(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/storage/{storage}/edit"""
    config = visit.viewer.storage(visit.request.match_info["storage"])
    return await visit.part(
        "dialogs/storage.html", _fields(visit.viewer) | {"storage": config, "keep": backups.keep_of(config)}
    )


@visited
async def remove(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/storage/{storage}/remove: says what is lost, and what keeps it from being forgotten."""
    viewer = visit.viewer
    config = viewer.storage(visit.request.match_info["storage"])
    counts: dict[ContentType, int] = {}
    if config.active:
        try:
            for info in await viewer.services.storage.content(config.storage_id):
                counts[info.content] = counts.get(info.content, 0) + 1
        except ApplianceError:
            counts = {}  # it cannot be read: all the more reason to forget it
    named = sum(volume.storage == config.storage_id for volume in viewer.services.guests.named_volumes())
    context = {"storage": config, "counts": counts, "named": named, "content_words": contexts.CONTENT_WORDS}
    return await visit.part("dialogs/remove_storage.html", context)


def _fields(viewer: Viewer) -> contexts.Context:
    if not viewer.may("/storage", "Datastore.Allocate"):
        raise PermissionDenied("You need Datastore.Allocate on /storage for this.")
    return {
        "content_words": contexts.CONTENT_WORDS, "usual": WIDELY_USED, "keep_words": KEEP_WORDS, "node": viewer.node,
    }  # fmt: skip
