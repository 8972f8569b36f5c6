"""/nodes/{node}/storage/{storage}/content, upload, download-url, and /nodes/{node}/query-url-metadata: volumes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from appliance.errors import Conflict, InvalidParameter, NotFound, TimedOut
from appliance.model.volume import ContentType, VolumeFormat, VolumeId, VolumeInfo
from appliance.services import download
from appliance.web.api.storage import READ, NodeStorageParams, StorageId
from appliance.web.registry import LOGGED_IN, Allow, Call, NodeParams, Resource, Vmid

api = Resource()

ALLOCATE_TEMPLATE = Allow("/storage/{storage}", "Datastore.AllocateTemplate")
Algorithm = Literal["md5", "sha1", "sha224", "sha256", "sha384", "sha512"]
Receivable = Literal["iso", "vztmpl", "import", "snippets"]
FILE_CONTENT = (ContentType.ISO, ContentType.VZTMPL, ContentType.IMPORT, ContentType.SNIPPETS)
_SIZE = re.compile(r"(\d{1,12})([KMGT]?)")
_UNITS = {"": 1 << 10, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class ContentParams(NodeStorageParams, kw_only=True):
    """GET content."""

    content: ContentType | None = None
    vmid: Vmid | None = None


class AllocateParams(NodeStorageParams, kw_only=True):
    """POST content."""

    filename: Annotated[str, msgspec.Meta(description="vm-VMID-NAME, with or without .raw or .qcow2", max_length=255)]
    size: Annotated[str, msgspec.Meta(description="in KiB, or with M or G", max_length=14)]
    vmid: Vmid
    format: Literal["raw", "qcow2", "subvol"] | None = None


class VolumeParams(NodeStorageParams, kw_only=True):
    """Names one volume: `local:iso/x.iso`, or `iso/x.iso`."""

    volume: Annotated[str, msgspec.Meta(description="volume id", max_length=400)]


class AnnotateParams(VolumeParams, kw_only=True):
    """PUT of a volume."""

    notes: Annotated[str, msgspec.Meta(max_length=65536)] | None = None
    protected: bool | None = None


class DeleteParams(VolumeParams, kw_only=True):
    """DELETE of a volume."""

    delay: Annotated[int, msgspec.Meta(ge=1, le=30, description="seconds to wait for the end")] | None = None


class ReceiveParams(NodeStorageParams, kw_only=True):
    """What upload and download have in common."""

    content: Receivable
    checksum: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    checksum_algorithm: Algorithm | None = msgspec.field(name="checksum-algorithm", default=None)

    def expected(self) -> tuple[str, str] | None:
        """The checksum to compare with. Raises `InvalidParameter` when only half of it was given."""
        if (self.checksum is None) != (self.checksum_algorithm is None):
            raise InvalidParameter({"checksum": "goes together with checksum-algorithm"})
        if self.checksum is None or self.checksum_algorithm is None:
            return None
        return self.checksum_algorithm, self.checksum


class DownloadParams(ReceiveParams, kw_only=True):
    """POST download-url."""

    url: Annotated[str, msgspec.Meta(max_length=4096)]
    filename: Annotated[str, msgspec.Meta(max_length=255)]
    verify_certificates: bool = msgspec.field(name="verify-certificates", default=True)
    compression: str | None = None


class UrlParams(NodeParams, kw_only=True):
    """GET query-url-metadata."""

    url: Annotated[str, msgspec.Meta(max_length=4096)]
    verify_certificates: bool = msgspec.field(name="verify-certificates", default=True)


class ContentRow(msgspec.Struct, kw_only=True):
    """A volume in a listing. Sizes in bytes, `ctime` in seconds since the epoch."""

    volid: str
    content: str
    format: str
    size: int
    used: int
    ctime: int
    vmid: int | None = None
    parent: str | None = None
    notes: str | None = None
    protected: bool | None = None


class VolumeRow(msgspec.Struct, kw_only=True):
    """One volume."""

    path: str
    format: str
    size: int
    used: int
    notes: str | None = None
    protected: bool | None = None


class UrlMetadataRow(msgspec.Struct, kw_only=True):
    """What a server says of a file."""

    filename: str | None = None
    mimetype: str | None = None
    size: int | None = None


@api.get("/nodes/{node}/storage/{storage}/content", summary="Volumes", allow=READ, returns=list[ContentRow])
async def list_content(call: Call, params: ContentParams) -> Sequence[ContentRow]:
    """Those the caller may see, of one content type or one guest."""
    found = await call.services.storage.content(params.storage, params.content, params.vmid)
    return [_row(info) for info in found if _may_read(call, info)]


@api.post(
    "/nodes/{node}/storage/{storage}/content",
    summary="Allocate a disk",
    allow=Allow("/storage/{storage}", "Datastore.AllocateSpace"),
    returns=str,
)
async def allocate(call: Call, params: AllocateParams) -> str:
    """Makes an empty disk image and returns its volume id."""
    call.check(f"/vms/{params.vmid}", "VM.Allocate")
    match = _SIZE.fullmatch(params.size)
    if match is None or int(match[1]) == 0:
        raise InvalidParameter({"size": f"'{params.size}' is not a size"})
    name = params.filename if "." in params.filename else f"{params.filename}.{params.format or 'raw'}"
    if params.format is not None and not name.endswith(f".{params.format}"):
        raise InvalidParameter({"format": f"'{params.filename}' has another ending"})
    volume_id = VolumeId.parse(f"{params.storage}:{params.vmid}/{name}")
    is_tree = name.endswith(f".{VolumeFormat.SUBVOL}")
    content = ContentType.ROOTDIR if is_tree else ContentType.IMAGES
    backend = call.services.storage.backend(params.storage)
    size_bytes = int(match[1]) * _UNITS[match[2]]
    return str(await backend.create_named(volume_id.name, size_bytes=size_bytes, content=content))


@api.get(
    "/nodes/{node}/storage/{storage}/content/{volume:path}", summary="A volume", allow=LOGGED_IN, returns=VolumeRow
)
async def read_volume(call: Call, params: VolumeParams) -> VolumeRow:
    """Its path, sizes and notes."""
    info = await _visible(call, params)
    opened = await call.services.storage.open(info.volume_id)
    return VolumeRow(
        path=str(opened.path),
        format=info.format,
        size=info.size_bytes,
        used=info.used_bytes,
        notes=info.notes or None,
        protected=info.protected or None,
    )


@api.put("/nodes/{node}/storage/{storage}/content/{volume:path}", summary="Annotate a volume", allow=LOGGED_IN)
async def annotate(call: Call, params: AnnotateParams) -> None:
    """Write notes, or protect a volume from deletion."""
    info = await _visible(call, params)
    _check_write(call, info)
    backend = call.services.storage.backend(info.volume_id.storage)
    await backend.annotate(info.volume_id, notes=params.notes, protected=params.protected)


@api.delete(
    "/nodes/{node}/storage/{storage}/content/{volume:path}", summary="Delete a volume", allow=LOGGED_IN, returns=str
)
async def delete_volume(call: Call, params: DeleteParams) -> str | None:
    """Starts a task. With `delay`, waits so long for its end and then returns nothing. Refused for volumes in use.

    Needs Datastore.Allocate; for a backup Datastore.AllocateSpace and VM.Backup on its guest do, too.
    """
    info = await _visible(call, params)
    _check_delete(call, info)
    _check_unused(call, info)
    upid = await call.services.storage.delete_volume(info.volume_id, user=call.user)
    if params.delay is not None:
        try:
            task = await call.services.tasks.wait(upid, timeout_s=params.delay)
        except TimedOut:
            return upid
        return None if task.status == "OK" else upid
    return upid


@api.post(
    "/nodes/{node}/storage/{storage}/upload",
    summary="Upload a file",
    allow=ALLOCATE_TEMPLATE,
    upload="filename",
    returns=str,
)
async def upload(call: Call, params: ReceiveParams) -> str:
    """multipart/form-data; the file comes last, as the part `filename`. It appears only when it is whole."""
    sent = call.upload
    return await call.services.storage.upload(
        params.storage,
        ContentType(params.content),
        _base_name(sent.filename),
        sent.chunks,
        checksum=params.expected(),
        user=call.user,
    )


def _check_download(call: Call, params: DownloadParams) -> None:
    call.check(f"/storage/{params.storage}", "Datastore.AllocateTemplate")
    _check_network(call, params)


def _check_network(call: Call, params: NodeParams) -> None:
    if not (call.has("/", "Sys.Audit") and call.has("/", "Sys.Modify")):
        call.check(f"/nodes/{call.node}", "Sys.AccessNetwork")


@api.post("/nodes/{node}/storage/{storage}/download-url", summary="Download a file", allow=_check_download, returns=str)
async def download_url(call: Call, params: DownloadParams) -> str:
    """Starts a task that fetches an http or https URL."""
    if params.compression:
        raise InvalidParameter({"compression": "files are stored as they are"})
    download.check_url(params.url)
    return await call.services.storage.download_url(
        params.storage,
        ContentType(params.content),
        params.filename,
        params.url,
        checksum=params.expected(),
        verify_certificates=params.verify_certificates,
        user=call.user,
    )


@api.get("/nodes/{node}/query-url-metadata", summary="Metadata of a URL", allow=_check_network, returns=UrlMetadataRow)
async def query_url_metadata(call: Call, params: UrlParams) -> UrlMetadataRow:
    """Asks the server for name, type and size of a file."""
    found = await download.query_metadata(params.url, verify_certificates=params.verify_certificates)
    return UrlMetadataRow(filename=found.filename or None, mimetype=found.mimetype, size=found.size_bytes)


def _row(info: VolumeInfo) -> ContentRow:
    return ContentRow(
        volid=str(info.volume_id),
        content=info.content,
        format=info.format,
        size=info.size_bytes,
        used=info.used_bytes,
        ctime=int(info.created_at),
        vmid=info.guest_id,
        parent=str(info.parent) if info.parent else None,
        notes=info.notes or None,
        protected=info.protected or None,
    )


def _volume_id(storage: StorageId, volume: str) -> VolumeId:
    volume_id = VolumeId.parse(volume if ":" in volume else f"{storage}:{volume}")
    if volume_id.storage != storage:
        raise InvalidParameter({"volume": f"'{volume}' is not on storage '{storage}'"})
    return volume_id


async def _visible(call: Call, params: VolumeParams) -> VolumeInfo:
    """The volume, if the caller may see it; who may see nothing on the storage does not learn what exists."""
    path = f"/storage/{params.storage}"
    if not any(call.has(path, name) for name in ("Datastore.Audit", "Datastore.AllocateSpace", "Datastore.Allocate")):
        call.check(path, "Datastore.Audit")
    volume_id = _volume_id(params.storage, params.volume)
    info = await call.services.storage.backend(volume_id.storage).info(volume_id)
    if not _may_read(call, info):
        raise NotFound(f"volume '{volume_id}'")
    return info


def _may_read(call: Call, info: VolumeInfo) -> bool:
    if info.guest_id is None or call.has(f"/storage/{info.volume_id.storage}", "Datastore.Allocate"):
        return True
    return any(call.has(f"/vms/{info.guest_id}", name) for name in ("VM.Audit", "VM.Config.Disk"))


def _check_write(call: Call, info: VolumeInfo) -> None:
    path = f"/storage/{info.volume_id.storage}"
    wider = ((path, "Datastore.AllocateTemplate"),) if info.content in FILE_CONTENT else ()
    call.check_any((path, "Datastore.Allocate"), *wider)


def _check_delete(call: Call, info: VolumeInfo) -> None:
    path = f"/storage/{info.volume_id.storage}"
    is_backup = info.content is ContentType.BACKUP and info.guest_id is not None
    if is_backup and call.has(path, "Datastore.AllocateSpace") and call.has(f"/vms/{info.guest_id}", "VM.Backup"):
        return
    call.check(path, "Datastore.Allocate")


def _check_unused(call: Call, info: VolumeInfo) -> None:
    if info.volume_id in call.services.guests.named_volumes():
        raise Conflict(f"volume {info.volume_id}: in use by a guest's configuration")


def _base_name(text: str) -> str:
    """Browsers may send a path; only its last part counts, and the storage judges that."""
    return text.replace("\\", "/").rpartition("/")[2]
