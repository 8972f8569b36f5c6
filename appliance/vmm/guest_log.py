"""A guest's log: lines that are always written, and notes that a guest can cause as often as it likes. Any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from appliance.clock import Clock

NOTES_AT_ONCE: Final = 20
NOTES_PER_S: Final = 1.0


class GuestLog:
    """`write` takes one line or a few, without the object's name, and does not block."""

    def __init__(self, write: Callable[[str], None], clock: Clock) -> None:
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._allowed = float(NOTES_AT_ONCE)
        self._last = clock.monotonic()
        self._suppressed = 0

    def line(self, text: str) -> None:
        """Write it."""
        self._write(text)

    def note(self, text: str) -> None:
        """Write it unless there have been too many; how many were left out is said with the next."""
        with self._lock:
            now = self._clock.monotonic()
            self._allowed = min(NOTES_AT_ONCE, self._allowed + (now - self._last) * NOTES_PER_S)
            self._last = now
            if self._allowed < 1:
                self._suppressed += 1
                return
            self._allowed -= 1
            left_out, self._suppressed = self._suppressed, 0
        self._write(f"{text} ({left_out} lines left out before)" if left_out else text)
