"""A raw image: a file or a block device, read and written with preadv(2) and pwritev(2). Any thread may enter.

A file that is not whole sectors ends with zeros; the first write there makes it whole. O_DIRECT is used where it takes
512-byte sectors; on anything coarser the page cache is used instead, since guests address sectors. Buffers that are not
aligned for it are the caller's to avoid (`memory_alignment`).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from appliance.errors import HostError
from appliance.kernel.fallocate import punch_hole, zero_range
from appliance.vmm.block.backend import SECTOR, CachePolicy
from appliance.vmm.block.image_lock import lock_image
from appliance.vmm.in_use import InUse

ZEROES_AT_ONCE: Final = 1 << 20
_UNABLE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY)


class RawImage:
    """An open and locked image; see `backend.BlockBackend`."""

    def __init__(self, path: Path, cache: CachePolicy, *, read_only: bool = False, discard: bool = False) -> None:
        """Blocking. Raises `Conflict` when another program has it, `HostError`."""
        self.path = path
        self.read_only = read_only
        self.can_discard = discard and not read_only
        self._cache = cache
        self._zero_range_fails = False
        self._cache_hides = False  # the file system has no RWF_NOWAIT
        self._fd = _open(path, read_only=read_only)
        self._in_use = InUse(self._close)  # an ejected disk is closed while its last requests are under way
        try:
            lock_image(self._fd, path, read_only=read_only)
            self.is_device = stat.S_ISBLK(os.fstat(self._fd).st_mode)
            self._end = os.lseek(self._fd, 0, os.SEEK_END)  # of the file; a write beyond it makes it longer
            self.direct = cache.direct and _use_direct(self._fd)
        except OSError as error:
            self.close()
            raise HostError.from_os_error(error, f"{path}") from error
        except BaseException:
            self.close()
            raise
        self.size_bytes = -(-self._end // SECTOR) * SECTOR
        self.memory_alignment = SECTOR if self.direct else 1

    @property
    def waits(self) -> bool:
        return self.direct

    def read(self, buffers: Sequence[memoryview], offset: int, *, wait: bool = True) -> None:
        with self._in_use:
            done = os.preadv(self._fd, buffers, offset) if wait else self._read_cached(buffers, offset)
            if done < sum(map(len, buffers)):
                self._read_on(buffers, offset, done)

    def write(self, buffers: Sequence[memoryview], offset: int, *, durable: bool) -> None:
        flags = os.RWF_DSYNC if durable and not self._cache.ignore_flush else 0
        wanted = sum(map(len, buffers))
        with self._in_use:
            done = os.pwritev(self._fd, buffers, offset, flags)
            while done < wanted:  # interrupted, or the disk is about to be full: the next one says so
                with _rest(buffers, done) as rest:
                    more = os.pwritev(self._fd, [rest], offset + done, flags)
                if not more:
                    raise OSError(errno.EIO, f"pwritev {self.path}: nothing written")
                done += more

    def flush(self) -> None:
        if not self._cache.ignore_flush and not self.read_only:
            with self._in_use:
                os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        if not self.can_discard or not length:
            return
        try:
            with self._in_use:
                punch_hole(self._fd, offset, length)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        with self._in_use:
            self._zero(offset, length, unmap=unmap)

    def _zero(self, offset: int, length: int, *, unmap: bool) -> None:
        if length and unmap and self.can_discard:
            try:
                punch_hole(self._fd, offset, length)
            except OSError as error:
                if error.errno not in _UNABLE:
                    raise
            else:
                return
        if length and not self._zero_range_fails:
            try:
                zero_range(self._fd, offset, length)
            except OSError as error:
                if error.errno not in _UNABLE:
                    raise
                self._zero_range_fails = True
            else:
                return
        self._write_zeroes(offset, length)

    def resize(self, size_bytes: int) -> None:
        """A block device has been made so large by its owner already."""
        if size_bytes < self.size_bytes or size_bytes % SECTOR:
            raise ValueError(f"{self.path}: {self.size_bytes} bytes cannot become {size_bytes}")
        with self._in_use:
            if not self.is_device and size_bytes > self._end:
                os.ftruncate(self._fd, size_bytes)
            end = os.lseek(self._fd, 0, os.SEEK_END)
        if end < size_bytes:
            raise OSError(errno.ENOSPC, f"{self.path} has {end} bytes")
        self._end = end
        self.size_bytes = size_bytes

    def close(self) -> None:
        self._in_use.end()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _read_cached(self, buffers: Sequence[memoryview], offset: int) -> int:
        """What the page cache has from there on, and `BlockingIOError` when that is nothing."""
        if self._cache_hides:
            raise BlockingIOError
        try:
            return os.preadv(self._fd, buffers, offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._cache_hides = True
            raise BlockingIOError from error

    def _read_on(self, buffers: Sequence[memoryview], offset: int, done: int) -> None:
        """After a short read: to the end of the buffers, or of the file, behind which there are zeros."""
        wanted = sum(map(len, buffers))
        while done < wanted:
            with _rest(buffers, done) as rest:
                more = 0 if done % SECTOR else os.preadv(self._fd, [rest], offset + done)
                if not more:
                    rest[:] = bytes(len(rest))
                    more = len(rest)
            done += more

    def _write_zeroes(self, offset: int, length: int) -> None:
        # an anonymous mapping: zeros, page-aligned for O_DIRECT
        with mmap.mmap(-1, min(length, ZEROES_AT_ONCE) or SECTOR) as zeroes, memoryview(zeroes) as view:
            while length:
                with view[: min(length, len(view))] as part:
                    self.write([part], offset, durable=False)
                    offset, length = offset + len(part), length - len(part)


def _rest(buffers: Sequence[memoryview], done: int) -> memoryview:
    """What is left of the first buffer that is not done wholly."""
    for each in buffers:
        if done < len(each):
            return each[done:]
        done -= len(each)
    raise AssertionError("there is a rest")


def _open(path: Path, *, read_only: bool) -> int:
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except OSError as error:
        raise HostError.from_os_error(error, f"open {path}") from error


def _use_direct(fd: int) -> bool:
    """Switch O_DIRECT on when single sectors can be had so; tried, as QEMU does, since few file systems tell."""
    before = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, before | os.O_DIRECT)
        with mmap.mmap(-1, mmap.PAGESIZE) as buffer, memoryview(buffer) as view, view[SECTOR : 2 * SECTOR] as sector:
            os.preadv(fd, [sector], 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.fcntl(fd, fcntl.F_SETFL, before)
        return False
    return True
