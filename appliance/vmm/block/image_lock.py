"""Who may use an image together: the locks QEMU takes on image files (QEMU block/file-posix.c), so that a guest here, a
guest in QEMU and qemu-img never write to one image at once.

Each user holds a shared lock on one byte for every permission it uses (100 + n) and for every permission it does not
grant to others (200 + n), and then looks whether anybody holds the counterparts. Two who come at once may both be refused;
never are both let in.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from appliance.errors import Conflict, HostError
from appliance.kernel.ofd_lock import byte_is_locked, lock_byte

_USED, _DENIED = 100, 200
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3  # bit numbers of BLK_PERM_*
_HERE_NOT: Final = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)  # a file system without locks


def lock_image(fd: int, path: Path, *, read_only: bool) -> None:
    """Hold the image through `fd` until it is closed. Raises `Conflict` when somebody uses it in a way that does not go
    together: a writer wants to be alone but for those who only look at its size; readers share. `HostError`."""
    used = (_CONSISTENT_READ,) if read_only else (_CONSISTENT_READ, _WRITE, _RESIZE)
    denied = (_WRITE, _RESIZE)
    try:
        for permission in used:
            lock_byte(fd, _USED + permission)
        for permission in denied:
            lock_byte(fd, _DENIED + permission)
        refused = any(byte_is_locked(fd, _DENIED + permission) for permission in used)
        occupied = any(byte_is_locked(fd, _USED + permission) for permission in denied)
    except OSError as error:
        if error.errno in _HERE_NOT:
            return
        if error.errno != errno.EAGAIN:
            raise HostError.from_os_error(error, f"{path}") from error
        refused = True
    if refused or occupied:
        raise Conflict(f"{path}: is in use by another guest or program")
