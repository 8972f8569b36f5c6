"""The tabs of a guest's page: which there are for whom, and what each shows. Served whole and pushed when they change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.services import guest_config
from appliance.services.guest_config import applications
from appliance.services.permissions import levels
from appliance.web.api.guest_agent_commands import CONTENT_LIMIT
from appliance.web.pages import backups, contexts, hardware, notes, reach
from appliance.web.pages.contexts import Context
from appliance.web.pages.hardware import Tab
from appliance.web.pages.viewer import Viewer

TABS: Final[Mapping[GuestKind, Sequence[str]]] = {
    GuestKind.QEMU: (
        "summary", "console", "display", "inside", "hardware", "cloudinit", "options", "snapshots", "backups", "permissions",
        "tasks",
    ),
    GuestKind.LXC: (
        "summary", "logs", "console", "inside", "hardware", "options", "snapshots", "backups", "permissions", "tasks",
    ),
}  # fmt: skip
TAB_WORDS: Final[Mapping[str, str]] = {
    "summary": "Summary", "logs": "Logs",
    "console": "Console", "display": "Display", "inside": "Inside", "hardware": "Hardware", "cloudinit": "Cloud-init",
    "options": "Options", "snapshots": "Snapshots", "backups": "Backups", "permissions": "Permissions", "tasks": "Tasks",
}  # fmt: skip
CONTAINER_HARDWARE = "Resources"
CHECK_SHOWN = 300
HEALTH_WORDS: Final = ("starting", "healthy", "unhealthy")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRow:
    """A snapshot in the tree of them, `depth` steps from its root. `is_now` is the present state."""

    name: str
    description: str
    taken_at: float | None
    with_memory: bool
    depth: int
    is_now: bool


@dataclass(frozen=True, slots=True)
class Check:
    """A health check that was made; without `exit_code` it gave no answer."""

    at: float
    exit_code: int | None
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationFacts:
    """What is known of an application container's runs. `health` is "" where nothing checks it; the newest check first."""

    image: str
    ports: str
    restart: str
    health: str
    exit_code: int | None
    exit_detail: str
    finished_at: int | None
    restarts: int
    checks: Sequence[Check]


@dataclass(frozen=True, slots=True)
class Grant:
    """Somebody has a role on the guest, by an entry on `path`."""

    path: str
    subject: str
    kind: str
    role: str
    propagates: bool
    is_own: bool


def tabs(viewer: Viewer, guest_id: int) -> Sequence[tuple[str, str]]:
    """The tabs the viewer may open, with their words."""
    guest = viewer.guest(guest_id)
    may_look = viewer.rights(guest_id).console
    found = [name for name in TABS[guest.kind] if may_look or name not in ("console", "display", "logs")]
    if "logs" in found and not is_application(viewer, guest_id):
        found.remove("logs")
    if guest.template or not reach.rights(viewer, guest_id).any:
        found.remove("inside")
    words = {**TAB_WORDS, "hardware": CONTAINER_HARDWARE} if guest.kind is GuestKind.LXC else TAB_WORDS
    return [(name, words[name]) for name in found]


def is_application(viewer: Viewer, guest_id: int) -> bool:
    """Whether a guest is a container made of an OCI image."""
    guest = viewer.guest(guest_id)
    return guest.kind is GuestKind.LXC and applications.is_application(viewer.services.guests.config(guest.guest_id)[0])


async def context(viewer: Viewer, guest_id: int, tab: str, kind: str = "") -> Context:
    """What the tab shows beside the page's head; of tasks, those of a `kind`. Raises `PermissionDenied`, `NotFound`."""
    if tab == "tasks":
        return await contexts.guest_tasks(viewer, guest_id, kind)
    make = _PARTS.get(tab)
    return await make(viewer, guest_id) if make else {}


def fragment(tab: str) -> str:
    """The template of the tab's part that is pushed, "" where nothing of it changes by itself."""
    if tab in ("hardware", "options", "cloudinit"):
        return "guest_config"
    return {"summary": "guest_summary", "snapshots": "guest_snapshots", "backups": "guest_backups",
            "permissions": "guest_permissions", "tasks": "guest_tasks"}.get(tab, "")  # fmt: skip


async def _configuration(viewer: Viewer, guest_id: int, tab: Tab) -> Context:
    guest = viewer.guest(guest_id)
    guests = viewer.services.guests
    config, digest = guests.config(guest.guest_id)
    waiting = guests.configuration.pending(guest.kind, guest.guest_id)
    rows = hardware.rows(guest.kind, tab, config, waiting, contexts.label_of)
    return {
        **contexts.guest_head(viewer, guest_id),
        "rows": rows,
        "digest": digest,
        "config_tab": str(tab),
        "waiting": [key for row in rows for key in row.waiting_keys],
        "addable": hardware.addable(guest.kind, config) if tab is Tab.HARDWARE else (),
        "has_drive": any(
            "cloudinit" in text for key, text in config.items() if guest_config.is_disk_slot(guest.kind, key)
        ),
    }


async def _summary(viewer: Viewer, guest_id: int) -> Context:
    guest = viewer.guest(guest_id)
    return {
        **contexts.guest_head(viewer, guest_id),
        "notes": notes.to_html(guest.description) if guest.description else "",
        "application": _application(viewer, guest_id) if is_application(viewer, guest_id) else None,
    }


