"""/nodes/{node}/aplinfo: templates. PVE downloads them; this appliance builds them on its own host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from appliance.services.templates import Template
from appliance.web.api.storage import StorageId
from appliance.web.registry import LOGGED_IN, Allow, Call, NodeParams, Resource

api = Resource()


class FetchParams(NodeParams, kw_only=True):
    """POST aplinfo."""

    storage: StorageId
    template: Annotated[str, msgspec.Meta(max_length=255)]


class TemplateRow(msgspec.Struct, kw_only=True):
    """A template. `type` is "lxc" for a container's root, "qemu" for a disk to import (`content` says where it goes)."""

    template: str
    type: str
    content: str
    package: str
    os: str
    version: str
    architecture: str = "amd64"
    section: str = "system"
    source: str = "this host's Debian package sources"
    headline: str
    description: str


@api.get("/nodes/{node}/aplinfo", summary="Templates", allow=LOGGED_IN, returns=list[TemplateRow])
async def list_templates(call: Call, params: NodeParams) -> Sequence[TemplateRow]:
    """Those this host can build."""
    return [_row(template) for template in call.services.templates.list()]


@api.post(
    "/nodes/{node}/aplinfo",
    summary="Build a template",
    allow=Allow("/storage/{storage}", "Datastore.AllocateTemplate"),
    returns=str,
)
async def fetch_template(call: Call, params: FetchParams) -> str:
    """Starts the task that builds it and puts it on a storage; there already, it stays as it is."""
    return await call.services.templates.fetch(params.storage, params.template, user=call.user)


def _row(template: Template) -> TemplateRow:
    recipe, is_ct = template.recipe, template.is_container
    what = "container root with systemd" if is_ct else "disk image with cloud-init, for SeaBIOS and UEFI"
    return TemplateRow(
        template=template.file_name,
        type="lxc" if is_ct else "qemu",
        content=template.content,
        package=f"{recipe.name}-{'standard' if is_ct else 'cloud'}",
        os=recipe.name,
        version=recipe.version,
        headline=f"{recipe.title}: {what}",
        description=f"{recipe.title}, {what}; built here from Debian's packages.",
    )
