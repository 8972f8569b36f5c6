"""A serial console: QEMU's UNIX socket for what is said from now on, QEMU's log file for what was said before.

QEMU appends to the log every byte it sent to the socket, or threw away because nobody was connected (chardev/char.c,
qemu_chr_write_buffer: first the socket, then the log). So with S the log's length at the moment QEMU accepted us:

    log length  =  S + bytes we have received     less a write that is between socket and log at this instant
                                                  plus a byte for each write the full socket made QEMU try again,
                                                  for it logs such a write at each try (QEMU 6 to 10)

`split_at` takes the largest of a few measurements, with a question to QEMU's monitor among them that is answered between
two writes: enough for a guest that says little. For one that says much `align` looks for what came first through the
socket at that place in the log or nearby. History ends there.

A UNIX socket's send buffer holds some 280 writes of one byte, which is how an emulated UART writes. QEMU cannot be told
to make it larger, so `widen` does it from outside; otherwise every hiccup of ours would hold the guest up and leave a
doubled letter in the log.

The log is bounded by punching holes into its head (`trim_log`), which disturbs neither QEMU's appending nor offsets.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
import termios
from collections.abc import Awaitable, Callable
from pathlib import Path

from appliance.errors import HostError, TimedOut
from appliance.kernel.fallocate import punch_hole
from appliance.kernel.getfd import pidfd_getfd
from appliance.qemu.run_dir import read_tail
from appliance.threads import to_the_end

HISTORY_LIMIT_BYTES = 64 << 10
READ_LIMIT_BYTES = 64 << 10
LOG_LIMIT_BYTES = 1 << 20
SEND_BUFFER_BYTES = 4 << 20  # at most doubled by the kernel, and occupied only while nobody reads
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; needs CAP_NET_ADMIN
CONNECT_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 5.0
_SPLIT_SAMPLES = 4
_ALIGN_BYTES = 64  # a socket takes some 280 one-byte writes: the first of them were never tried twice
_ALIGN_LEAST_BYTES = 8
_ALIGN_BACK = 256
_ALIGN_AHEAD = 16  # more than a write of an emulated UART
_ACCEPT_POLL_S = 0.01

log = logging.getLogger(__name__)


class SerialConsole:
    """One attachment; QEMU serves one at a time. Fulfils `services.ports.console.ConsoleSource`. Made by `attach`."""

    def __init__(self, name: str, connection: socket.socket, history: bytes, on_close: Callable[[], None]) -> None:
        self._name = name
        self._socket = connection
        self._history = history
        self._on_close = on_close
        self._writing = asyncio.Lock()
        self._closed = False

    @staticmethod
    async def attach(
        name: str,
        socket_path: Path,
        log_path: Path,
        *,
        pid: int,
        accepted: Callable[[], Awaitable[bool]],
        on_close: Callable[[], None],
    ) -> SerialConsole:
        """Connect. `name` ("vm 100: serial0") begins messages; `accepted` asks QEMU whether it has a client here.

        Raises `HostError` when QEMU has gone, `TimedOut` when it does not accept.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(connection, str(socket_path))
                while not await accepted():  # noqa: ASYNC110 - QEMU tells nobody of an accepted client; it must be asked
                    await asyncio.sleep(_ACCEPT_POLL_S)
            await to_the_end(widen, pid, socket_path)
            guess = await to_the_end(_split, connection, log_path)
            await accepted()  # a write that was between socket and log is in both when QEMU answers
            guess = max(guess, await to_the_end(_split, connection, log_path))
            history = await to_the_end(_history, connection, log_path, guess)
        except TimeoutError as error:
            connection.close()
            raise TimedOut(f"{name}: QEMU accepting a connection", CONNECT_TIMEOUT_S) from error
        except OSError as error:
            connection.close()
            raise HostError.from_os_error(error, f"{name}: connect {socket_path}") from error
        except BaseException:
            connection.close()
            raise
        return SerialConsole(name, connection, history, on_close)

    def history(self) -> bytes:
        """What was said before this attachment: the newest `HISTORY_LIMIT_BYTES`."""
        return self._history

    async def read(self) -> bytes:
        """The next bytes; b"" when QEMU or this attachment has ended."""
        if self._closed:
            return b""
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, READ_LIMIT_BYTES)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        """Type `data`. A guest that takes nothing for `WRITE_TIMEOUT_S` raises `TimedOut`; some of it may have arrived."""
        if self._closed:
            raise HostError(f"{self._name}: the console has ended")
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S), self._writing:
                await asyncio.get_running_loop().sock_sendall(self._socket, data)
        except TimeoutError as error:
            raise TimedOut(f"{self._name}: the guest taking input", WRITE_TIMEOUT_S) from error
        except OSError as error:
            raise HostError(f"{self._name}: the console has ended") from error

    async def resize(self, columns: int, rows: int) -> None:
        """A serial line has no size."""

    async def close(self) -> None:
        """Detach; a pending `read` returns b"". Idempotent."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a pending read; closing alone would not
        await asyncio.sleep(0)
        self._socket.close()
        self._on_close()


def _split(connection: socket.socket, log_path: Path) -> int:
    """Blocking. S, as far as counting tells; `connection` has been accepted and not been read from."""
    try:
        with log_path.open("rb") as file:
            return split_at(
                lambda: os.fstat(file.fileno()).st_size, lambda: _unread_bytes(connection), samples=_SPLIT_SAMPLES
            )
    except FileNotFoundError:
        return 0


def _history(connection: socket.socket, log_path: Path, guess: int) -> bytes:
    """Blocking. The log's end before the split, which is at `guess` or nearby."""
    first = _first_bytes(connection)  # before the log is looked at: so the log has it
    reach = min(guess, _ALIGN_BACK)
    around = read_tail(log_path, reach + _ALIGN_AHEAD + _ALIGN_BYTES, end=guess + _ALIGN_AHEAD + _ALIGN_BYTES)
    split = guess - reach + align(around, reach, first)
    return read_tail(log_path, HISTORY_LIMIT_BYTES, end=split).lstrip(b"\0")  # a hole in the log reads as zeros


