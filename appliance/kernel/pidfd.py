"""Processes by identity: a pid alone may be another process by now; pid and start time together are one for ever."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """`start_ticks` is field 22 of /proc/PID/stat: clock ticks between boot and the process's start (proc(5))."""

    pid: int
    start_ticks: int


def identify(pid: int) -> ProcessIdentity | None:
    """Who has this pid now; None when nobody has, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name in parentheses may hold anything
    return None if fields[0] in b"ZX" else ProcessIdentity(pid, int(fields[19]))


def pidfd_open(process: ProcessIdentity) -> int | None:
    """A descriptor for exactly this process, readable once it has ended; None when it has. Raises `OSError`."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise OSError(error.errno, f"pidfd_open {process.pid}: {error.strerror}") from error
    if identify(process.pid) != process:
        os.close(fd)
        return None
    return fd


def has_ended(fd: int) -> bool:
    """Whether the process has ended (its descriptor is readable); never waits."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def pidfd_send_signal(fd: int, number: int) -> None:
    """Send a signal; not an error when the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(fd, number)


def send_signal_if(pid: int, number: int, is_meant: Callable[[], bool]) -> None:
    """Signal the process that has `pid` now if `is_meant` says so of it; never another that gets the number later."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if is_meant():
            pidfd_send_signal(fd, number)
    finally:
        os.close(fd)


def shares_pid_namespace(pid: int, other: int | str = "self") -> bool:
    """Whether two processes are in one pid namespace. A container's process can name itself as it likes, but is never
    in ours. False when either has gone."""
    try:
        one, two = (Path(f"/proc/{each}/ns/pid").stat() for each in (pid, other))
    except OSError:
        return False
    return (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)
