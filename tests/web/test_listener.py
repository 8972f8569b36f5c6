"""Rules of accepting: bounds by address and in total, strangers who do not shake hands, and going on afterwards."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.services.pki import ensure_server_identity
from appliance.web import listener as listener_module
from appliance.web.listener import Listener

PATIENCE_S = 30.0


class Greeter(asyncio.Protocol):
    """Says hello and keeps the connection."""

    open: set[asyncio.Transport]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's TLS transports are no subclass
        self.open.add(self.transport)
        self.transport.write(b"hello")

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.discard(self.transport)


@asynccontextmanager
async def listening(tls: ssl.SSLContext | None, *, total: int, per_address: int) -> AsyncIterator[int]:
    """A greeting listener on the loopback; its port."""

    class Here(Greeter):
        open: set[asyncio.Transport] = set()  # noqa: RUF012  one a test

    listening_socket = socket.create_server(("127.0.0.1", 0), backlog=64)
    listening_socket.setblocking(False)
    port = int(listening_socket.getsockname()[1])
    gate = Listener(
        listening_socket, Here, lambda: Here.open, tls=tls, total_limit=total, per_address_limit=per_address
    )
    gate.start()
    try:
        yield port
    finally:
        await gate.close()
        for transport in list(Here.open):
            transport.abort()
        await asyncio.sleep(0.05)


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    return ensure_server_identity(tmp_path / "pki", ["localhost"], datetime.datetime.now(datetime.UTC)).context()


async def greeting(port: int, context: ssl.SSLContext | None) -> tuple[bytes, asyncio.StreamWriter | None]:
    """What a client hears first; b"" when it is turned away."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except (OSError, ssl.SSLError):
        return b"", None
    return await asyncio.wait_for(reader.read(5), PATIENCE_S), writer


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def test_one_address_cannot_take_all_connections_and_is_served_again_when_it_lets_go(tls: ssl.SSLContext) -> None:
    async with listening(tls, total=100, per_address=3) as port:
        context = trusting()
        served = [await greeting(port, context) for _ in range(5)]
        assert [heard for heard, _ in served] == [b"hello"] * 3 + [b""] * 2
        writer = served[0][1]
        assert writer is not None
        writer.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            while (again := await greeting(port, context))[0] != b"hello":
                await asyncio.sleep(0.01)
        for _, other in (*served[1:], again):
            if other is not None:
                other.transport.abort()
        await asyncio.sleep(0.05)


async def test_connections_that_never_shake_hands_count_and_end(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "HANDSHAKE_LIMIT_S", 3.0)
    async with listening(tls, total=100, per_address=2) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        assert (await greeting(port, trusting()))[0] == b""
        for reader, _ in silent:
            assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b"", "cut off after the limit"
        heard, writer = await greeting(port, trusting())
        assert heard == b"hello"
        for other in (*(writer for _, writer in silent), writer):
            if other is not None:
                other.transport.abort()
        await asyncio.sleep(0.05)


async def test_the_total_is_bounded_also_without_tls() -> None:
    async with listening(None, total=2, per_address=100) as port:
        served = [await greeting(port, None) for _ in range(3)]
        assert [heard for heard, _ in served] == [b"hello", b"hello", b""]
        for _, writer in served:
            if writer is not None:
                writer.transport.abort()
        await asyncio.sleep(0.05)
