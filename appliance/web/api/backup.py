"""/nodes/{node}/vzdump, prunebackups and file-restore: backups of guests. Restoring whole ones: `guest_creation.py`."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Sequence
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from aiohttp import web
from msgspec import Meta

from appliance.errors import InvalidParameter
from appliance.model.guest import GuestId
from appliance.model.volume import VolumeId
from appliance.services import backup_names
from appliance.services.guest_backup import STANDARD_EXCLUDES, BackupJob
from appliance.web.api.guest_params import PoolName, StorageName, Upid, check_readable, refuse
from appliance.web.api.storage import READ, NodeStorageParams
from appliance.web.registry import LOGGED_IN, Call, NodeParams, PveBool, PveList, Resource, Vmid

api = Resource()

Mode = Literal["snapshot", "suspend", "stop"]
Compress = Literal["0", "1", "gzip", "lzo", "zstd"]
Keep = Annotated[str, Meta(max_length=200, description="keep-last=3,keep-daily=7 …: which backups stay")]
_COMPRESS = {"0": "", "1": "gzip", "gzip": "gzip", "zstd": "zstd"}
_PATH_LIMIT = 4096


class BackupParams(NodeParams, kw_only=True):
    """POST vzdump."""

    vmid: Annotated[PveList, Meta(description="the guests")] = ()
    all: Annotated[PveBool, Meta(description="all guests of this node")] = False
    pool: PoolName | None = None
    exclude: Annotated[PveList, Meta(description="guests left out of all")] = ()
    storage: StorageName | None = None
    mode: Mode = "snapshot"
    compress: Compress = "0"
    notes_template: Annotated[str, Meta(max_length=1024, description="{{guestname}}, {{vmid}}, {{node}}")] | None = (
        msgspec.field(name="notes-template", default=None)
    )
    protected: PveBool = False
    prune_backups: Keep | None = msgspec.field(name="prune-backups", default=None)
    remove: Annotated[PveBool, Meta(description="prune older backups by prune-backups")] = True
    exclude_path: Annotated[PveList, Meta(description="paths in containers left out; PATH/* their content")] = (
        msgspec.field(name="exclude-path", default=())
    )
    stdexcludes: Annotated[PveBool, Meta(description="leave out temporary files of containers")] = True
    stopwait: Annotated[int, Meta(ge=0, le=1440, description="minutes a guest has to shut down")] = 10
    maxfiles: Annotated[int, Meta(ge=1)] | None = None
    bwlimit: Annotated[int, Meta(ge=0)] = 0
    dumpdir: Annotated[str, Meta(max_length=512)] | None = None
    script: Annotated[str, Meta(max_length=512)] | None = None
    stdout: PveBool = False
    stop: PveBool = False
    # what PVE's clients send, and what has no meaning here
    ionice: int = 7
    lockwait: int = 180
    quiet: PveBool = False
    zstd: int = 1
    pigz: int = 0
    tmpdir: str | None = None
    mailto: str | None = None
    mailnotification: str | None = None
    notification_mode: str | None = msgspec.field(name="notification-mode", default=None)
    fleecing: str | None = None
    performance: str | None = None
    job_id: str | None = msgspec.field(name="job-id", default=None)
    pbs_change_detection_mode: str | None = msgspec.field(name="pbs-change-detection-mode", default=None)


class DefaultsParams(NodeParams, kw_only=True):
    """Of which storage."""

    storage: StorageName | None = None


class ArchiveParams(NodeParams, kw_only=True):
    """Which backup."""

    volume: Annotated[str, Meta(max_length=400, description="STORAGE:backup/NAME")]


class PruneParams(NodeStorageParams, kw_only=True):
    """Which backups, by which rule; by default the storage's own."""

    prune_backups: Keep | None = msgspec.field(name="prune-backups", default=None)
    type: Literal["qemu", "lxc"] | None = None
    vmid: Vmid | None = None


class PruneRow(msgspec.Struct, kw_only=True):
    """What pruning would do with a backup."""

    volid: str
    ctime: int
    mark: str
    type: str
    vmid: int | None = None


class FilesParams(NodeStorageParams, kw_only=True):
    """A place in a backup."""

    volume: Annotated[str, Meta(max_length=400)]
    filepath: Annotated[str, Meta(max_length=2 * _PATH_LIMIT, description='"/", or a path in base64')]


class FileParams(FilesParams, kw_only=True):
    """A file of a backup."""

    tar: PveBool = False


