"""What pages show of backups: those of a guest and of a storage, with what the viewer may do to each; files in an archive.

The rules are the API's (`web/api/backup.py`, `storage_content.py`), which decides again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from appliance.errors import ApplianceError, InvalidParameter, NotFound, PermissionDenied, TimedOut
from appliance.model.guest import GuestId, GuestKind
from appliance.model.volume import ContentType, VolumeId, VolumeInfo
from appliance.services import backup_names
from appliance.services.ports.archives import ArchivedFile
from appliance.services.storage_config import StorageConfig
from appliance.web.pages.viewer import Viewer

FILES_SHOWN: Final = 500
FILES_LIMIT: Final = 5000
READING_LIMIT_S: Final = 600.0
QUERY_LIMIT: Final = 200
ROOT: Final = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRow:
    """One backup. `kind` is "" for a file that is not named as backups are; `made_at` in epoch seconds. `may_replace`: it may
    be restored over its guest, which is there."""

    volume: str
    storage: str
    name: str
    kind: str
    guest_id: int | None
    made_at: float
    size_bytes: int
    notes: str
    protected: bool
    may_read: bool
    may_restore: bool
    may_replace: bool
    may_change: bool
    may_delete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """An entry of a directory in an archive. `query` leads to it: a page for a directory, a download for a file."""

    name: str
    kind: str
    size_bytes: int
    mtime: int | None
    query: str


def row_of(viewer: Viewer, info: VolumeInfo) -> BackupRow:
    """One backup as the viewer sees it."""
    storage = info.volume_id.storage
    path = f"/storage/{storage}"
    backup = backup_names.parse(info.volume_id.name)
    guest_id = backup.guest_id if backup else info.guest_id
    owns = viewer.may(path, "Datastore.Allocate")
    backs_up = guest_id is not None and viewer.may(f"/vms/{guest_id}", "VM.Backup")
    may_fill = viewer.may(path, "Datastore.AllocateSpace")
    readable = owns or (backup is not None and backs_up and (may_fill or viewer.may(path, "Datastore.Audit")))
    may_make = viewer.may_create() or (guest_id is not None and viewer.may(f"/vms/{guest_id}", "VM.Allocate"))
    return BackupRow(
        volume=str(info.volume_id),
        storage=storage,
        name=info.volume_id.name.rpartition("/")[2],
        kind=backup.kind.value if backup else "",
        guest_id=guest_id,
        made_at=backup.made_at if backup else info.created_at,
        size_bytes=info.size_bytes,
        notes=info.notes,
        protected=info.protected,
        may_read=readable,
        may_restore=readable and backup is not None and may_make,
        may_replace=readable and backup is not None and _may_replace(viewer, backup.kind, backup.guest_id),
        may_change=owns,
        may_delete=owns or (backs_up and may_fill),
    )


def _may_replace(viewer: Viewer, kind: GuestKind, guest_id: int) -> bool:
    path = f"/vms/{guest_id}"
    if not viewer.may(path, "VM.Audit") or not (viewer.may(path, "VM.Allocate") or viewer.may(path, "VM.Backup")):
        return False
    try:
        return viewer.services.guests.get(GuestId(guest_id)).kind is kind
    except NotFound:
        return False


def rows(viewer: Viewer, infos: Iterable[VolumeInfo]) -> Sequence[BackupRow]:
    """The backups among volumes, newest first."""
    found = [row_of(viewer, info) for info in infos if info.content is ContentType.BACKUP]
    return sorted(found, key=lambda row: (row.made_at, row.volume), reverse=True)


async def of_guest(viewer: Viewer, guest_id: int) -> tuple[Sequence[BackupRow], Sequence[str]]:
    """The guest's backups on every storage the viewer may see, and what is wrong with storages that cannot be read."""
    viewer.guest(guest_id)
    found: list[VolumeInfo] = []
    problems: list[str] = []
    for config in viewer.storages():
        if not config.enabled or ContentType.BACKUP not in config.content_types:
            continue
        try:
            infos = await viewer.services.storage.content(config.storage_id, ContentType.BACKUP, guest_id)
        except ApplianceError as error:
            problems.append(error.message)
            continue
        found += [info for info in infos if viewer.sees_volume(info)]
    return rows(viewer, found), problems


