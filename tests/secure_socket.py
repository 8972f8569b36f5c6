"""TLS for clients that send and receive in different threads, as the synchronous one of `websockets` does.

Python's ssl module locks nothing before 3.13: a thread that writes while another waits in a read of the same connection
corrupts it now and then ("EOF occurred in violation of protocol", or the request is never sent). Here one loop speaks TLS alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

CHUNK = 1 << 16
OPENING_LIMIT_S = 60.0
CLOSING_LIMIT_S = 10.0


@contextlib.contextmanager
def secured(port: int, context: ssl.SSLContext, *, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A plain socket whose bytes go to HOST:PORT by TLS. Raises `OSError`: not connected, or not in `OPENING_LIMIT_S`."""
    ours, theirs = socket.socketpair()
    connected: list[BaseException | None] = []
    tried = threading.Event()

    async def relay() -> None:
        try:
            async with asyncio.timeout(OPENING_LIMIT_S):
                reader, writer = await asyncio.open_connection(host, port, ssl=context)
            connected.append(None)
        except BaseException as error:
            connected.append(error)
            raise
        finally:
            tried.set()
        plain_reader, plain_writer = await asyncio.open_connection(sock=theirs)
        ways = {asyncio.ensure_future(_copy(reader, plain_writer)), asyncio.ensure_future(_copy(plain_reader, writer))}
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (plain_writer, writer):
            end.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CLOSING_LIMIT_S):
                    await end.wait_closed()

    def run() -> None:
        with contextlib.suppress(OSError):
            asyncio.run(relay())

    thread = threading.Thread(target=run, name=f"tls-{port}")
    thread.start()
    try:
        tried.wait()
        if error := connected[0]:
            raise error
        yield ours
    finally:
        ours.close()
        thread.join()
        theirs.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
