"""Dialogs about backups, and the page of the files in one. Their forms post to the public API."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from appliance.errors import ApplianceError, NotFound
from appliance.model.guest import GuestKind, GuestState
from appliance.model.volume import ContentType, VolumeId
from appliance.services import backup_names, guest_config
from appliance.web.pages import areas, backups, contexts, dialogs
from appliance.web.pages.viewer import Viewer
from appliance.web.pages.visit import Visit, visited, words

KEEP_WORDS: Final = {
    "keep-last": "Last", "keep-hourly": "Hourly", "keep-daily": "Daily", "keep-weekly": "Weekly",
    "keep-monthly": "Monthly", "keep-yearly": "Yearly",
}  # fmt: skip

_SECRET: Final = re.compile(r"^(cipassword:\s*).*$", re.MULTILINE)


@visited
async def back_up(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/backup?vmid=ID&storage=ID&chosen=ID,ID: of one guest, or of those that are chosen in it."""
    viewer, query = visit.viewer, visit.request.query
    text = query.get("vmid", "")
    guest = viewer.guest(int(text) if text.isdecimal() and len(text) <= 9 else 0) if text else None
    context = {
        "guest": guest,
        "guests": () if guest else [each for each in viewer.guests() if viewer.rights(each.guest_id).backup],
        "pools": () if guest else viewer.pools(),
        "targets": backups.targets(viewer),
        "usage": {each.storage_id: viewer.services.storage.cached_usage(each.storage_id) for each in viewer.storages()},
        "storage": query.get("storage", ""),
        "chosen": frozenset(query.get("chosen", "").split(",")) - {""},
        "keep": {},
        "keep_words": KEEP_WORDS,
        "node": viewer.node,
    }
    return await visit.part("dialogs/back_up.html", context)


