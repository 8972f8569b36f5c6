"""What a process holds that a test may leak: threads, children, file descriptors."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_POOL_PREFIXES = ("asyncio_", "ThreadPoolExecutor", "pydevd", "pytest_timeout", "execnet", "hypothesis")


@dataclass(frozen=True)
class Snapshot:
    """The process at one moment."""

    threads: frozenset[threading.Thread]
    children: frozenset[int]
    descriptors: dict[int, str]

    @staticmethod
    def take() -> Snapshot:
        """Look now."""
        return Snapshot(frozenset(threading.enumerate()), frozenset(_children()), _descriptors())

    def leaked_since(self, *, settle_s: float) -> list[str]:
        """What is there now and was not then, after giving it `settle_s` seconds to go."""
        deadline = time.monotonic() + settle_s
        while (leaked := self._leaked()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return leaked

    def _leaked(self) -> list[str]:
        now = Snapshot.take()
        threads = [t for t in now.threads - self.threads if not t.name.startswith(_POOL_PREFIXES)]
        opened = {fd: name for fd, name in now.descriptors.items() if self.descriptors.get(fd) != name}
        return (
            [f"thread {t.name}" for t in threads]
            + [f"child process {pid}" for pid in now.children - self.children]
            + [f"fd {fd} ({name})" for fd, name in opened.items() if not name.startswith("/dev/urandom")]
        )


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(int(pid) for pid in (task / "children").read_text().split())
        except OSError:
            continue
    return found


def _descriptors() -> dict[int, str]:
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of this very listing
    return found
