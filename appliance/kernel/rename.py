"""renameat2(2): swapping two names at one moment."""

from __future__ import annotations

import ctypes
import os

from appliance.kernel.libc import checked

_AT_FDCWD, _EXCHANGE = -100, 2

_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: os.PathLike[str], other: os.PathLike[str]) -> None:
    """Afterwards, and after a crash at any point, each name stands for what the other stood for, or nothing has changed.

    Both must exist, on one file system. Raises `OSError` (EINVAL: this file system cannot).
    """
    # SAFETY: both byte strings are NUL-terminated and live until the call has returned.
    result = _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_EXCHANGE))
    checked(result, "renameat2", f"{one} {other}")
