"""Consoles of guests that are only told about: a source fed by the test, and a guest that has one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from appliance.errors import HostError, NotFound
from appliance.model.guest import GuestId


class FakeConsoleSource:
    """Fulfils `ConsoleSource`. `say` makes the guest print; `typed`, `sizes` and `closed` tell what came the other way."""

    def __init__(self, history: bytes = b"") -> None:
        self.typed: list[bytes] = []
        self.sizes: list[tuple[int, int]] = []
        self.closed = 0
        self.taken_bytes = 0
        self.takes_input = asyncio.Event()
        self.takes_input.set()
        self._history = history
        self._said: asyncio.Queue[bytes | HostError] = asyncio.Queue()

    def say(self, data: bytes) -> None:
        """The guest prints `data`; b"" ends the console."""
        self._said.put_nowait(data)

    def break_with(self, error: HostError) -> None:
        """The attachment fails after what has been said."""
        self._said.put_nowait(error)

    def history(self) -> bytes:
        return self._history

    async def read(self) -> bytes:
        said = await self._said.get()
        if isinstance(said, HostError):
            raise said
        self.taken_bytes += len(said)
        return said

    async def write(self, data: bytes) -> None:
        for index in range(0, len(data), 4):
            await self.takes_input.wait()
            await asyncio.sleep(0)
            self.typed.append(data[index : index + 4])

    async def resize(self, columns: int, rows: int) -> None:
        await self.takes_input.wait()
        self.sizes.append((columns, rows))

    async def close(self) -> None:
        self.closed += 1


class FakeGuestWithConsoles:
    """One run of a guest, as far as its consoles go; `sources` are the attachments made, oldest first."""

    def __init__(self, guest_id: int = 100, names: Sequence[str] = ("serial0",)) -> None:
        self.guest_id = GuestId(guest_id)
        self.names = tuple(names)
        self.sources: list[FakeConsoleSource] = []
        self.broken: HostError | None = None

    def console_names(self) -> Sequence[str]:
        return self.names

    async def open_console(self, name: str) -> FakeConsoleSource:
        await asyncio.sleep(0)
        if self.broken:
            raise self.broken
        if name not in self.names:
            raise NotFound(f"console {name}")
        self.sources.append(FakeConsoleSource())
        return self.sources[-1]
