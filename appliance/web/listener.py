"""Accepting connections, with bounds: a stranger must not use up the process's descriptors.

aiohttp's sites accept whatever comes, and TLS shakes hands before any of our code sees the connection. So sockets are
accepted here, counted by address from the first moment, and given to aiohttp once they have shaken hands in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable

from appliance.tasks import TaskScope

log = logging.getLogger(__name__)

TOTAL_LIMIT = 2048
PER_ADDRESS_LIMIT = 512
"""Above what a busy office behind one address needs; a browser keeps about seven."""
HANDSHAKE_LIMIT_S = 10.0
EXHAUSTED_PAUSE_S = 0.5
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

ProtocolFactory = Callable[[], asyncio.BaseProtocol]
Established = Callable[[], Iterable[asyncio.Transport]]


class Listener:
    """One listening socket. `established` tells the transports that aiohttp has at this moment."""

    def __init__(
        self,
        listening: socket.socket,
        factory: ProtocolFactory,
        established: Established,
        *,
        tls: ssl.SSLContext | None,
        total_limit: int = TOTAL_LIMIT,
        per_address_limit: int = PER_ADDRESS_LIMIT,
    ) -> None:
        self._listening = listening
        self._factory = factory
        self._established = established
        self._tls = tls
        self._total_limit = total_limit
        self._per_address_limit = per_address_limit
        self._shaking_hands: Counter[str] = Counter()
        self._scope = TaskScope("web listener")

    def start(self) -> None:
        """Begin to accept."""
        self._scope.start(self._accept(), name="accept")

    async def close(self) -> None:
        """Stop accepting, drop handshakes under way, close the socket."""
        await self._scope.close()
        self._listening.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._listening)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    log.warning("web: no more connections can be accepted: %s", error.strerror)
                    await asyncio.sleep(EXHAUSTED_PAUSE_S)
                continue  # anything else is the fault of a peer that has gone again
            remote = str(address[0]) if address else ""
            if self._is_full(remote):
                connection.close()
                continue
            self._shaking_hands[remote] += 1
            self._scope.start(self._take(connection, remote), name=f"connection from {remote}")

    def _is_full(self, remote: str) -> bool:
        transports = list(self._established())
        if len(transports) + self._shaking_hands.total() >= self._total_limit:
            return True
        if self._tls is None:
            return False  # the UNIX socket has only root behind it
        from_remote = self._shaking_hands[remote]
        from_remote += sum(1 for transport in transports if _address_of(transport) == remote)
        return from_remote >= self._per_address_limit

    async def _take(self, connection: socket.socket, remote: str) -> None:
        loop = asyncio.get_running_loop()
        limit = HANDSHAKE_LIMIT_S if self._tls is not None else None
        try:
            # what a stranger sends in place of a handshake is no error of ours
            with contextlib.suppress(OSError, ssl.SSLError):
                await loop.connect_accepted_socket(
                    self._factory, connection, ssl=self._tls, ssl_handshake_timeout=limit
                )
        except BaseException:
            connection.close()
            raise
        finally:
            self._shaking_hands[remote] -= 1
            if not self._shaking_hands[remote]:
                del self._shaking_hands[remote]


def _address_of(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""
