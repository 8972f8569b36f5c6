"""Where one can go: the pages that concern everything (tabs of "Datacenter", the bar on phones) and what the palette offers.

A new page is one entry here. Entries are shown to whom they are of use; pages themselves check again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from appliance.web.pages import backups
from appliance.web.pages.settings import SETTINGS
from appliance.web.pages.viewer import Viewer

Crumb = tuple[str, str]
"""A word and where it leads; the last one leads nowhere ("")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """One page that concerns everything. `search` are other words it is found by; `seen_by` whom it is of use to."""

    id: str
    href: str
    icon: str
    word: str
    search: str = ""
    seen_by: Callable[[Viewer], bool] = lambda viewer: True
    is_tab: bool = True
    in_bottom_bar: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One line of the palette: a page (`href`) or a dialog (`dialog`)."""

    word: str
    note: str
    icon: str
    search: str = ""
    href: str = ""
    dialog: str = ""


def sees_storage(viewer: Viewer) -> bool:
    """Whether there is a storage to show, or one may be added."""
    return bool(viewer.storages()) or viewer.may("/storage", "Datastore.Allocate")


def sees_mappings(viewer: Viewer) -> bool:
    """Whether the page of mappings is of use to the viewer."""
    return any(viewer.may("/mapping/dir", f"Mapping.{name}") for name in ("Use", "Modify", "Audit"))


AREAS: Final = (
    Area(id="overview", href="/overview", icon="layout-dashboard", word="Overview", in_bottom_bar=True,
         search="datacenter health capacity"),
    Area(id="guests", href="/", icon="monitor", word="Guests", in_bottom_bar=True,
         search="virtual machines containers list"),
    Area(id="storage", href="/storage", icon="hard-drive", word="Storage", in_bottom_bar=True,
         search="volumes iso templates images uploads", seen_by=sees_storage),
    Area(id="oci", href="/oci", icon="layers", word="OCI images",
         search="docker registry pull push container images layers", seen_by=lambda viewer: bool(viewer.storages())),
    Area(id="node", href="/node", icon="server", word="Node", is_tab=False, in_bottom_bar=True, search="host",
         seen_by=lambda viewer: viewer.sees_node),
    Area(id="access", href="/access", icon="users", word="Access",
         search="users groups roles permissions acl pools tokens two-factor"),
    Area(id="consoles", href="/consoles", icon="grid-2x2", word="Consoles", search="tiles terminals displays"),
    Area(id="mappings", href="/mappings", icon="folder-symlink", word="Resource mappings",
         search="directories shared virtiofs virtio-fs", seen_by=sees_mappings),
    Area(id="account", href="/account", icon="user", word="My account", is_tab=False,
         search="password two-factor tokens language theme settings"),
    Area(id="audit", href="/audit", icon="scroll-text", word="Audit log", search="history who changed",
         seen_by=lambda viewer: viewer.may("/", "Sys.Audit")),
    Area(id="settings", href="/settings", icon="settings", word="Settings", search="options cluster preferences",
         seen_by=lambda viewer: viewer.may("/", "Sys.Audit")),
    Area(id="api", href="/api-explorer", icon="book-open", word="API", search="reference documentation explorer try"),
)  # fmt: skip
"""In the order of the tabs."""
NODE_TABS: Final[Mapping[str, str]] = {
    "summary": "Summary", "hardware": "Hardware", "disks": "Disks", "network": "Network", "services": "Services",
    "system": "System", "tasks": "Tasks", "shell": "Shell",
}  # fmt: skip
NODE_SEARCH: Final = {"system": "host node time zone dns resolver certificates tls fingerprint"}
CREATIONS: Final = (
    Place(word="Create a virtual machine", note="Action", icon="plus", search="new vm", dialog="/dialogs/create-vm"),
    Place(word="Create a container", note="Action", icon="plus", search="new ct lxc", dialog="/dialogs/create-ct"),
    Place(word="Create an application container", note="Action", icon="plus", search="new oci docker app",
          dialog="/dialogs/create-app"),
)  # fmt: skip
ADD_STORAGE: Final = Place(
    word="Add a storage", note="Action", icon="plus", search="new directory disk nfs", dialog="/dialogs/add-storage"
)
BACK_UP: Final = Place(
    word="Back up guests",
    note="Action",
    icon="archive",
    search="vzdump backup several all pool",
    dialog="/dialogs/backup",
)


NODE_PLACES: Final = tuple(
    Place(word=word, note="Node", icon="server", search=NODE_SEARCH.get(name, "host node"), href=f"/node/{name}")
    for name, word in NODE_TABS.items()
    if name != "summary"
)
SETTING_PLACES: Final = tuple(
    Place(
        word=each.word,
        note="Setting",
        icon="settings",
        search=f"{each.name} option",
        href=f"/settings#setting-{each.name}",
    )
    for each in SETTINGS
)


def trail(*before: Crumb, here: str) -> Sequence[Crumb]:
    """Breadcrumbs from "Datacenter" over `before` to `here`."""
    return [("Datacenter", "/overview"), *before, (here, "")]


def areas(viewer: Viewer) -> Sequence[Area]:
    """The areas of use to the viewer."""
    return [area for area in AREAS if area.seen_by(viewer)]


def places(viewer: Viewer, known: Sequence[Area]) -> Sequence[Place]:
    """What the palette offers besides guests, nodes, storages and tags."""
    pages = [Place(word=area.word, note="Page", icon=area.icon, search=area.search, href=area.href) for area in known]
    if viewer.sees_node:
        pages += NODE_PLACES
    if any(area.id == "settings" for area in known):
        pages += SETTING_PLACES
    if backups.targets(viewer):
        pages += [BACK_UP]
    if viewer.may("/storage", "Datastore.Allocate"):
        pages += [ADD_STORAGE]
    return [*pages, *(CREATIONS if viewer.may_create() else ())]


def words() -> Sequence[str]:
    """What templates translate at run time."""
    shown = [area.word for area in AREAS]
    shown += [place.word for place in (*CREATIONS, BACK_UP, ADD_STORAGE, *NODE_PLACES, *SETTING_PLACES)]
    hints = [setting.hint for setting in SETTINGS] + [setting.group for setting in SETTINGS]
    return ["Datacenter", "Page", "Action", "Node", "Setting", "Set-up", *shown, *hints]
