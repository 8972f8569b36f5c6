"""A terminal on the host itself: login(1) on a new pty, so that the host asks for a name and password of its own (PAM).

Whoever opens it holds Sys.Console on the node; that opens the door to the prompt and no further. It is a console client
like a guest's (`read`, `write`, `resize`), without replay: it lives and dies with its viewer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import termios

from appliance.errors import HostError, TimedOut, TooManyRequests, Unsupported

SHELL_LIMIT = 16
READ_BYTES = 64 << 10
WRITE_TIMEOUT_S = 10.0
END_TIMEOUT_S = 3.0
ARGV = ("setsid", "--ctty", "login")
"""setsid(1) gives login a session whose controlling terminal is the pty."""


class HostShell:
    """One running login. `HostShell.open()` starts it, `end()` kills what is left of its session."""

    _open = 0

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self._master = master
        self._process = process

    @classmethod
    async def open(cls) -> HostShell:
        """Raises `TooManyRequests` when `SHELL_LIMIT` are open, `Unsupported` when the host has no login program,
        `HostError`."""
        if cls._open >= SHELL_LIMIT:
            raise TooManyRequests(f"{SHELL_LIMIT} host shells are open", retry_after_s=30)
        with contextlib.ExitStack() as undo:
            cls._open += 1
            undo.callback(cls._forget)
            try:
                master, slave = os.openpty()
                undo.callback(os.close, master)  # hangs up what may have been started
                process = await cls._log_in(master, slave)
            except FileNotFoundError as error:
                raise Unsupported(f"host shell: {ARGV[0]}: {error.strerror}") from error
            except OSError as error:
                raise HostError.from_os_error(error, "host shell") from error
            undo.pop_all()
        return cls(master, process)

    @classmethod
    def _forget(cls) -> None:
        cls._open -= 1

    @staticmethod
    async def _log_in(master: int, slave: int) -> asyncio.subprocess.Process:
        try:
            os.set_blocking(master, False)
            environment = {"PATH": os.environ.get("PATH", os.defpath), "TERM": "xterm-256color"}
            return await asyncio.create_subprocess_exec(*ARGV, stdin=slave, stdout=slave, stderr=slave, env=environment)
        finally:
            os.close(slave)

    async def read(self) -> bytes:
        """The next bytes; b"" when the session has ended."""
        while True:
            try:
                return os.read(self._master, READ_BYTES)
            except BlockingIOError:
                await self._ready(read=True)
            except OSError:  # EIO: no process has the terminal open any more
                if self._process.returncode is not None:
                    return b""
                # login hangs the terminal up and opens it anew (vhangup(2)): for that moment nobody has it
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), 0.05)

    async def write(self, data: bytes) -> None:
        """Type `data`. Raises `TimedOut` when nobody reads it, `HostError` when the session has ended."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                while data:
                    try:
                        data = data[os.write(self._master, data) :]
                    except BlockingIOError:
                        await self._ready(read=False)
        except TimeoutError as error:
            raise TimedOut("host shell: input", WRITE_TIMEOUT_S) from error
        except OSError as error:
            raise HostError("host shell: the session has ended") from error

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the terminal's size."""
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetwinsize(self._master, (rows, columns))

    async def end(self) -> None:
        """Close the terminal, which hangs up whatever runs in it, and reap; idempotent."""
        if self._master < 0:
            return
        master, self._master = self._master, -1
        self._forget()
        os.close(master)
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGHUP)
        try:
            await asyncio.wait_for(self._process.wait(), END_TIMEOUT_S)
        except TimeoutError:
            await self._kill()
        except asyncio.CancelledError:
            await self._kill()
            raise

    async def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await asyncio.shield(self._process.wait())

    async def _ready(self, *, read: bool) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        add, remove = (loop.add_reader, loop.remove_reader) if read else (loop.add_writer, loop.remove_writer)
        add(self._master, ready.set)
        try:
            await ready.wait()
        finally:
            if self._master >= 0:
                remove(self._master)
