"""Make one tree like another, again and again: a program of its own, `python -I -S treesync.py SOURCE_FD TARGET_FD BASE COUNT`.

Each line "again" on stdin is a pass; it answers with one line of JSON: entries looked at, files copied, bytes copied, entries
removed, seconds. "verify" reads both trees whole and answers with the number of entries that differ. Any other line, or the
end of stdin, ends it. SOURCE may be in use: ids BASE… there are 0… in the target.

A file is copied unless it is the very file of the pass before: inode, size, mtime and ctime, where ctime is older than that
pass by more than a clock's tick (a change within the same tick would not show). A changed file is written in place of the
old one as a new one, so the target never holds half of it under its name. Holes, hard links, xattrs, ACLs and times are kept;
what is not in the source is removed from the target. Sockets are left out. What vanishes meanwhile is the next pass's.

Standard library only; all names are relative to open directories and no link is followed. Exit status 0, or 1 with the
reason as the last line of stderr.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import signal
import stat
import sys
import time
from dataclasses import dataclass, field

NOBODY = 65534
DEPTH_LIMIT = 400  # two descriptors a level
_TICK_NS = 1_000_000_000
_COPY_BYTES = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_XATTRS = ("security.capability", "user.", "system.posix_acl_access", "system.posix_acl_default")
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP)
_TEMPORARY = f".appliance-{os.urandom(8).hex()}"  # no name of the source's
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)

Seen = tuple[int, int, int, int]  # inode, size, mtime, ctime


@dataclass
class Pass:
    """Figures of one pass."""

    entries: int = 0
    files: int = 0
    bytes: int = 0
    removed: int = 0
    seconds: float = 0.0


@dataclass
class Sync:
    """The two trees, and what the passes have seen of the source."""

    source: int
    target: int
    id_base: int
    id_count: int
    known: dict[str, Seen] = field(default_factory=dict)
    figures: Pass = field(default_factory=Pass)
    _links: dict[tuple[int, int], str] = field(default_factory=dict)
    _fresh: dict[str, Seen] = field(default_factory=dict)
    _began_ns: int = 0

    def again(self) -> Pass:
        """One pass."""
        began = time.monotonic()
        self._began_ns = time.time_ns()
        self.figures, self._fresh = Pass(), {}
        self._links.clear()
        self._directory(self.source, self.target, "", 0)
        self._finish(self.target, ".", os.fstat(self.source), _xattrs_of(self.source))
        self.known = self._fresh
        if self.figures.files:
            _libc.syncfs(self.target)
        self.figures.seconds = time.monotonic() - began
        return self.figures

    # --- one directory --------------------------------------------------------------------------------------------

    def _directory(self, source: int, target: int, path: str, depth: int) -> None:
        if depth > DEPTH_LIMIT:
            raise OSError(errno.ENAMETOOLONG, f"{path[:80]}: deeper than {DEPTH_LIMIT}")
        names = _names(source)
        wanted = set(names)
        for name in _names(target):
            if name not in wanted:
                _remove(target, name)
                self.figures.removed += 1
        for name in names:
            try:
                self._entry(source, target, name, f"{path}/{name}", depth)
            except OSError as error:
                if error.errno not in _GONE:
                    raise

    def _entry(self, source: int, target: int, name: str, path: str, depth: int) -> None:
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        self.figures.entries += 1
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFSOCK:
            _remove(target, name)
            return
        present = _lstat(target, name)
        if present is not None and stat.S_IFMT(present.st_mode) != kind:
            _remove(target, name)
            present = None
        if kind == stat.S_IFDIR:
            self._subdirectory(source, target, name, path, depth, present)
        elif kind == stat.S_IFREG:
            self._regular(source, target, name, path, status, present)
        else:
            self._special(source, target, name, status, present)

    def _subdirectory(
        self, source: int, target: int, name: str, path: str, depth: int, present: os.stat_result | None
    ) -> None:
        below = os.open(name, _DIRECTORY, dir_fd=source)
        try:
            if present is None:
                os.mkdir(name, 0o700, dir_fd=target)
            into = os.open(name, _DIRECTORY, dir_fd=target)
            try:
                self._directory(below, into, path, depth + 1)
                self._finish(into, ".", os.fstat(below), _xattrs_of(below))
            finally:
                os.close(into)
        finally:
            os.close(below)

    def _special(
        self, source: int, target: int, name: str, status: os.stat_result, present: os.stat_result | None
    ) -> None:
        if stat.S_ISLNK(status.st_mode):
            leads_to = os.readlink(name, dir_fd=source)
            if present is not None and os.readlink(name, dir_fd=target) != leads_to:
                _remove(target, name)
                present = None
            if present is None:
                os.symlink(leads_to, name, dir_fd=target)
        elif present is None or present.st_rdev != status.st_rdev:
            _remove(target, name)
            os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=target)
        self._finish(target, name, status, {})

    # --- files ----------------------------------------------------------------------------------------------------

    def _regular(
        self, source: int, target: int, name: str, path: str, status: os.stat_result, present: os.stat_result | None
    ) -> None:
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in self._links:
            self._link(target, name, self._links[key], present)
            return
        seen = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if present is None or self.known.get(path) != seen or present.st_size != status.st_size:
            self._copy(source, target, name, status)
        if status.st_ctime_ns < self._began_ns - _TICK_NS:
            self._fresh[path] = seen
        if status.st_nlink > 1:
            self._links[key] = path.lstrip("/")

    def _link(self, target: int, name: str, first: str, present: os.stat_result | None) -> None:
        there = os.stat(first, dir_fd=self.target, follow_symlinks=False)
        if present is not None and (present.st_dev, present.st_ino) == (there.st_dev, there.st_ino):
            return
        _remove(target, name)
        os.link(first, name, src_dir_fd=self.target, dst_dir_fd=target, follow_symlinks=False)

    def _copy(self, source: int, target: int, name: str, before: os.stat_result) -> None:
        fd = os.open(name, _READ, dir_fd=source)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return
            _remove(target, _TEMPORARY)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            into = os.open(_TEMPORARY, flags, 0o600, dir_fd=target)
            try:
                os.truncate(into, status.st_size)
                for start, length in _extents(fd, status.st_size):
                    self._piece(fd, into, start, length)
                self._finish(into, None, status, _xattrs_of(fd))
            finally:
                os.close(into)
            os.rename(_TEMPORARY, name, src_dir_fd=target, dst_dir_fd=target)
        finally:
            os.close(fd)
        self.figures.files += 1

    def _piece(self, fd: int, into: int, start: int, length: int) -> None:
        position, end = start, start + length
        while position < end:
            data = os.pread(fd, min(_COPY_BYTES, end - position), position)
            if not data:  # shorter meanwhile: the next pass sees it
                return
            view = memoryview(data)
            while view:
                written = os.pwrite(into, view, position)
                position += written
                view = view[written:]
            self.figures.bytes += len(data)

    def _finish(self, fd: int, name: str | None, status: os.stat_result, xattrs: dict[str, bytes]) -> None:
        """Owner, mode, xattrs and times, in the order in which none undoes another. `name` None: of `fd` itself."""
        uid, gid = self._own(status.st_uid), self._own(status.st_gid)
        times = (status.st_atime_ns, status.st_mtime_ns)
        if name is None or name == ".":
            now = os.fstat(fd)
            if (now.st_uid, now.st_gid) != (uid, gid):
                os.chown(fd, uid, gid)
                now = os.fstat(fd)
            _set_xattrs(fd, xattrs)
            if stat.S_IMODE(os.fstat(fd).st_mode) != stat.S_IMODE(status.st_mode):
                os.chmod(fd, stat.S_IMODE(status.st_mode))
            os.utime(fd, ns=times)
            return
        os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=fd)
        os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)

    def _own(self, outside: int) -> int:
        inside = outside - self.id_base
        return inside if 0 <= inside < self.id_count else NOBODY

    # --- verifying ------------------------------------------------------------------------------------------------

    def verify(self) -> int:
        """How many entries differ in type, owner, mode, link, content or name."""
        return self._differences(self.source, self.target)

    def _differences(self, source: int, target: int) -> int:
        names, others = _names(source), set(_names(target))
        count = len(others - set(names))
        for name in names:
            status = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISSOCK(status.st_mode):
                continue
            count += name not in others or self._differs(source, target, name, status)
            if stat.S_ISDIR(status.st_mode) and name in others:
                below = os.open(name, _DIRECTORY, dir_fd=source)
                into = os.open(name, _DIRECTORY, dir_fd=target)
                try:
                    count += self._differences(below, into)
                finally:
                    os.close(below)
                    os.close(into)
        return count

    def _differs(self, source: int, target: int, name: str, status: os.stat_result) -> bool:
        other = os.stat(name, dir_fd=target, follow_symlinks=False)
        if (status.st_mode, self._own(status.st_uid), self._own(status.st_gid)) != (
            other.st_mode,
            other.st_uid,
            other.st_gid,
        ):
            return True
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(name, dir_fd=source) != os.readlink(name, dir_fd=target)
        if not stat.S_ISREG(status.st_mode):
            return status.st_rdev != other.st_rdev
        if (status.st_size, status.st_mtime_ns) != (other.st_size, other.st_mtime_ns):
            return True
        one, two = os.open(name, _READ, dir_fd=source), os.open(name, _READ, dir_fd=target)
        try:
            if _xattrs_of(one) != _xattrs_of(two):
                return True
            position = 0
            while True:
                data = os.pread(one, _COPY_BYTES, position)
                if data != os.pread(two, _COPY_BYTES, position):
                    return True
                if not data:
                    return False
                position += len(data)
        finally:
            os.close(one)
            os.close(two)


def _names(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return sorted(entry.name for entry in entries)


def _lstat(fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _remove(parent: int, name: str) -> None:
    """Whatever it is, with all below it; not an error when absent."""
    status = _lstat(parent, name)
    if status is None:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    below = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        for each in _names(below):
            _remove(below, each)
    finally:
        os.close(below)
    os.rmdir(name, dir_fd=parent)


def _xattrs_of(fd: int) -> dict[str, bytes]:
    try:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd) if name.startswith(_XATTRS)}
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODATA):
            return {}
        raise


def _set_xattrs(fd: int, wanted: dict[str, bytes]) -> None:
    present = _xattrs_of(fd)
    for name in present.keys() - wanted.keys():
        os.removexattr(fd, name)
    for name, value in wanted.items():
        if present.get(name) != value:
            os.setxattr(fd, name, value)


def _extents(fd: int, size: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        found.append((start, end - start))
        position = end
    return found


def main(arguments: list[str]) -> int:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    source, target, base, count = (int(text) for text in arguments)
    # a detached mount is a descriptor that only names it (O_PATH)
    source, target = (os.open(".", _DIRECTORY, dir_fd=fd) for fd in (source, target))
    os.umask(0)
    sys.setrecursionlimit(10 * DEPTH_LIMIT)
    sync = Sync(source, target, base, count)
    for line in sys.stdin:
        match line.strip():
            case "again":
                answer: object = vars(sync.again())
            case "verify":
                answer = sync.verify()
            case _:
                return 0
        print(json.dumps(answer), flush=True)  # noqa: T201  our answer
    return 0


def _run() -> int:
    try:
        return main(sys.argv[1:])
    except OSError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)  # noqa: T201  our answer
        return 4 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 1


if __name__ == "__main__":
    sys.stderr = io.TextIOWrapper(sys.stderr.buffer, errors="backslashreplace")
    sys.exit(_run())
