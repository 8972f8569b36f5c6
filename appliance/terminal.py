"""The master side of a pseudo-terminal (pty(7)) on the loop: what programs on it say, what is typed, how large it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import termios

from appliance.errors import HostError, TimedOut

READ_BYTES = 64 << 10
WRITE_LIMIT_S = 10.0


class Terminal:
    """Owns the descriptor `master` until `close`; `about` names it in errors. One reader and one writer at a time."""

    def __init__(self, master: int, about: str) -> None:
        os.set_blocking(master, False)
        self._master = master
        self._about = about
        self._waiters: set[asyncio.Event] = set()

    @property
    def closed(self) -> bool:
        return self._master < 0

    async def read(self) -> bytes:
        """The next bytes. Raises `OSError`: EIO while no process has it open, EBADF once it is closed."""
        while True:
            try:
                return os.read(self._master, READ_BYTES)
            except BlockingIOError:
                await self._ready(read=True)

    async def write(self, data: bytes) -> None:
        """Type `data`. Raises `TimedOut` when nobody reads it within `WRITE_LIMIT_S`, `HostError` when the session has ended."""
        try:
            async with asyncio.timeout(WRITE_LIMIT_S):
                while data:
                    try:
                        data = data[os.write(self._master, data) :]
                    except BlockingIOError:
                        await self._ready(read=False)
        except TimeoutError as error:
            raise TimedOut(f"{self._about}: input", WRITE_LIMIT_S) from error
        except OSError as error:
            raise HostError(f"{self._about}: the session has ended") from error

    def resize(self, columns: int, rows: int) -> None:
        """Tell its size to the programs on it; of no effect once they have ended."""
        if self.closed:
            return
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetwinsize(self._master, (rows, columns))

    def close(self) -> None:
        """Hang up: who reads or writes just now is told that it has ended. May be repeated."""
        if self._master < 0:
            return
        master, self._master = self._master, -1
        loop = asyncio.get_running_loop()
        loop.remove_reader(master)
        loop.remove_writer(master)
        os.close(master)
        for waiter in self._waiters:
            waiter.set()

    async def _ready(self, *, read: bool) -> None:
        loop, ready, master = asyncio.get_running_loop(), asyncio.Event(), self._master
        add, remove = (loop.add_reader, loop.remove_reader) if read else (loop.add_writer, loop.remove_writer)
        add(master, ready.set)
        self._waiters.add(ready)
        try:
            await ready.wait()
        finally:
            self._waiters.discard(ready)
            if self._master == master:
                remove(master)
