"""QMP: one connection to the monitor of one QEMU, by the `qemu.qmp` library.

QEMU serves one client at a time on its monitor socket, so the appliance holds exactly one. Events are handed to a
callback at once and never queued: the library's own listener keeps every event for ever, which a guest could use to
fill our memory (it makes events by resetting itself in a loop). Some events a guest can cause with one instruction, a
hundred thousand times a second: reading them gives way to the rest of the appliance, and `on_flood` is told, which ought
to stop the guest's vCPUs, for what we do not read fills QEMU's memory. Runs on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from qemu.qmp import ExecInterruptedError, ExecuteError, Message, QMPClient, QMPError, Runstate

from appliance.errors import HostError, TimedOut

CONNECT_TIMEOUT_S = 10.0
EXECUTE_TIMEOUT_S = 10.0
_DISCONNECT_TIMEOUT_S = 2.0
FLOOD_EVENTS, FLOOD_WINDOW_S = 2000, 2.0
_MESSAGES_IN_A_ROW = 16  # a millisecond or two

OnEvent = Callable[[str, Mapping[str, object]], None]
"""Told the event's name and data. Must not raise."""

wire_log = logging.getLogger(f"{__name__}.wire")
"""The library's own log: silent unless its level is set."""


class _Client(QMPClient):
    """The library's reader goes on without a pause for as long as there is something to read."""

    _row = 0

    async def _do_recv(self) -> Message:
        self._row += 1
        if self._row % _MESSAGES_IN_A_ROW == 0:
            await asyncio.sleep(0)
        return await super()._do_recv()


class Monitor:
    """The connection. `name` ("vm 100") begins every message. `on_flood` is called at most once a `FLOOD_WINDOW_S`, when
    over `FLOOD_EVENTS` have come in it; it must not raise."""

    def __init__(
        self, socket_path: Path, *, name: str, on_event: OnEvent, on_flood: Callable[[], None] = lambda: None
    ) -> None:
        self._path = socket_path
        self._name = name
        self._on_event, self._on_flood = on_event, on_flood
        self._window_began, self._events = 0.0, 0
        self._client: QMPClient | None = None

    @property
    def name(self) -> str:
        """ "vm 100", for messages."""
        return self._name

    @property
    def connected(self) -> bool:
        """Whether commands can be sent now."""
        return self._client is not None and self._client.runstate is Runstate.RUNNING

    async def connect(self, *, timeout_s: float | None = None) -> None:
        """Connect and negotiate; QEMU answers when its devices are made. Raises `HostError`, `TimedOut`."""
        timeout_s = CONNECT_TIMEOUT_S if timeout_s is None else timeout_s
        await self.close()
        client = _Client()
        client.logger = wire_log
        if wire_log.level == logging.NOTSET:
            wire_log.setLevel(logging.CRITICAL)
        client.events.event_filter = self._take_event
        self._client = client
        try:
            async with asyncio.timeout(timeout_s):
                await client.connect(str(self._path))
        except TimeoutError as error:
            raise TimedOut(f"{self._name}: QEMU's monitor", timeout_s) from error
        except (QMPError, OSError, EOFError) as error:
            raise HostError(f"{self._name}: QEMU's monitor {self._path}: {error}") from error

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = EXECUTE_TIMEOUT_S
    ) -> object:
        """Run one command and return its value. Raises `HostError` (refused, or QEMU has gone), `TimedOut`."""
        client = self._client
        if client is None or client.runstate is not Runstate.RUNNING:
            raise HostError(f"{self._name}: {command}: no connection to QEMU's monitor")
        try:
            async with asyncio.timeout(timeout_s):
                value: object = await client.execute(command, dict(arguments) if arguments else None)
                return value
        except TimeoutError as error:
            raise TimedOut(f"{self._name}: QMP {command}", timeout_s) from error
        except ExecuteError as error:
            raise HostError(f"{self._name}: {command}: {error}") from error
        except (ExecInterruptedError, QMPError, OSError, EOFError) as error:
            raise HostError(f"{self._name}: {command}: QEMU has gone") from error

    async def wait_disconnected(self) -> None:
        """Return when the connection has ended; at once when there is none."""
        client = self._client
        while client is not None and client.runstate is Runstate.RUNNING:
            await client.runstate_changed()

    async def close(self) -> None:
        """Give up the connection; QEMU goes on. Idempotent."""
        client, self._client = self._client, None
        if client is None:
            return
        # Disconnecting raises whatever ended the connection before (end of file, reset): of no use any more.
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(_DISCONNECT_TIMEOUT_S):
                await client.disconnect()

    def _take_event(self, message: Mapping[str, object]) -> bool:
        """The library's filter: handling the event here and refusing it keeps its queue and history empty."""
        name, data = message.get("event"), message.get("data")
        now = asyncio.get_running_loop().time()
        if now - self._window_began > FLOOD_WINDOW_S:
            self._window_began, self._events = now, 0
        self._events += 1
        if self._events == FLOOD_EVENTS:
            self._on_flood()
        if isinstance(name, str):
            self._on_event(name, data if isinstance(data, dict) else {})
        return False
