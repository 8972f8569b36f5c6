"""Small blocking file operations that are atomic and durable. Call them through `asyncio.to_thread` from the loop."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from appliance.errors import HostError


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data`: afterwards, and after a crash at any point, it holds the old or the new bytes whole.

    Raises `HostError` (`NoSpace` when full); nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            os.fchmod(fd, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise HostError.from_os_error(error, f"write {path}") from error


def sync_directory(path: Path) -> None:
    """fsync a directory, so that names created, renamed or removed in it are durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
