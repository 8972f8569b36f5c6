"""openat2(2): opening a path that must not leave a directory, whatever symbolic links it meets."""

from __future__ import annotations

import ctypes
import os
import struct

from appliance.kernel import libc

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_OPENAT2 = 437
_AT_FDCWD = -100
_OPEN_HOW = struct.Struct("=QQQ")  # linux/openat2.h struct open_how: flags, mode, resolve
assert _OPEN_HOW.size == 24


def open_without_links(path: str, flags: int) -> int:
    """Open an absolute path none of whose parts is a symbolic link. Raises `OSError`, ELOOP when one is."""
    how = ctypes.create_string_buffer(
        _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS), _OPEN_HOW.size
    )
    return libc.syscall("openat2", _OPENAT2, _AT_FDCWD, os.fsencode(path), how, _OPEN_HOW.size, about=path)


def open_in_root(root_fd: int, path: str, flags: int, *, mode: int = 0) -> int:
    """Open `path` as if `root_fd` were `/`: absolute links and `..` stop there, magic links are refused.

    Raises `OSError`; EAGAIN means somebody renamed directories meanwhile and the caller may try again.
    """
    how = ctypes.create_string_buffer(
        _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS), _OPEN_HOW.size
    )
    return libc.syscall("openat2", _OPENAT2, root_fd, os.fsencode(path), how, _OPEN_HOW.size, about=path)
