"""Walking directory trees that somebody hostile has made: deeper than a path, a process's descriptors or Python's stack."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _nothing(_fd: int, _name: str) -> None:
    """Nothing to do on leaving a directory."""


def walk(root: Path, enter: Callable[[int], list[str]], leave: Callable[[int, str], None] = _nothing) -> None:
    """Go through `root` and all below it. Blocking; follows no link; two directories are open at a time.

    `enter(fd)` is called in each directory and returns the names of those in it to go into; `leave(fd, name)` is called
    with its parent's descriptor once all below `name` has been walked. What vanishes meanwhile is passed over. Raises
    `OSError`: what the callbacks raise, and ESTALE when a directory has been moved away under us.
    """
    fd = os.open(root, _FLAGS)
    try:
        above: list[tuple[str, tuple[int, int], list[str]]] = []  # name, its parent's identity, what is left there
        names = enter(fd)
        while above or names:
            if names:
                name = names.pop()
                try:
                    below = os.open(name, _FLAGS, dir_fd=fd)
                except FileNotFoundError:
                    continue
                above.append((name, _identity(fd), names))
                os.close(fd)
                fd = below
                names = enter(fd)
            else:
                name, parent, names = above.pop()
                back = os.open("..", _FLAGS, dir_fd=fd)
                os.close(fd)
                fd = back
                if _identity(fd) != parent:
                    raise OSError(errno.ESTALE, f"walk {root}: {name} was moved away meanwhile")
                leave(fd, name)
    finally:
        os.close(fd)


def subdirectories(fd: int) -> list[str]:
    """The names of the directories in the one behind `fd`."""
    with os.scandir(fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
