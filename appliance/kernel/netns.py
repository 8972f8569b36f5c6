"""Network namespaces: open one by name, path or process, and move the calling thread into it (setns(2)).

Only the calling thread moves. Sockets, interfaces, nft rules and `/proc/sys/net` then belong to that namespace for this
thread alone; everything the thread starts (`os.posix_spawn`) inherits it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from appliance.kernel import libc

T = TypeVar("T")

CLONE_NEWNET = 0x4000_0000
NAMED_DIRECTORY = Path("/run/netns")

_libc = ctypes.CDLL(None, use_errno=True)


def path_of(name_or_path: str) -> Path:
    """`blue` is what `ip netns add blue` made; anything with a slash is a path."""
    return Path(name_or_path) if "/" in name_or_path else NAMED_DIRECTORY / name_or_path


def is_own(fd: int) -> bool:
    """Whether the namespace behind `fd` is the one the calling thread is in."""
    other, own = os.fstat(fd), Path("/proc/thread-self/ns/net").stat()
    return (other.st_dev, other.st_ino) == (own.st_dev, own.st_ino)


def enter(fd: int, about: object) -> None:
    """Move the calling thread into the network namespace behind `fd`. OSError names the call and `about`."""
    # SAFETY: two plain integers, no pointers.
    libc.checked(_libc.setns(ctypes.c_int(fd), ctypes.c_int(CLONE_NEWNET)), "setns", about)


def enter_path(path: Path) -> None:
    """`enter` for a namespace that has a file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(fd, path)
    finally:
        os.close(fd)


def call_inside(fd: int, function: Callable[[], T]) -> T:
    """Run `function` in the namespace behind `fd` and return what it returned.

    It runs in a thread of its own that never has to find its way back, so no failure can leave the caller in a guest's
    namespace. Raises what `function` raises.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def body() -> None:
        try:
            enter(fd, f"fd {fd}")
            results.append(function())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="netns-visitor")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