class FileRow(msgspec.Struct, kw_only=True):
    """An entry of a directory in a backup; `type`: d, f, l, h, b, c, p or v."""

    filepath: str
    text: str
    type: str
    leaf: bool
    size: int | None = None
    mtime: int | None = None


@api.post("/nodes/{node}/vzdump", summary="Back guests up", allow=LOGGED_IN, returns=Upid)
async def back_up(call: Call, params: BackupParams) -> str:
    """Needs VM.Backup on each guest and Datastore.AllocateSpace on the storage. Several are done one after the other."""
    refuse("backups", {"maxfiles": params.maxfiles, "bwlimit": params.bwlimit, "dumpdir": params.dumpdir,
                       "script": params.script, "stdout": params.stdout, "stop": params.stop})  # fmt: skip
    if params.compress not in _COMPRESS:
        raise InvalidParameter({"compress": f"'{params.compress}' is not supported: zstd, gzip or 0"})
    storage = params.storage or "local"
    call.check(f"/storage/{storage}", "Datastore.AllocateSpace")
    chosen = _chosen(call, params)
    keep = _keep(call, storage, params.prune_backups) if params.remove else {}
    if params.prune_backups is not None:
        call.check(f"/storage/{storage}", "Datastore.Allocate", "Datastore.AllocateSpace", any_of=True)
    job = BackupJob(
        guest_ids=chosen,
        storage=storage,
        mode=params.mode,
        compress=_COMPRESS[params.compress],
        notes=params.notes_template or "{{guestname}}",
        protected=params.protected,
        keep=keep,
        exclude=[*(STANDARD_EXCLUDES if params.stdexcludes else ()), *map(_excluded, params.exclude_path)],
        stop_wait_s=60.0 * params.stopwait,
    )
    return await call.services.guests.backups.start(job, user=call.user)


@api.get("/nodes/{node}/vzdump/defaults", summary="Defaults of backups", allow=LOGGED_IN)
async def read_defaults(call: Call, params: DefaultsParams) -> dict[str, object]:
    """What a backup does when nothing else is asked for."""
    return {"mode": "snapshot", "compress": "0", "storage": params.storage or "local", "stdexcludes": 1, "remove": 1,
            "stopwait": 10, "prune-backups": "keep-all=1"}  # fmt: skip


@api.get("/nodes/{node}/vzdump/extractconfig", summary="The configuration in a backup", allow=LOGGED_IN, returns=str)
async def extract_config(call: Call, params: ArchiveParams) -> str:
    """As text, a key a line."""
    volume = VolumeId.parse(params.volume)
    check_readable(call, volume)
    return await call.services.guests.restores.read_config(volume)


@api.get("/nodes/{node}/storage/{storage}/prunebackups", summary="What pruning would remove", allow=READ,
         returns=list[PruneRow])  # fmt: skip
async def preview_prune(call: Call, params: PruneParams) -> Sequence[PruneRow]:
    """A mark for each backup: keep, remove, protected, or renamed (not named as backups are)."""
    keep = _keep(call, params.storage, params.prune_backups)
    found = await call.services.guests.backups.marks(params.storage, keep, guest_id=params.vmid, kind=params.type)
    rows: list[PruneRow] = []
    for info, mark in found:
        backup = backup_names.parse(info.volume_id.name)
        rows.append(
            PruneRow(
                volid=str(info.volume_id),
                ctime=int(backup.made_at if backup else info.created_at),
                mark=mark,
                type=backup.kind.value if backup else "unknown",
                vmid=info.guest_id,
            )
        )
    return rows


@api.delete("/nodes/{node}/storage/{storage}/prunebackups", summary="Remove old backups", allow=LOGGED_IN, returns=Upid)
async def prune(call: Call, params: PruneParams) -> str:
    """Those no rule keeps. Needs Datastore.Allocate, or for one guest Datastore.AllocateSpace and VM.Backup on it."""
    path = f"/storage/{params.storage}"
    one = params.vmid is not None and call.has(f"/vms/{params.vmid}", "VM.Backup")
    if not (one and call.has(path, "Datastore.AllocateSpace")):
        call.check(path, "Datastore.Allocate")
    keep = _keep(call, params.storage, params.prune_backups)

    async def work(task: object) -> None:
        removed = await call.services.guests.backups.prune(params.storage, keep, guest_id=params.vmid, kind=params.type)
        for volume in removed:
            task.log(f"removed {volume}")  # type: ignore[attr-defined]  # a TaskHandle

    return await call.services.tasks.run("prunebackups", object_id=params.storage, user=call.user, work=work)


