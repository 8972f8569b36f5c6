"""A helper program whose output is read as it comes and whose input is written as it is taken. On the loop.

For programs that talk for long: an exec inside a container, a file on its way in or out. Nobody reads: the program waits,
for its pipe is full. What it left running may hold the pipes open; its output ends with the program itself all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from appliance.ct.process import inherited
from appliance.errors import CommandFailed, HostError, TimedOut
from appliance.kernel.pidfd import has_ended, pidfd_send_signal
from appliance.kernel.spawn import posix_spawn, watch_child
from appliance.threads import to_the_end

READ_BYTES = 64 << 10
STDOUT, STDERR = 1, 2
END_LIMIT_S = 5.0
WRITE_LIMIT_S = 60.0


class Program:
    """See the module's docstring. Made by `start`; whoever has it calls `end`, which may be called again."""

    def __init__(self, pid: int, pidfd: int, outputs: dict[int, int], stdin: int) -> None:
        self._pid, self._pidfd = pid, pidfd
        self._outputs = outputs
        self._stdin = stdin
        self._status: int | None = None
        self._turn = STDOUT
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        write: bool = False,
        pass_fds: Mapping[int, int] = MappingProxyType({}),
    ) -> Program:
        """Start `argv` with its input from the descriptor `stdin`, from `write` or empty; `pass_fds` as in `process.run`.

        Raises `CommandFailed` when it is not installed, `HostError`.
        """
        unwanted = await inherited()
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            try:
                ends: dict[int, int] = {}
                outputs: dict[int, int] = {}
                for number in (STDOUT, STDERR):
                    outputs[number], ends[number] = os.pipe()
                    ours.callback(os.close, outputs[number])
                    theirs.callback(os.close, ends[number])
                    os.set_blocking(outputs[number], False)
                pipe = -1
                if write:
                    ends[0], pipe = os.pipe()
                    ours.callback(os.close, pipe)
                    os.set_blocking(pipe, False)
                    theirs.callback(os.close, ends[0])
                elif stdin is not None:
                    ends[0] = stdin
                else:
                    ends[0] = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
                    theirs.callback(os.close, ends[0])
                environment = {**os.environ, "LC_ALL": "C"}
                pid = posix_spawn(argv, environment, {**ends, **pass_fds}, unwanted=unwanted)
                pidfd = watch_child(pid)
            except FileNotFoundError as error:
                raise CommandFailed(argv, 127, f"{argv[0]}: not installed or not found") from error
            except OSError as error:
                raise HostError.from_os_error(error, argv[0]) from error
            ours.pop_all()
        return cls(pid, pidfd, outputs, pipe)

    async def next(self) -> tuple[int, bytes] | None:
        """The next (STDOUT or STDERR, bytes); None once the program has ended and all it said has been given."""
        while True:
            ended = has_ended(self._pidfd)  # before reading: what it said last is there then
            for number, fd in sorted(self._outputs.items(), key=lambda item: item[0] != self._turn):
                if data := self._read(number, fd):
                    self._turn = STDOUT + STDERR - number
                    return number, data
            if ended:
                return None
            await self._news()

    @property
    def ended(self) -> bool:
        """Whether the process has ended; more of what it said may be there."""
        return self._pidfd < 0 or has_ended(self._pidfd)

    async def write(self, data: bytes) -> bool:
        """Give `data` to the program; False when it no longer reads. Raises `TimedOut`."""
        view = memoryview(data)
        try:
            async with asyncio.timeout(WRITE_LIMIT_S):
                while view:
                    try:
                        view = view[os.write(self._stdin, view) :]
                    except BlockingIOError:
                        await self._writable()
        except TimeoutError as error:
            raise TimedOut(f"program {self._pid}: it takes no input", WRITE_LIMIT_S) from error
        except BrokenPipeError:
            return False
        return True

    def close_stdin(self) -> None:
        """Tell it that there is no more."""
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    async def wait(self) -> int:
        """Its exit status, 128 and the signal's number where one killed it. It must have been read to its end."""
        if self._status is None:
            if not has_ended(self._pidfd):
                ended = asyncio.Event()
                self._loop.add_reader(self._pidfd, ended.set)
                try:
                    await ended.wait()
                finally:
                    self._loop.remove_reader(self._pidfd)
            self._reap()
        assert self._status is not None
        return self._status

    async def end(self) -> None:
        """Make sure that it has ended (SIGTERM first, so that it can clean up) and close everything."""
        if self._pidfd < 0:
            return
        if self._status is None:
            await to_the_end(self._stop)
        self.close_stdin()
        for fd in (*self._outputs.values(), self._pidfd):
            os.close(fd)
        self._outputs, self._pidfd = {}, -1

    def _stop(self) -> None:
        for number, limit_s in ((signal.SIGTERM, END_LIMIT_S), (signal.SIGKILL, None)):
            if has_ended(self._pidfd):
                break
            pidfd_send_signal(self._pidfd, number)
            _ended_within(self._pidfd, limit_s)
        self._reap()

    def _reap(self) -> None:
        if self._status is None:
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            self._status = code if code >= 0 else 128 - code

    def _read(self, number: int, fd: int) -> bytes:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:  # its end
            os.close(fd)
            del self._outputs[number]
        return data

    async def _news(self) -> None:
        """Wait until it says something or ends."""
        news = asyncio.Event()
        watched = (*self._outputs.values(), self._pidfd)
        for fd in watched:
            self._loop.add_reader(fd, news.set)
        try:
            await news.wait()
        finally:
            for fd in watched:
                self._loop.remove_reader(fd)

    async def _writable(self) -> None:
        ready = asyncio.Event()
        self._loop.add_writer(self._stdin, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_writer(self._stdin)


def _ended_within(pidfd: int, limit_s: float | None) -> None:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.poll(None if limit_s is None else limit_s * 1000)
