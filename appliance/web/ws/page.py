"""The one websocket of a page: GET /ws/page.

    page → server    {"topics": ["tasks", "guest:100:summary", …]}   at most `MESSAGES_LIMIT_BYTES`
    server → page    ["HTML", {"kind": "tree", …}, …]: fragments, each of one or more elements with ids that replace their
                     namesakes; and data for scripts, by kind

What changes while the page is open is rendered again and pushed, for what the viewer may see at that moment. A viewer
whose session has ended is sent away with `events.SESSION_ENDED`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from appliance.web import keys, middleware
from appliance.web.pages.fragments import Fragment, PageFeed
from appliance.web.pages.render import voice
from appliance.web.pages.viewer import KEPT, Viewer
from appliance.web.ws import events
from appliance.web.ws.viewers import VIEWERS

MESSAGES_LIMIT_BYTES = 8192


class Wish(msgspec.Struct):
    """What a page wants to follow."""

    topics: list[str]


async def serve(request: web.Request) -> web.StreamResponse:
    """Serve a page until it leaves. Raises `NotAuthenticated`, `PermissionDenied`, `TooManyRequests`."""
    caller = request[keys.CALLER]
    identity = keys.require_identity(caller)
    middleware.check_origin(request, caller)
    services = request.app[keys.SERVICES]
    socket = web.WebSocketResponse(heartbeat=events.HEARTBEAT_S, compress=False, max_msg_size=MESSAGES_LIMIT_BYTES)
    with (
        request.app[keys.SOCKETS].register(socket, caller.remote),
        services.events.subscribe(limit=events.QUEUE_LIMIT) as seen,
    ):
        await socket.prepare(request)
        request[keys.UPGRADED] = socket
        viewer = Viewer(services, identity, request.app[KEPT])
        page = OpenPage(request, socket, PageFeed(viewer, voice(request), request.app[VIEWERS]))
        async with asyncio.TaskGroup() as group:
            pushing = group.create_task(page.push(events.Feed(services, identity, seen)))
            await page.listen()
            pushing.cancel()
    return socket


class OpenPage:
    """One page's websocket: rendering and sending happen one after another, whoever asks."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, feed: PageFeed) -> None:
        self._request = request
        self._socket = socket
        self._feed = feed
        self._turn = asyncio.Lock()

    async def listen(self) -> None:
        """Take the page's wishes until it leaves. What cannot be understood ends the connection."""
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT:
                break
            try:
                wish = msgspec.json.decode(message.data, type=Wish)
            except msgspec.DecodeError:
                await self._socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"not understood")
                break
            async with self._turn:
                await self._send(await self._feed.follow(wish.topics))

    async def push(self, feed: events.Feed) -> None:
        """Send what changes, batch by batch."""
        async for batch in feed.batches():
            if events.concerns_access(batch) and not middleware.session_holds(self._request):
                await self._socket.close(code=events.SESSION_ENDED, message=b"session ended")
                return
            async with self._turn:
                await self._send(await self._feed.after(batch))

    async def _send(self, fragments: Sequence[Fragment]) -> None:
        if not fragments:
            return
        try:
            async with asyncio.timeout(events.SEND_TIMEOUT_S):
                await self._socket.send_str(msgspec.json.encode(fragments).decode())
        except (TimeoutError, ConnectionError):
            await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"too slow")
