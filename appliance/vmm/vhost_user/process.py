"""A helper process that serves a device, and the socket on which it does. Blocking: for the machine's pool.

It cannot outlive us: the kernel kills it when the thread that started it ends (PR_SET_PDEATHSIG, by setpriv(1)), which for
a thread of the machine's pool is the end of the machine, and at the latest the end of this process. It is watched and
signalled through a pidfd. What it complains about is read, so that it never blocks on that, and the last of it kept.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from appliance.errors import HostError
from appliance.kernel.pidfd import has_ended, pidfd_send_signal
from appliance.kernel.spawn import inheritable, posix_spawn, watch_child
from appliance.vmm.vhost_user.client import VhostUserClient

LISTENER_FD: Final = 3  # its number in the helper
END_TIMEOUT_S: Final = 5.0
_KEPT: Final = 2048  # bytes of its complaints
_AT_ONCE: Final = 65536
_GUARD = ("setpriv", "--pdeathsig", "KILL", "--no-new-privs", "--")
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"}


class HelperProcess:
    """One run of the helper. `descriptors` maps its numbers to ours."""

    def __init__(self, argv: Sequence[str], *, name: str, descriptors: Mapping[int, int]) -> None:
        """Raises `HostError`."""
        self.name = name
        self._said = b""
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pidfd = -1
        self._output = ours
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.set_blocking(theirs, True)
            given = {0: null, 1: theirs, 2: theirs, **descriptors}
            self.pid = posix_spawn([*_GUARD, *argv], _ENVIRONMENT, given, unwanted=inheritable())
            self._pidfd = watch_child(self.pid)
        except OSError as error:
            os.close(ours)
            raise HostError.from_os_error(error, name) from error
        finally:
            os.close(theirs)
            os.close(null)

    def fileno(self) -> int:
        """Readable once it has ended."""
        return self._pidfd

    def output_fileno(self) -> int:
        """Readable when it has said something: call `listen`."""
        return self._output

    @property
    def running(self) -> bool:
        return self._pidfd >= 0 and not has_ended(self._pidfd)

    def listen(self) -> bool:
        """Take what it has said; never waits. False when it will say no more."""
        if self._output < 0:
            return False
        try:
            said = os.read(self._output, _AT_ONCE)
        except BlockingIOError:
            return True
        self._said = (self._said + said)[-_KEPT:]
        return bool(said)

    @property
    def last_words(self) -> str:
        """The last line of its complaints; "" for none."""
        lines = self._said.decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def end(self) -> None:
        """Kill it and wait until it is gone; harmless when done twice. One that is stuck in the kernel is left to it."""
        if self._pidfd < 0:
            return
        pidfd_send_signal(self._pidfd, signal.SIGKILL)
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if poll.poll(END_TIMEOUT_S * 1000):
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        self.listen()
        for fd in (self._pidfd, self._output):
            os.close(fd)
        self._pidfd = self._output = -1


class HelperSocket:
    """The listening socket of a helper, ours to connect to; it stays when the helper is replaced. `path` is in a directory
    that nobody else can enter."""

    def __init__(self, path: Path) -> None:
        """Raises `HostError`."""
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            self._listener.bind(os.fspath(path))
            path.chmod(0o600)
            self._listener.listen(1)
        except OSError as error:
            self._listener.close()
            raise HostError.from_os_error(error, f"socket {path}") from error

    def fileno(self) -> int:
        return self._listener.fileno()

    def connect(self) -> socket.socket:
        """At once, also before the helper looks. Raises `OSError`."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(os.fspath(self.path))
        except OSError:
            made.close()
            raise
        return made

    def close(self) -> None:
        """Harmless when done twice."""
        if self._listener.fileno() >= 0:
            self._listener.close()
            self.path.unlink(missing_ok=True)


class Helper:
    """A helper that can be started again: `start` makes a run of it, given the listening socket's descriptor."""

    def __init__(self, path: Path, start: Callable[[int], HelperProcess]) -> None:
        self._start = start
        self.socket = HelperSocket(path)
        self.process: HelperProcess | None = None

    def ensure_running(self) -> HelperProcess:
        """The run there is, or a new one. Raises `HostError`."""
        if self.process is None or not self.process.running:
            self.end()
            self.process = self._start(self.socket.fileno())
        return self.process

    def converse(self, name: str) -> VhostUserClient:
        """Start it if it does not run, and begin a conversation. Raises `HostError`, in the helper's own words if it has
        any."""
        process = self.ensure_running()
        try:
            client = VhostUserClient(self.socket.connect(), name=name, ended_fd=process.fileno())
        except OSError as error:
            raise HostError.from_os_error(error, name) from error
        try:
            client.negotiate()
        except OSError as error:
            client.close()
            raise HostError(f"{name}: {self.last_words or error}") from error
        return client

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.running

    @property
    def last_words(self) -> str:
        """What it complained about last."""
        if self.process is None:
            return ""
        self.process.listen()
        return self.process.last_words

    def end(self) -> None:
        """End this run."""
        if self.process is not None:
            self.process.end()
            self.process = None

    def close(self) -> None:
        """Harmless when done twice."""
        self.end()
        self.socket.close()
