"""Reading and writing inside a container's root file system, which is hostile.

Every path is resolved as the container's own root would (openat2 RESOLVE_IN_ROOT): whatever links it holds, nothing
outside is ever touched. Devices, FIFOs and sockets are never opened, reads are bounded, and a file is replaced by rename,
so that a link in its place is replaced too, not followed. Blocking: call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath

from appliance.errors import GuestFault, HostError
from appliance.kernel.openat2 import open_in_root

READ_LIMIT_BYTES = 1 << 20
NAMES_LIMIT = 10_000
_DEPTH_LIMIT = 40


class RootTree:
    """A root file system by a descriptor of its top directory, which the caller keeps open and closes.

    Methods raise `GuestFault` when the tree's content is in the way (a directory where a file must be, a loop of
    links), `HostError` when the host fails (`NoSpace` when full). `name` is the object's name for messages.
    """

    def __init__(self, root_fd: int, name: str) -> None:
        self._root = root_fd
        self._name = name

    def exists(self, path: str) -> bool:
        """Whether `path` leads to anything."""
        try:
            os.close(open_in_root(self._root, path, os.O_PATH))
        except OSError:
            return False
        return True

    def names(self, path: str) -> list[str]:
        """The entries of a directory, at most `NAMES_LIMIT`; empty when it is none."""
        try:
            fd = open_in_root(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return []
        try:
            with os.scandir(fd) as entries:
                return [entry.name for entry in itertools.islice(entries, NAMES_LIMIT)]
        finally:
            os.close(fd)

    def read(self, path: str) -> bytes | None:
        """A regular file's content, or None when there is none. Over `READ_LIMIT_BYTES` is a `GuestFault`."""
        try:
            fd = open_in_root(self._root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.EACCES):
                return None
            raise self._failure(error, f"open {path}") from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            data = os.read(fd, READ_LIMIT_BYTES + 1)
        finally:
            os.close(fd)
        if len(data) > READ_LIMIT_BYTES:
            raise GuestFault(f"{self._name}: {path} is over {READ_LIMIT_BYTES} bytes")
        return data

    def write(self, path: str, data: bytes, *, mode: int = 0o644, directory_mode: int = 0o755) -> None:
        """Replace the file at `path`, owned by root; makes missing directories. A file that already says so is kept."""
        if self.read(path) == data:
            return
        with self._parent(path, directory_mode) as (parent, name):
            temporary = f".{name}.appliance"
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=parent)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(temporary, flags, mode, dir_fd=parent)
                try:
                    os.fchmod(fd, mode)
                    view = memoryview(data)
                    while view:
                        view = view[os.write(fd, view) :]
                finally:
                    os.close(fd)
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=parent)
                raise self._failure(error, f"write {path}") from error

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link unless something is there already."""
        with self._parent(path, 0o755) as (parent, name):
            try:
                os.symlink(target, name, dir_fd=parent)
            except FileExistsError:
                return
            except OSError as error:
                raise self._failure(error, f"symlink {path}") from error

    def replace_link(self, path: str, target: str) -> None:
        """Make a symbolic link in place of whatever file or link is there."""
        if self.link_target(path) == target:
            return
        with self._parent(path, 0o755) as (parent, name):
            temporary = f".{name}.appliance"
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=parent)
                os.symlink(target, temporary, dir_fd=parent)
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except OSError as error:
                raise self._failure(error, f"symlink {path}") from error

    def link_target(self, path: str) -> str:
        """What a symbolic link says; empty when there is none at `path`."""
        try:
            fd = open_in_root(self._root, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return ""
        try:
            return os.readlink("", dir_fd=fd)
        except OSError:
            return ""
        finally:
            os.close(fd)

    def remove(self, path: str) -> None:
        """Remove a file or link; not an error when it is not there."""
        with self._parent(path, 0o755) as (parent, name), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)

    @contextlib.contextmanager
    def _parent(self, path: str, mode: int) -> Iterator[tuple[int, str]]:
        """The directory of `path`, made where missing, and the last name."""
        pure = PurePosixPath("/", path)
        if len(pure.parts) > _DEPTH_LIMIT or pure.name in ("", "..") or ".." in pure.parts:
            raise ValueError(f"{path}: not a plain path")
        fd = self._directory(str(pure.parent), mode)
        try:
            yield fd, pure.name
        finally:
            os.close(fd)

    def _directory(self, path: str, mode: int) -> int:
        try:
            return open_in_root(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno != errno.ENOENT or path == "/":
                raise self._failure(error, f"open {path}") from error
        pure = PurePosixPath(path)
        above = self._directory(str(pure.parent), mode)
        try:
            os.mkdir(pure.name, mode, dir_fd=above)
        except OSError as error:  # a link that leads nowhere is in the way: EEXIST
            raise self._failure(error, f"mkdir {path}") from error
        finally:
            os.close(above)
        return open_in_root(self._root, path, os.O_RDONLY | os.O_DIRECTORY)

    def _failure(self, error: OSError, doing: str) -> Exception:
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOTEMPTY, errno.ENXIO):
            return GuestFault(f"{self._name}: {doing}: {os.strerror(error.errno)}")
        return HostError.from_os_error(error, f"{self._name}: {doing}")
