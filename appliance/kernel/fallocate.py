"""fallocate(2): giving back the blocks in the middle of a file."""

from __future__ import annotations

import ctypes

from appliance.kernel.libc import checked

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free `length` bytes from `offset`: they read as zeros, the size stays. Raises `OSError` (EOPNOTSUPP: not here).

    Writers that append are not disturbed, which is why a log in use can be bounded so.
    """
    # SAFETY: integers only; off_t is 64 bits wide in fallocate64's ABI on every architecture we run on.
    result = _libc.fallocate64(
        ctypes.c_int(fd), ctypes.c_int(_KEEP_SIZE | _PUNCH_HOLE), ctypes.c_int64(offset), ctypes.c_int64(length)
    )
    checked(result, "fallocate", f"fd {fd}")
