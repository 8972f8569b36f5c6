"""Consoles: one attachment to each console of a running guest, shared by any number of viewers.

    ConsoleSource ──▶ ConsoleHub ──▶ replay (64 KiB, the newest) ──▶ the first bytes of a client that attaches
                          └────────▶ a bounded queue a client ──▶ ConsoleClient.read()

Every byte reaches every client once, in order, or the client is told that it was dropped. The policy, so that neither the
guest nor other viewers suffer from a slow one:
- the fastest client paces the source: while no client has room, nothing is read, for at most `STALL_LIMIT_S`; then all
  those full queues are dropped;
- a client without room while another has some is dropped at once (`ConsoleLagged`); it may attach again, with replay;
- without clients the source is drained into the replay, no faster than `DRAIN_BYTES_PER_S`, so that a guest that
  shouts with nobody listening does not occupy the process.
All of it runs on the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from appliance.errors import ApplianceError, GuestFault, HostError, InvalidParameter, TimedOut, TooLarge, UserError
from appliance.model.guest import GuestId
from appliance.services.ports.console import ConsoleSource
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)

REPLAY_BYTES = 64 << 10
QUEUE_LIMIT_BYTES = 1 << 20
READ_LIMIT_BYTES = 64 << 10
STALL_LIMIT_S = 2.0
DRAIN_BYTES_PER_S = 32 << 20
DRAIN_BURST_BYTES = 1 << 20
INPUT_LIMIT_BYTES = 512 << 10
"""What may wait to be typed into one console, over all clients: a large paste from each of two."""
INPUT_PIECE_BYTES = 4 << 10
WRITE_TIMEOUT_S = 5.0
"""How long one piece of input may take, waiting for other clients' pieces included."""
OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
COLUMNS_LIMIT, ROWS_LIMIT = 1000, 1000


class ConsoleLagged(UserError):
    """This viewer was too slow and has been dropped; it may attach again and gets the replay."""