@api.get("/nodes/{node}/storage/{storage}/file-restore/list", summary="Files in a backup", allow=LOGGED_IN,
         returns=list[FileRow], timeout_s=600)  # fmt: skip
async def list_files(call: Call, params: FilesParams) -> Sequence[FileRow]:
    """The entries of one directory. The first look into an archive reads it from end to end."""
    volume = _backup_volume(params)
    check_readable(call, volume)
    path = _decoded(params.filepath)
    return [
        FileRow(
            filepath=base64.b64encode(f"/{entry.path}".encode("utf-8", "surrogateescape")).decode(),
            text=entry.path.rpartition("/")[2].encode("utf-8", "replace").decode(),
            type=entry.kind,
            leaf=entry.kind != "d",
            size=entry.size if entry.kind == "f" else None,
            mtime=entry.mtime,
        )
        for entry in await call.services.guests.backup_files.list(volume, path)
    ]


@api.get("/nodes/{node}/storage/{storage}/file-restore/download", summary="A file of a backup", allow=LOGGED_IN,
         timeout_s=None)  # fmt: skip
async def download_file(call: Call, params: FileParams) -> web.StreamResponse:
    """Its bytes."""
    refuse("directories as one archive", {"tar": params.tar})
    volume = _backup_volume(params)
    check_readable(call, volume)
    found, content = await call.services.guests.backup_files.stream(volume, _decoded(params.filepath))
    name = quote(found.path.rpartition("/")[2].encode("utf-8", "surrogateescape"))
    async with contextlib.aclosing(content):
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(found.size),
                "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
            }
        )
        await response.prepare(call.request)
        async for chunk in content:
            await response.write(chunk)
        await response.write_eof()
    return response


def _chosen(call: Call, params: BackupParams) -> list[int]:
    """The guests asked for, each of which the caller may back up. Raises `InvalidParameter`, `PermissionDenied`."""
    asked = [bool(params.vmid), params.all, params.pool is not None]
    if sum(asked) != 1:
        raise InvalidParameter({"vmid": "name guests, or all, or a pool"})
    guests = call.services.guests
    if params.vmid:
        chosen = [_guest_id(text) for text in params.vmid]
        for guest_id in chosen:
            call.check(f"/vms/{guest_id}", "VM.Backup")
            guests.get(GuestId(guest_id))
        return chosen
    left_out = {_guest_id(text) for text in params.exclude}
    found = [
        int(view.guest_id)
        for view in guests.list()
        if (params.pool is None or view.pool == params.pool)
        and view.guest_id not in left_out
        and call.has(f"/vms/{view.guest_id}", "VM.Backup")
    ]
    if not found:
        raise InvalidParameter({"pool" if params.pool else "all": "there is no guest to back up"})
    return found


def _guest_id(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise InvalidParameter({"vmid": f"'{text[:20]}' is not a VMID"})
    return int(text)


def _keep(call: Call, storage: str, asked: str | None) -> dict[str, int]:
    document = call.services.storage.storage(storage).document
    return backup_names.parse_keep(document.prune_backups if asked is None else asked)


def _excluded(path: str) -> str:
    """An absolute path as archives name it; PATH/* and PATH/?* are what lies in it."""
    whole = path.removesuffix("/?*") + "/*" if path.endswith("/?*") else path
    stem = whole.removesuffix("/*")
    if not stem.startswith("/") or ".." in stem.split("/") or any(letter in stem for letter in "*?[\n"):
        raise InvalidParameter({"exclude-path": f"'{path[:60]}' is not an absolute path, or PATH/*"})
    return whole.strip("/")


def _backup_volume(params: FilesParams) -> VolumeId:
    volume = VolumeId.parse(params.volume if ":" in params.volume else f"{params.storage}:{params.volume}")
    if volume.storage != params.storage:
        raise InvalidParameter({"volume": f"'{params.volume}' is not on storage '{params.storage}'"})
    return volume


def _decoded(text: str) -> str:
    """The path below the root, "" for the root itself."""
    if text == "/":
        return ""
    try:
        path = base64.b64decode(text, validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError) as error:
        raise InvalidParameter({"filepath": "not base64"}) from error
    return "/".join(part for part in path.split("/") if part not in ("", "."))
