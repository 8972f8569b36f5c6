"""Programs run in a running container: by themselves with their output streamed, or a shell on a terminal. On the loop.

The OCI runtime starts them from a process document: the container's own process (its capabilities, filters, cgroup) with
another command. What the runtime started is killed by its own pid, taken from the pid file, when nobody waits for it any
more. At most `LIMIT` of them run at a time in one container: each costs a runtime process on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from appliance.ct import process, records
from appliance.ct.program import STDERR, Program
from appliance.ct.runtime import OciRuntime
from appliance.errors import CommandFailed, GuestFault, HostError, TimedOut, TooManyRequests
from appliance.kernel import pidfd
from appliance.model.inside import ExecRequest
from appliance.terminal import Terminal
from appliance.threads import to_the_end
from appliance.waiting import readable

LIMIT = 16
START_LIMIT_S = 30.0
_COMPLAINT_BYTES = 4096
_BEGIN_POLL_S = 0.002
_SHELL = ("/bin/sh", "-c", "cd 2>/dev/null; if command -v bash >/dev/null 2>&1; then exec bash -l; fi; exec sh -l")


class Executions:
    """What is being executed in one container. `require` raises `Conflict` when it is not running."""

    def __init__(
        self, runtime: OciRuntime, container: str, bundle: Path, init: int, *, label: str, require: Callable[[], None]
    ) -> None:
        self._runtime = runtime
        self._container = container
        self._bundle = bundle
        self._init = init
        self._label = label
        self._require = require
        self._running: set[int] = set()
        self._count = 0

    @asynccontextmanager
    async def run(self, request: ExecRequest) -> AsyncIterator[Execution]:
        """Start a program; it is killed at the end if it still runs. Raises `Conflict`, `TooManyRequests`, `GuestFault`."""
        with self._slot() as number:
            stdin = os.memfd_create("stdin", os.MFD_CLOEXEC)
            try:
                await asyncio.to_thread(_fill, stdin, request.stdin)
                files = await asyncio.to_thread(self._document, number, request, terminal=False)
                program = await Program.start(self._argv(*files), stdin=stdin)
            finally:
                os.close(stdin)
            try:
                yield Execution(program, files[1], self._label)
            finally:
                await to_the_end(kill_by_file, files[1], self._init)
                await program.end()
                await to_the_end(kill_by_file, files[1], self._init)  # it had only just begun
                await to_the_end(_unlink, *files)

    async def shell(self) -> ShellConsole:
        """A shell of the container's root on a terminal of its own; fulfils `ports.ConsoleSource`. Raises as `run`."""
        held = contextlib.ExitStack()
        number = held.enter_context(self._slot())
        path = self._bundle / f"exec-{number}.sock"
        try:
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            held.callback(listening.close)
            listening.bind(str(path))
            listening.listen(1)
            request = ExecRequest(argv=_SHELL, environment={"TERM": "xterm-256color"})
            files = await asyncio.to_thread(self._document, number, request, terminal=True)
            argv = self._argv(*files, extra=("--detach", "--console-socket", str(path)))
            try:
                await process.run(argv, timeout_s=START_LIMIT_S)
                master = await self._terminal(listening)
            except BaseException as error:
                await to_the_end(kill_by_file, files[1], self._init)
                await to_the_end(_unlink, *files)
                if isinstance(error, CommandFailed):
                    raise GuestFault(f"{self._label}: shell: {_reason(error.stderr)}") from error
                raise
        except BaseException:
            held.close()
            raise
        finally:
            await to_the_end(_unlink, path)
        listening.close()

        def gone() -> None:
            kill_by_file(files[1], self._init)
            _unlink(*files)

        return ShellConsole(master, label=self._label, gone=gone, release=held.close)

    # --- inside -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _slot(self) -> Iterator[int]:
        self._require()
        if len(self._running) >= LIMIT:
            raise TooManyRequests(f"{self._label}: {LIMIT} programs are being executed in it", retry_after_s=5)
        self._count += 1
        number = self._count
        self._running.add(number)
        try:
            yield number
        finally:
            self._running.discard(number)

    def _document(self, number: int, request: ExecRequest, *, terminal: bool) -> tuple[Path, Path]:
        """The process document and the place for the pid file. Blocking."""
        config = json.loads((self._bundle / "config.json").read_bytes())
        process_of = config["process"]
        known = dict(text.split("=", 1) for text in process_of["env"])
        environment = {**known, **request.environment}
        document = {
            **process_of,
            "terminal": terminal,
            "args": list(request.argv),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": request.cwd,
            "user": {"uid": request.uid, "gid": request.gid},
        }
        name = f"exec-{number}.json"
        records.save(self._bundle, name, json.dumps(document).encode())
        return self._bundle / name, self._bundle / f"exec-{number}.pid"

    def _argv(self, document: Path, pid_file: Path, *, extra: Sequence[str] = ()) -> list[str]:
        options = ["--process", str(document), "--pid-file", str(pid_file), *extra]
        return [*self._runtime.argv, "exec", *options, self._container]

    async def _terminal(self, listening: socket.socket) -> int:
        """The terminal's master, which the runtime sends (runtime-spec's console socket)."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(START_LIMIT_S):
                connection, _ = await loop.sock_accept(listening)
                with connection:
                    await readable(connection.fileno())
                    _, fds, _, _ = socket.recv_fds(connection, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as error:
            raise TimedOut(f"{self._label}: the terminal of a shell", START_LIMIT_S) from error
        if not fds:
            raise HostError(f"{self._label}: the runtime sent no terminal")
        return fds[0]


class Execution:
    """A program that runs in a container."""

    def __init__(self, program: Program, pid_file: Path, label: str) -> None:
        self._program = program
        self._pid_file = pid_file
        self._label = label
        self._complaint = b""
        self._begun = False

    async def next(self) -> tuple[int, bytes] | None:
        """(1 or 2, bytes): standard output or error; None at the end. Raises `GuestFault` when it could not be started."""
        while item := await self._program.next():
            if self._begun or item[0] != STDERR:
                self._begun = True
                return item
            self._complaint = (self._complaint + item[1])[-_COMPLAINT_BYTES:]
            if await self._has_begun():
                return STDERR, self._take()
        if self._begun or await asyncio.to_thread(self._pid_file.exists):
            return None
        raise GuestFault(f"{self._label}: exec: {_reason(self._take().decode(errors='replace'))}")

    async def _has_begun(self) -> bool:
        """Whether what was said on standard error is the program's own, not the runtime's complaint: once it runs, the
        runtime writes the pid file, which nothing tells of."""
        while not self._begun and not self._program.ended:
            self._begun = await asyncio.to_thread(self._pid_file.exists)
            if not self._begun:
                await asyncio.sleep(_BEGIN_POLL_S)
        self._begun = self._begun or await asyncio.to_thread(self._pid_file.exists)
        return self._begun

    def _take(self) -> bytes:
        complaint, self._complaint = self._complaint, b""
        return complaint

    async def wait(self) -> int:
        """Its exit status."""
        return await self._program.wait()


class ShellConsole:
    """A shell's terminal as a console. `gone` (blocking) kills what is left, `release` frees its place."""

    def __init__(self, master: int, *, label: str, gone: Callable[[], None], release: Callable[[], None]) -> None:
        self._terminal = Terminal(master, f"{label}: shell")
        self._gone = gone
        self._release = release

    def history(self) -> bytes:
        return b""

    async def read(self) -> bytes:
        try:
            return await self._terminal.read()
        except OSError:  # EIO: nobody has the terminal open any more
            return b""

    async def write(self, data: bytes) -> None:
        await self._terminal.write(data)

    async def resize(self, columns: int, rows: int) -> None:
        self._terminal.resize(columns, rows)

    async def close(self) -> None:
        if self._terminal.closed:
            return
        self._terminal.close()
        try:
            await to_the_end(self._gone)
        finally:
            self._release()


def kill_by_file(pid_file: Path, init: int) -> None:
    """Kill the process the runtime started inside, if it is still one of those around `init`. Blocking."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        pidfd.send_signal_if(pid, signal.SIGKILL, partial(pidfd.shares_pid_namespace, pid, init))


def _fill(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)


def _unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _reason(text: str) -> str:
    """What of the runtime's log lines is for people."""
    line = text.strip().splitlines()[-1] if text.strip() else "it ended without a word"
    return line.rpartition("msg=")[2].strip('"') or line