@visited
async def restore(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/backup/restore?volume=VOLID"""
    viewer = visit.viewer
    row = await backups.find(viewer, visit.request.query.get("volume", ""))
    kind = backups.kind_of(row)
    content = ContentType.IMAGES if kind is GuestKind.QEMU else ContentType.ROOTDIR
    context = {
        "row": row,
        "kind": kind,
        "name_key": "name" if kind is GuestKind.QEMU else "hostname",
        "saved": await _saved(viewer, row, kind),
        "newid": await viewer.services.guests.next_id(),
        "may_make": viewer.may_create(),
        "storages": [each.storage_id for each in dialogs.storages_for(viewer, content)],
        "pools": viewer.pools(),
        "node": viewer.node,
    }
    return await visit.part("dialogs/restore.html", context)


@visited
async def replace(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/backup/replace?volume=VOLID: over the guest it is of, saying what that loses."""
    viewer = visit.viewer
    row = await backups.find(viewer, visit.request.query.get("volume", ""))
    if not row.may_replace or row.guest_id is None:
        raise NotFound(f"guest {row.guest_id} to restore over")
    guest, kind = viewer.guest(row.guest_id), backups.kind_of(row)
    config, _ = viewer.services.guests.config(guest.guest_id, kind)
    content = ContentType.IMAGES if kind is GuestKind.QEMU else ContentType.ROOTDIR
    context: contexts.Context = {
        "row": row, "kind": kind, "guest": guest, "node": viewer.node, "problem": "", "removed": (), "kept": (),
        "is_stopped": guest.state is GuestState.STOPPED,
        "is_protected": config.get("protection") == "1",
        "snapshots": [each["name"] for each in viewer.services.guests.snapshots.list(kind, guest.guest_id)
                      if each["name"] != "current"],
        "storages": [each.storage_id for each in dialogs.storages_for(viewer, content)],
    }  # fmt: skip
    if context["is_stopped"] and not context["is_protected"]:
        try:
            volume = VolumeId.parse(row.volume)
            plan = await viewer.services.guests.restores.plan(kind, volume, {}, storage=None, unique=False)
            exchange = viewer.services.guests.replacements.preview(guest.guest_id, plan)
            context["removed"] = exchange.removed
            context["kept"] = [text for key, text in exchange.config.items() if key.startswith("unused")]
        except ApplianceError as error:  # it would not be restored, either
            context["problem"] = words(error)
    return await visit.part("dialogs/restore_over.html", context)


@visited
async def edit_notes(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/backup/notes?volume=VOLID"""
    return await visit.part("dialogs/backup_notes.html", await _of(visit))


@visited
async def show_config(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/backup/config?volume=VOLID"""
    context = await _of(visit)
    volume = VolumeId.parse(visit.request.query.get("volume", ""))
    text = await visit.viewer.services.guests.restores.read_config(volume)
    text = _SECRET.sub(rf"\1{guest_config.PASSWORD_MASK}", text)
    return await visit.part("dialogs/backup_config.html", context | {"text": text})


@visited
async def delete(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/backup/delete?volume=VOLID"""
    return await visit.part("dialogs/delete_backup.html", await _of(visit))


@visited
async def prune(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/backup/prune?storage=ID&vmid=ID: what goes is shown while rules are typed (`preview_prune`)."""
    viewer, query = visit.viewer, visit.request.query
    storage = viewer.storage(query.get("storage", ""))
    keep = backups.keep_of(storage)
    context = {
        "storage": storage, "guest_id": query.get("vmid", ""), "keep": keep, "keep_words": KEEP_WORDS, "node": viewer.node,
    }  # fmt: skip
    return await visit.part("dialogs/prune.html", context)


@visited
async def preview_prune(visit: Visit) -> web.StreamResponse:
    """GET /parts/prune?_storage=ID&_keep-last=3…: what pruning would do with each backup, as the API's preview says."""
    viewer, query = visit.viewer, visit.request.query
    storage = viewer.storage(query.get("_storage", ""))
    text = query.get("vmid", "")
    guest_id = int(text) if text.isdecimal() and len(text) <= 9 else None
    rules = [f"{word}={query[f'_{word}']}" for word in KEEP_WORDS if query.get(f"_{word}")]
    try:
        keep = backup_names.parse_keep(",".join(rules))
        marked = await viewer.services.guests.backups.marks(storage.storage_id, keep, guest_id=guest_id, kind=None)
    except ApplianceError as error:
        return await visit.part("fragments/prune_preview.html", {"problem": words(error)})
    seen = [(backups.row_of(viewer, info), mark) for info, mark in marked if viewer.sees_volume(info)]
    context = {"problem": "", "rules": rules, "kept": [row for row, mark in seen if mark != "remove"],
               "gone": [row for row, mark in seen if mark == "remove"]}  # fmt: skip
    return await visit.part("fragments/prune_preview.html", context)


# --- files ------------------------------------------------------------------------------------------------------------


@visited
async def show_files(visit: Visit) -> web.StreamResponse:
    """GET /backup-files?volume=VOLID&path=BASE64: the page; its list comes as a part, since an archive is read for it."""
    query = visit.request.query
    row = await backups.find(visit.viewer, query.get("volume", ""))
    path = backups.decode_path(query.get("path", ""))
    steps = backups.trail(row.volume, path)
    return await visit.page(
        "backup_files",
        active="storage",
        title="Files in a backup",
        crumbs=areas.trail(
            ("Storage", "/storage"), (row.storage, f"/storage/{row.storage}?content=backup"), here=row.name
        ),
        row=row,
        steps=steps,
        path_text=backups.encode_path(path),
        text=query.get("q", "")[: backups.QUERY_LIMIT],
    )


@visited
async def list_files(visit: Visit) -> web.StreamResponse:
    """GET /parts/backup-files?volume=VOLID&path=BASE64&q=TEXT&limit=N"""
    query = visit.request.query
    limit = query.get("limit", "")
    shown = int(limit) if limit.isdecimal() and len(limit) < 6 else backups.FILES_SHOWN
    text = query.get("q", "")[: backups.QUERY_LIMIT]
    context: contexts.Context = {"problem": "", "files": (), "count": 0, "text": text, "node": visit.viewer.node}
    try:
        row = await backups.find(visit.viewer, query.get("volume", ""))
        path = backups.decode_path(query.get("path", ""))
        files, count = await backups.files(visit.viewer, row, path, text=text, limit=shown)
        context |= {
            "files": files, "count": count, "row": row, "path_text": backups.encode_path(path),
            "more": shown * 2 if shown < backups.FILES_LIMIT else 0,
        }  # fmt: skip
    except ApplianceError as error:  # shown where the list would be
        context["problem"] = words(error)
    return await visit.part("fragments/backup_files.html", context)


async def _of(visit: Visit) -> contexts.Context:
    return {"row": await backups.find(visit.viewer, visit.request.query.get("volume", "")), "node": visit.viewer.node}


async def _saved(viewer: Viewer, row: backups.BackupRow, kind: GuestKind) -> dict[str, str]:
    """The archived configuration as hints; empty where the archive tells none: restoring will say why."""
    try:
        text = await viewer.services.guests.restores.read_config(VolumeId.parse(row.volume))
        return dict(guest_config.conf_text.from_text(text))
    except ApplianceError:
        return {}
