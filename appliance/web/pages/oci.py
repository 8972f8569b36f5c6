"""OCI images: those on the storages the viewer may see, the registries that have settings, and the dialogs for both."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web

from appliance.errors import ApplianceError, NotFound
from appliance.model.guest import GuestKind
from appliance.model.volume import ContentType, VolumeId
from appliance.services import image_build
from appliance.services.guest_config import applications
from appliance.services.images import ListedImage, shared_bytes
from appliance.services.storage_config import StorageConfig
from appliance.storage.oci.archive import Image
from appliance.storage.oci.credentials import RegistryAccess, Transport
from appliance.threads import to_the_end
from appliance.web.pages.contexts import Context
from appliance.web.pages.viewer import Viewer
from appliance.web.pages.visit import Visit, visited

TRANSPORT_WORDS: Mapping[Transport, str] = {
    Transport.VERIFIED: "Verified (https)",
    Transport.UNVERIFIED: "Whoever answers (https)",
    Transport.PLAIN: "Not encrypted (http)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLine:
    """An image in the list; `used_by` are guests the viewer may see."""

    volume_id: VolumeId
    image: Image
    created_at: float
    size_bytes: int
    shared_bytes: int
    used_by: Sequence[int]
    may_delete: bool
    may_push: bool

    @property
    def title(self) -> str:
        """What it was pulled as; for an archive that does not say, its file."""
        return self.image.name or self.volume_id.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryLine:
    """How a registry is reached. Nothing secret."""

    registry: str
    transport: str
    transport_word: str
    username: str
    has_password: bool
    has_ca: bool


async def images(viewer: Viewer) -> Context:
    """The images of the storages that can be read. Also pushed."""
    found: list[ListedImage] = []
    problems: list[str] = []
    for storage in holding(viewer):
        try:
            found += await viewer.services.images.list(storage.storage_id)
        except ApplianceError as error:
            problems.append(error.message)
    shared, users, reachable = shared_bytes(found), users_of(viewer), pullable(viewer)
    lines = [_line(viewer, each, shared, users, reachable) for each in found]
    lines.sort(key=lambda line: (line.title, str(line.volume_id)))
    return {
        "image_lines": lines,
        "image_problems": problems,
        "may_pull": bool(reachable),
        "may_create": viewer.may_create(),
        "total_bytes": _together(found),
    }


async def registries(viewer: Viewer) -> Context:
    """The registries with settings, for who may know them; None for others."""
    if not viewer.may("/", "Sys.Audit"):
        return {"registry_lines": None, "may_set": False}
    found = await to_the_end(viewer.services.images.registries.all)
    return {"registry_lines": [_registry(each) for each in found], "may_set": viewer.may("/", "Sys.Modify")}


def holding(viewer: Viewer) -> Sequence[StorageConfig]:
    """The storages the viewer may see, on which images can lie."""
    return [
        each for each in viewer.storages()
        if each.enabled and not each.problem and ContentType.VZTMPL in each.content_types
    ]  # fmt: skip


def pullable(viewer: Viewer) -> Sequence[str]:
    """The storages to which the viewer may pull."""
    if not viewer.may(f"/nodes/{viewer.node}", "Sys.AccessNetwork"):
        return []
    names = [each.storage_id for each in holding(viewer)]
    return [name for name in names if viewer.may(f"/storage/{name}", "Datastore.AllocateTemplate")]


def users_of(viewer: Viewer) -> Mapping[str, Sequence[int]]:
    """Which of the guests the viewer may see are made of an image, by its digest."""
    found: dict[str, list[int]] = {}
    for guest in viewer.guests():
        if guest.kind is not GuestKind.LXC:
            continue
        config, _ = viewer.services.guests.config(guest.guest_id)
        if applications.is_application(config):
            found.setdefault(config[applications.IMAGE_KEY].rpartition("@")[2], []).append(guest.guest_id)
    return found


async def find(viewer: Viewer, text: str) -> tuple[VolumeId, Image]:
    """The image a volume is. Raises `InvalidParameter`, `PermissionDenied`, `NotFound`."""
    volume_id = VolumeId.parse(text)
    viewer.storage(volume_id.storage)
    return volume_id, await viewer.services.images.inspect(volume_id)


@visited
async def show(visit: Visit) -> web.StreamResponse:
    """GET /oci"""
    viewer = visit.viewer
    context = await images(viewer) | await registries(viewer)
    context["cleanable"] = _cleanable(viewer)
    context["may_build"] = viewer.may("/", "Sys.Modify")
    return await visit.page("oci", active="oci", title="OCI images", topics="oci", **context)


@visited
async def pull(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/oci/pull"""
    return await visit.part("dialogs/oci_pull.html", pull_context(visit.viewer))


