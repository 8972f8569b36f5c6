"""The one websocket of a page: what happens is pushed, nothing is polled.

    event bus → Feed (permissions, coalescing over 50 ms) → renderer → text messages

Without a renderer each event is one JSON object: {"type":"guest-state","vmid":100,"kind":"qemu","state":"running",…}.
{"type":"resync"} says: something was missed, read the present state again. Pages pass a renderer of their own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from aiohttp import WSCloseCode, WSMsgType, web

from appliance import events as bus
from appliance.services.identity import Identity
from appliance.web import keys, middleware
from appliance.web.services import Services

WINDOW_S = 0.05
QUEUE_LIMIT = 2048
HEARTBEAT_S = 30.0
SEND_TIMEOUT_S = 20.0
MESSAGE_LIMIT_BYTES = 4096
SESSION_ENDED = 4001
"""Close code: log in again."""

Renderer = Callable[[Sequence[bus.Event]], Awaitable[Sequence[str]]]
"""Turns one batch into messages. A batch is either what happened, coalesced, or a single `Lagged`."""


async def serve(request: web.Request) -> web.StreamResponse:
    """GET /ws/events: JSON messages for any client. Raises `NotAuthenticated`, `PermissionDenied`."""
    return await stream(request, render=_render_json)


async def stream(request: web.Request, *, render: Renderer) -> web.StreamResponse:
    """Serve a page's websocket until the client leaves, sending what `render` makes of each batch."""
    caller = request[keys.CALLER]
    identity = keys.require_identity(caller)
    middleware.check_origin(request, caller)
    services = request.app[keys.SERVICES]
    socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, compress=False, max_msg_size=MESSAGE_LIMIT_BYTES)
    with (
        request.app[keys.SOCKETS].register(socket, caller.remote),
        services.events.subscribe(limit=QUEUE_LIMIT) as seen,
    ):
        await socket.prepare(request)
        request[keys.UPGRADED] = socket
        async with asyncio.TaskGroup() as group:
            sender = group.create_task(_send(request, socket, Feed(services, identity, seen), render))
            async for message in socket:
                if message.type is WSMsgType.ERROR:
                    break
            sender.cancel()
    return socket


class Feed:
    """The batches one viewer may see."""

    def __init__(self, services: Services, identity: Identity, subscription: bus.Subscription) -> None:
        self._services = services
        self._identity = identity
        self._subscription = subscription

    async def batches(self) -> AsyncIterator[Sequence[bus.Event]]:
        """Wait for something to happen, collect for `WINDOW_S`, and give it out once each subject."""
        while True:
            collected = [await self._subscription.next()]
            try:
                async with asyncio.timeout(WINDOW_S):
                    while True:
                        collected.append(await self._subscription.next())
            except TimeoutError:
                pass
            if batch := coalesce([event for event in collected if self._may_see(event)]):
                yield batch

    def _may_see(self, event: bus.Event) -> bool:
        match event:
            case bus.GuestListChanged(exists=False):
                return True  # there is no object left to hold a privilege on; the id alone tells nothing
            case bus.ConsoleViewersChanged():
                return self._has(f"/vms/{event.guest_id}", "VM.Console")
            case bus.GuestStateChanged() | bus.GuestConfigChanged() | bus.GuestListChanged():
                return self._has(f"/vms/{event.guest_id}", "VM.Audit")
            case bus.TaskStarted() | bus.TaskProgressed() | bus.TaskFinished():
                return self._is_own(event.upid) or self._has(f"/nodes/{self._services.config.node_name}", "Sys.Audit")
            case bus.StorageContentChanged():
                path = f"/storage/{event.storage}"
                return self._has(path, "Datastore.Audit") or self._has(path, "Datastore.AllocateSpace")
        return True

    def _has(self, path: str, privilege: str) -> bool:
        return self._services.access.has(self._identity, path, privilege)

    def _is_own(self, upid: str) -> bool:
        return self._identity.owns(upid.rstrip(":").rpartition(":")[2])


def coalesce(events: Sequence[bus.Event]) -> Sequence[bus.Event]:
    """The last event of each kind and subject, in the order they last happened; a `Lagged` swallows all others."""
    if any(isinstance(event, bus.Lagged) for event in events):
        return [bus.Lagged()]
    latest: dict[tuple[object, ...], bus.Event] = {}
    for event in events:
        key = (type(event), *(getattr(event, name, None) for name in ("guest_id", "upid", "storage")))
        before = latest.pop(key, None)
        if isinstance(event, bus.GuestStateChanged) and isinstance(before, bus.GuestStateChanged):
            event = dataclasses.replace(event, old=before.old)
        latest[key] = event
    return list(latest.values())


def concerns_access(batch: Sequence[bus.Event]) -> bool:
    """Whether sessions and privileges must be looked at again."""
    return any(isinstance(event, (bus.AccessChanged, bus.Lagged)) for event in batch)


async def _send(request: web.Request, socket: web.WebSocketResponse, feed: Feed, render: Renderer) -> None:
    try:
        async for batch in feed.batches():
            if concerns_access(batch) and not middleware.session_holds(request):
                await socket.close(code=SESSION_ENDED, message=b"session ended")
                return
            messages = await render(batch)
            async with asyncio.timeout(SEND_TIMEOUT_S):
                for message in messages:
                    await socket.send_str(message)
    except (TimeoutError, ConnectionError):
        await socket.close(code=WSCloseCode.GOING_AWAY, message=b"too slow")


async def _render_json(events: Sequence[bus.Event]) -> Sequence[str]:
    return [json.dumps(describe(event)) for event in events]


def describe(event: bus.Event) -> dict[str, object]:
    """An event as its JSON message."""
    match event:
        case bus.GuestStateChanged():
            message = _guest("guest-state", event)
            return message | {"state": event.new.value, "old": event.old.value, "reason": event.reason}
        case bus.GuestConfigChanged():
            return _guest("guest-config", event)
        case bus.GuestListChanged():
            return _guest("guest-list", event) | {"exists": event.exists}
        case bus.GuestStatsSampled():
            return {"type": "guest-stats"}
        case bus.NodeStatsSampled():
            return {"type": "node-stats"}
        case bus.MetricsSampled():
            return {"type": "metrics"}
        case bus.TaskStarted():
            return {"type": "task-started", "upid": event.upid}
        case bus.TaskProgressed():
            return {"type": "task-progress", "upid": event.upid}
        case bus.TaskFinished():
            return {"type": "task-finished", "upid": event.upid, "status": event.status}
        case bus.StorageContentChanged():
            return {"type": "storage-content", "storage": event.storage}
        case bus.AccessChanged():
            return {"type": "access"}
        case bus.OptionsChanged():
            return {"type": "options"}
        case bus.ConsoleViewersChanged():
            return {"type": "console-viewers", "vmid": int(event.guest_id)}
    return {"type": "resync"}


def _guest(
    name: str, event: bus.GuestStateChanged | bus.GuestConfigChanged | bus.GuestListChanged
) -> dict[str, object]:
    return {"type": name, "vmid": event.guest_id, "kind": event.kind.value}
