"""The websockets that are open: counted, bounded, closed together when the appliance goes down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aiohttp import WSCloseCode, web

from appliance.errors import ServiceStopping, TooManyRequests

log = logging.getLogger(__name__)

OPEN_LIMIT = 1024
PER_REMOTE_LIMIT = 256
CLOSE_TIMEOUT_S = 3.0


class SocketRegistry:
    """All open websockets of one application."""

    def __init__(self) -> None:
        self._open: dict[web.WebSocketResponse, str] = {}
        self._closing = False

    def __len__(self) -> int:
        return len(self._open)

    @property
    def open_now(self) -> Sequence[web.WebSocketResponse]:
        """Those that are open now."""
        return tuple(self._open)

    @contextmanager
    def register(self, socket: web.WebSocketResponse, remote: str) -> Iterator[None]:
        """Count `socket` in for the length of the block. Raises `TooManyRequests`, `ServiceStopping`."""
        if self._closing:
            raise ServiceStopping("the appliance is stopping")
        from_remote = sum(1 for other in self._open.values() if other == remote)
        if len(self._open) >= OPEN_LIMIT or from_remote >= PER_REMOTE_LIMIT:
            raise TooManyRequests("too many open websockets", retry_after_s=10)
        self._open[socket] = remote
        try:
            yield
        finally:
            del self._open[socket]

    async def close_all(self) -> None:
        """Say goodbye to every client and refuse new ones; at most `CLOSE_TIMEOUT_S`."""
        self._closing = True
        closings = [socket.close(code=WSCloseCode.GOING_AWAY, message=b"appliance stops") for socket in self._open]
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.gather(*closings, return_exceptions=True)
        except TimeoutError:
            log.warning("web: %d websockets did not close within %g s", len(self._open), CLOSE_TIMEOUT_S)
