"""What threads work with while another may close it: a descriptor closed under a system call that is about to begin would
be somebody else's by then, and what was meant for one guest's disk would be written to another's.

    with self._in_use:                   OSError (EBADF) once it has ended
        os.pwritev(self._fd, ...)
    self._in_use.end()                   gives it back, at once or when the last one inside has left

Any thread; nothing waits.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from types import TracebackType


class InUse:
    """`give_back` is called once, in the thread of whoever was last, with no lock held."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back
        self._lock = threading.Lock()
        self._users = 0
        self._ended = False

    def end(self) -> None:
        """Nobody comes in any more; harmless when done twice."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            unused = not self._users
        if unused:
            self._give_back()

    def __enter__(self) -> None:
        with self._lock:
            if self._ended:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._users += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._users -= 1
            last = self._ended and not self._users
        if last:
            self._give_back()
