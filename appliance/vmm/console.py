"""The host's side of a byte channel of a guest: a serial line or a virtio port. The newest 64 KiB are kept.

The guest's side calls `feed` from any thread and is never held up: an attachment that does not read loses the oldest bytes
beyond a bound. What is typed waits, bounded in time, until the device has room.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from appliance.errors import HostError, TimedOut
from appliance.vmm.loopbridge import Bridge

HISTORY_LIMIT_BYTES = 64 << 10
UNREAD_LIMIT_BYTES = 4 << 20
READ_LIMIT_BYTES = 64 << 10
WRITE_TIMEOUT_S = 10.0
PIECE_BYTES = 4096  # what a guest says byte by byte is kept in pieces of this size: each costs more than a byte


class ByteDevice(Protocol):
    """What a channel types into: `SerialPort`, `ConsolePort`."""

    def receive(self, data: bytes) -> int:
        """Take as much as there is room for; how much that was. Any thread."""


class ByteChannel:
    """One channel of a machine, for as long as the machine lives. `name` ("vm 101: serial0") begins messages."""

    def __init__(self, name: str, bridge: Bridge) -> None:
        self.name = name
        self._bridge = bridge
        self._lock = threading.Lock()
        self._history: deque[bytes] = deque()
        self._history_bytes = 0
        self._attached: list[Attachment] = []
        self._news = False
        self._ended = False
        self._device: ByteDevice | None = None
        self._room = asyncio.Event()
        self._typing = asyncio.Lock()

    def bind(self, device: ByteDevice) -> None:
        """Where typed bytes go."""
        self._device = device

    # --- the guest's side, any thread ---------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """The guest has said this."""
        with self._lock:
            _append(self._history, data)
            self._history_bytes += len(data)
            while self._history_bytes - len(self._history[0]) >= HISTORY_LIMIT_BYTES:
                self._history_bytes -= len(self._history.popleft())
            for each in self._attached:
                each._take(data)
            told, self._news = self._news, True
        if not told:  # one wake-up on the loop for whatever comes until then
            self._bridge.post(self._wake)

    def has_room(self) -> None:
        """The guest can be typed to again."""
        self._bridge.post(self._room.set)

    # --- the host's side, on the loop -----------------------------------------------------------------------------------

    def history(self) -> bytes:
        """What was said, the newest `HISTORY_LIMIT_BYTES`."""
        with self._lock:
            return b"".join(self._history)[-HISTORY_LIMIT_BYTES:]

    def restore_history(self, said: bytes) -> None:
        """What the guest had said before it was restored here."""
        with self._lock:
            self._history = deque([said] if said else [])
            self._history_bytes = len(said)

    def attach(self) -> Attachment:
        """Begin to listen: history up to now, then every byte after it."""
        with self._lock:
            made = Attachment(self, b"".join(self._history)[-HISTORY_LIMIT_BYTES:])
            if self._ended:
                made._end()
            else:
                self._attached.append(made)
            return made

    async def write(self, data: bytes) -> None:
        """Type `data`. Raises `TimedOut` when the guest takes nothing for `WRITE_TIMEOUT_S`, `HostError` at the end."""
        rest = data
        async with self._typing:
            while rest:
                if self._ended or self._device is None:
                    raise HostError(f"{self.name}: the console has ended")
                self._room.clear()
                rest = rest[self._device.receive(rest) :]
                if rest:
                    try:
                        await asyncio.wait_for(self._room.wait(), WRITE_TIMEOUT_S)
                    except TimeoutError as error:
                        raise TimedOut(f"{self.name}: the guest taking input", WRITE_TIMEOUT_S) from error

    def end(self) -> None:
        """The machine is gone: attachments end after what they have not read yet. Idempotent; on the loop."""
        with self._lock:
            self._ended = True
            attached, self._attached = self._attached, []
        for each in attached:
            each._end()
        self._room.set()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        with self._lock:
            self._news = False
            attached = list(self._attached)
        for each in attached:
            each._ready.set()

    def _forget(self, attachment: Attachment) -> None:
        with self._lock:
            if attachment in self._attached:
                self._attached.remove(attachment)


class Attachment:
    """Fulfils `services.ports.console.ConsoleSource`."""

    def __init__(self, channel: ByteChannel, history: bytes) -> None:
        self._channel = channel
        self._said = history
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._ready = asyncio.Event()
        self._over = False
        self.on_resize: Callable[[int, int], None] | None = None

    def history(self) -> bytes:
        return self._said

    async def read(self) -> bytes:
        while True:
            with self._channel._lock:
                taken: list[bytes] = []
                size = 0
                while self._unread and (not taken or size + len(self._unread[0]) <= READ_LIMIT_BYTES):
                    taken.append(self._unread.popleft())
                    size += len(taken[-1])
                self._unread_bytes -= size
                if not taken:
                    self._ready.clear()
                over = self._over
            if taken or over:
                return b"".join(taken)
            await self._ready.wait()

    async def write(self, data: bytes) -> None:
        await self._channel.write(data)

    async def resize(self, columns: int, rows: int) -> None:
        if self.on_resize is not None:
            self.on_resize(columns, rows)

    async def close(self) -> None:
        self._channel._forget(self)
        self._end()

    def _take(self, data: bytes) -> None:
        """Under the channel's lock."""
        _append(self._unread, data)
        self._unread_bytes += len(data)
        while self._unread_bytes > UNREAD_LIMIT_BYTES:
            self._unread_bytes -= len(self._unread.popleft())

    def _end(self) -> None:
        self._over = True
        self._ready.set()


def _append(kept: deque[bytes], data: bytes) -> None:
    """At the end, as one with what is there while that is small."""
    if kept and len(kept[-1]) + len(data) <= PIECE_BYTES:
        kept[-1] += data
    else:
        kept.append(data)
