"""Consoles over websockets: serial and container terminals in PVE's packet protocol, displays as plain RFB.

    terminal   browser: "user@realm:ticket\n"   server: "OK"   then packets (`xterm.py`) against raw bytes
    display    RFB both ways, unchanged, in binary messages

The guest is never slowed: the hub drops a viewer that does not read, and this socket then closes with `LAGGED`; the
browser opens a new one and gets the replay. No compression: the bytes pass through as they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from appliance.errors import ApplianceError, UserError
from appliance.services.console import ConsoleLagged
from appliance.web.ws.xterm import FramingError, PacketParser, Ping, Resized, Typed

log = logging.getLogger(__name__)

LAGGED = 4008
"""Close code: the viewer fell behind and should attach again."""
NOT_AUTHENTICATED = 4001
GREETING_TIMEOUT_S = 10.0
GREETING_LIMIT_BYTES = 8192
MESSAGE_LIMIT_BYTES = 256 << 10
HEARTBEAT_S = 30.0
CLOSE_TIMEOUT_S = 3.0
SEND_BUFFER_BYTES = 256 << 10
RFB_CHUNK_BYTES = 64 << 10
PROTOCOLS = ("binary",)


class Terminal(Protocol):
    """What a `ConsoleClient` and a `HostShell` have in common."""

    async def read(self) -> bytes: ...

    async def write(self, data: bytes) -> None: ...

    async def resize(self, columns: int, rows: int) -> None: ...


def new_socket() -> web.WebSocketResponse:
    """A websocket for a console: no compression, bounded messages, dead peers noticed."""
    return web.WebSocketResponse(
        timeout=CLOSE_TIMEOUT_S,
        heartbeat=HEARTBEAT_S,
        protocols=PROTOCOLS,
        compress=False,
        max_msg_size=MESSAGE_LIMIT_BYTES,
        writer_limit=SEND_BUFFER_BYTES,
    )


async def relay_terminal(
    socket: web.WebSocketResponse, client: Terminal, *, accept_greeting: Callable[[str, str], bool]
) -> None:
    """Speak the terminal protocol on a prepared `socket` until either side ends. `client` stays the caller's to close.

    `accept_greeting(user, ticket)` judges the first line.
    """
    if not await _greeted(socket, accept_greeting):
        await socket.close(code=NOT_AUTHENTICATED, message=b"authentication failed")
        return
    await socket.send_bytes(b"OK")

    async def to_browser() -> None:
        while data := await client.read():
            await socket.send_bytes(data)

    parser = PacketParser()

    async def from_browser(message: WSMessage) -> None:
        for packet in parser.feed(_bytes_of(message)):
            match packet:
                case Typed(data):
                    await client.write(data)
                case Resized(columns, rows):
                    await client.resize(columns, rows)
                case Ping():
                    pass

    await _relay(socket, to_browser, from_browser)


async def relay_display(
    socket: web.WebSocketResponse, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Pass RFB through a prepared `socket` until either side ends; closes `writer`."""

    async def to_browser() -> None:
        while data := await reader.read(RFB_CHUNK_BYTES):
            await socket.send_bytes(data)

    async def from_browser(message: WSMessage) -> None:
        writer.write(_bytes_of(message))
        await writer.drain()

    try:
        await _relay(socket, to_browser, from_browser)
    finally:
        writer.close()


async def _relay(
    socket: web.WebSocketResponse,
    to_browser: Callable[[], Awaitable[None]],
    from_browser: Callable[[WSMessage], Awaitable[None]],
) -> None:
    """Run both directions; when one ends the other is ended too and the reason becomes the close code."""

    async def listen() -> None:
        async for message in socket:
            if message.type is WSMsgType.ERROR:
                return
            await from_browser(message)

    async with asyncio.TaskGroup() as group:
        directions = {group.create_task(_ended_by(work)) for work in (to_browser, listen)}
        done, other = await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        for task in other:
            task.cancel()
    code, text = next(iter(done)).result()
    if not socket.closed:
        await socket.close(code=code, message=text)


async def _ended_by(work: Callable[[], Awaitable[None]]) -> tuple[int, bytes]:
    """Run one direction and say with which code and words the websocket should close."""
    try:
        await work()
    except ConsoleLagged:
        return LAGGED, b"too slow: attach again"
    except FramingError as error:
        return WSCloseCode.PROTOCOL_ERROR, str(error).encode()[:100]
    except ApplianceError as error:
        code = WSCloseCode.POLICY_VIOLATION if isinstance(error, UserError) else WSCloseCode.INTERNAL_ERROR
        return code, error.message.encode()[:100]
    except OSError:  # the browser or the display has gone away
        return WSCloseCode.GOING_AWAY, b"connection lost"
    return WSCloseCode.OK, b"console ended"


async def _greeted(socket: web.WebSocketResponse, accept: Callable[[str, str], bool]) -> bool:
    """Read the first line "user@realm:ticket" and have it judged."""
    try:
        async with asyncio.timeout(GREETING_TIMEOUT_S):
            message = await socket.receive()
        line = _bytes_of(message).decode()
    except (TimeoutError, FramingError, UnicodeDecodeError):
        return False
    if len(line) > GREETING_LIMIT_BYTES:
        return False
    user, _, ticket = line.rstrip("\r\n").partition(":")
    return accept(user, ticket)


def _bytes_of(message: WSMessage) -> bytes:
    match message.type:
        case WSMsgType.BINARY:
            return bytes(message.data)
        case WSMsgType.TEXT:
            return str(message.data).encode()
    raise FramingError(f"unexpected message {message.type.name}")
