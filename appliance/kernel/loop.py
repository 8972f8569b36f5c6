"""Loop devices: a regular file as a block device (loop(4), linux/loop.h)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from appliance.kernel import libc

_LOOP_SET_CAPACITY, _LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C07, 0x4C0A, 0x4C82
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_LOOP_MAJOR = 7
_ATTEMPTS = 64
# struct loop_config: fd, block_size, struct loop_info64 (5 u64, 4 u32, names 64+64, key 32, init 2 u64), reserved 8 u64
_LOOP_CONFIG = struct.Struct("=II 5Q4I 64s64s32s 2Q 8Q")
assert _LOOP_CONFIG.size == 304


def attach_file(path: Path, *, read_only: bool = False) -> tuple[int, Path]:
    """Make `path` a block device that lasts as long as the returned descriptor, or a mount of it.

    Returns (descriptor, device path). Retries when another process takes the free device first. Raises `OSError`.
    """
    mode = os.O_RDONLY if read_only else os.O_RDWR
    backing = os.open(path, mode | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            number = _free_number()
            device = os.open(_node(number), mode | os.O_CLOEXEC)
            try:
                _configure(device, backing, path, read_only=read_only)
                return device, _node(number)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise OSError(error.errno, f"LOOP_CONFIGURE {path}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(backing)
    raise libc.failure("LOOP_CONFIGURE", path, errno.EBUSY)


def _free_number() -> int:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)


def _node(number: int) -> Path:
    """The device's path; made where /dev is not a devtmpfs and has only the first few."""
    path = Path(f"/dev/loop{number}")
    if not path.exists():
        os.mknod(path, 0o60600, os.makedev(_LOOP_MAJOR, number))
    return path


def _configure(device: int, backing: int, path: Path, *, read_only: bool) -> None:
    flags = _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_READ_ONLY if read_only else 0)
    name = os.fsencode(path)[:63]
    zeros = (0,) * 8
    config = _LOOP_CONFIG.pack(backing, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0, *zeros)
    fcntl.ioctl(device, _LOOP_CONFIGURE, config)


def set_capacity(device: Path) -> None:
    """Tell the device that its file has grown."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _LOOP_SET_CAPACITY)
    except OSError as error:
        raise OSError(error.errno, f"LOOP_SET_CAPACITY {device}: {error.strerror}") from error
    finally:
        os.close(fd)
