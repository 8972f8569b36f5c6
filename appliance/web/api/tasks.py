"""/nodes/{node}/tasks: the long jobs, their logs, their end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.errors import InvalidParameter, TimedOut
from appliance.services.task_records import TaskOutcome
from appliance.web.registry import LOGGED_IN, Call, NodeParams, PveBool, PveList, Resource, Vmid
from appliance.web.wire import Page

if TYPE_CHECKING:
    from appliance.services.task_records import TaskInfo

api = Resource()

LIST_LIMIT = 10_000
LOG_LIMIT = 50_000
WAIT_LIMIT_S = 50.0
Upid = Annotated[str, Meta(pattern=r"^UPID:[^:/\s]+(:[0-9A-Fa-f]{8,9}){3}:[^:\s]*:[^:\s]*:[^:\s]+:$", max_length=512)]


class _TaskFields(msgspec.Struct, kw_only=True):
    upid: str
    node: str
    pid: int
    pstart: int
    starttime: int
    type: str
    id: str
    user: str
    tokenid: str | None = None
    endtime: int | None = None
    progress: float | None = None


class TaskRow(_TaskFields, kw_only=True):
    """A task in a list. `status` is its end: "OK", "WARNINGS: n" or the error; absent while it runs."""

    status: str | None = None


class TaskStatus(_TaskFields, kw_only=True):
    """One task now."""

    status: Literal["running", "stopped"]
    exitstatus: str | None = None


class LogLine(msgspec.Struct):
    """`n` counts from 1 without gaps."""

    n: int
    t: str


class ListParams(NodeParams, kw_only=True):
    """Filters; all must hold."""

    vmid: Annotated[Vmid, Meta(description="only tasks of this guest")] | None = None
    limit: Annotated[int, Meta(ge=0, le=LIST_LIMIT, description="at most so many")] = 50
    start: Annotated[int, Meta(ge=0, description="leave out so many of the newest")] = 0
    errors: Annotated[PveBool, Meta(description="only tasks that failed")] = False
    source: Annotated[
        Literal["archive", "active", "all"], Meta(description="finished tasks, running ones, or both")
    ] = "archive"
    since: Annotated[int, Meta(ge=0, description="only tasks begun at or after this time (epoch)")] | None = None
    until: Annotated[int, Meta(ge=0, description="only tasks begun at or before this time (epoch)")] | None = None
    typefilter: Annotated[str, Meta(max_length=64, description="only tasks of this type")] | None = None
    userfilter: Annotated[str, Meta(max_length=64, description="only tasks whose user has this in the name")] | None = (
        None
    )
    statusfilter: Annotated[PveList, Meta(description="only tasks that ended so: ok, error, warning, unknown")] = ()


class TaskParams(NodeParams, kw_only=True):
    """Names one task."""

    upid: Upid


class StatusParams(TaskParams, kw_only=True):
    """Names one task, and how long its end may be waited for."""

    wait: Annotated[
        float, Meta(ge=0, le=WAIT_LIMIT_S, description="answer when the task has ended, at most so many seconds later")
    ] = 0.0


class LogParams(TaskParams, kw_only=True):
    """A range of lines."""

    start: Annotated[int, Meta(ge=0, description="leave out so many lines")] = 0
    limit: Annotated[int, Meta(ge=0, description="at most so many lines; 0 means all")] = 50
    download: Annotated[PveBool, Meta(description="accepted for compatibility: all lines")] = False


@api.get("/nodes/{node}/tasks", summary="Tasks of this node, newest first", allow=LOGGED_IN, returns=list[TaskRow])
async def list_tasks(call: Call, params: ListParams) -> list[TaskRow]:
    """Everybody sees their own tasks, API tokens only their own; Sys.Audit on the node shows all."""
    _check_outcomes(params.statusfilter)
    running = {"archive": False, "active": True, "all": None}[params.source]
    rows = await call.services.tasks.list(
        guest_id=params.vmid,
        limit=params.limit or LIST_LIMIT,
        start=params.start,
        errors=params.errors,
        running=running,
        kinds=(params.typefilter,) if params.typefilter else (),
        user=None if sees_all(call) else call.user,
        user_contains=params.userfilter,
        since=params.since,
        until=params.until,
        outcomes=params.statusfilter,
    )
    return [task_row(info) for info in rows]


@api.get("/nodes/{node}/tasks/{upid}", summary="Directory index", allow=LOGGED_IN, returns=list[dict[str, str]])
async def index_task(call: Call, params: TaskParams) -> list[dict[str, str]]:
    """What is below one task."""
    await _visible_task(call, params.upid)
    return [{"subdir": "log"}, {"subdir": "status"}]


@api.get("/nodes/{node}/tasks/{upid}/status", summary="Whether a task runs, and how it ended", allow=LOGGED_IN,
         returns=TaskStatus)  # fmt: skip
async def read_status(call: Call, params: StatusParams) -> TaskStatus:
    """Poll this until `status` is "stopped"; `exitstatus` "OK" or "WARNINGS: n" is success. `wait` is our addition."""
    info = await _visible_task(call, params.upid)
    if params.wait and info.endtime is None:
        with contextlib.suppress(TimedOut):
            await call.services.tasks.wait(params.upid, timeout_s=params.wait)
        info = await call.services.tasks.get(params.upid)
    if info.running:
        return TaskStatus(**_fields(info), status="running")
    return TaskStatus(**_fields(info), status="stopped", exitstatus=info.status)


@api.get("/nodes/{node}/tasks/{upid}/log", summary="A task's log", allow=LOGGED_IN, returns=list[LogLine])
async def read_log(call: Call, params: LogParams) -> Page:
    """Lines with their numbers; `total` beside `data` counts all lines."""
    await _visible_task(call, params.upid)
    limit = LOG_LIMIT if params.download or not params.limit else min(params.limit, LOG_LIMIT)
    lines, total = await call.services.tasks.read_log(params.upid, start=params.start, limit=limit)
    if not total:
        return Page(data=[LogLine(1, "no content")], total=1)
    return Page(data=[LogLine(params.start + i, text) for i, text in enumerate(lines, 1)], total=total)


@api.delete("/nodes/{node}/tasks/{upid}", summary="Cancel a task", allow=LOGGED_IN)
async def cancel_task(call: Call, params: TaskParams) -> None:
    """One's own, or any with Sys.Modify on the node. What it has begun is undone by the task itself."""
    info = await call.services.tasks.get(params.upid)
    if not call.identity.owns(info.user):
        call.check(f"/nodes/{call.node}", "Sys.Modify")
    await call.services.tasks.cancel(params.upid)


def task_row(info: TaskInfo) -> TaskRow:
    """A row of a task list."""
    return TaskRow(**_fields(info), status=info.status)


def _fields(info: TaskInfo) -> dict[str, Any]:
    user, _, token = info.user.partition("!")
    names = ("upid", "node", "pid", "pstart", "starttime", "type", "id", "endtime", "progress")
    return {**{name: getattr(info, name) for name in names}, "user": user, "tokenid": token or None}


def sees_all(call: Call) -> bool:
    """Whether the caller may see everybody's tasks."""
    return call.has(f"/nodes/{call.node}", "Sys.Audit")


def _check_outcomes(words: Iterable[str]) -> None:
    if unknown := set(words) - set(TaskOutcome):
        text = f"value '{min(unknown)[:40]}' does not have a value in the enumeration '{', '.join(TaskOutcome)}'"
        raise InvalidParameter({"statusfilter": text})


async def _visible_task(call: Call, upid: str) -> TaskInfo:
    info = await call.services.tasks.get(upid)
    if not call.identity.owns(info.user):
        call.check(f"/nodes/{call.node}", "Sys.Audit")
    return info
