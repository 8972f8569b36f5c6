"""The dialog that makes an application container: first an image (one that is there, or one to pull), then everything the
image says of its processes, filled in and open to change. What is left as the image has it is not sent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import web

from appliance.errors import ApplianceError, InvalidParameter
from appliance.model.guest import GuestKind
from appliance.model.volume import ContentType, VolumeId
from appliance.services.guest_creation import with_image
from appliance.services.images import archive_name
from appliance.storage.oci.archive import Image
from appliance.storage.oci.reference import Reference
from appliance.web.pages import contexts, creation, forms, oci
from appliance.web.pages.forms import Input
from appliance.web.pages.visit import Visit, visited

SECTIONS: Final[Sequence[tuple[str, Sequence[str]]]] = (
    ("Program", ("entrypoint", "app-user", "app-workdir", "app-stopsignal", "app-terminal", "env")),
    ("Health", ("app-health",)),
    ("Resources", ("swap", "cpulimit", "cpuunits", "pids")),
    ("DNS", ("nameserver", "searchdomain")),
    ("Options", ("app-labels", "tags", "onboot", "startup", "protection", "timezone", "description")),
)
_NOT_IN_A_HOST_NAME = re.compile(r"[^a-z0-9-]+")


@visited
async def create_app(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/create-app, …?image=VOLID, …?reference=REFERENCE&storage=ID (one that has just been pulled)"""
    viewer, query = visit.viewer, visit.request.query
    wanted = query.get("image", "") or _pulled(query)
    if not wanted:
        context = await oci.images(viewer) | oci.pull_context(viewer)
        return await visit.part("dialogs/create_app_image.html", context)
    volume_id, image = await oci.find(viewer, wanted)
    context = await creation.offers(viewer, GuestKind.LXC, ContentType.ROOTDIR)
    keys, problem = image_keys(image)
    context |= {
        "volume": volume_id, "image": image, "problem": problem, "host_name": host_name(image),
        "ports": inputs("app-publish", keys, image), "restart": inputs("restart", keys, image),
        "sections": [(word, [each for key in names for each in inputs(key, keys, image)]) for word, names in SECTIONS],
        "may_publish": viewer.may("/", "Sys.Modify"),
    }  # fmt: skip
    return await visit.part("dialogs/create_app.html", context)


def image_keys(image: Image) -> tuple[Mapping[str, str], str]:
    """The keys an image sets, and what is to be given instead where it sets something that cannot be."""
    try:
        keys, lost = with_image(image, {})
    except ApplianceError as error:
        words = error.errors.values() if isinstance(error, InvalidParameter) else (error.message,)
        return {}, "; ".join(words)
    return keys, "; ".join(lost)


def inputs(key: str, keys: Mapping[str, str], image: Image) -> Sequence[Input]:
    """The inputs of a key, with what the image sets."""
    ports = {"app-publish": [(port, port) for port in image.config.exposed_ports]}
    return forms.inputs_of(GuestKind.LXC, key, keys.get(key, ""), choices=ports, label_of=contexts.label_of)


def host_name(image: Image) -> str:
    """A host name after an image: "docker.io/library/nginx:1.27" is "nginx"; "" where its name has no letters."""
    bare = image.name.partition("@")[0].rpartition("/")[2].partition(":")[0]
    return _NOT_IN_A_HOST_NAME.sub("-", bare.lower()).strip("-")[:63]


def _pulled(query: Mapping[str, str]) -> str:
    if not query.get("reference"):
        return ""
    stem = Reference.parse(query["reference"]).file_stem
    return str(VolumeId(query.get("storage", "local"), f"{ContentType.VZTMPL}/{archive_name(stem)}"))
