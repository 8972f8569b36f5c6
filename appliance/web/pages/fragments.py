"""The parts of a page that change by themselves, by topic. A page's websocket names its topics; this renders them.

    tasks                     the tasks drawer
    host · node               the node's figures, small and large
    guests                    the list, row by row
    guest:ID:TAB              head and tab of a guest's page
    storage:ID:CONTENT        the list of volumes
    log:UPID                  a task's log, line by line

Each fragment is one element with an id, which replaces the element of that id (`static/js/live.js`);
`data-push="append"` adds its children instead. A fragment that would be sent unchanged is not sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from appliance import events as bus
from appliance.errors import ApplianceError
from appliance.model.guest import GuestState
from appliance.web.pages import contexts
from appliance.web.pages.render import Voice
from appliance.web.pages.viewer import Viewer

if TYPE_CHECKING:
    from appliance.services.guest_view import GuestView

log = logging.getLogger(__name__)

TOPIC_LIMIT = 12
LOG_LINES_LIMIT = 1000
ROWS_AT_ONCE = 20
_TASK_EVENTS = (bus.TaskStarted, bus.TaskProgressed, bus.TaskFinished)
_GUEST_EVENTS = (bus.GuestStateChanged, bus.GuestConfigChanged, bus.GuestListChanged)
GuestEvent = bus.GuestStateChanged | bus.GuestConfigChanged | bus.GuestListChanged
TaskEvent = bus.TaskStarted | bus.TaskProgressed | bus.TaskFinished


@dataclass(slots=True)
class PageFeed:
    """What one open page has been sent, and what it must be sent now. Owned by its websocket."""

    viewer: Viewer
    renderer: Voice
    topics: tuple[str, ...] = ()
    _sent: dict[str, int] = field(default_factory=dict)
    _log_lines: dict[str, int] = field(default_factory=dict)

    async def follow(self, topics: Iterable[str]) -> Sequence[str]:
        """Follow these topics from now on; returns the fragments of those that are new."""
        wanted = tuple(dict.fromkeys(topics))[:TOPIC_LIMIT]
        new = [topic for topic in wanted if topic not in self.topics]
        for topic in set(self.topics) - set(wanted):
            self._log_lines.pop(topic, None)
        self.topics = wanted
        return await self._collect(self._whole(topic) for topic in new)

    async def after(self, batch: Sequence[bus.Event]) -> Sequence[str]:
        """What the events change on the page. After `Lagged` or a change of permissions: everything."""
        if any(isinstance(event, (bus.Lagged, bus.AccessChanged)) for event in batch):
            self._sent.clear()
            return await self._collect(self._whole(topic) for topic in self.topics)
        return await self._collect(self._changed(topic, batch) for topic in self.topics)

    async def _collect(self, parts: Iterable[Awaitable[Sequence[str]]]) -> Sequence[str]:
        """All fragments of `parts`; a topic the viewer may not see, or that is gone, yields none."""
        found: list[str] = []
        for part in parts:
            try:
                found += await part
            except ApplianceError as error:
                log.debug("page of %s: %s", self.viewer.identity.auth_id, error)
        return found

    # --- which fragments ----------------------------------------------------------------------------------------------

    async def _whole(self, topic: str) -> Sequence[str]:
        match topic.split(":", 1)[0]:
            case "tasks":
                return await self._render("tasks", await contexts.tasks(self.viewer))
            case "host":
                return await self._render("host", await contexts.host(self.viewer))
            case "node":
                return await self._render("node", await contexts.node(self.viewer))
            case "guests":
                return await self._guest_list()
            case "guest":
                return await self._guest(*_guest_topic(topic))
            case "storage":
                return await self._storage(topic)
            case "log":
                return await self._log(topic)
        return ()

    async def _changed(self, topic: str, batch: Sequence[bus.Event]) -> Sequence[str]:
        whole: Callable[[bus.Event], bool]
        match topic.split(":", 1)[0]:
            case "guests":
                return await self._guest_rows(batch)
            case "tasks":

                def whole(event: bus.Event) -> bool:
                    return isinstance(event, _TASK_EVENTS)
            case "host" | "node":

                def whole(event: bus.Event) -> bool:
                    return isinstance(event, bus.NodeStatsSampled)
            case "guest":
                return await self._guest_after(topic, batch)
            case "storage":
                storage = topic.split(":")[1]

                def whole(event: bus.Event) -> bool:
                    return isinstance(event, bus.StorageContentChanged) and event.storage == storage
            case "log":
                upid = topic.partition(":")[2]

                def whole(event: bus.Event) -> bool:
                    return isinstance(event, _TASK_EVENTS) and event.upid == upid
            case _:
                return ()
        return await self._whole(topic) if any(map(whole, batch)) else ()

    # --- guests -------------------------------------------------------------------------------------------------------

    async def _guest_list(self) -> Sequence[str]:
        self._forget("guest_row:")
        rows = await self._render("guest_rows", await contexts.guest_list(self.viewer))
        return [*rows, *await self._render("guest_counts", contexts.guest_counts(self.viewer))]

    async def _guest_rows(self, batch: Sequence[bus.Event]) -> Sequence[str]:
        if any(isinstance(event, bus.GuestListChanged) for event in batch):
            self._sent.pop("guest_rows:", None)
            return await self._guest_list()
        changed = {int(event.guest_id) for event in batch if isinstance(event, _GUEST_EVENTS)}
        sampled = any(isinstance(event, bus.GuestStatsSampled) for event in batch)
        if not changed and not sampled:
            return ()
        found: list[str] = []
        for guest in self.viewer.guests():
            if guest.guest_id not in changed and not (sampled and guest.state is GuestState.RUNNING):
                continue
            found += await self._guest_row(guest)
            if len(found) % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)  # a thousand rows take a while: others have their turn in between
        if changed:
            found += await self._render("guest_counts", contexts.guest_counts(self.viewer))
        return found

    async def _guest_row(self, guest: GuestView) -> Sequence[str]:
        """Rendered once for all pages that show the same."""
        context = contexts.guest_row(self.viewer, guest)
        key = contexts.guest_row_key(guest, self.viewer.rights(guest.guest_id))
        return self._unless_sent(
            f"guest_row:{guest.guest_id}", await self.renderer.shared("fragments/guest_row.html", context, key)
        )

    async def _guest(self, guest_id: int, tab: str) -> Sequence[str]:
        found = [*await self._render("guest_head", contexts.guest_head(self.viewer, guest_id))]
        match tab:
            case "summary":
                found += await self._render("guest_summary", contexts.guest_head(self.viewer, guest_id))
            case "hardware":
                found += await self._render("guest_config", contexts.guest_config_rows(self.viewer, guest_id))
            case "tasks":
                found += await self._render("guest_tasks", await contexts.guest_tasks(self.viewer, guest_id))
        return found

    async def _guest_after(self, topic: str, batch: Sequence[bus.Event]) -> Sequence[str]:
        guest_id, tab = _guest_topic(topic)
        mine = [event for event in batch if isinstance(event, _GUEST_EVENTS) and event.guest_id == guest_id]
        if any(isinstance(event, bus.GuestListChanged) and not event.exists for event in mine):
            return await self._render("guest_gone", {"guest_id": guest_id})
        sampled = tab == "summary" and any(isinstance(event, bus.GuestStatsSampled) for event in batch)
        tasks = tab == "tasks" and any(isinstance(event, _TASK_EVENTS) for event in batch)
        return await self._guest(guest_id, tab) if mine or sampled or tasks else ()

    # --- storages and logs --------------------------------------------------------------------------------------------

    async def _storage(self, topic: str) -> Sequence[str]:
        _, storage, content = (*topic.split(":"), "", "")[:3]
        return await self._render(
            "storage_content", await contexts.storage_content(self.viewer, storage, content), key=content
        )

    async def _log(self, topic: str) -> Sequence[str]:
        upid = topic.partition(":")[2]
        task = await self.viewer.task(upid)
        start = self._log_lines.get(topic, 0)
        lines, total = await self.viewer.services.tasks.read_log(upid, start=start, limit=LOG_LINES_LIMIT)
        if total > start + len(lines):  # more than one message holds: show the end, which is what people look for
            start = max(start, total - LOG_LINES_LIMIT)
            lines, total = await self.viewer.services.tasks.read_log(upid, start=start, limit=LOG_LINES_LIMIT)
        fresh = topic not in self._log_lines
        self._log_lines[topic] = start + len(lines)
        return await self._render("task_log", {"task": task, "lines": lines, "fresh": fresh, "start": start})

    # --- rendering ----------------------------------------------------------------------------------------------------

    async def _render(self, name: str, context: contexts.Context, *, key: str = "") -> Sequence[str]:
        """The fragment, unless the page has it already."""
        html = await self.renderer.fragment(f"fragments/{name}.html", context)
        return self._unless_sent(f"{name}:{key}", html)

    def _unless_sent(self, known: str, html: str) -> Sequence[str]:
        if self._sent.get(known) == hash(html):
            return ()
        self._sent[known] = hash(html)
        return (html,)

    def _forget(self, prefix: str) -> None:
        for key in [key for key in self._sent if key.startswith(prefix)]:
            del self._sent[key]


def _guest_topic(topic: str) -> tuple[int, str]:
    """ "guest:100:summary" as (100, "summary"); a number that is none becomes 0, which no guest has."""
    _, guest_id, tab = (*topic.split(":"), "", "")[:3]
    return (int(guest_id) if guest_id.isdecimal() and len(guest_id) < 10 else 0), tab
