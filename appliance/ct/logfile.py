"""The shim's console log ("k8s-file"): what the console said before anybody of this process listened.

Each line is `TIME SPACE stdout SPACE F|P SPACE bytes NEWLINE`; F ends a line of the console, P is a piece without its
newline. The bytes are the terminal's, unchanged.
"""

from __future__ import annotations

import os
from pathlib import Path

HISTORY_BYTES = 64 << 10
_NEEDLE_BYTES = 16
_CANDIDATES = 64
LOG_LIMIT_BYTES = 4 << 20
"""The shim begins the file anew beyond this, so just after that the history is shorter (one chance in 64 or less)."""


KEPT_LOG_LIMIT_BYTES = 64 << 20
"""Of a log that outlives its container: far over where the appliance sets it aside (`applog.py`), for when it is away."""


def decode(log: bytes, *, limit: int = HISTORY_BYTES) -> bytes:
    """The last `limit` console bytes in `log`; lines that are not in the format are skipped."""
    pieces: list[bytes] = []
    size = 0
    for line in reversed(log.split(b"\n")):
        fields = line.split(b" ", 3)
        if len(fields) == 4 and fields[2] in (b"F", b"P"):
            piece = fields[3] + (b"\n" if fields[2] == b"F" else b"")
            pieces.append(piece)
            size += len(piece)
            if size >= limit:
                break
    return b"".join(reversed(pieces))[-limit:]


def read_history(path: Path) -> bytes:
    """The newest console bytes in the file; empty when there is none. Blocking."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - LOG_LIMIT_BYTES, 0))
            return decode(file.read(LOG_LIMIT_BYTES))
    except OSError:
        return b""


def without_overlap(log: bytes, live: bytes, *, at_least: int = 0) -> bytes:
    """`log` less an end that `live` begins with, `at_least` so long: what was logged while we were already attached.

    A guest that repeats itself just then may mislead it about a few bytes, never about the time it takes.
    """
    sure = log[: max(len(log) - at_least, 0)]
    if len(live) <= at_least:
        return sure
    needle = live[:_NEEDLE_BYTES]
    position = max(len(log) - len(live), 0)
    for _ in range(_CANDIDATES):
        position = log.find(needle, position)
        if position < 0 or position > len(sure):
            break
        if live.startswith(log[position:]):
            return log[:position]
        position += 1
    return sure
