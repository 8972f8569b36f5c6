"""A bundle's config.json as a pipe: the runtime comes up while what it shall do is still being found out.

A runtime in Go takes ten milliseconds until it reads its configuration; it may just as well wait there as for its start.
Only for a runtime that reads the file once, up to the end of the JSON value (runc, `loadSpec`): its self-test tries it.
Nothing has been made by the runtime before, so it can be killed while it waits; when we die it reads the end of the file
and gives up by itself. Linux lets one process open both ends (fifo(7)), so nobody waits for the other to open his.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from appliance.errors import HostError

NAME = "config.json"
_WHOLE_PAGES = 4095


class ConfigPipe:
    """Made in `bundle`, where no config.json is. Blocking but short; `close` it, and replace the file by what was written:
    the runtime's later commands read that. Raises `HostError`."""

    def __init__(self, bundle: Path) -> None:
        self._path = bundle / NAME
        try:
            os.mkfifo(self._path, 0o600)
            self._fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise HostError.from_os_error(error, f"make {self._path}") from error

    def write(self, config: bytes) -> None:
        """All of it at once: the pipe is made as large as that. Raises `HostError` beyond what pipes can hold here."""
        try:
            if len(config) > fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ):
                fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, len(config) + _WHOLE_PAGES)
            written = os.write(self._fd, config)
        except OSError as error:
            raise HostError.from_os_error(error, f"write {self._path}: {len(config)} bytes") from error
        if written != len(config):
            raise HostError(f"write {self._path}: {written} of {len(config)} bytes")

    def close(self) -> None:
        """A reader that has not had its configuration gets none: one that is there reads the end, one that comes later finds no
        pipe, where it would wait for ever."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._fd)
            self._fd = -1
