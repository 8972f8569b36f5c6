"""/cluster: status, free ids, options, and the recent tasks and log of the whole (one node, today)."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.errors import Conflict, InvalidParameter
from appliance.events import OptionsChanged
from appliance.services import cluster_options
from appliance.services.cluster_options import OPTIONS_KEY, NextIdRange
from appliance.state.store import Absent, Delete, Operation, Put, RevisionIs
from appliance.web.api.tasks import TaskRow, sees_all, task_row
from appliance.web.registry import LOGGED_IN, Allow, Call, PveList, Resource, Vmid

api = Resource()

OPTIONS_ATTEMPTS = 5
RECENT_TASKS = 100
DEFAULT_OPTIONS = {"console": "xtermjs", "keyboard": "en-us", "mac_prefix": "BC:24:11"}
OPTIONS_FOR_ALL = frozenset({"console", "keyboard", "language", "registered-tags", "tag-style", "user-tag-access"})
_PROPERTIES = r"^[^\x00-\x1f]*$"
Text = Annotated[str, Meta(max_length=4096, pattern=_PROPERTIES)]


class StatusRow(msgspec.Struct, kw_only=True):
    """The cluster itself (`type` "cluster") or a node."""

    type: Literal["cluster", "node"]
    id: str
    name: str
    nodeid: int | None = None
    ip: str | None = None
    online: bool | None = None
    local: bool | None = None
    level: str | None = None
    nodes: int | None = None
    quorate: bool | None = None
    version: int | None = None


class NextIdParams(msgspec.Struct, kw_only=True):
    """A wish."""

    vmid: Annotated[Vmid, Meta(description="refused when this id is taken, else returned")] | None = None


class LogParams(msgspec.Struct, kw_only=True):
    """How much."""

    max: Annotated[int, Meta(ge=1, le=1000, description="at most so many entries")] = 50


class LogRow(msgspec.Struct, kw_only=True):
    """One entry; `pri` is syslog's (3 error, 6 information)."""

    uid: int
    node: str
    time: int
    pid: int
    pri: int
    tag: str
    user: str
    msg: str


class Options(msgspec.Struct, kw_only=True):
    """Settings of the whole cluster, as Proxmox VE names them. Property strings are kept as they are."""

    bwlimit: Text | None = None
    consent_text: Annotated[str, Meta(max_length=65536)] | None = msgspec.field(name="consent-text", default=None)
    console: Literal["applet", "vv", "html5", "xtermjs"] | None = None
    crs: Text | None = None
    description: Annotated[str, Meta(max_length=65536)] | None = None
    email_from: Annotated[str, Meta(max_length=256, pattern=r"^[^\s@]+@[^\s@]+$")] | None = None
    ha: Text | None = None
    http_proxy: Annotated[str, Meta(max_length=512, pattern=r"^https?://\S+$")] | None = None
    keyboard: Annotated[str, Meta(max_length=8, pattern=r"^[a-z-]+$")] | None = None
    language: Annotated[str, Meta(max_length=8, pattern=r"^[A-Za-z_]+$")] | None = None
    mac_prefix: Annotated[str, Meta(pattern=r"^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){0,2}:?$")] | None = None
    max_workers: Annotated[int, Meta(ge=1, le=64)] | None = None
    migration: Text | None = None
    next_id: (
        Annotated[Text, Meta(description="where free ids are looked for: lower=ID,upper=ID (exclusive)")] | None
    ) = msgspec.field(name="next-id", default=None)
    notify: Text | None = None
    registered_tags: Text | None = msgspec.field(name="registered-tags", default=None)
    tag_style: Text | None = msgspec.field(name="tag-style", default=None)
    user_tag_access: Text | None = msgspec.field(name="user-tag-access", default=None)


class OptionsNow(Options, kw_only=True):
    """The settings in force, and what tells them from others."""

    digest: Annotated[str, Meta(description="for `digest` of a change; not without Sys.Audit")] | None = None


class SetOptions(Options, kw_only=True):
    """New values; what is not named stays."""

    delete: Annotated[PveList, Meta(description="options to set back to their defaults")] = ()
    digest: Annotated[str, Meta(max_length=40, description="refuse if the options are not these any more")] | None = (
        None
    )


