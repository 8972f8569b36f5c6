"""pidfd_getfd(2): a duplicate of another process's descriptor."""

from __future__ import annotations

from appliance.kernel.libc import syscall

_NR_PIDFD_GETFD = 438  # the same on every architecture


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Our own descriptor for what `fd` is in the process; the caller closes it. Needs ptrace's right. Raises `OSError`."""
    return syscall("pidfd_getfd", _NR_PIDFD_GETFD, pidfd, fd, 0, about=f"fd {fd}")
