"""Space that only the store can use: a preallocated file beside the store's, given up in slices when the disk is full.

Without it nobody could make room on a full disk through the API: deleting a volume is a task, and a task is recorded
before it begins (`docs/adr/0012-a-reserve-for-the-full-disk.md`). A slice at a time, because whatever else writes to the
file system takes what a commit leaves of it. Taken back as soon as there is space, before others have it. Blocks: the
store's thread alone calls it. A failure of its own is never one of the store: it only means less reserve.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

RESERVE_BYTES = 4 << 20
SLICE_BYTES = 64 << 10
"""A commit or two of a task's or a guest's document: each writes half a dozen pages of 4 KiB to the write-ahead log."""

SHARE = 8
"""At most one in so many bytes of the file system: one of a megabyte has no reserve."""


class Reserve:
    """What is set aside for the store's file `path`, in `<path>.reserve`; it stays between runs, for a start on a full disk."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".reserve")
        self._complained = False
        self._held_bytes = 0

    def look(self) -> None:
        """See what is there, as an earlier run has left it."""
        self._held_bytes = 0
        with contextlib.suppress(OSError):
            status = self._path.stat()
            # not the size alone: restoring a backup may have made holes of it
            self._held_bytes = min(status.st_size, status.st_blocks * 512, RESERVE_BYTES)

    @property
    def short(self) -> bool:
        """Whether less is held than should be."""
        return self._held_bytes < RESERVE_BYTES

    def give_up(self, size_bytes: int) -> bool:
        """Free so much, if the disk is really full; False when it is not, or nothing is left."""
        if self._held_bytes == 0 or self._space()[1] >= RESERVE_BYTES:
            return False
        whole = not self.short
        rest = max(0, self._held_bytes - size_bytes)
        if not self._resize(rest):
            return False
        if whole:
            log.warning("store: the disk is full: the reserve %s is being used, free some space", self._path)
        self._held_bytes = rest
        return True

    def restore(self) -> None:
        """Hold as much of the reserve as leaves others a slice. Costs nothing while it is whole."""
        if not self.short:
            return
        total_bytes, free_bytes = self._space()
        wanted = min(RESERVE_BYTES, total_bytes // SHARE, self._held_bytes + free_bytes - SLICE_BYTES)
        wanted -= wanted % SLICE_BYTES
        if wanted > self._held_bytes and self._resize(wanted):
            self._held_bytes = wanted
            if wanted == RESERVE_BYTES:
                log.info("store: the reserve %s is whole", self._path)

    def _space(self) -> tuple[int, int]:
        """(all, free) bytes of the file system; none when it does not answer."""
        try:
            status = os.statvfs(self._path.parent)
        except OSError:
            return 0, 0
        return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize

    def _resize(self, size_bytes: int) -> bool:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if size_bytes > self._held_bytes:
                    os.posix_fallocate(fd, 0, size_bytes)
                else:
                    os.ftruncate(fd, size_bytes)
                    os.fsync(fd)  # a journalling file system hands freed blocks out again only when that is committed
            finally:
                os.close(fd)
        except OSError as error:
            self.look()  # part of it may be done
            if error.errno != errno.ENOSPC and not self._complained:
                log.warning("store: the reserve %s cannot be changed: %s", self._path, error.strerror)
                self._complained = True
            return False
        return True