@api.get("/cluster/status", summary="The cluster and its nodes", allow=Allow("/", "Sys.Audit"), returns=list[StatusRow])
async def read_status(call: Call) -> list[StatusRow]:
    """One row, of type "node": this appliance is not part of a cluster. `ip` is where this request reached it."""
    address = call.request.transport.get_extra_info("sockname") if call.request.transport else None
    row = StatusRow(
        type="node",
        id=f"node/{call.node}",
        name=call.node,
        nodeid=0,
        ip=address[0] if isinstance(address, tuple) else "127.0.0.1",
        online=True,
        local=True,
        level="",
    )
    return [row]


@api.get("/cluster/nextid", summary="A free guest id", allow=LOGGED_IN, returns=str)
async def next_id(call: Call, params: NextIdParams) -> str:
    """The lowest free one in the range of the option `next-id`, or `vmid` if it is free.

    It is not reserved: creating a guest may still find it taken.
    """
    try:
        return str(await call.services.guests.next_id(params.vmid))
    except Conflict as error:
        if params.vmid is None:
            raise
        raise InvalidParameter({"vmid": error.message}) from error


@api.get("/cluster/tasks", summary="Recent tasks of all nodes", allow=LOGGED_IN, returns=list[TaskRow])
async def list_tasks(call: Call) -> list[TaskRow]:
    """Running and finished, newest first. Everybody sees their own; Sys.Audit on the node shows all."""
    user = None if sees_all(call) else call.user
    return [task_row(info) for info in await call.services.tasks.list(limit=RECENT_TASKS, user=user)]


@api.get("/cluster/log", summary="What was changed lately, by whom", allow=LOGGED_IN, returns=list[LogRow])
async def read_log(call: Call, params: LogParams) -> list[LogRow]:
    """The newest rows of the audit log. Everybody sees their own; Sys.Syslog on / shows all."""
    everything = call.has("/", "Sys.Syslog")
    rows = await call.services.audit.tail(1000 if not everything else params.max)
    shown = [row for row in rows if everything or call.identity.owns(row.who)]
    return [
        LogRow(
            uid=row.n,
            node=call.node,
            time=int(row.time),
            pid=0,
            pri=6 if row.outcome == "ok" else 3,
            tag="audit",
            user=row.who,
            msg=f"{row.action} {row.target}: {row.outcome}",
        )
        for row in shown[: params.max]
    ]


@api.get("/cluster/options", summary="Settings of the whole cluster", allow=LOGGED_IN, returns=OptionsNow)
async def read_options(call: Call) -> dict[str, object]:
    """Without Sys.Audit on / only what pages need: console, keyboard, language, tags."""
    stored, _ = await cluster_options.read(call.services.store)
    options = {**DEFAULT_OPTIONS, **stored}
    if call.has("/", "Sys.Audit"):
        return options | {"digest": cluster_options.digest(stored)}
    return {name: value for name, value in options.items() if name in OPTIONS_FOR_ALL}


@api.put("/cluster/options", summary="Change settings of the whole cluster", allow=Allow("/", "Sys.Modify"))
async def write_options(call: Call, params: SetOptions) -> None:
    """All or nothing. With the `digest` that was read, only while nobody else has changed them."""
    names = {info.encode_name: info.name for info in msgspec.structs.fields(Options)}
    if unknown := [name for name in params.delete if name not in names]:
        raise InvalidParameter({"delete": f"unknown option '{unknown[0][:40]}'"})
    if params.next_id is not None:
        _check_next_id(params.next_id)
    changes = {name: value for name, attribute in names.items() if (value := getattr(params, attribute)) is not None}
    for _ in range(OPTIONS_ATTEMPTS):
        stored, revision = await cluster_options.read(call.services.store)
        cluster_options.check_digest(stored, params.digest)
        new = {name: value for name, value in stored.items() if name not in params.delete} | changes
        write: Operation = Put(OPTIONS_KEY, json.dumps(new).encode()) if new else Delete(OPTIONS_KEY)
        condition = RevisionIs(OPTIONS_KEY, revision) if revision else Absent(OPTIONS_KEY)
        if (await call.services.store.txn([condition], [write])).succeeded:
            call.services.events.publish(OptionsChanged())
            return
    raise Conflict("cluster options: changed by others at the same time, try again")


def _check_next_id(text: str) -> None:
    try:
        NextIdRange.parse(text)
    except ValueError as error:
        raise InvalidParameter({"next-id": f"invalid format - {error}"}) from error
