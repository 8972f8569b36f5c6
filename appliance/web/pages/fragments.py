"""The parts of a page that change by themselves, by topic. A page's websocket names its topics; this renders them.

    tasks                     the tasks drawer; each task's end as data, for scripts that wait for it
    notices                   what needs attention (the bell)
    tree:DIGEST               the resource tree, as data; nothing when the page's rows have this digest
    overview                  the state of everything
    host · node               the node's figures, small and large
    guests:QUERY              the list, row by row: what `guest_window` makes of the query
    series:NAME               new figures of a series (qemu/100), as data for graphs
    guest:ID:TAB[:KIND]       head and tab of a guest's page; of its tasks, those of a kind
    access:TAB                users, groups, roles, permissions, pools; one's own account
    storages                  the list of storages
    storage:ID:CONTENT        the list of volumes
    oci                       the list of images
    log:UPID                  a task's log, line by line

Each fragment is one element with an id, which replaces the element of that id (`static/js/live.js`);
`data-push="append"` adds its children instead, `data-replace` does without comparing. A fragment that would be sent
unchanged is not sent.
Data for scripts are structs, objects with a `kind` on the wire.
"""

from __future__ import annotations

import asyncio
import logging
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from appliance import events as bus
from appliance.errors import ApplianceError
from appliance.model.guest import GuestState
from appliance.web.pages import (
    access_pages,
    contexts,
    datacenter,
    guest_rows,
    guest_tabs,
    guest_window,
    oci,
    storages,
    tree,
)
from appliance.web.pages.render import Voice
from appliance.web.pages.viewer import Viewer
from appliance.web.ws.viewers import ConsoleViewers

if TYPE_CHECKING:
    from appliance.services.guest_view import GuestView

log = logging.getLogger(__name__)

TOPIC_LIMIT = 12
LOG_LINES_LIMIT = 1000
_TASK_EVENTS = (bus.TaskStarted, bus.TaskProgressed, bus.TaskFinished)
_NOTICE_EVENTS = (bus.TaskFinished, bus.NodeStatsSampled, bus.GuestConfigChanged, bus.StorageContentChanged)
_GUEST_EVENTS = (bus.GuestStateChanged, bus.GuestConfigChanged, bus.GuestListChanged)
GuestEvent = bus.GuestStateChanged | bus.GuestConfigChanged | bus.GuestListChanged
TaskEvent = bus.TaskStarted | bus.TaskProgressed | bus.TaskFinished
Fragment = str | msgspec.Struct


class Figures(msgspec.Struct, tag_field="kind", tag="figures", kw_only=True):
    """A new point of a series, for its graphs."""

    series: str
    time: int
    values: Mapping[str, float]


class TaskEnd(msgspec.Struct, tag_field="kind", tag="task", kw_only=True):
    """A task has ended, for the script that waits for it."""

    upid: str
    status: str


