"""Raw images: files that begin as holes."""

from __future__ import annotations

import os
from pathlib import Path


def make(path: Path, size_bytes: int) -> None:
    """A file that holds zeros and takes no room. Blocks. Raises `OSError`."""
    with path.open("xb") as file:
        file.truncate(size_bytes)


def extend(path: Path, size_bytes: int) -> None:
    """Lengthen it by zeros, on the disk when this returns; never shorten it. Blocks. Raises `OSError`."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size < size_bytes:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
    finally:
        os.close(fd)