class Replay:
    """The newest `REPLAY_BYTES` of a stream."""

    def __init__(self, data: bytes = b"") -> None:
        self._chunks: deque[bytes] = deque([data] if data else [])
        self._size_bytes = len(data)

    def add(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size_bytes += len(data)
        while self._size_bytes - len(self._chunks[0]) >= REPLAY_BYTES:
            self._size_bytes -= len(self._chunks.popleft())

    def snapshot(self) -> bytes:
        return b"".join(self._chunks)[-REPLAY_BYTES:]


class ConsoleClient:
    """One viewer. A context manager; made by `ConsoleHub.attach`. One task reads, any may write."""

    def __init__(self, hub: ConsoleHub, replay: bytes) -> None:
        self._hub = hub
        self._chunks: deque[bytes] = deque([replay] if replay else [])
        self._size_bytes = len(replay)
        self._ready = asyncio.Event()
        self._lagged = False
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def read(self) -> bytes:
        """The next bytes, at most `READ_LIMIT_BYTES` unless the source gave more at once; b"" when the console has
        ended or this client is closed. Raises `ConsoleLagged` when it was dropped."""
        while not self._chunks:
            if self._lagged:
                raise ConsoleLagged(f"{self._hub.name}: this viewer was too slow and has been dropped")
            if self._ended:
                return b""
            self._ready.clear()
            await self._ready.wait()
        taken = [self._chunks.popleft()]
        size_bytes = len(taken[0])
        while self._chunks and size_bytes + len(self._chunks[0]) <= READ_LIMIT_BYTES:
            taken.append(self._chunks.popleft())
            size_bytes += len(taken[-1])
        self._size_bytes -= size_bytes
        self._hub._made_room()
        return taken[0] if len(taken) == 1 else b"".join(taken)

    async def write(self, data: bytes) -> None:
        """Type `data`; up to `INPUT_PIECE_BYTES` are never mixed with what others type.

        Raises `TooLarge` when more than `INPUT_LIMIT_BYTES` would wait, `TimedOut` when the guest does not take it,
        `HostError` when the console has ended, `ConsoleLagged`.
        """
        if self._lagged:
            raise ConsoleLagged(f"{self._hub.name}: this viewer was too slow and has been dropped")
        await self._hub._write(data)

    async def resize(self, columns: int, rows: int) -> None:
        """Set the terminal's size; the last to ask wins. Raises `InvalidParameter` for a senseless size."""
        if not (1 <= columns <= COLUMNS_LIMIT and 1 <= rows <= ROWS_LIMIT):
            raise InvalidParameter({"size": f"{columns}x{rows} is not a terminal's size"})
        await self._hub._resize(columns, rows)

    def close(self) -> None:
        """Leave. Safe to call again."""
        self._chunks.clear()
        self._end()
        self._hub._leave(self)

    def _has_room(self, size_bytes: int) -> bool:
        return self._size_bytes + size_bytes <= QUEUE_LIMIT_BYTES

    def _offer(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size_bytes += len(data)
        self._ready.set()

    def _drop(self) -> None:
        self._lagged = True
        self._chunks.clear()
        self._ready.set()

    def _end(self) -> None:
        self._ended = True
        self._ready.set()


class ConsoleHub:
    """One console: pumps its source from now until the source ends or `close`."""

    def __init__(self, source: ConsoleSource, scope: TaskScope, *, name: str = "console") -> None:
        self.name = name
        self.ended = False
        """The source has ended: clients get what is left, new ones the replay, then b""."""
        self._source = source
        self._replay = Replay(source.history()[-REPLAY_BYTES:])
        self._clients: set[ConsoleClient] = set()
        self._room = asyncio.Event()
        self._input = asyncio.Lock()
        self._waiting_input_bytes = 0
        self._size: tuple[int, int] | None = None
        self._pump_task = scope.start(self._pump(), name=f"console {name}")

    def attach(self) -> ConsoleClient:
        """A client whose first bytes are the replay."""
        client = ConsoleClient(self, self._replay.snapshot())
        if self.ended:
            client._end()
        else:
            self._clients.add(client)
        return client

    async def close(self) -> None:
        """End: clients get what is queued, then b"". The guest goes on. Safe to call again."""
        if self._pump_task is not asyncio.current_task():
            self._pump_task.cancel("console closes")
            await asyncio.wait([self._pump_task], timeout=CLOSE_TIMEOUT_S)
        self._end()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._source.close()
        except TimeoutError:
            log.error("%s: the console's source did not close within %g s", self.name, CLOSE_TIMEOUT_S)
        except HostError as error:
            log.warning("%s: closing the console: %s", self.name, error)

    # the pump

    async def _pump(self) -> None:
        unwatched_bytes = 0
        try:
            while data := await self._source.read():
                self._replay.add(data)
                if self._clients:
                    await self._hand_out(data)
                    continue
                unwatched_bytes += len(data)
                if unwatched_bytes >= DRAIN_BURST_BYTES:
                    await asyncio.sleep(unwatched_bytes / DRAIN_BYTES_PER_S)
                    unwatched_bytes = 0
        except (HostError, GuestFault) as error:
            log.warning("%s: the console has ended: %s", self.name, error)
        finally:
            self._end()

    async def _hand_out(self, data: bytes) -> None:
        """Give `data` to every client attached when it was read. Who attaches while this waits has it in the replay."""
        present = frozenset(self._clients)
        await self._wait_for_room(present, len(data))
        for client in present & self._clients:
            if client._has_room(len(data)):
                client._offer(data)
            else:
                log.info("%s: a viewer was too slow and is dropped", self.name)
                self._clients.discard(client)
                client._drop()
        # A source that always has data must not keep the loop from the clients' tasks.
        await asyncio.sleep(0)

    async def _wait_for_room(self, present: frozenset[ConsoleClient], size_bytes: int) -> None:
        """Return when a client of `present` has room, when all have left, or after `STALL_LIMIT_S`."""
        if any(client._has_room(size_bytes) for client in present):
            return
        try:
            async with asyncio.timeout(STALL_LIMIT_S):
                while staying := present & self._clients:
                    if any(client._has_room(size_bytes) for client in staying):
                        return
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            return

    def _made_room(self) -> None:
        self._room.set()

    def _leave(self, client: ConsoleClient) -> None:
        self._clients.discard(client)
        self._room.set()

    def _end(self) -> None:
        self.ended = True
        for client in self._clients:
            client._end()
        self._clients.clear()

    # towards the guest

    async def _write(self, data: bytes) -> None:
        if self.ended:
            raise HostError(f"{self.name}: the console has ended")
        if self._waiting_input_bytes + len(data) > INPUT_LIMIT_BYTES:
            raise TooLarge(f"{self.name}: more than {INPUT_LIMIT_BYTES} bytes of input are waiting")
        self._waiting_input_bytes += len(data)
        try:
            for start in range(0, len(data), INPUT_PIECE_BYTES):
                async with asyncio.timeout(WRITE_TIMEOUT_S), self._input:
                    await self._source.write(data[start : start + INPUT_PIECE_BYTES])
        except TimeoutError as error:
            raise TimedOut(f"{self.name}: input to the guest", WRITE_TIMEOUT_S) from error
        finally:
            self._waiting_input_bytes -= len(data)

    async def _resize(self, columns: int, rows: int) -> None:
        """Whoever gets the lock applies the newest size, so a queue of requests costs one call and ends right."""
        self._size = (columns, rows)
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S), self._input:
                if self._size is not None and not self.ended:
                    (columns, rows), self._size = self._size, None
                    await self._source.resize(columns, rows)
        except TimeoutError as error:
            raise TimedOut(f"{self.name}: terminal size", WRITE_TIMEOUT_S) from error


class GuestWithConsoles(Protocol):
    """The part of `RunningGuest` that consoles need."""

    @property
    def guest_id(self) -> GuestId: ...

    def console_names(self) -> Sequence[str]: ...

    async def open_console(self, name: str) -> ConsoleSource: ...


class ConsoleService:
    """The hubs of all running guests: one for each (guest, console name) and run."""

    def __init__(self, scope: TaskScope) -> None:
        self._scope = scope
        self._hubs: dict[tuple[GuestId, str], tuple[GuestWithConsoles, ConsoleHub]] = {}
        self._locks: dict[GuestId, asyncio.Lock] = {}

    async def start(self) -> None:
        """Nothing to load: hubs come with their guests."""

    async def close(self) -> None:
        """End every hub; guests go on."""
        for guest_id in {guest_id for guest_id, _ in self._hubs}:
            await self.guest_stopped(guest_id)

    async def attach(self, guest: GuestWithConsoles, name: str) -> ConsoleClient:
        """Attach to the console `name` of `guest`. Raises `NotFound` for an unknown name, `HostError`, `GuestFault`."""
        async with self._lock(guest.guest_id):
            return (await self._hub(guest, name)).attach()

    async def guest_started(self, guest: GuestWithConsoles) -> None:
        """Begin to listen on all consoles of a guest that was started or adopted; what fails is tried again by `attach`."""
        async with self._lock(guest.guest_id):
            for name in guest.console_names():
                try:
                    await self._hub(guest, name)
                except ApplianceError as error:
                    log.warning("guest %d: console %s: %s", guest.guest_id, name, error)

    async def guest_stopped(self, guest_id: GuestId) -> None:
        """End the guest's consoles. Not an error when there are none."""
        async with self._lock(guest_id):
            for key in [key for key in self._hubs if key[0] == guest_id]:
                _, hub = self._hubs.pop(key)
                await hub.close()

    def _lock(self, guest_id: GuestId) -> asyncio.Lock:
        return self._locks.setdefault(guest_id, asyncio.Lock())

    async def _hub(self, guest: GuestWithConsoles, name: str) -> ConsoleHub:
        """The hub of this run of the guest. Under the guest's lock."""
        key = (guest.guest_id, name)
        known_guest, hub = self._hubs.get(key, (None, None))
        if hub is not None:
            if known_guest is guest and not hub.ended:
                return hub
            del self._hubs[key]
            await hub.close()
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                source = await guest.open_console(name)
        except TimeoutError as error:
            raise TimedOut(f"guest {guest.guest_id}: open console {name}", OPEN_TIMEOUT_S) from error
        hub = ConsoleHub(source, self._scope, name=f"guest {guest.guest_id}: {name}")
        self._hubs[key] = (guest, hub)
        return hub
