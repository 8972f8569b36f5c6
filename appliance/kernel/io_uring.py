"""io_uring(7): whether this process, and what it starts, may use one. Hosts may forbid it (kernel.io_uring_disabled, seccomp)."""

from __future__ import annotations

import errno
from typing import Final

from appliance.kernel import libc

_IO_URING_SETUP: Final = 425  # on every architecture


def is_available() -> bool:
    """Asks for a ring without saying where its description is: a kernel that would make one finds nothing there (EFAULT)."""
    try:
        libc.syscall("io_uring_setup", _IO_URING_SETUP, 1, None, about="a ring without a description")
    except OSError as error:
        return error.errno == errno.EFAULT
    raise AssertionError("a ring without a description")
