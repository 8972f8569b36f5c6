"""Open file description locks (fcntl(2), F_OFD_SETLK): byte ranges locked by an open file, whoever holds its descriptor.

Never waits. The lock goes when the last descriptor of that open file is closed. Advisory, across processes and, on file
systems with a lock manager, across hosts.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock, x86_64 and aarch64: type, whence, start, len, pid


def lock_byte(fd: int, offset: int) -> None:
    """Share a lock on one byte. Raises `OSError` naming the call (EAGAIN: somebody has it alone; ENOLCK)."""
    _fcntl(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, offset)


def byte_is_locked(fd: int, offset: int) -> bool:
    """Whether another open file has a lock on that byte. Raises `OSError`."""
    kind: int = _FLOCK.unpack(_fcntl(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, offset))[0]
    return kind != fcntl.F_UNLCK


def _fcntl(fd: int, command: int, kind: int, offset: int) -> bytes:
    try:
        return fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))
    except OSError as error:
        number = errno.EAGAIN if error.errno == errno.EACCES else error.errno  # POSIX allows either
        raise OSError(number, f"fcntl lock byte {offset}: {error.strerror}") from error
