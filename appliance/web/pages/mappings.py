"""The page of resource mappings (directories of the nodes, shared by virtio-fs), and its dialogs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

from appliance.errors import PermissionDenied
from appliance.model.guest import GuestKind
from appliance.web.pages import areas
from appliance.web.pages.viewer import Viewer
from appliance.web.pages.visit import Visit, visited

if TYPE_CHECKING:
    from appliance.services.directory_mappings import DirectoryMapping
    from appliance.services.guest_view import GuestView

_SEEN_BY: Final = ("Mapping.Use", "Mapping.Modify", "Mapping.Audit")


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingRow:
    """One mapping. `problem`: why it cannot be used on this node; `guests`: those that name it and the viewer may see."""

    id: str
    description: str
    paths: Mapping[str, str]
    problem: str
    guests: Sequence[GuestView]
    may_modify: bool


@visited
async def show_list(visit: Visit) -> web.StreamResponse:
    """GET /mappings"""
    viewer = visit.viewer
    mappings = viewer.services.directory_mappings
    used = _used(viewer)
    rows = [
        MappingRow(
            id=stored.id,
            description=stored.value.description,
            paths=stored.value.paths,
            problem=await mappings.problem(stored.value, viewer.node),
            guests=used.get(stored.id, ()),
            may_modify=viewer.may(f"/mapping/dir/{stored.id}", "Mapping.Modify"),
        )
        for stored in await mappings.all()
        if any(viewer.may(f"/mapping/dir/{stored.id}", name) for name in _SEEN_BY)
    ]
    if not rows and not areas.sees_mappings(viewer):
        raise PermissionDenied("You need Mapping.Audit on /mapping/dir for this.")
    may_add = viewer.may("/mapping/dir", "Mapping.Modify")
    return await visit.page("mappings", active="mappings", title="Resource mappings", mappings=rows, may_add=may_add)


@visited
async def edit(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/mapping?id=NAME: a new one without a name."""
    viewer, name = visit.viewer, visit.request.query.get("id", "")
    mapping: DirectoryMapping | None = None
    if name:
        _require(viewer, name)
        mapping = await viewer.services.directory_mappings.get(name)
    paths = dict(mapping.paths) if mapping else {}
    others = {node: path for node, path in sorted(paths.items()) if node != viewer.node}
    context = {"id": name, "mapping": mapping, "paths": paths, "others": others, "node": viewer.node}
    return await visit.part("dialogs/mapping.html", context)


@visited
async def remove(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/mapping/remove?id=NAME"""
    viewer, name = visit.viewer, visit.request.query.get("id", "")
    _require(viewer, name)
    await viewer.services.directory_mappings.get(name)
    return await visit.part("dialogs/remove_mapping.html", {"id": name, "guests": _used(viewer).get(name, ())})


def _require(viewer: Viewer, name: str) -> None:
    """Who may not see it does not learn whether it exists. Raises `PermissionDenied`."""
    if not viewer.may(f"/mapping/dir/{name}", "Mapping.Modify"):
        raise PermissionDenied(f"You need Mapping.Modify on /mapping/dir/{name[:40]} for this.")


def _used(viewer: Viewer) -> Mapping[str, Sequence[GuestView]]:
    """The guests that name each mapping."""
    found: dict[str, list[GuestView]] = {}
    for guest in viewer.guests():
        if guest.kind is not GuestKind.QEMU:
            continue
        config, _ = viewer.services.guests.config(guest.guest_id)
        for name in {_named(text) for key, text in config.items() if key.startswith("virtiofs")}:
            found.setdefault(name, []).append(guest)
    return found


def _named(text: str) -> str:
    """ "data,cache=auto" and "dirid=data" are of the mapping "data"."""
    first = text.partition(",")[0]
    return first.removeprefix("dirid=")
