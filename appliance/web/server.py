"""Listening: TLS for the world, a UNIX socket (0600) for the command line of this host."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from appliance.errors import Conflict, HostError, NotFound
from appliance.web.listener import Listener

log = logging.getLogger(__name__)

SOCKET_NAME = "api.sock"
BACKLOG = 512
KEEPALIVE_TIMEOUT_S = 75.0
"""How long a connection may be idle, or be half way through the head of a request."""
LINGER_S = 2.0
"""How long more is read from a client that was answered before it had sent everything: it should see the answer."""
SHUTDOWN_TIMEOUT_S = 8.0
GOODBYE_TIMEOUT_S = 0.2
PROBE_TIMEOUT_S = 1.0


class Server:
    """One application on its two listeners. `close` ends what is in flight within `SHUTDOWN_TIMEOUT_S`."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=KEEPALIVE_TIMEOUT_S,
            lingering_time=LINGER_S,
            shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        )
        self._listeners: list[Listener] = []
        self._socket_path: Path | None = None
        self.port = 0
        """The TCP port really bound, also when 0 was asked for."""

    async def start(self, *, host: str, port: int, tls: ssl.SSLContext | None, socket_path: Path) -> None:
        """Begin to serve. Raises `Conflict` naming a port or socket in use, `NotFound` for an address that is not ours."""
        await self._runner.setup()
        try:
            tcp = await asyncio.to_thread(_tcp_socket, host, port)
            self.port = tcp.getsockname()[1]
            self._listen(tcp, tls)
            local = await asyncio.to_thread(_unix_socket, socket_path)
            self._socket_path = socket_path
            self._listen(local, None)
        except BaseException:
            await self.close()
            raise
        log.info("web: listening on %s port %d and %s", host, self.port, socket_path)

    async def close(self) -> None:
        """Stop listening, close websockets, wait for requests in flight, remove the socket's file."""
        for listener in self._listeners:
            await listener.close()
        self._listeners.clear()
        transports = self._transports()
        await self._runner.cleanup()
        await _hang_up(transports)
        if self._socket_path is not None:
            await asyncio.to_thread(self._socket_path.unlink, missing_ok=True)
            self._socket_path = None

    def _listen(self, listening: socket.socket, tls: ssl.SSLContext | None) -> None:
        assert self._runner.server is not None
        listener = Listener(listening, self._runner.server, self._transports, tls=tls)
        listener.start()
        self._listeners.append(listener)

    def _transports(self) -> list[asyncio.Transport]:
        handlers = self._runner.server.connections if self._runner.server is not None else []
        # no isinstance: uvloop's TLS transports are Transports in all but class
        return [handler.transport for handler in handlers if handler.transport is not None]


async def _hang_up(transports: Sequence[asyncio.Transport]) -> None:
    """Cut what is still open: a TLS transport waits for the peer's farewell, and the loop would wait for it on closing."""
    if transports:
        await asyncio.sleep(GOODBYE_TIMEOUT_S)  # what was said last is still on its way
    for transport in transports:
        transport.abort()
    await asyncio.sleep(0)


def _tcp_socket(host: str, port: int) -> socket.socket:
    """Bound here and not by the loop, so that the error can name the address and the port."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise NotFound(f"address {host} to listen on") from error
    tcp = socket.socket(family, socket.SOCK_STREAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            tcp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        tcp.bind(address)
        tcp.listen(BACKLOG)  # with SO_REUSEADDR a bind may succeed beside a listener: only listen tells
        tcp.setblocking(False)
    except OSError as error:
        tcp.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"port {port} on {host} is in use by another program") from error
        raise HostError.from_os_error(error, f"listen on {host} port {port}") from error
    return tcp


def _unix_socket(path: Path) -> socket.socket:
    """A listening socket only its owner may reach. A stale file is replaced, a living appliance's is not."""
    local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        if _answers(path):
            raise Conflict(f"socket {path}: another appliance is running on it")
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        local.bind(str(path))
        os.chmod(path, 0o600)  # noqa: PTH101  before listen: until then nobody can connect
        local.listen(BACKLOG)
        local.setblocking(False)
    except OSError as error:
        local.close()
        raise HostError.from_os_error(error, f"listen on {path}") from error
    except Conflict:
        local.close()
        raise
    return local


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except TimeoutError:
            return True
        except OSError:
            return False
        return True
