"""The QEMU process seen from outside: launched in its own session, watched by a pidfd, recognised after a restart.

QEMU is our direct child while this appliance lives, so its exit status is known and it is reaped here; when the
appliance dies it goes on and belongs to init. Blocking functions are marked so: call them in a thread.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.kernel.pidfd import pidfd_send_signal, shares_pid_namespace

QMP_FD = 3
"""The number under which QEMU inherits the listening monitor socket."""

_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "HOME": "/",
    "TMPDIR": "/var/tmp",  # noqa: S108 - QEMU's own temporary files; it opens them with O_EXCL
}
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What proc(5) `/proc/PID/stat` says. `start_ticks` (field 22) and the pid together name one process for ever."""

    state: str
    cpu_seconds: float
    start_ticks: int
    resident_bytes: int

    @property
    def alive(self) -> bool:
        """False for a zombie: it runs no code and holds nothing but its number."""
        return self.state not in "ZXx"


def read_stat(pid: int) -> ProcessStat | None:
    """Blocking (procfs). None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything; fields count from behind the last parenthesis (state is field 3).
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessStat(
        state=fields[0],
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND,
        start_ticks=int(fields[19]),
        resident_bytes=int(fields[21]) * _PAGE_BYTES,
    )


def read_argv(pid: int) -> list[str]:
    """Blocking (procfs). The command line; empty when there is no such process or it is a zombie."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [os.fsdecode(part) for part in raw.split(b"\0")[:-1]]


def is_launched_with(pid: int, pid_file: Path) -> bool:
    """Blocking. Whether `pid` lives and is the QEMU told to write `pid_file`: nothing else has that argument.

    A container's process could claim to have it, but is in a pid namespace of its own.
    """
    stat = read_stat(pid)
    argv = read_argv(pid)
    claims = stat is not None and stat.alive and ("-pidfile", str(pid_file)) in itertools.pairwise(argv)
    return claims and shares_pid_namespace(pid)


def find_launched_with(pid_file: Path) -> int | None:
    """Blocking (reads all of procfs). The process `is_launched_with` is true of."""
    pids = (int(name) for name in (path.name for path in Path("/proc").iterdir()) if name.isdigit())
    return next((pid for pid in pids if is_launched_with(pid, pid_file)), None)


def spawn(argv: list[str], *, log_path: Path, qmp_listener: int, unwanted: Iterable[int]) -> int:
    """Start `argv` in a session of its own: stdin empty, output appended to `log_path`, `qmp_listener` as QMP_FD.

    `unwanted` descriptors are closed in it (`kernel.spawn.inheritable`). Takes about a millisecond (vfork). Returns the
    pid, which the caller must reap (`ProcessWatch` does). Raises `OSError`.
    """
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log_path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        (os.POSIX_SPAWN_DUP2, qmp_listener, QMP_FD),
        *((os.POSIX_SPAWN_CLOSE, fd) for fd in unwanted),
    ]
    return os.posix_spawn(
        argv[0],
        argv,
        _ENVIRONMENT,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    )


class ProcessWatch:
    """Tells when one process has ended, and reaps it if it is our child. Holds `pidfd` until then or until `close`."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self._pidfd = pidfd
        self._ended: asyncio.Future[int | None] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._ended.done()

    async def wait(self) -> int | None:
        """The exit status, negative for a signal's number; None when it was not our child. Any number of waiters."""
        return await asyncio.shield(self._ended)

    def send(self, number: signal.Signals) -> None:
        """Signal exactly this process; nothing happens when it has ended."""
        if self._pidfd >= 0:
            pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_exit(self) -> None:
        status: int | None = None
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            result = None  # adopted from an earlier appliance: init reaps it
        if result is not None:
            status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        self.close()
        if not self._ended.done():
            self._ended.set_result(status)