@dataclass(slots=True)
class PageFeed:
    """What one open page has been sent, and what it must be sent now. Owned by its websocket."""

    viewer: Viewer
    renderer: Voice
    watching: ConsoleViewers
    topics: tuple[str, ...] = ()
    _sent: dict[str, int] = field(default_factory=dict)
    _log_lines: dict[str, int] = field(default_factory=dict)
    _tree: tree.Tree | None = None
    _window: tuple[int, ...] = ()

    async def follow(self, topics: Iterable[str]) -> Sequence[Fragment]:
        """Follow these topics from now on; returns the fragments of those that are new."""
        wanted = tuple(dict.fromkeys(topics))[:TOPIC_LIMIT]
        new = [topic for topic in wanted if topic not in self.topics]
        for topic in set(self.topics) - set(wanted):
            self._log_lines.pop(topic, None)
        self.topics = wanted
        return await self._collect(self._whole(topic) for topic in new)

    async def after(self, batch: Sequence[bus.Event]) -> Sequence[Fragment]:
        """What the events change on the page. After `Lagged` or a change of permissions: everything."""
        if any(isinstance(event, (bus.Lagged, bus.AccessChanged)) for event in batch):
            self._sent.clear()
            return await self._collect(self._whole(topic) for topic in self.topics)
        return await self._collect(self._changed(topic, batch) for topic in self.topics)

    async def _collect(self, parts: Iterable[Awaitable[Sequence[Fragment]]]) -> Sequence[Fragment]:
        """All fragments of `parts`; a topic the viewer may not see, or that is gone, yields none."""
        found: list[Fragment] = []
        for part in parts:
            try:
                found += await part
            except ApplianceError as error:
                log.debug("page of %s: %s", self.viewer.identity.auth_id, error)
        return found

    # --- which fragments ----------------------------------------------------------------------------------------------

    async def _whole(self, topic: str) -> Sequence[Fragment]:
        match topic.split(":", 1)[0]:
            case "tasks":
                return await self._common("tasks", contexts.tasks)
            case "notices":
                return await self._common("notices", contexts.notice_list)
            case "overview":
                return await self._common("overview", datacenter.overview)
            case "tree":
                return self._whole_tree(topic.partition(":")[2])
            case "host":
                return await self._common("host", contexts.host)
            case "node":
                return await self._common("node", contexts.node)
            case "guests":
                return await self._guest_list(topic)
            case "guest":
                return await self._guest(*_guest_topic(topic))
            case "access":
                return await self._access(topic.partition(":")[2])
            case "storages":
                return await self._common("storages", storages.listing)
            case "storage":
                return await self._storage(topic)
            case "oci":
                return await self._render("oci_images", await oci.images(self.viewer))
            case "log":
                return await self._log(topic)
        return ()

    async def _changed(self, topic: str, batch: Sequence[bus.Event]) -> Sequence[Fragment]:
        whole: Callable[[bus.Event], bool]
        match topic.split(":", 1)[0]:
            case "guests":
                return await self._guest_rows(topic, batch)
            case "tree":
                return self._tree_after(batch)
            case "series":
                return self._figures_after(topic.partition(":")[2], batch)
            case "tasks":
                return await self._tasks_after(batch)
            case "notices":

                def whole(event: bus.Event) -> bool:
                    return isinstance(event, _NOTICE_EVENTS)
            case "overview":

                def whole(event: bus.Event) -> bool:
                    return isinstance(event, (*_GUEST_EVENTS, *_NOTICE_EVENTS, bus.OptionsChanged))
            case "host" | "node":

                def whole(event: bus.Event) -> bool:
                    return isinstance(event, bus.NodeStatsSampled)
            case "guest":
                return await self._guest_after(topic, batch)
            case "storages":

                def whole(event: bus.Event) -> bool:
                    return isinstance(event, (bus.StorageContentChanged, bus.NodeStatsSampled))
            case "storage":
                storage = topic.split(":")[1]

                def whole(event: bus.Event) -> bool:
                    return isinstance(event, bus.StorageContentChanged) and event.storage == storage
            case "oci":

                def whole(event: bus.Event) -> bool:
                    return isinstance(event, (bus.StorageContentChanged, bus.GuestListChanged))
            case "log":
                upid = topic.partition(":")[2]

                def whole(event: bus.Event) -> bool:
                    return isinstance(event, _TASK_EVENTS) and event.upid == upid
            case _:
                return ()
        return await self._whole(topic) if any(map(whole, batch)) else ()

    # --- guests -------------------------------------------------------------------------------------------------------

    async def _guest_list(self, topic: str) -> Sequence[Fragment]:
        self._forget("guest_row")
        context = await contexts.guest_list(self.viewer, _query(topic))
        self._window = tuple(guest.guest_id for guest in _guests_of(context))
        rows = [await guest_rows.row(self.viewer, self.renderer, guest) for guest in _guests_of(context)]
        found = self._unless_sent("guest_rows:", f'<tbody id="guest-rows" data-replace>{"".join(rows)}</tbody>')
        found = [*found, *await self._render("guest_counts", context)]
        return [*found, *await self._render("guest_foot", context)]

    async def _guest_rows(self, topic: str, batch: Sequence[bus.Event]) -> Sequence[Fragment]:
        changed = {int(event.guest_id) for event in batch if isinstance(event, _GUEST_EVENTS)}
        sampled = any(isinstance(event, bus.GuestStatsSampled) for event in batch)
        if not changed and not sampled:
            return ()
        shown = contexts.guest_window_of(self.viewer, _query(topic)).guests
        listed = any(isinstance(event, bus.GuestListChanged) for event in batch)
        if listed or tuple(guest.guest_id for guest in shown) != self._window:
            return await self._guest_list(topic)
        found: list[Fragment] = []
        for guest in shown:
            if guest.guest_id not in changed and not (sampled and guest.state is GuestState.RUNNING):
                continue
            found += await self._guest_row(guest)
            if len(found) % guest_rows.AT_ONCE == 0:
                await asyncio.sleep(0)  # hundreds of rows take a while: others have their turn in between
        if changed:
            found += await self._render("guest_counts", contexts.guest_counts(self.viewer))
        return found

    async def _guest_row(self, guest: GuestView) -> Sequence[Fragment]:
        return self._unless_sent(f"guest_row:{guest.guest_id}", await guest_rows.row(self.viewer, self.renderer, guest))

    # --- frame --------------------------------------------------------------------------------------------------------

    async def _tasks_after(self, batch: Sequence[bus.Event]) -> Sequence[Fragment]:
        """The drawer, and the ends for whoever waits. Events of tasks the viewer may not see never get here."""
        if not any(isinstance(event, _TASK_EVENTS) for event in batch):
            return ()
        ends = [TaskEnd(upid=each.upid, status=each.status) for each in batch if isinstance(each, bus.TaskFinished)]
        return [*await self._common("tasks", contexts.tasks), *ends]

    def _whole_tree(self, known: str) -> Sequence[Fragment]:
        self._tree = now = tree.of(self.viewer)
        return () if now.digest == known else [tree.TreeChange(rows=now.rows, digest=now.digest, whole=True)]

    def _tree_after(self, batch: Sequence[bus.Event]) -> Sequence[Fragment]:
        if not any(isinstance(event, (*_GUEST_EVENTS, bus.StorageContentChanged)) for event in batch):
            return ()
        before, self._tree = self._tree, tree.of(self.viewer)
        if before is None:
            return [tree.TreeChange(rows=self._tree.rows, digest=self._tree.digest, whole=True)]
        change = tree.change(self.viewer, before, self._tree)
        return () if change is None else [change]

    def _figures_after(self, series: str, batch: Sequence[bus.Event]) -> Sequence[Fragment]:
        """What the viewer may not see raises."""
        if not any(isinstance(event, bus.MetricsSampled) for event in batch):
            return ()
        self.viewer.require_series(series)
        metrics = self.viewer.services.metrics
        values = metrics.latest(series)
        return [Figures(series=series, time=metrics.latest_time(), values=values)] if values else ()

    # --- one guest ----------------------------------------------------------------------------------------------------

    async def _guest(self, guest_id: int, tab: str, kind: str = "") -> Sequence[Fragment]:
        found = [*await self._render("guest_head", contexts.guest_head(self.viewer, guest_id))]
        if name := guest_tabs.fragment(tab):
            context = {"node": self.viewer.node, **await guest_tabs.context(self.viewer, guest_id, tab, kind)}
            found += await self._render(name, context)
        return found

    async def _guest_after(self, topic: str, batch: Sequence[bus.Event]) -> Sequence[Fragment]:
        guest_id, tab, kind = _guest_topic(topic)
        mine = [event for event in batch if isinstance(event, _GUEST_EVENTS) and event.guest_id == guest_id]
        if any(isinstance(event, bus.GuestListChanged) and not event.exists for event in mine):
            return await self._render("guest_gone", {"guest_id": guest_id})
        if tab in ("console", "display") and any(
            isinstance(event, bus.ConsoleViewersChanged) and event.guest_id == guest_id for event in batch
        ):
            return [*await self._viewers(guest_id), *(await self._guest(guest_id, tab, kind) if mine else ())]
        sampled = tab == "summary" and any(isinstance(event, bus.GuestStatsSampled) for event in batch)
        tasks = tab in ("tasks", "snapshots") and any(isinstance(event, _TASK_EVENTS) for event in batch)
        stored = tab == "backups" and any(isinstance(event, bus.StorageContentChanged) for event in batch)
        return await self._guest(guest_id, tab, kind) if mine or sampled or tasks or stored else ()

    async def _viewers(self, guest_id: int) -> Sequence[Fragment]:
        self.viewer.guest(guest_id)
        return await self._render("guest_viewers", {"viewers": self.watching.of(guest_id)})

    async def _access(self, tab: str) -> Sequence[Fragment]:
        """Whole again whenever access control has changed (`after`)."""
        if tab == "account":
            return await self._render("access_account", await access_pages.account(self.viewer))
        return await self._render(f"access_{tab}", await access_pages.tab_context(self.viewer, tab))

    # --- storages and logs --------------------------------------------------------------------------------------------

    async def _storage(self, topic: str) -> Sequence[Fragment]:
        _, storage, content = (*topic.split(":"), "", "")[:3]
        return await self._render(
            "storage_content", await contexts.storage_content(self.viewer, storage, content), key=content
        )

    async def _log(self, topic: str) -> Sequence[Fragment]:
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

    async def _common(self, name: str, context: Callable[[Viewer], Awaitable[contexts.Context]]) -> Sequence[Fragment]:
        """A fragment that is the same on all pages of a viewer in a language: made once for all of them."""

        async def make() -> str:
            return await self.renderer.fragment(f"fragments/{name}.html", await context(self.viewer))

        what = ("fragment", name, self.renderer.tongue, self.renderer.prefix)
        return self._unless_sent(f"{name}:", await self.viewer.kept.recall_later(self.viewer, what, make))

    async def _render(self, name: str, context: contexts.Context, *, key: str = "") -> Sequence[Fragment]:
        """The fragment, unless the page has it already."""
        html = await self.renderer.fragment(f"fragments/{name}.html", context)
        return self._unless_sent(f"{name}:{key}", html)

    def _unless_sent(self, known: str, html: str) -> Sequence[Fragment]:
        if self._sent.get(known) == hash(html):
            return ()
        self._sent[known] = hash(html)
        return (html,)

    def _forget(self, prefix: str) -> None:
        for key in [key for key in self._sent if key.startswith(prefix)]:
            del self._sent[key]


def _query(topic: str) -> guest_window.Wanted:
    """ "guests:q=web" as what is wanted."""
    return guest_window.Wanted.parse(topic.partition(":")[2])


def _guests_of(context: contexts.Context) -> Sequence[GuestView]:
    return typing.cast("Sequence[GuestView]", context["guests"])


def _guest_topic(topic: str) -> tuple[int, str, str]:
    """ "guest:100:tasks:Start" as (100, "tasks", "Start"); a number that is none becomes 0, which no guest has."""
    _, guest_id, tab, kind = (*topic.split(":"), "", "", "")[:4]
    return (int(guest_id) if guest_id.isdecimal() and len(guest_id) < 10 else 0), tab, unquote(kind)
