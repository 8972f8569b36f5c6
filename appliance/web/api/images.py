"""OCI images: PVE's oci-registry-pull and query-oci-repo-tags; what it lacks is below /appliance/oci."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from appliance.errors import InvalidParameter
from appliance.model.volume import VolumeId
from appliance.services.images import ListedImage, shared_bytes
from appliance.storage.oci.credentials import RegistryAccess, Transport
from appliance.threads import to_the_end
from appliance.web.api.storage import NodeStorageParams, StorageId, may_see
from appliance.web.registry import LOGGED_IN, Allow, Call, NodeParams, Resource

api = Resource()

TAGS_TIMEOUT_S = 300.0
SYSTEM_AUDIT, SYSTEM = Allow("/", "Sys.Audit"), Allow("/", "Sys.Modify")

ReferenceText = Annotated[str, msgspec.Meta(max_length=512, description="[HOST[:PORT]/]REPOSITORY[:TAG]")]
VolumeText = Annotated[str, msgspec.Meta(max_length=400, description="the image's volume: local:vztmpl/alpine_3.tar")]


class PullParams(NodeStorageParams, kw_only=True):
    """POST oci-registry-pull."""

    reference: ReferenceText
    filename: Annotated[str, msgspec.Meta(max_length=255, description="default: NAME_TAG.tar")] | None = None


class TagsParams(NodeParams, kw_only=True):
    """GET query-oci-repo-tags."""

    reference: ReferenceText


class ListParams(msgspec.Struct, kw_only=True):
    """GET /appliance/oci/images."""

    storage: StorageId | None = None


class ImageParams(msgspec.Struct, kw_only=True):
    """Names one image."""

    volume: VolumeText


class PushParams(ImageParams, kw_only=True):
    """POST /appliance/oci/push."""

    reference: ReferenceText


class CollectParams(msgspec.Struct, kw_only=True):
    """POST /appliance/oci/gc."""

    storage: StorageId = "local"


class BuildParams(msgspec.Struct, kw_only=True):
    """POST /appliance/oci/build."""

    tag: ReferenceText
    storage: StorageId = "local"
    dockerfile: Annotated[str, msgspec.Meta(max_length=1024, description="its path in the context")] = "Dockerfile"


class RegistryParams(msgspec.Struct, kw_only=True):
    """Names one registry."""

    registry: Annotated[str, msgspec.Meta(max_length=255, description="HOST[:PORT]; docker.io is Docker Hub")]


class AccessParams(RegistryParams, kw_only=True):
    """POST /appliance/oci/registries."""

    transport: Annotated[
        Transport, msgspec.Meta(description="verified (https), unverified (https, whoever answers) or plain (http)")
    ] = Transport.VERIFIED
    username: Annotated[str, msgspec.Meta(max_length=255)] = ""
    password: Annotated[str, msgspec.Meta(max_length=16384, description="a password or token; never shown again")] = ""
    ca: Annotated[str, msgspec.Meta(max_length=65536, description="PEM certificates that may sign for it")] = ""


class ImageRow(msgspec.Struct, kw_only=True):
    """An image in a listing; `size` in bytes as it is transferred, `shared` what of it other images here have too."""

    volid: str
    reference: str
    digest: str
    size: int
    shared: int
    layers: int
    architecture: str
    created: str | None = None
    ctime: int


class HealthRow(msgspec.Struct, kw_only=True):
    """A health check; times in seconds."""

    command: tuple[str, ...]
    interval: float
    timeout: float
    start_period: float = msgspec.field(name="start-period")
    retries: int


class ImageDetails(ImageRow, kw_only=True):
    """An image, with what it says of its processes."""

    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    env: dict[str, str]
    user: str
    workdir: str
    ports: tuple[str, ...]
    volumes: tuple[str, ...]
    labels: dict[str, str]
    stop_signal: str | None = msgspec.field(name="stop-signal", default=None)
    health: HealthRow | None = None
    layer_digests: tuple[str, ...] = msgspec.field(name="layer-digests")
    diff_ids: tuple[str, ...] = msgspec.field(name="diff-ids")


class RegistryRow(msgspec.Struct, kw_only=True):
    """A registry with settings. `password` says only whether there is one."""

    registry: str
    transport: str
    username: str | None = None
    password: bool
    ca: bool


def _check_pull(call: Call, params: PullParams) -> None:
    call.check(f"/storage/{params.storage}", "Datastore.AllocateTemplate")
    call.check(f"/nodes/{call.node}", "Sys.AccessNetwork")


def _check_push(call: Call, params: PushParams) -> None:
    call.check(f"/storage/{_volume(params).storage}", "Datastore.AllocateTemplate")
    call.check(f"/nodes/{call.node}", "Sys.AccessNetwork")


def _check_remove(call: Call, params: ImageParams) -> None:
    call.check(f"/storage/{_volume(params).storage}", "Datastore.Allocate")


@api.post("/nodes/{node}/storage/{storage}/oci-registry-pull", summary="Pull an OCI image", allow=_check_pull,
          returns=str)  # fmt: skip
async def pull(call: Call, params: PullParams) -> str:
    """Starts the task that fetches it from its registry and lists it as a template. Layers are shared between images."""
    return await call.services.images.pull(
        params.storage, params.reference, file_name=params.filename or None, user=call.user
    )


@api.get("/nodes/{node}/query-oci-repo-tags", summary="Tags of a repository", timeout_s=TAGS_TIMEOUT_S,
         allow=Allow("/nodes/{node}", "Sys.AccessNetwork"), returns=list[str])  # fmt: skip
async def query_tags(call: Call, params: TagsParams) -> Sequence[str]:
    """Asks the registry."""
    return await call.services.images.tags(params.reference)


@api.get("/appliance/oci/images", summary="OCI images", allow=LOGGED_IN, returns=list[ImageRow])
async def list_images(call: Call, params: ListParams) -> Sequence[ImageRow]:
    """Those on storages the caller may see."""
    if params.storage is not None and not may_see(call, params.storage):
        call.check(f"/storage/{params.storage}", "Datastore.Audit")
    found = await call.services.images.list(params.storage)
    shared = shared_bytes(found)
    return [ImageRow(**_row(each, shared)) for each in found if may_see(call, each.volume.volume_id.storage)]


@api.get("/appliance/oci/images/{volume:path}", summary="An OCI image", allow=LOGGED_IN, returns=ImageDetails)
async def read_image(call: Call, params: ImageParams) -> ImageDetails:
    """What it says of its processes, and its layers."""
    volume = _volume(params)
    if not may_see(call, volume.storage):
        call.check(f"/storage/{volume.storage}", "Datastore.Audit")
    info = await call.services.storage.backend(volume.storage).info(volume)
    image = await call.services.images.inspect(volume)
    config, health = image.config, image.config.health
    return ImageDetails(
        **_row(ListedImage(volume=info, image=image), shared_bytes(await call.services.images.list(volume.storage))),
        entrypoint=config.entrypoint,
        command=config.command,
        env=dict(config.environment),
        user=config.user,
        workdir=config.working_directory,
        ports=config.exposed_ports,
        volumes=config.volumes,
        labels=dict(config.labels),
        stop_signal=config.stop_signal or None,
        health=HealthRow(
            command=health.command,
            interval=health.interval_s,
            timeout=health.timeout_s,
            start_period=health.start_period_s,
            retries=health.retries,
        )
        if health
        else None,
        layer_digests=tuple(str(each.digest) for each in image.manifest.layers),
        diff_ids=tuple(map(str, config.diff_ids)),
    )


@api.delete("/appliance/oci/images/{volume:path}", summary="Remove an OCI image", allow=_check_remove, returns=str)
async def remove_image(call: Call, params: ImageParams) -> str:
    """Starts the task that removes it and the layers only it needed; containers made of it keep theirs."""
    return await call.services.images.remove(_volume(params), user=call.user)


@api.post("/appliance/oci/push", summary="Push an OCI image", allow=_check_push, returns=str)
async def push(call: Call, params: PushParams) -> str:
    """Starts the task that sends it to the registry that `reference` names."""
    return await call.services.images.push(_volume(params), params.reference, user=call.user)


@api.post("/appliance/oci/gc", summary="Remove what no image and no container needs", returns=str,
          allow=Allow("/storage/{storage}", "Datastore.Allocate"))  # fmt: skip
async def collect(call: Call, params: CollectParams) -> str:
    """Starts the task that removes blobs and layers, and what interrupted pulls have left."""
    return await call.services.images.collect(params.storage, user=call.user)


@api.post("/appliance/oci/build", summary="Build an OCI image from a Dockerfile", allow=SYSTEM, upload="context",
          returns=str)  # fmt: skip
async def build(call: Call, params: BuildParams) -> str:
    """multipart/form-data; the context comes last, as the part `context`: a tar archive, compressed or not.

    Starts a task whose log is the build's. Needs buildah on this host; RUN acts as root of the host.
    """
    return await call.services.builder.build(
        params.storage, params.tag, call.upload.chunks, dockerfile=params.dockerfile, user=call.user
    )


@api.get("/appliance/oci/registries", summary="Registries with settings", allow=SYSTEM_AUDIT,
         returns=list[RegistryRow])  # fmt: skip
async def list_registries(call: Call) -> Sequence[RegistryRow]:
    """All others are reached by verified https, without a name."""
    return [
        RegistryRow(
            registry=each.registry,
            transport=each.transport.value,
            username=each.username or None,
            password=bool(each.password),
            ca=bool(each.ca),
        )
        for each in await to_the_end(call.services.images.registries.all)
    ]


@api.post("/appliance/oci/registries", summary="Set how a registry is reached", allow=SYSTEM)
async def put_registry(call: Call, params: AccessParams) -> None:
    """Replaces what was set. Who may pull or push uses the credentials, nobody can read them."""
    access = RegistryAccess(
        registry=params.registry,
        transport=params.transport,
        username=params.username,
        password=params.password,
        ca=params.ca,
    )
    await to_the_end(call.services.images.registries.put, access)


@api.delete("/appliance/oci/registries/{registry}", summary="Forget a registry's settings", allow=SYSTEM)
async def remove_registry(call: Call, params: RegistryParams) -> None:
    """It is reached by verified https from then on, without a name."""
    await to_the_end(call.services.images.registries.remove, params.registry)


def _volume(params: ImageParams) -> VolumeId:
    volume = VolumeId.parse(params.volume)
    if not volume.name.startswith("vztmpl/"):
        raise InvalidParameter({"volume": f"{volume} is not an OCI image"})
    return volume


def _row(listed: ListedImage, shared: Mapping[VolumeId, int]) -> dict[str, Any]:
    image = listed.image
    return {
        "volid": str(listed.volume.volume_id),
        "reference": image.name,
        "digest": str(image.digest),
        "size": image.manifest.size_bytes,
        "shared": shared.get(listed.volume.volume_id, 0),
        "layers": len(image.manifest.layers),
        "architecture": image.config.architecture,
        "created": image.config.created or None,
        "ctime": int(listed.volume.created_at),
    }
