"""A small reverse proxy, as people put one in front: publishes a server below a prefix, passes websockets through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "content-length", "host"})


@asynccontextmanager
async def proxied(target: str, prefix: str) -> AsyncIterator[str]:
    """The address at which `target` is published below `prefix`; everything else there is 404."""
    async with aiohttp.ClientSession(auto_decompress=False) as client:

        async def forward(request: web.Request) -> web.StreamResponse:
            url = target + request.raw_path.removeprefix(prefix)
            headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
            headers |= {"X-Forwarded-Prefix": prefix, "X-Forwarded-Host": request.host, "X-Forwarded-For": "192.0.2.1"}
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await _websocket(client, request, url, headers)
            body = await request.read()
            async with client.request(request.method, url, headers=headers, data=body, allow_redirects=False) as reply:
                kept = {name: value for name, value in reply.headers.items() if name.lower() not in HOP}
                return web.Response(status=reply.status, reason=reply.reason, headers=kept, body=await reply.read())

        app = web.Application()
        app.router.add_route("*", prefix + "/{tail:.*}", forward)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]  # aiohttp has no other way
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            await runner.cleanup()


async def _websocket(
    client: aiohttp.ClientSession, request: web.Request, url: str, headers: dict[str, str]
) -> web.StreamResponse:
    protocols = [each.strip() for each in headers.pop("Sec-WebSocket-Protocol", "").split(",") if each.strip()]
    passed = {name: value for name, value in headers.items() if not name.lower().startswith("sec-websocket")}
    async with client.ws_connect(url, headers=passed, protocols=protocols) as server:
        browser = web.WebSocketResponse(protocols=protocols)
        await browser.prepare(request)

        async def pump(source: aiohttp.ClientWebSocketResponse | web.WebSocketResponse,
                       sink: aiohttp.ClientWebSocketResponse | web.WebSocketResponse) -> None:  # fmt: skip
            async for message in source:
                if message.type is aiohttp.WSMsgType.TEXT:
                    await sink.send_str(message.data)
                elif message.type is aiohttp.WSMsgType.BINARY:
                    await sink.send_bytes(message.data)
            await sink.close()

        await asyncio.gather(pump(browser, server), pump(server, browser))
    return browser