def _application(viewer: Viewer, guest_id: int) -> ApplicationFacts:
    guests = viewer.services.guests
    config, _ = guests.config(viewer.guest(guest_id).guest_id)
    status = guests.applications.status(GuestId(guest_id))
    probes = guests.applications.probes(GuestId(guest_id))
    return ApplicationFacts(
        image=config[applications.IMAGE_KEY],
        ports=config.get("app-publish", ""),
        restart=config.get("restart", "no"),
        health=str(status.get("health") or ""),
        exit_code=_whole(status.get("exit-code")),
        exit_detail=str(status.get("exit-detail") or ""),
        finished_at=_whole(status.get("finished-at")),
        restarts=_whole(status.get("restarts")) or 0,
        checks=[Check(probe.started_at, probe.exit_code, probe.output[:CHECK_SHOWN]) for probe in reversed(probes)],
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


async def _snapshots(viewer: Viewer, guest_id: int) -> Context:
    guest = viewer.guest(guest_id)
    rows = viewer.services.guests.snapshots.list(guest.kind, guest.guest_id)
    return {
        **contexts.guest_head(viewer, guest_id),
        "snapshots": snapshot_tree(rows),
        "may_snapshot": viewer.may(f"/vms/{guest_id}", "VM.Snapshot"),
        "may_roll_back": any(viewer.may(f"/vms/{guest_id}", name) for name in ("VM.Snapshot", "VM.Snapshot.Rollback")),
    }


def snapshot_tree(rows: Sequence[Mapping[str, object]]) -> Sequence[SnapshotRow]:
    """PVE's rows (name, parent, snaptime …; the last is "current") as a tree, children after their parent, older first.

    A parent that is not there makes a root; a cycle, which no store should hold, is shown flat.
    """
    names = {str(row["name"]) for row in rows}
    children: dict[str, list[Mapping[str, object]]] = {}
    for row in sorted(rows, key=lambda row: (row["name"] == "current", _number(row.get("snaptime")))):
        parent = str(row.get("parent") or "")
        children.setdefault(parent if parent in names else "", []).append(row)
    found: list[SnapshotRow] = []
    seen: set[str] = set()

    def visit(parent: str, depth: int) -> None:
        for row in children.get(parent, ()):
            name = str(row["name"])
            if name in seen:
                continue
            seen.add(name)
            found.append(_snapshot_row(row, depth))
            visit(name, depth + 1)

    visit("", 0)
    found += [_snapshot_row(row, 0) for row in rows if str(row["name"]) not in seen]
    return found


def _snapshot_row(row: Mapping[str, object], depth: int) -> SnapshotRow:
    taken = _number(row.get("snaptime"))
    return SnapshotRow(
        name=str(row["name"]),
        description=str(row.get("description") or "") if row["name"] != "current" else "",
        taken_at=taken or None,
        with_memory=bool(row.get("vmstate")),
        depth=depth,
        is_now=row["name"] == "current",
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


async def _backups(viewer: Viewer, guest_id: int) -> Context:
    found, problems = await backups.of_guest(viewer, guest_id)
    return {
        **contexts.guest_head(viewer, guest_id),
        "backups": found,
        "backup_problems": problems,
        "may_back_up": viewer.rights(guest_id).backup and bool(backups.targets(viewer)),
    }


async def _permissions(viewer: Viewer, guest_id: int) -> Context:
    path = f"/vms/{guest_id}"
    guest = viewer.guest(guest_id)
    above = set(levels(path)) | ({"/pool", f"/pool/{guest.pool}"} if guest.pool else set())
    grants = []
    for row in viewer.services.access.acl.list(viewer.identity):
        entry_path = str(row["path"])
        if entry_path != path and (entry_path not in above or not row["propagate"]):
            continue
        grants.append(
            Grant(
                entry_path,
                str(row["ugid"]),
                str(row["type"]),
                str(row["roleid"]),
                bool(row["propagate"]),
                entry_path == path,
            )
        )
    grants.sort(key=lambda grant: (-grant.path.count("/"), grant.path != path, grant.subject))
    return {
        **contexts.guest_head(viewer, guest_id),
        "grants": grants,
        "acl_path": path,
        "may_grant": viewer.may(path, "Permissions.Modify"),
    }


async def _inside(viewer: Viewer, guest_id: int) -> Context:
    limits = {"write_limit": CONTENT_LIMIT, "show_limit": reach.FILE_LIMIT_BYTES}
    return {**reach.now(viewer, guest_id), "may": reach.rights(viewer, guest_id), **limits}


async def _console(viewer: Viewer, guest_id: int) -> Context:
    return {"consoles": consoles(viewer, guest_id)}


def consoles(viewer: Viewer, guest_id: int) -> Sequence[str]:
    """The serial ports a VM has; a container has one console."""
    guest = viewer.guest(guest_id)
    if guest.kind is GuestKind.LXC:
        return ["console"]
    config, _ = viewer.services.guests.config(guest.guest_id)
    return [f"serial{index}" for index in range(4) if f"serial{index}" in config]


def is_up(state: GuestState) -> bool:
    """Whether there is something to look into."""
    return state in (GuestState.RUNNING, GuestState.PAUSED)


def _config_tab(tab: Tab) -> Callable[[Viewer, int], Awaitable[Context]]:
    async def make(viewer: Viewer, guest_id: int) -> Context:
        return await _configuration(viewer, guest_id, tab)

    return make


_PARTS: Final[Mapping[str, Callable[[Viewer, int], Awaitable[Context]]]] = {
    "summary": _summary,
    "hardware": _config_tab(Tab.HARDWARE),
    "options": _config_tab(Tab.OPTIONS),
    "cloudinit": _config_tab(Tab.CLOUD_INIT),
    "snapshots": _snapshots,
    "backups": _backups,
    "permissions": _permissions,
    "console": _console,
    "inside": _inside,
}
