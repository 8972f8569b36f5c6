"""The resource tree's rows, and what the palette searches: every node, storage, pool and guest the viewer may see, flat.

The browser groups them (by node, kind, pool or tag) and draws only the rows on its screen (`static/js/tree.js`), so that
a thousand guests cost one list. A page that has a list already names its digest, and is sent what differs only.
Rows carry no figures: they change when something is made, renamed, moved, tagged, started or stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from appliance.web.pages.viewer import Viewer

if TYPE_CHECKING:
    from appliance.services.guest_view import GuestView

DIGEST_LENGTH: Final = 16


class TreeRow(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One object. `id` is the API's ("qemu/100", "storage/pve1/local"); `state` of a node or storage is online or offline."""

    id: str
    name: str
    state: str
    node: str = ""
    pool: str = ""
    tags: tuple[str, ...] = ()
    template: bool = False


class TreeChange(msgspec.Struct, tag_field="kind", tag="tree", kw_only=True):
    """What a page's tree must take over. `whole`: the rows are all there are; else they replace their namesakes."""

    rows: Sequence[TreeRow]
    digest: str
    whole: bool = False
    gone: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Tree:
    """All rows of one viewer at one moment; pages that show the same share it."""

    rows: Sequence[TreeRow]
    by_id: Mapping[str, TreeRow]
    digest: str


def of(viewer: Viewer) -> Tree:
    """The viewer's tree now."""

    def make() -> Tree:
        found = rows(viewer)
        return Tree(found, {row.id: row for row in found}, digest(found))

    return viewer.kept.recall(viewer, "tree", make)


def change(viewer: Viewer, before: Tree, after: Tree) -> TreeChange | None:
    """What a page that has `before` must take over, computed once for all that have it."""
    if before.digest == after.digest:
        return None
    return viewer.kept.recall(viewer, ("tree since", before.digest), lambda: difference(before.by_id, after.rows))


def rows(viewer: Viewer) -> Sequence[TreeRow]:
    """Nodes, storages, pools, guests, in this order and by name."""
    guests = viewer.guests()
    nodes = sorted({viewer.node} | {guest.node for guest in guests})
    found = [
        TreeRow(id=f"node/{name}", name=name, state="online" if name == viewer.node else "unknown", node=name)
        for name in nodes
    ]
    found += [
        TreeRow(
            id=f"storage/{viewer.node}/{each.storage_id}",
            name=each.storage_id,
            state="offline" if each.problem or not each.enabled else "online",
            node=viewer.node,
        )
        for each in viewer.storages()
    ]
    found += [TreeRow(id=f"pool/{name}", name=name, state="") for name in viewer.pools()]
    found += [guest_row(guest) for guest in guests]
    return found


def guest_row(guest: GuestView) -> TreeRow:
    """One guest's."""
    return TreeRow(
        id=f"{guest.kind.value}/{guest.guest_id}",
        name=guest.name,
        state=guest.state.value,
        node=guest.node,
        pool=guest.pool or "",
        tags=tuple(guest.tags),
        template=guest.template,
    )


def digest(found: Sequence[TreeRow]) -> str:
    """Names a list of rows."""
    return hashlib.sha256(msgspec.json.encode(found)).hexdigest()[:DIGEST_LENGTH]


def difference(before: Mapping[str, TreeRow], after: Sequence[TreeRow]) -> TreeChange | None:
    """What a page that has `before` must take over; None when nothing. Pure."""
    changed = [row for row in after if before.get(row.id) != row]
    gone = before.keys() - {row.id for row in after}
    if not changed and not gone:
        return None
    return TreeChange(rows=changed, gone=sorted(gone), digest=digest(after))
