"""fallocate(2): giving back the blocks in the middle of a file, or having them read as zeros."""

from __future__ import annotations

import ctypes

from appliance.kernel.libc import checked

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free `length` bytes from `offset`: they read as zeros, the size stays. Raises `OSError` (EOPNOTSUPP: not here).

    Writers that append are not disturbed, which is why a log in use can be bounded so.
    """
    _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Have `length` bytes from `offset` read as zeros without writing them; the size and, where the file system can, the
    space stay. Raises `OSError` (EOPNOTSUPP: not here)."""
    _fallocate(fd, _KEEP_SIZE | _ZERO_RANGE, offset, length)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    # SAFETY: integers only; off_t is 64 bits wide in fallocate64's ABI on every architecture we run on.
    result = _libc.fallocate64(ctypes.c_int(fd), ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length))
    checked(result, "fallocate", f"fd {fd}")
