"""A container's console through its shim's attach socket (conmon: SOCK_SEQPACKET, one type byte, then the bytes).

The shim writes to us with blocking calls, so a reader that never reads would stop the container's terminal. Therefore
this side buffers up to `BUFFER_BYTES`; when that is full and nobody has read for `STALL_LIMIT_S`, the oldest bytes go,
until somebody reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from pathlib import Path

from appliance.ct import logfile
from appliance.errors import HostError, TimedOut

READ_BYTES = 64 << 10
BUFFER_BYTES = 512 << 10
STALL_LIMIT_S = 2.0
WRITE_LIMIT_S = 10.0
ATTACH_LIMIT_S = 5.0
_WRITE_CHUNK_BYTES = 4096
_PACKETS_A_WAKEUP = 64


class ConmonConsole:
    """Fulfils ports.ConsoleSource. Runs on the loop; made by `attach`."""

    def __init__(self, connection: socket.socket, control: Path, history: bytes) -> None:
        self._socket = connection
        self._control = control
        self._history = history
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._ended = False
        self._ready = asyncio.Event()
        self._stall: asyncio.TimerHandle | None = None
        self._listening = False
        self._discarding = False
        self._listen()

    @staticmethod
    async def attach(directory: Path) -> ConmonConsole:
        """Attach to the shim whose bundle is `directory`. Raises `HostError` when it is gone."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            async with asyncio.timeout(ATTACH_LIMIT_S):
                await asyncio.get_running_loop().sock_connect(connection, str(directory / "attach"))
            history = await asyncio.to_thread(logfile.read_history, directory / "console.log")
            console = ConmonConsole(connection, directory / "ctl", history)
        except TimeoutError as error:
            connection.close()
            raise TimedOut(f"{directory}: attach to the console", ATTACH_LIMIT_S) from error
        except OSError as error:
            connection.close()
            raise HostError.from_os_error(error, f"connect {directory / 'attach'}") from error
        except BaseException:
            connection.close()
            raise
        console._drop_overlap()
        return console

    def history(self) -> bytes:
        return self._history

    async def read(self) -> bytes:
        while not self._chunks and not self._ended:
            self._ready.clear()
            await self._ready.wait()
        taken: list[bytes] = []
        size = 0
        while self._chunks and size + len(self._chunks[0]) <= READ_BYTES:
            taken.append(self._chunks.popleft())
            size += len(taken[-1])
        self._buffered -= size
        self._discarding = False
        if not self._ended:
            self._listen()
        return b"".join(taken)

    async def write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(WRITE_LIMIT_S):
                for start in range(0, len(data), _WRITE_CHUNK_BYTES):
                    await self._loop.sock_sendall(self._socket, data[start : start + _WRITE_CHUNK_BYTES])
        except TimeoutError as error:
            raise TimedOut("the console takes no input", WRITE_LIMIT_S) from error
        except OSError as error:
            raise HostError.from_os_error(error, "write to the console") from error

    async def resize(self, columns: int, rows: int) -> None:
        with contextlib.suppress(OSError):  # the shim is going: the size no longer matters
            await asyncio.to_thread(_write_control, self._control, f"1 {rows} {columns}\n")

    async def close(self) -> None:
        self._end()
        self._socket.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if not self._listening and not self._ended:
            self._listening = True
            self._loop.add_reader(self._socket.fileno(), self._receive)

    def _receive(self) -> None:
        for _ in range(_PACKETS_A_WAKEUP):
            if self._buffered >= BUFFER_BYTES:
                if not self._discarding:
                    self._pause()
                    break
                self._buffered -= len(self._chunks.popleft())
            try:
                packet = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            if not packet:
                self._end()
                break
            if len(packet) > 1:  # an empty chunk would read as the end
                self._chunks.append(packet[1:])
                self._buffered += len(packet) - 1
        self._ready.set()

    def _pause(self) -> None:
        """Let the terminal wait for its reader, but not for ever."""
        self._loop.remove_reader(self._socket.fileno())
        self._listening = False
        self._stall = self._loop.call_later(STALL_LIMIT_S, self._discard)

    def _discard(self) -> None:
        """Nobody reads: from now on the oldest bytes make room, until somebody does."""
        self._discarding = True
        self._listen()

    def _drop_overlap(self) -> None:
        self._receive()
        self._history = logfile.without_overlap(self._history, b"".join(self._chunks)[: logfile.HISTORY_BYTES])

    def _end(self) -> None:
        self._ended = True
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._socket.fileno())
        self._ready.set()


def _write_control(path: Path, text: str) -> None:
    """The shim reads commands from a FIFO; without a reader the open fails instead of waiting."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            return
        raise
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
