"""A container's console through its shim's attach socket (conmon: SOCK_SEQPACKET, one type byte, then the bytes).

The shim writes to us with blocking calls, so a reader that never reads would stop the container's terminal. Therefore
this side buffers up to `BUFFER_BYTES`; when that is full and nobody has read for `STALL_LIMIT_S`, the oldest bytes go,
until somebody reads.

A terminal hands over 4 KiB at most at a time, and so does the shim. While they come one after the other, this side takes them
`GATHER_S` apart: one turn of the whole way to the browser then carries what had come, not a packet. What is typed and echoed
is smaller and never waits.

What the shim reads from the terminal it logs first and sends to us then, and it does one thing after the other. So with
S the log's length when it accepted us, and the log read while we are connected:

    log  =  the first S bytes, the history  +  a beginning of what we receive

How long that beginning is, is known but for what was on its way then. Two questions close the gap (`_caught_up`): one
before the log is read, since a shim that has not accepted us yet sends us nothing; one after it, since a shim may have
logged what it has not sent. `logfile.without_overlap` finds the rest.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import termios
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
GATHER_S = 0.001
"""The loop's timers are no finer. The shim's socket holds about 25 packets, so this allows 100 MiB/s."""
_BULK_BYTES = 2048
"""In one wake-up: a stream, not an echo."""
_PACKETS_A_WAKEUP = 64
_CAUGHT_UP_POLL_S = 0.001


class ConmonConsole:
    """Fulfils ports.ConsoleSource. Runs on the loop; made by `attach`."""

    def __init__(self, connection: socket.socket, directory: Path) -> None:
        self._socket = connection
        self._directory = directory
        self._history = b""
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._received = 0
        self._ended = False
        self._ready = asyncio.Event()
        self._stall: asyncio.TimerHandle | None = None
        self._gathering: asyncio.TimerHandle | None = None
        self._listening = False
        self._discarding = False
        self._listen()

    @staticmethod
    async def attach(directory: Path) -> ConmonConsole:
        """Attach to the shim whose bundle is `directory`. Raises `HostError` when it is gone."""
        connection = _connection()
        undo = contextlib.ExitStack()
        undo.callback(connection.close)
        with undo:
            try:
                async with asyncio.timeout(ATTACH_LIMIT_S):
                    await asyncio.get_running_loop().sock_connect(connection, str(directory / "attach"))
                    console = ConmonConsole(connection, directory)
                    undo.callback(console._end)
                    await console._find_history()
            except TimeoutError as error:
                raise TimedOut(f"{directory}: attach to the console", ATTACH_LIMIT_S) from error
            except OSError as error:
                raise HostError.from_os_error(error, f"connect {directory / 'attach'}") from error
            undo.pop_all()
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
            await asyncio.to_thread(_write_control, self._directory / "ctl", f"1 {rows} {columns}\n")

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
            self._loop.add_reader(self._socket.fileno(), self._wake)

    def _wake(self) -> None:
        """Something has come. As long as there is much each time, look again by the clock."""
        before = self._received
        self._receive()
        flows = self._received - before >= _BULK_BYTES
        if not self._listening:
            return  # stalled, or ended
        if flows:
            if self._gathering is None:
                self._loop.remove_reader(self._socket.fileno())
            self._gathering = self._loop.call_later(GATHER_S, self._wake)
        elif self._gathering is not None:
            self._gathering = None
            self._loop.add_reader(self._socket.fileno(), self._wake)

    def _receive(self) -> bool:
        """Take some of what has come; whether there may be more."""
        more = all(self._receive_packet() for _ in range(_PACKETS_A_WAKEUP))
        self._ready.set()
        return more

    def _receive_packet(self) -> bool:
        """Take one packet; whether there was one, and room for it."""
        if self._buffered >= BUFFER_BYTES:
            if not self._discarding:
                self._pause()
                return False
            self._buffered -= len(self._chunks.popleft())
        try:
            packet = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            packet = b""
        if not packet:
            self._end()
            return False
        if len(packet) > 1:  # an empty chunk would read as the end
            self._chunks.append(packet[1:])
            self._buffered += len(packet) - 1
            self._received += len(packet) - 1
        return True

    def _pause(self) -> None:
        """Let the terminal wait for its reader, but not for ever."""
        self._ignore()
        self._stall = self._loop.call_later(STALL_LIMIT_S, self._discard)

    def _discard(self) -> None:
        """Nobody reads: from now on the oldest bytes make room, until somebody does."""
        self._discarding = True
        self._listen()

    async def _find_history(self) -> None:
        """See the module's docstring. Once as much has come as history may hold, there is none before it."""
        await self._caught_up()
        received = self._receive_all()
        log = await asyncio.to_thread(logfile.read_history, self._directory / "console.log")
        await self._caught_up()
        if self._receive_all() < logfile.HISTORY_BYTES:
            self._history = logfile.without_overlap(log, b"".join(self._chunks), at_least=received)

    async def _caught_up(self) -> None:
        """Wait until the shim has sent us what it has logged by now, or has sent a whole history's worth, or is gone.

        It shows by taking an empty packet from a second connection: it serves that after what it was doing.
        """
        with _connection() as question, contextlib.suppress(ConnectionError, FileNotFoundError):
            await self._loop.sock_connect(question, str(self._directory / "attach"))
            question.send(b"")
            while (  # noqa: ASYNC110 - nothing tells that a packet was taken
                _unsent_bytes(question) and self._buffered < logfile.HISTORY_BYTES and not self._ended
            ):
                await asyncio.sleep(_CAUGHT_UP_POLL_S)

    def _receive_all(self) -> int:
        """Take all that has come, as far as it is buffered; how many bytes that are."""
        while self._listening and self._receive():
            pass
        return self._buffered

    def _end(self) -> None:
        self._ended = True
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._listening:
            self._ignore()
        self._ready.set()

    def _ignore(self) -> None:
        self._listening = False
        self._loop.remove_reader(self._socket.fileno())
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None


def _connection() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _unsent_bytes(connection: socket.socket) -> int:
    """What the other side has not taken yet, an empty packet's own memory included."""
    buffer = array.array("i", [0])
    fcntl.ioctl(connection, termios.TIOCOUTQ, buffer, True)  # unix(7), SIOCOUTQ
    return buffer[0]


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
