"""What needs somebody's attention: what is wrong now, and what has failed lately. Shown by the bell and the overview.

Rules are pure: values in, notices out. Thresholds are those of the meters (`render.level`), so that a red bar and a
notice always agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from appliance.web.pages import render
from appliance.web.pages.viewer import Viewer

if TYPE_CHECKING:
    from appliance.model.volume import StorageUsage
    from appliance.services.guest_view import GuestView
    from appliance.services.node import NodeStatus
    from appliance.services.storage_config import StorageConfig
    from appliance.services.task_records import TaskInfo

RECENT_S: Final = 24 * 3600
FAILURES_LIMIT: Final = 20
GUESTS_LIMIT: Final = 20


class Severity(StrEnum):
    """How bad it is."""

    BAD = "bad"
    WARN = "warn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One line. `href` leads to the object; `upid` to a task's log; `time` is when it happened, None for "now"."""

    severity: Severity
    subject: str
    text: str
    href: str = ""
    upid: str = ""
    time: float | None = None


def of_node(name: str, status: NodeStatus | None) -> Sequence[Notice]:
    """A host that runs short of something."""
    if status is None:
        return ()
    amounts = (
        ("Memory", status.memory_used_bytes, status.memory_total_bytes),
        ("Swap", status.swap_used_bytes, status.swap_total_bytes),
        ("The root file system", status.rootfs_used_bytes, status.rootfs_total_bytes),
    )
    return [
        Notice(severity=severity, subject=name, href="/node", text=f"{what} is {render.percent(used / total)} used")
        for what, used, total in amounts
        if total and (severity := _severity(used / total)) is not None
    ]


def of_storage(config: StorageConfig, usage: StorageUsage | None) -> Sequence[Notice]:
    """A storage that does not work, or is nearly full."""
    href = f"/storage/{config.storage_id}"
    if config.enabled and config.problem:
        return [Notice(severity=Severity.BAD, subject=config.storage_id, href=href, text=config.problem)]
    if usage is None or not usage.total_bytes:
        return ()
    severity = _severity(usage.used_bytes / usage.total_bytes)
    if severity is None:
        return ()
    text = f"{render.size(usage.available_bytes)} free of {render.size(usage.total_bytes)}"
    return [Notice(severity=severity, subject=config.storage_id, href=href, text=text)]


def of_guests(guests: Iterable[GuestView]) -> Sequence[Notice]:
    """Guests whose configuration is not understood, the first `GUESTS_LIMIT`."""
    found = [
        Notice(severity=Severity.BAD, subject=guest.name, href=f"/guests/{guest.guest_id}", text=guest.problem)
        for guest in guests
        if guest.problem
    ]
    return found[:GUESTS_LIMIT]


def of_tasks(failed: Iterable[TaskInfo]) -> Sequence[Notice]:
    """What has failed; the newest first, as they come."""
    return [
        Notice(
            severity=Severity.BAD,
            subject=render.task_title(task),
            text=task.status or "failed",
            upid=task.upid,
            time=task.endtime or task.starttime,
        )
        for task in failed
    ]


def _severity(ratio: float) -> Severity | None:
    return {"full": Severity.BAD, "high": Severity.WARN, "": None}[render.level(ratio)]


async def present(viewer: Viewer) -> Sequence[Notice]:
    """What is wrong now, as far as the viewer may see it."""
    found: list[Notice] = []
    if viewer.sees_node:
        found += of_node(viewer.node, await viewer.services.node.status())
        if problem := viewer.services.network.problem:
            found.append(Notice(severity=Severity.BAD, subject="Network", href="/node/network", text=problem))
    for config in viewer.storages():
        found += of_storage(config, viewer.services.storage.cached_usage(config.storage_id))
    found += of_guests(viewer.guests())
    return found


async def recent(viewer: Viewer) -> Sequence[Notice]:
    """Failures of the last day: everybody's with Sys.Audit on the node, else one's own."""
    user = None if viewer.sees_node else viewer.identity.auth_id
    since = viewer.services.clock.now() - RECENT_S
    return of_tasks(await viewer.services.tasks.list(errors=True, since=since, limit=FAILURES_LIMIT, user=user))
