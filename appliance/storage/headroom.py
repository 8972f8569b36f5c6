"""The last of a file system's space, which new volumes leave to what is there already: guests that run, logs, the store.

Not a promise: sparse disks of guests and other programs may take it (`docs/adr/0012-a-reserve-for-the-full-disk.md`).
"""

from __future__ import annotations

import os
from pathlib import Path

from appliance.errors import NoSpace

HEADROOM_BYTES = 64 << 20
SHARE = 50
"""On a small file system the headroom is one in so many bytes."""


def require(place: Path | int, doing: str) -> None:
    """Raises `NoSpace` when less than the headroom is free where `place` (or the open file) lies. Blocks: some µs."""
    status = os.statvfs(place)
    kept_bytes = min(HEADROOM_BYTES, status.f_blocks * status.f_frsize // SHARE)
    if status.f_bavail * status.f_frsize <= kept_bytes:
        raise NoSpace(
            f"{doing}: no space left on the file system (its last {kept_bytes >> 10} KiB are kept for what is there)"
        )
