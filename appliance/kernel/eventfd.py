"""eventfd(2): a counter that is a file descriptor, the one way a guest's doorbells and interrupts cross into KVM.

Never blocks: a reader waits for the descriptor to be readable (poll, or the loop's add_reader) and then drains it.
Any thread may enter. A lock keeps `close` from coming between the look at the number and the system call: eight bytes
would go to whoever has the number by then.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType

MAX_COUNT = 0xFFFF_FFFF_FFFF_FFFE  # eventfd(2): the greatest value the counter holds


class EventFd:
    """An owned eventfd. Use as a context manager, or `close` it; used after that it raises `ValueError`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._fd

    def signal(self, count: int = 1) -> None:
        """Add `count` to the counter. A counter that is full has been signalled already: nothing is lost."""
        try:
            with self._lock:
                os.eventfd_write(self._fd, count)
        except BlockingIOError:
            return

    def drain(self) -> int:
        """Take the counter's value and set it to 0; 0 when nothing was signalled since the last time."""
        try:
            with self._lock:
                return os.eventfd_read(self._fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Close the descriptor; once is enough, twice is harmless."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> EventFd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