def pull_context(viewer: Viewer) -> Context:
    """What a form that pulls offers."""
    return {"node": viewer.node, "storages": pullable(viewer), **_credentials(viewer)}


@visited
async def push(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/oci/push?volume=VOLID"""
    volume_id, image = await find(visit.viewer, visit.request.query.get("volume", ""))
    context = {"volume": volume_id, "image": image, **_credentials(visit.viewer)}
    return await visit.part("dialogs/oci_push.html", context)


@visited
async def details(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/oci/details?volume=VOLID"""
    volume_id, image = await find(visit.viewer, visit.request.query.get("volume", ""))
    return await visit.part("dialogs/oci_details.html", {"volume": volume_id, "image": image, "config": image.config})


@visited
async def delete(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/oci/delete?volume=VOLID"""
    volume_id, image = await find(visit.viewer, visit.request.query.get("volume", ""))
    context = {"volume": volume_id, "image": image, "used_by": users_of(visit.viewer).get(str(image.digest), ())}
    return await visit.part("dialogs/oci_delete.html", context)


@visited
async def collect(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/oci/collect"""
    return await visit.part("dialogs/oci_collect.html", {"storages": _cleanable(visit.viewer)})


@visited
async def build(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/oci/build"""
    there = await asyncio.to_thread(shutil.which, image_build.PROGRAM) is not None
    storages = [each.storage_id for each in holding(visit.viewer)]
    return await visit.part(
        "dialogs/oci_build.html", {"storages": storages, "program": image_build.PROGRAM, "there": there}
    )


@visited
async def registry(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/oci/registry?registry=HOST"""
    name = visit.request.query.get("registry", "")
    lines = await registries(visit.viewer)
    known = [each for each in lines["registry_lines"] or () if each.registry == name]  # type: ignore[attr-defined]
    if name and not known:
        raise NotFound(f"registry '{name[:100]}'")
    context = {"known": known[0] if known else None, "transports": TRANSPORT_WORDS}
    return await visit.part("dialogs/oci_registry.html", context)


@visited
async def forget_registry(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/oci/forget?registry=HOST"""
    return await visit.part("dialogs/oci_forget.html", {"registry": visit.request.query.get("registry", "")[:255]})


def _line(
    viewer: Viewer,
    listed: ListedImage,
    shared: Mapping[VolumeId, int],
    users: Mapping[str, Sequence[int]],
    reachable: Sequence[str],
) -> ImageLine:
    volume_id, image = listed.volume.volume_id, listed.image
    path = f"/storage/{volume_id.storage}"
    return ImageLine(
        volume_id=volume_id,
        image=image,
        created_at=listed.volume.created_at,
        size_bytes=image.manifest.size_bytes,
        shared_bytes=shared.get(volume_id, 0),
        used_by=users.get(str(image.digest), ()),
        may_delete=viewer.may(path, "Datastore.Allocate"),
        may_push=volume_id.storage in reachable,
    )


def _together(found: Sequence[ListedImage]) -> int:
    """What all images take as they are transferred: what they share counts once a storage."""
    sizes = {
        (each.volume.volume_id.storage, blob.digest): blob.size_bytes
        for each in found
        for blob in (each.image.manifest.config, *each.image.manifest.layers)
    }
    return sum(sizes.values())


def _cleanable(viewer: Viewer) -> Sequence[str]:
    names = [each.storage_id for each in holding(viewer)]
    return [name for name in names if viewer.may(f"/storage/{name}", "Datastore.Allocate")]


def _credentials(viewer: Viewer) -> Context:
    return {"may_set": viewer.may("/", "Sys.Modify"), "transports": TRANSPORT_WORDS}


def _registry(access: RegistryAccess) -> RegistryLine:
    return RegistryLine(
        registry=access.registry,
        transport=access.transport.value,
        transport_word=TRANSPORT_WORDS[access.transport],
        username=access.username,
        has_password=bool(access.password),
        has_ca=bool(access.ca),
    )
