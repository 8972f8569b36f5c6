"""A terminal on the host itself: login(1) on a new pty, so that the host asks for a name and password of its own (PAM).

Whoever opens it holds Sys.Console on the node; that opens the door to the prompt and no further. It is a console client
like a guest's (`read`, `write`, `resize`), without replay: it lives and dies with its viewer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from appliance.errors import HostError, TooManyRequests, Unsupported
from appliance.terminal import Terminal

SHELL_LIMIT = 16
END_TIMEOUT_S = 3.0
ARGV = ("setsid", "--ctty", "login")
"""setsid(1) gives login a session whose controlling terminal is the pty."""


class HostShell:
    """One running login. `HostShell.open()` starts it, `end()` kills what is left of its session."""

    _open = 0

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self._terminal = Terminal(master, "host shell")
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
            environment = {"PATH": os.environ.get("PATH", os.defpath), "TERM": "xterm-256color"}
            return await asyncio.create_subprocess_exec(*ARGV, stdin=slave, stdout=slave, stderr=slave, env=environment)
        finally:
            os.close(slave)

    async def read(self) -> bytes:
        """The next bytes; b"" when the session has ended."""
        while True:
            try:
                return await self._terminal.read()
            except OSError:  # EIO: no process has the terminal open any more
                if self._process.returncode is not None or self._terminal.closed:
                    return b""
                # login hangs the terminal up and opens it anew (vhangup(2)): for that moment nobody has it
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), 0.05)

    async def write(self, data: bytes) -> None:
        """Type `data`. Raises `TimedOut` when nobody reads it, `HostError` when the session has ended."""
        await self._terminal.write(data)

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the terminal's size."""
        self._terminal.resize(columns, rows)

    async def end(self) -> None:
        """Close the terminal, which hangs up whatever runs in it, and reap; idempotent."""
        if self._terminal.closed:
            return
        self._terminal.close()
        self._forget()
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
