"""A console as one viewer sees it: says what the test puts in, remembers what was typed."""

from __future__ import annotations

import asyncio

from appliance.services.console import ConsoleLagged


class FakeViewer:
    """Fulfils `ConsoleClient`. `echo` sends typed bytes back, as a terminal would."""

    def __init__(self, *, echo: bool = False, limit: int = 1024) -> None:
        self.typed = bytearray()
        self.sizes: list[tuple[int, int]] = []
        self.closed = asyncio.Event()
        self.changed = asyncio.Event()
        self._echo = echo
        self._output: asyncio.Queue[bytes | None] = asyncio.Queue(limit)

    async def say(self, data: bytes) -> None:
        """The guest writes `data`; waits while the viewer is behind."""
        await self._output.put(data)

    async def end(self) -> None:
        """The console ends."""
        await self._output.put(b"")

    async def lag(self) -> None:
        """The hub drops this viewer."""
        await self._output.put(None)

    async def read(self) -> bytes:
        data = await self._output.get()
        if data is None:
            raise ConsoleLagged("console: this viewer was too slow and has been dropped")
        return data

    async def write(self, data: bytes) -> None:
        self.typed += data
        self.changed.set()
        if self._echo:
            await self.say(data)

    async def resize(self, columns: int, rows: int) -> None:
        self.sizes.append((columns, rows))
        self.changed.set()

    def close(self) -> None:
        self.closed.set()
