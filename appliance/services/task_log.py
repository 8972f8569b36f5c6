"""The log of one task: lines in memory while it runs, so that watchers wait for no disk, and a file for ever after.

Lines are bounded in length, the log in size; control characters (a helper's colours, a guest's mischief) are taken out.
The file always holds whole lines from the first on: a write that failed half-way is done again at the same offset.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from appliance.errors import HostError

log = logging.getLogger(__name__)

LOG_LIMIT_BYTES = 1 << 20
LATE_LIMIT_BYTES = LOG_LIMIT_BYTES + (64 << 10)
LINE_LIMIT = 2048

_CONTROL = {code: None for code in (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)) if code != 0x09}


class TaskLog:
    """The log of a running task. `append` never waits and never fails; everything on the loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self.ended = False
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, with each change: take it before looking at `lines`."""
        self._size_bytes = 0
        self._written_lines = 0
        self._written_bytes = 0
        self._complained = False

    def append(self, text: str) -> None:
        """Add one line (or several); beyond the log's limit only a note that the rest is left out."""
        for line in text.splitlines() or [""]:
            clean = clean_line(line)
            size_bytes = len(clean.encode()) + 1
            if self._size_bytes + size_bytes > LOG_LIMIT_BYTES:
                if self._size_bytes <= LOG_LIMIT_BYTES:
                    self._add(f"... the log has reached {LOG_LIMIT_BYTES} bytes, the rest is left out", size_bytes)
                return
            self._add(clean, size_bytes)

    def end(self, last_line: str) -> None:
        """Add the task's last word, whatever the size, and let the watchers go."""
        self.ended = True
        self._add(clean_line(last_line), 0)

    def _add(self, line: str, size_bytes: int) -> None:
        self.lines.append(line)
        self._size_bytes += size_bytes
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def flush(self) -> None:
        """Bring the file up to date. A full disk is logged once and tried again with the next flush."""
        count = len(self.lines)
        if count == self._written_lines:
            return
        data = "".join(f"{line}\n" for line in self.lines[self._written_lines : count]).encode()
        try:
            await asyncio.to_thread(_write_at, self.path, data, self._written_bytes)
        except HostError as error:
            if not self._complained:
                log.warning("task %s: %s", self.path.name, error)
            self._complained = True
        else:
            self._written_lines = count
            self._written_bytes += len(data)


def clean_line(text: str) -> str:
    """One line without control characters, at most `LINE_LIMIT` characters."""
    return text[: 2 * LINE_LIMIT].translate(_CONTROL)[:LINE_LIMIT]


def read_lines(path: Path) -> list[str]:
    """The lines of a finished task's file; none when there is no file. Blocks. Raises `HostError`."""
    try:
        with path.open("rb") as file:
            text = file.read(2 * LOG_LIMIT_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError.from_os_error(error, f"read {path}") from error
    return text.removesuffix("\n").split("\n") if text else []


def append_line(path: Path, line: str) -> None:
    """Add a line to the file of a task that runs no more, after a half line if need be. Blocks. Raises `HostError`."""
    lines = read_lines(path)
    _write_at(path, "".join(f"{text}\n" for text in (*lines, line)).encode(), 0)


def append_late(path: Path, lines: Sequence[str]) -> None:
    """Add what became known after the end of the task, as far as the log's limit allows; nothing where there is no log any
    more. Blocks. Raises `HostError`."""
    try:
        data = "".join(f"{clean_line(line)}\n" for line in lines).encode()
        with path.open("r+b") as file:
            if file.seek(0, os.SEEK_END) + len(data) <= LATE_LIMIT_BYTES:
                file.write(data)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError.from_os_error(error, f"write {path}") from error


def _write_at(path: Path, data: bytes, offset: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError.from_os_error(error, f"write {path}") from error
