"""FICLONE (ioctl_ficlone(2)): a copy of a file that shares its blocks until one of the two is written to."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from pathlib import Path

_FICLONE = 0x40049409
_CANNOT = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.EXDEV, errno.ENOSYS)


def clone_file(source: Path, target: Path) -> bool:
    """Make `target`, which must not exist, share all blocks of `source`; False (and no file) where the file system cannot.

    Raises `OSError`.
    """
    source_fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        target_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.ioctl(target_fd, _FICLONE, source_fd)
        except OSError as error:
            target.unlink()
            if error.errno in _CANNOT:
                return False
            raise OSError(error.errno, f"FICLONE {target}: {os.strerror(error.errno or 0)}") from error
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)
    return True


def can_clone(directory: Path) -> bool:
    """Whether files below `directory` can share blocks: tried with one of its own. False when it cannot be written to."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(prefix=".tmp-reflink-", dir=directory) as place:
        (Path(place) / "a").write_bytes(b"x" * 4096)
        return clone_file(Path(place) / "a", Path(place) / "b")
    return False