def targets(viewer: Viewer) -> Sequence[StorageConfig]:
    """The storages the viewer may put backups on."""
    return [
        config
        for config in viewer.storages()
        if config.active
        and ContentType.BACKUP in config.content_types
        and viewer.may(f"/storage/{config.storage_id}", "Datastore.AllocateSpace")
    ]


def keep_of(config: StorageConfig) -> Mapping[str, int]:
    """The storage's own rules of pruning; none where what was stored by older versions is no rule."""
    try:
        return backup_names.parse_keep(config.document.prune_backups)
    except InvalidParameter:
        return {}


async def find(viewer: Viewer, volume: str) -> BackupRow:
    """The backup of this name, which the viewer may read. Raises `PermissionDenied`, `NotFound`, `InvalidParameter`."""
    volume_id = VolumeId.parse(volume)
    viewer.storage(volume_id.storage)
    info = await viewer.services.storage.backend(volume_id.storage).info(volume_id)
    if info.content is not ContentType.BACKUP:
        raise InvalidParameter({"volume": f"{volume_id} is not a backup"})
    row = row_of(viewer, info)
    if not row.may_read:
        needed = f"VM.Backup on /vms/{row.guest_id} or Datastore.Allocate on /storage/{row.storage}"
        raise PermissionDenied(f"You need {needed} for this.")
    return row


# --- files in an archive ----------------------------------------------------------------------------------------------


def decode_path(text: str) -> str:
    """A path of the API's `filepath` ("/", or base64) without slashes around it; "" is the root. Raises `InvalidParameter`."""
    if text in ("", ROOT):
        return ""
    try:
        path = base64.b64decode(text, validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError) as error:
        raise InvalidParameter({"path": "not base64"}) from error
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def encode_path(path: str) -> str:
    """The API's `filepath` of a path."""
    return base64.b64encode(f"/{path}".encode("utf-8", "surrogateescape")).decode() if path else ROOT


def shown(name: str) -> str:
    """A name as text: bytes that are no UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def trail(volume: str, path: str) -> Sequence[tuple[str, str]]:
    """The directories from the root to `path` with the query of each one's page."""
    parts = path.split("/") if path else []
    steps = [("", volume)] + [("/".join(parts[: number + 1]), name) for number, name in enumerate(parts)]
    return [(shown(name), _query(volume, place)) for place, name in steps]


async def files(viewer: Viewer, row: BackupRow, path: str, *, text: str, limit: int) -> tuple[Sequence[FileRow], int]:
    """The entries of a directory that have `text` in their names, directories first, cut to `limit`; how many there are.

    The first look into an archive reads it from end to end. Raises `NotFound`, `TimedOut`.
    """
    volume = VolumeId.parse(row.volume)
    try:
        async with asyncio.timeout(READING_LIMIT_S):
            entries = await viewer.services.guests.backup_files.list(volume, path)
    except TimeoutError as error:
        raise TimedOut(f"reading {volume}", READING_LIMIT_S) from error
    wanted = text.lower()
    found = [each for each in entries if wanted in shown(each.path.rpartition("/")[2]).lower()]
    found.sort(key=lambda each: (each.kind != "d", each.path))
    return [_file_row(row, each) for each in found[: min(limit, FILES_LIMIT)]], len(found)


def _file_row(row: BackupRow, entry: ArchivedFile) -> FileRow:
    is_file = entry.kind == "f"
    download = {"volume": row.volume, "filepath": encode_path(entry.path)}
    return FileRow(
        name=shown(entry.path.rpartition("/")[2]),
        kind=entry.kind,
        size_bytes=entry.size if is_file else 0,
        mtime=entry.mtime,
        query=urlencode(download) if is_file else _query(row.volume, entry.path),
    )


def _query(volume: str, path: str) -> str:
    return urlencode({"volume": volume, "path": encode_path(path)})


def kind_of(row: BackupRow) -> GuestKind:
    """Raises `InvalidParameter` for a file that is not named as backups are: nothing says what it is of."""
    if not row.kind:
        raise InvalidParameter({"volume": f"{row.volume} is not named as backups are"})
    return GuestKind(row.kind)
