"""Dialogs, fetched by htmx into the page's one `<dialog>`. Their forms post to the public API (`static/js/forms.js`)."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from appliance.errors import ApplianceError, NotFound
from appliance.model.guest import GuestKind, GuestState
from appliance.model.network import HostInterface
from appliance.model.volume import ContentType, VolumeInfo
from appliance.services import guest_config
from appliance.services.storage_config import StorageConfig
from appliance.web.pages import contexts
from appliance.web.pages.viewer import Viewer, kind_word
from appliance.web.pages.visit import Visit, visited

ACTIONS = {"stop": "Stop", "reset": "Reset"}


@visited
async def delete_guest(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/delete"""
    guest = visit.viewer.guest(visit.number("vmid"))
    config, _ = visit.viewer.services.guests.config(guest.guest_id)
    owned = guest_config.owned_volumes(guest.kind, guest.guest_id, config)
    context = {"guest": guest, "volumes": [str(volume) for _, volume in owned], "node": visit.viewer.node,
               "kind_word": kind_word(guest.kind)}  # fmt: skip
    return await visit.part("dialogs/delete_guest.html", context)


@visited
async def confirm(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/confirm/{action}"""
    action = visit.request.match_info["action"]
    if action not in ACTIONS:
        raise NotFound(f"action '{action[:40]}'")
    guest = visit.viewer.guest(visit.number("vmid"))
    context = {"guest": guest, "action": action, "word": ACTIONS[action], "node": visit.viewer.node,
               "kind_word": kind_word(guest.kind)}  # fmt: skip
    return await visit.part("dialogs/confirm.html", context)


@visited
async def resize_disk(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/resize/{slot}"""
    guest = visit.viewer.guest(visit.number("vmid"))
    config, _ = visit.viewer.services.guests.config(guest.guest_id)
    slot = visit.request.match_info["slot"]
    if slot not in config or not guest_config.is_disk_slot(guest.kind, slot):
        raise NotFound(f"disk '{slot[:20]}' of guest {guest.guest_id}")
    context = {"guest": guest, "slot": slot, "value": config[slot], "node": visit.viewer.node}
    return await visit.part("dialogs/resize_disk.html", context)


@visited
async def move_disk(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/move/{slot}: to another storage, a VM's also to another format on the same one."""
    viewer = visit.viewer
    guest = viewer.guest(visit.number("vmid"))
    config, digest = viewer.services.guests.config(guest.guest_id)
    slot = visit.request.match_info["slot"]
    if slot not in config or not guest_config.is_disk_slot(guest.kind, slot):
        raise NotFound(f"disk '{slot[:20]}' of guest {guest.guest_id}")
    is_vm = guest.kind is GuestKind.QEMU
    now = config[slot].partition(":")[0]
    offered = storages_for(viewer, ContentType.IMAGES if is_vm else ContentType.ROOTDIR)
    storages = sorted(offered, key=lambda each: each.storage_id == now)
    context = {
        "guest": guest, "slot": slot, "value": config[slot], "digest": digest, "now": now,
        "storages": storages if is_vm else [each for each in storages if each.storage_id != now],
        "usage": {each.storage_id: viewer.services.storage.cached_usage(each.storage_id) for each in storages},
        "running": guest.state is not GuestState.STOPPED, "base": f"/nodes/{viewer.node}/{guest.kind}/{guest.guest_id}",
    }  # fmt: skip
    return await visit.part("dialogs/move_disk.html", context)


@visited
async def upload(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/storage/{storage}/upload?content=TYPE"""
    return await visit.part("dialogs/upload.html", _receiving(visit))


@visited
async def download(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/storage/{storage}/download?content=TYPE"""
    return await visit.part("dialogs/download.html", _receiving(visit))


@visited
async def build_template(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/storage/{storage}/build"""
    storage = visit.viewer.storage(visit.request.match_info["storage"])
    templates = [each for each in visit.viewer.services.templates.list() if each.content in storage.content_types]
    context = {"storage": storage, "templates": templates, "node": visit.viewer.node}
    return await visit.part("dialogs/build_template.html", context)


@visited
async def delete_volume(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/storage/{storage}/delete?volume=VOLID"""
    storage = visit.viewer.storage(visit.request.match_info["storage"])
    volume = visit.request.query.get("volume", "")
    return await visit.part(
        "dialogs/delete_volume.html", {"storage": storage, "volume": volume, "node": visit.viewer.node}
    )


def _receiving(visit: Visit) -> contexts.Context:
    storage = visit.viewer.storage(visit.request.match_info["storage"])
    kinds = [kind for kind in contexts.UPLOADABLE if kind in storage.content_types]
    wanted = visit.request.query.get("content", "")
    return {
        "storage": storage, "kinds": kinds, "content": wanted, "content_words": contexts.CONTENT_WORDS,
        "node": visit.viewer.node,
    }  # fmt: skip


def storages_for(viewer: Viewer, content: ContentType) -> Sequence[StorageConfig]:
    """The storages on which the viewer may make volumes of this content."""
    return [
        config
        for config in viewer.storages()
        if config.enabled
        and not config.problem
        and content in config.content_types
        and viewer.may(f"/storage/{config.storage_id}", "Datastore.AllocateSpace")
    ]


async def bridges_of(viewer: Viewer) -> Sequence[str]:
    """The bridges the viewer may put guests on, the appliance's own first."""
    own = viewer.services.config.bridge
    try:
        interfaces: Sequence[HostInterface] = await viewer.services.network.interfaces()
    except ApplianceError:  # the dialog still works, without a network
        interfaces = ()
    names = [each.name for each in interfaces if each.kind == "bridge"]
    names.sort(key=lambda name: (name != own, name))
    paths = {name: f"/sdn/zones/localnetwork/{name}" for name in names}
    return [name for name in names if viewer.may(paths[name], "SDN.Use") or viewer.may(paths[name], "SDN.Audit")]


async def volumes_of(viewer: Viewer, content: ContentType) -> Sequence[VolumeInfo]:
    """The volumes of one content type on every storage that can be read."""
    found: list[VolumeInfo] = []
    for config in viewer.storages():
        if not config.enabled or config.problem or content not in config.content_types:
            continue
        try:
            found += await viewer.services.storage.content(config.storage_id, content)
        except ApplianceError:  # one storage that fails does not take the dialog with it
            continue
    return found
