"""What application containers say, kept beyond their end: `DATA_DIR/ct-logs/ID/log`, `log.1`, `log.2`. Blocking, but for
`AppLogs` and `LogTail`, which are for the loop.

The shim writes (lines as `logfile.py` tells), the appliance sets a file aside when it has grown to `ROTATE_BYTES` and tells the
shim to open a new one. So there are at most `FILES` of that size for each container, and one that is larger while nobody was
there to set it aside, up to the shim's own limit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from appliance.errors import HostError
from appliance.model.guest import GuestId
from appliance.threads import to_the_end

DIRECTORY = "ct-logs"
ROTATE_BYTES = 8 << 20
FILES = 3
_NAME = "log"
_READ_BYTES = 256 << 10
_LINE_LIMIT_BYTES = 64 << 10
_REOPEN = b"2 0 0\n"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One piece of output. `stream` is "stdout" or "stderr"; `time` as the shim wrote it (RFC 3339); `whole` whether a line
    ends with it."""

    time: str
    stream: str
    text: bytes
    whole: bool = True


def begin(logs: Path, guest_id: GuestId, bundle: Path) -> Path:
    """The file the shim of a new run appends to; the bundle's `console.log` leads to it. Raises `HostError`."""
    directory = logs / str(guest_id)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (bundle / "console.log").symlink_to(directory / _NAME)
    except OSError as error:
        raise HostError.from_os_error(error, f"make the log of ct {guest_id}") from error
    return directory / _NAME


def rotate(logs: Path, guest_id: GuestId, control: Path, *, limit_bytes: int = ROTATE_BYTES) -> bool:
    """Set the log aside when it is large enough; `control` is the shim's FIFO. Whether it was. Raises `HostError`."""
    path = logs / str(guest_id) / _NAME
    try:
        if path.stat().st_size < limit_bytes:
            return False
        for number in range(FILES - 1, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(f"{_NAME}.{number - 1}").replace(path.with_name(f"{_NAME}.{number}"))
        path.replace(path.with_name(f"{_NAME}.1"))
        _tell(control)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HostError.from_os_error(error, f"set aside the log of ct {guest_id}") from error
    return True


def remove(logs: Path, guest_id: GuestId) -> None:
    """Remove a container's logs. Raises `HostError`."""
    try:
        shutil.rmtree(logs / str(guest_id))
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError.from_os_error(error, f"remove the log of ct {guest_id}") from error


def sweep(logs: Path, known: Collection[GuestId]) -> list[GuestId]:
    """Remove the logs of containers that are not `known`; whose they were. Raises `HostError`."""
    found = [path for path in logs.iterdir() if path.name.isdecimal()] if logs.is_dir() else []
    gone = [GuestId(int(path.name)) for path in found if int(path.name) not in known]
    for guest_id in gone:
        remove(logs, guest_id)
    return gone


class LogReader:
    """Reads a container's log from `tail` lines before its end, or from its beginning, and then what is added.

    `read` returns what there is; an empty list means nothing new. Follows the log when it is set aside.
    """

    def __init__(self, logs: Path, guest_id: GuestId, *, tail: int | None = None) -> None:
        self._directory = logs / str(guest_id)
        self._file: BinaryIO | None = None
        self._rest = b""
        self._earlier = [self._directory / f"{_NAME}.{number}" for number in range(FILES - 1, 0, -1)]
        self._tail = tail

    def read(self) -> list[LogLine]:
        """The next lines, some hundred KiB at most. Raises `HostError`."""
        try:
            if self._tail is not None:
                found, self._tail = self._last(self._tail), None
                return found
            if self._file is not None and (lines := self._some()):
                return lines
            while self._earlier:
                if self._open(self._earlier.pop(0)) and (lines := self._some()):
                    return lines
            return self._some() or self._next_file()
        except OSError as error:
            raise HostError.from_os_error(error, f"read {self._directory}") from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _last(self, count: int) -> list[LogLine]:
        """The last lines over all files; afterwards the reader stands at the end of the newest."""
        found: list[LogLine] = []
        for path in (*self._earlier, self._directory / _NAME):
            if not self._open(path):
                continue
            while lines := self._some():
                found = [*found, *lines][-max(count, 1) :]
        self._earlier = []
        return found if count else []

    def _some(self) -> list[LogLine]:
        if self._file is None and not self._open(self._directory / _NAME):
            return []
        assert self._file is not None
        while data := self._file.read(_READ_BYTES):
            *whole, self._rest = (self._rest + data).split(b"\n")
            self._rest = self._rest[:_LINE_LIMIT_BYTES]
            if lines := [line for line in map(_parse, whole) if line is not None]:
                return lines
        return []

    def _next_file(self) -> list[LogLine]:
        """When the log was set aside since: the file there is now."""
        try:
            now = (self._directory / _NAME).stat()
        except FileNotFoundError:
            return []
        if self._file is not None and os.fstat(self._file.fileno()).st_ino == now.st_ino:
            if self._file.tell() <= now.st_size:
                return []
            self._file.seek(0)  # the shim began it anew
        elif not self._open(self._directory / _NAME):
            return []
        return self._some()

    def _open(self, path: Path) -> bool:
        self.close()
        self._rest = b""
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            return False
        return True


class LogTail:
    """A `LogReader` on the loop: fulfils ports.LogSource."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader

    async def read(self) -> list[LogLine]:
        return await to_the_end(self._reader.read)

    async def close(self) -> None:
        await to_the_end(self._reader.close)


class AppLogs:
    """The logs of an engine's application containers: fulfils ports.LogStore. `control` tells a shim's FIFO."""

    def __init__(self, directory: Path, control: Callable[[GuestId], Path]) -> None:
        self.directory = directory
        self._control = control

    def reader(self, guest_id: GuestId, tail: int | None) -> LogTail:
        return LogTail(LogReader(self.directory, guest_id, tail=tail))

    async def rotate(self, guest_id: GuestId) -> None:
        await to_the_end(rotate, self.directory, guest_id, self._control(guest_id))

    async def remove(self, guest_id: GuestId) -> None:
        await to_the_end(remove, self.directory, guest_id)

    async def sweep(self, known: Collection[GuestId]) -> None:
        await to_the_end(sweep, self.directory, known)


def _parse(line: bytes) -> LogLine | None:
    fields = line.split(b" ", 3)
    if len(fields) != 4 or fields[2] not in (b"F", b"P"):
        return None
    return LogLine(fields[0].decode(errors="replace"), fields[1].decode(errors="replace"), fields[3], fields[2] == b"F")


def _tell(control: Path) -> None:
    """Let the shim open its log anew; one that is going needs none."""
    try:
        fd = os.open(control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            return
        raise
    try:
        os.write(fd, _REOPEN)
    finally:
        os.close(fd)
