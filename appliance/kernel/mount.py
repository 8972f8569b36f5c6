"""Mounts as file descriptors (open_tree, fsopen … move_mount; Linux 5.12 and later) and the table of those there are.

A *detached* mount is one no path leads to yet: it can be written into through its descriptor, given an id mapping, and
is gone without a trace when the descriptor closes before `move_mount`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.kernel import libc

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_MOVE_MOUNT_F_EMPTY_PATH = 4
_CLONE_FS = 0x200
_MS_PRIVATE = 1 << 18

_MOUNT_ATTR = struct.Struct("=QQQQ")  # linux/mount.h struct mount_attr: attr_set, attr_clr, propagation, userns_fd
assert _MOUNT_ATTR.size == 32


def open_tree(path: Path, *, recursive: bool = False) -> int:
    """A detached copy (bind) of the mount at `path`."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return libc.syscall("open_tree", _OPEN_TREE, AT_FDCWD, os.fsencode(path), flags, about=path)


def open_tree_at(fd: int, *, about: object) -> int:
    """A detached copy of what an O_PATH descriptor names."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | AT_EMPTY_PATH
    return libc.syscall("open_tree", _OPEN_TREE, fd, b"", flags, about=about)


def new_mount(fs_type: str, source: str, options: Mapping[str, str | None], *, attributes: int = 0) -> int:
    """A detached mount of a file system (fsopen, fsconfig, fsmount). An option with None is a flag.

    The error carries what the file system itself said, where it said something.
    """
    return new_mount_of(fs_type, source, list(options.items()), attributes=attributes)


def new_mount_of(fs_type: str, source: str, options: Sequence[tuple[str, str | None]], *, attributes: int = 0) -> int:
    """`new_mount` with options that may come more than once, in their order."""
    about = f"{fs_type} {source}"
    context = libc.syscall("fsopen", _FSOPEN, fs_type.encode(), _FSOPEN_CLOEXEC, about=about)
    try:
        for key, value in [("source", source), *options]:
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            text = None if value is None else os.fsencode(value)
            libc.syscall("fsconfig", _FSCONFIG, context, command, key.encode(), text, 0, about=f"{about} {key}")
        libc.syscall("fsconfig", _FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0, about=about)
        return libc.syscall("fsmount", _FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes, about=about)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}{_said(context)}") from error
    finally:
        os.close(context)


def _said(context: int) -> str:
    said = []
    with contextlib.suppress(OSError):  # ENODATA ends the log
        while line := os.read(context, 4096):
            said.append(line.decode(errors="replace").strip()[2:])
    return f" ({'; '.join(said)})" if said else ""


def mount_setattr(
    mount_fd: int,
    *,
    about: object,
    set_: int = 0,
    clear: int = 0,
    userns_fd: int | None = None,
    private: bool = False,
) -> None:
    """Change a mount's attributes; with `userns_fd` also its id mapping (detached mounts only, once). `private`: what is
    mounted below its original no longer appears here."""
    if userns_fd is not None:
        set_ |= MOUNT_ATTR_IDMAP
    propagation = _MS_PRIVATE if private else 0
    attributes = ctypes.create_string_buffer(
        _MOUNT_ATTR.pack(set_, clear, propagation, userns_fd or 0), _MOUNT_ATTR.size
    )
    libc.syscall(
        "mount_setattr", _MOUNT_SETATTR, mount_fd, b"", AT_EMPTY_PATH, attributes, _MOUNT_ATTR.size, about=about
    )


def move_mount(mount_fd: int, target: Path) -> None:
    """Attach a detached mount at `target`."""
    libc.syscall(
        "move_mount", _MOVE_MOUNT, mount_fd, b"", AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH, about=target
    )


def mount_overlay(directory: Path, target: str, *, lowers: Sequence[str], options: str) -> None:
    """An overlay at `directory`/`target` by mount(2); `lowers` are relative to `directory`, the nearest first.

    Relative, because the options must fit a page, and fsconfig(2) takes many layers from Linux 6.8 on only. The call is made
    in a thread that has a working directory of its own, and the credentials of the calling one.
    """
    text = ",".join(filter(None, (f"lowerdir={':'.join(lowers)}", options)))
    failures: list[OSError] = []

    def work_there() -> None:
        try:
            libc.unshare(_CLONE_FS)
            os.chdir(directory)
            libc.mount("overlay", target, "overlay", 0, text)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=work_there, name="mount overlay")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def umount(target: Path, *, lazy: bool = False) -> None:
    """Unmount; `lazy` detaches it now and lets the last user end it."""
    libc.umount2(target, UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0))


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo (proc(5))."""

    mount_id: int
    target: Path
    fs_type: str
    source: str
    options: frozenset[str]
    super_options: frozenset[str]


def mount_table(text: str | None = None) -> list[Mount]:
    """The mounts of this mount namespace, oldest first, so that reversed order unmounts the innermost first."""
    return [_parse(line) for line in (text or Path("/proc/self/mountinfo").read_text()).splitlines()]


def mounts_under(directory: Path) -> list[Path]:
    """The mount points at or below `directory`, innermost first."""
    return [each.target for each in reversed(mount_table()) if each.target.is_relative_to(directory)]


def _parse(line: str) -> Mount:
    head, _, tail = line.partition(" - ")
    fields, rest = head.split(" "), tail.split(" ")
    return Mount(
        int(fields[0]),
        Path(_unescape(fields[4])),
        rest[0],
        _unescape(rest[1]),
        frozenset(fields[5].split(",")),
        frozenset(rest[2].split(",")),
    )


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
