"""Read and write files of a running container: a program of its own, run as `python -I inside.py USER_FD ROOT_FD OP …`.

The container is hostile, and so is every path in it. This process first becomes the container's root (it joins the user
namespace USER_FD; -1 for a privileged container, whose root is ours), so that nothing here can do more than that root
could. Then it resolves each path as the container would, and never outside (openat2 RESOLVE_IN_ROOT from the descriptor
ROOT_FD, magic links refused). Only regular files are opened, devices and FIFOs never; a file is written beside its place
and renamed into it, so that a reader sees the old one or the new one.

    read PATH OFFSET LIMIT                    a line of JSON about it, then the bytes; of a directory the names are in it,
                                              of a symbolic link, which is followed, what it says
    write PATH MODE UID GID PARENTS EXPECTED  the bytes come from stdin; MODE, UID, GID -1: as the file it replaces, else
                                              0644 and root. EXPECTED: its SHA-256 before, "absent", or "" for no matter

Standard library only, and no import of the package: it starts in 30 ms. It cannot be seen or traced from inside, being
in the host's pid namespace. Exit status: 0 done, 3 refused (stderr: a line of JSON with errno and message), 1 a defect.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import stat
import struct
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

REFUSED = 3
NAMES_LIMIT = 10_000
_CHUNK_BYTES = 256 << 10
_CLONE_NEWUSER = 0x10000000
_OPENAT2, _RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 437, 0x02, 0x10
_TRIES = 100
_libc = ctypes.CDLL(None, use_errno=True)


class Changed(Exception):
    """The file is not what the caller expects it to be."""


def become_root_of(user_fd: int) -> None:
    """Join the user namespace, as its root and with no group but root's."""
    if user_fd < 0:
        return
    # SAFETY: two plain integers, no pointers.
    if _libc.setns(ctypes.c_int(user_fd), ctypes.c_int(_CLONE_NEWUSER)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")
    os.setresgid(0, 0, 0)
    os.setgroups([])
    os.setresuid(0, 0, 0)


def open_in(root: int, path: str, flags: int) -> int:
    """openat2(2) with `root` as `/`. EAGAIN (somebody renames directories) is tried again."""
    # SAFETY: `how` lives until the call returns; its size is passed (linux/openat2.h struct open_how).
    how = ctypes.create_string_buffer(
        struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS), 24
    )
    for _ in range(_TRIES):
        fd = int(_libc.syscall(ctypes.c_long(_OPENAT2), ctypes.c_long(root), os.fsencode(path), how, ctypes.c_long(24)))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code != errno.EAGAIN:
            break
    raise OSError(code, os.strerror(code), path)


def open_file(root: int, path: str) -> int:
    """A regular file or directory, for reading. What else it may be is looked at before it is opened."""
    found = open_in(root, path, os.O_PATH)
    try:
        mode = os.fstat(found).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, "neither a regular file nor a directory", path)
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(found)


def describe(fd: int) -> dict[str, object]:
    """What a reply says of a file."""
    status = os.fstat(fd)
    kind = "directory" if stat.S_ISDIR(status.st_mode) else "file"
    return {
        "type": kind,
        "size": status.st_size if kind == "file" else 0,
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": int(status.st_mtime),
    }


def read(root: int, path: str, offset: int, limit: int) -> None:
    """Tell and copy to stdout."""
    fd = open_file(root, path)
    answer = describe(fd)
    answer["target"] = _target(root, path)
    if answer["type"] == "directory":
        answer["entries"], answer["more"] = _entries(fd)
    out = sys.stdout.buffer
    out.write(json.dumps(answer).encode() + b"\n")
    if answer["type"] == "file":
        os.lseek(fd, offset, os.SEEK_SET)
        while limit > 0 and (data := os.read(fd, min(limit, _CHUNK_BYTES))):
            out.write(data)
            limit -= len(data)
    out.flush()


def _target(root: int, path: str) -> str:
    """What the symbolic link at `path` says; "" of anything else."""
    with suppress(OSError):
        link = open_in(root, path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink("", dir_fd=link)
        finally:
            os.close(link)
    return ""


def _entries(fd: int) -> tuple[list[dict[str, object]], bool]:
    found: list[dict[str, object]] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if len(found) >= NAMES_LIMIT:
                return found, True
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
                kind = kinds.get(stat.S_IFMT(status.st_mode), "other")
                size = status.st_size if kind == "file" else 0
                found.append({"name": entry.name, "type": kind, "size": size, "mode": stat.S_IMODE(status.st_mode)})
    return sorted(found, key=lambda item: str(item["name"])), False


def write(root: int, path: str, *, mode: int, uid: int, gid: int, parents: bool, expected: str) -> None:
    """Copy stdin to a file beside its place, and put it there."""
    directory, name = _split(path)
    with _directory(root, directory, make=parents) as parent:
        before = _before(parent, name)
        if expected and (_digest(parent, name) if before else "absent") != expected:
            raise Changed("the file has been changed by somebody else")
        temporary = f".{name[:200]}.{os.getpid()}.new"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        try:
            while data := os.read(0, _CHUNK_BYTES):
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            owner = (before.st_uid, before.st_gid) if before else (0, 0)
            os.fchown(fd, uid if uid >= 0 else owner[0], gid if gid >= 0 else owner[1])
            os.fchmod(fd, mode if mode >= 0 else (stat.S_IMODE(before.st_mode) if before else 0o644))
            os.fsync(fd)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise
        sys.stdout.write(json.dumps(describe(fd)) + "\n")


def _split(path: str) -> tuple[str, str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise OSError(errno.EINVAL, "not the path of a file", path)
    return "/" + "/".join(parts[:-1]), parts[-1]


@contextmanager
def _directory(root: int, path: str, *, make: bool) -> Iterator[int]:
    if make:
        made = ""
        for part in [part for part in path.split("/") if part]:
            with _directory(root, made or "/", make=False) as above, suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=above)
            made += f"/{part}"
    fd = open_in(root, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _before(parent: int, name: str) -> os.stat_result | None:
    """The file that will be replaced; a link is replaced itself, not what it leads to."""
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISREG(status.st_mode):
        return status
    if stat.S_ISLNK(status.st_mode):
        return None
    raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, "not a regular file", name)


def _digest(parent: int, name: str) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=parent)
    with os.fdopen(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str]) -> None:
    user_fd, root = int(arguments[0]), int(arguments[1])
    become_root_of(user_fd)
    os.umask(0)
    operation, path, rest = arguments[2], arguments[3], arguments[4:]
    if operation == "read":
        read(root, path, int(rest[0]), int(rest[1]))
    else:
        mode, uid, gid, parents, expected = *map(int, rest[:4]), rest[4]
        write(root, path, mode=mode, uid=uid, gid=gid, parents=bool(parents), expected=expected)


def _run() -> int:
    try:
        main(sys.argv[1:])
    except Changed as error:
        answer = {"errno": 0, "message": str(error)}
    except OSError as error:
        answer = {"errno": error.errno, "message": error.strerror or os.strerror(error.errno or 0)}
    else:
        return 0
    sys.stderr.write(json.dumps(answer) + "\n")
    return REFUSED


if __name__ == "__main__":
    sys.exit(_run())
