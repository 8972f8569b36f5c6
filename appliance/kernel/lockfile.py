"""flock(2) on a file: one process at a time, released by the kernel however the process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from appliance.errors import Conflict, HostError


class LockFile:
    """Held from construction to `close`. The file stays and names the holder's pid.

    Raises `Conflict` naming the file and the holder when another process has it, `HostError` when it cannot be made.
    """

    def __init__(self, path: Path, *, purpose: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError.from_os_error(error, f"open {path}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise Conflict(f"{path}: {purpose} is in use by process {holder}") from error
        with contextlib.suppress(OSError):  # the number is for people: a full disk is no reason to go without the lock
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Release it; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
