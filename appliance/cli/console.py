"""`appliance vm|ct console`: the guest's terminal in this terminal, over the websocket every other client uses too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import websockets
from websockets.asyncio.client import ClientConnection, connect, unix_connect

from appliance.cli.client import Api
from appliance.cli.errors import CliError, Exit
from appliance.waiting import readable

LEAVE = b"\x1d"
PING_INTERVAL_S = 30.0
OPEN_TIMEOUT_S = 15.0
READ_BYTES = 4096
LAGGED = 4008


def attach(api: Api, guest: str, params: Mapping[str, str]) -> None:
    """Connect this terminal with the console of `guest` (its API path) until Ctrl-] or its end. Raises `CliError`."""
    ticket = api.call("POST", f"{guest}/termproxy", params)
    print("connected, Ctrl-] leaves", file=sys.stderr)
    with _raw_terminal():
        try:
            asyncio.run(_talk(api, guest, ticket))
        except (OSError, websockets.InvalidHandshake, websockets.ConnectionClosedError) as error:
            raise CliError(f"console: {error}", Exit.FAILED) from error
    print("\r\nleft the console", file=sys.stderr)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the guest; the terminal is put back whatever happens."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


async def _talk(api: Api, guest: str, ticket: dict[str, Any]) -> None:
    query = urlencode({"port": ticket["port"], "vncticket": ticket["ticket"]})
    async with _open(api, f"/api2/json{guest}/vncwebsocket?{query}") as socket:
        await socket.send(f"{ticket['user']}:{ticket['ticket']}\n")
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            if await socket.recv(decode=False) != b"OK":
                raise CliError("console: the appliance refused the ticket", Exit.DENIED)
        await _send_size(socket)
        loop = asyncio.get_running_loop()
        resized = asyncio.Event()
        loop.add_signal_handler(signal.SIGWINCH, resized.set)
        directions = [asyncio.ensure_future(work) for work in (_show(socket), _type(socket), _resize(socket, resized))]
        try:
            done, _ = await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)
            for task in directions:
                task.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
        for task in done:
            task.result()


def _open(api: Api, path: str) -> connect:
    target = api.target
    options: dict[str, Any] = {
        "additional_headers": target.headers(),
        "subprotocols": ["binary"],
        "compression": None,
        "max_size": None,
        "open_timeout": OPEN_TIMEOUT_S,
    }
    if target.url:
        return connect(f"wss://{target.host}:{target.port}{path}", ssl=target.tls(), **options)
    return unix_connect(str(target.socket_path), f"ws://localhost{path}", **options)


async def _show(socket: ClientConnection) -> None:
    try:
        while True:
            data = await socket.recv(decode=False)
            while data:
                data = data[os.write(sys.stdout.fileno(), data) :]
    except websockets.ConnectionClosed as closed:
        if closed.rcvd is not None and closed.rcvd.code == LAGGED:
            raise CliError("console: this terminal was too slow, attach again", Exit.FAILED) from closed
        if closed.rcvd is None or closed.rcvd.code not in (1000, 1001):
            raise


async def _type(socket: ClientConnection) -> None:
    fd = sys.stdin.fileno()
    while data := await _read(fd):
        before, leave, _ = data.partition(LEAVE)
        if before:
            await socket.send(b"0:%d:%s" % (len(before), before))
        if leave:
            return


async def _read(fd: int) -> bytes:
    """Bytes typed, b"" at the end of a pipe."""
    with contextlib.suppress(PermissionError):  # a plain file is always ready, and epoll refuses it
        await readable(fd)
    return os.read(fd, READ_BYTES)


async def _resize(socket: ClientConnection, resized: asyncio.Event) -> None:
    while True:
        try:
            async with asyncio.timeout(PING_INTERVAL_S):
                await resized.wait()
        except TimeoutError:
            await socket.send(b"2")
            continue
        resized.clear()
        await _send_size(socket)


async def _send_size(socket: ClientConnection) -> None:
    if sys.stdout.isatty():
        size = os.get_terminal_size(sys.stdout.fileno())
        if size.columns and size.lines:
            await socket.send(b"1:%d:%d:" % (size.columns, size.lines))