def split_at(log_length: Callable[[], int], received: Callable[[], int], *, samples: int) -> int:
    """S of the module's docstring. The log is measured before the socket: no sample is too large for that reason."""
    return max(0, *(log_length() - received() for _ in range(samples)))


def align(log_part: bytes, guess: int, first: bytes) -> int:
    """The place in `log_part` nearest to `guess` where `first` begins, as far as both go; else `guess`.

    A few bytes are found anywhere: with fewer than `_ALIGN_LEAST_BYTES` to compare, counting knows better.
    """
    places = range(max(0, guess - _ALIGN_BACK), guess + _ALIGN_AHEAD + 1)
    for place in sorted(places, key=lambda place: abs(place - guess)):
        size = min(len(first), len(log_part) - place)
        if size >= _ALIGN_LEAST_BYTES and log_part[place : place + size] == first[:size]:
            return place
    return guess


def _first_bytes(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_ALIGN_BYTES, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


def widen(pid: int, socket_path: Path) -> None:
    """Blocking. Enlarge the send buffer of what QEMU `pid` accepted on `socket_path`; where that is not allowed, nothing."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if str(entry.readlink()).startswith("socket:"):
                with socket.socket(fileno=pidfd_getfd(pidfd, int(entry.name))) as found:
                    if found.family == socket.AF_UNIX and found.getsockname() == str(socket_path):
                        found.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
    except OSError as error:
        log.debug("process %d: send buffer of %s: %s", pid, socket_path, error)
    finally:
        os.close(pidfd)


def _unread_bytes(connection: socket.socket) -> int:
    buffer = array.array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, buffer, True)  # unix(7), SIOCINQ
    return buffer[0]


def trim_log(path: Path) -> None:
    """Blocking. Give back all but the newest `HISTORY_LIMIT_BYTES` of a log that occupies over `LOG_LIMIT_BYTES`.

    On a file system without holes the log is emptied: history then begins anew. Raises `OSError`.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(fd)
        if status.st_blocks * 512 <= LOG_LIMIT_BYTES:
            return
        punch_hole(fd, 0, max(0, status.st_size - HISTORY_LIMIT_BYTES))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)
