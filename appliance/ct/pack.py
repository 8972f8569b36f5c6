"""Pack a container's trees into a tar stream on stdout: a program of its own, run as `python -I -S pack.py` with JSON on stdin.

    {"trees": [{"fd": 5, "prefix": "", "id_base": 100000, "id_count": 65536}, …], "first": [["etc/vzdump/pct.conf", "…"]],
     "exclude": ["var/cache/x", "var/tmp/*", …]}

Each tree is walked from its descriptor, chrooted into it, by names relative to open directories: whatever links the
container makes meanwhile, nothing outside is read. Owners are written as the container's own ids; xattrs and ACLs, holes
and hard links are kept (POSIX.1-2001 pax headers; GNU sparse format 1.0). Left out: sockets, devices, what vanishes
meanwhile and what lies too deep; files of which less than announced can be read are filled with zeros. How many is told.

Standard library only. Exit status 0, or 1 with the reason as the last line of stderr. One line of numbers on stderr tells
what was packed.
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
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

NOBODY = 65534
DEPTH_LIMIT, PATH_LIMIT_BYTES = 500, 4000  # what can be unpacked again; see unpack.py
BLOCK = 512
_COPY_BYTES = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_XATTRS = ("security.capability", "user.", "system.posix_acl_access", "system.posix_acl_default")
_PR_SET_PDEATHSIG = 1
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP)


@dataclass(frozen=True)
class Tree:
    """A root directory, where its content belongs in the archive, and which ids outside are 0… inside."""

    fd: int
    prefix: str
    id_base: int
    id_count: int

    def own_id(self, outside: int) -> int:
        """The container's id; what it cannot name is nobody's."""
        inside = outside - self.id_base
        return inside if 0 <= inside < self.id_count else NOBODY


@dataclass
class Packer:
    """Writes entries to `out`; counts."""

    out: BinaryIO
    exclude: frozenset[str] = frozenset()
    entries: int = 0
    size: int = 0
    left_out: int = 0
    changed: int = 0
    _links: dict[tuple[int, int], str] = field(default_factory=dict)

    def text(self, name: str, content: bytes) -> None:
        """A file of our own."""
        info = tarfile.TarInfo(name)
        info.mode, info.size = 0o600, len(content)
        self.out.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        self.out.write(content + bytes(-len(content) % BLOCK))

    def tree(self, tree: Tree) -> None:
        """All below `tree`, which the process is chrooted into."""
        self._links.clear()
        root = os.open(".", _DIRECTORY)
        try:
            self._entry(tree, root, ".", tree.prefix or ".", os.fstat(root))
            self._below(tree, root)
        finally:
            os.close(root)

    def close(self) -> None:
        """The end of the archive."""
        self.out.write(bytes(2 * BLOCK))
        self.out.flush()

    def _below(self, tree: Tree, root: int) -> None:
        pending: list[tuple[str, Iterator[str]]] = [("", iter(_names(root)))]
        fds = [os.dup(root)]
        try:
            while pending:
                path, names = pending[-1]
                name = next(names, None)
                if name is None:
                    pending.pop()
                    os.close(fds.pop())
                    continue
                below = f"{path}/{name}" if path else name
                archived = f"{tree.prefix}/{below}" if tree.prefix else below
                if archived in self.exclude or f"{archived.rpartition('/')[0]}/*" in self.exclude:
                    continue
                if len(pending) > DEPTH_LIMIT or len(os.fsencode(archived)) > PATH_LIMIT_BYTES:
                    self.left_out += 1
                    continue
                directory = self._try(tree, fds[-1], name, archived)
                if directory is not None:
                    fds.append(directory)
                    pending.append((below, iter(_names(directory))))
        finally:
            for fd in fds:
                os.close(fd)

    def _try(self, tree: Tree, parent: int, name: str, archived: str) -> int | None:
        """Pack one entry; the descriptor of a directory, to go on in."""
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                fd = os.open(name, _DIRECTORY, dir_fd=parent)
                self._entry(tree, fd, ".", archived, os.fstat(fd))
                return fd
            self._entry(tree, parent, name, archived, status)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self.left_out += 1
        return None

    def _entry(self, tree: Tree, parent: int, name: str, archived: str, status: os.stat_result) -> None:
        info = tarfile.TarInfo(archived)
        info.mode = stat.S_IMODE(status.st_mode)
        info.uid, info.gid = tree.own_id(status.st_uid), tree.own_id(status.st_gid)
        info.mtime = status.st_mtime
        mode = status.st_mode
        if stat.S_ISREG(mode):
            self._file(info, parent, name, status)
            return
        if stat.S_ISDIR(mode):
            info.type = tarfile.DIRTYPE
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                info.pax_headers = _xattrs(fd)
            finally:
                os.close(fd)
        elif stat.S_ISLNK(mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=parent)
        elif stat.S_ISFIFO(mode):
            info.type = tarfile.FIFOTYPE
        else:  # sockets are their server's, devices the host's
            self.left_out += 1
            return
        self._header(info)

    def _file(self, info: tarfile.TarInfo, parent: int, name: str, status: os.stat_result) -> None:
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in self._links:
            info.type, info.linkname = tarfile.LNKTYPE, self._links[key]
            self._header(info)
            return
        fd = os.open(name, _FILE, dir_fd=parent)
        try:
            real = os.fstat(fd)
            if not stat.S_ISREG(real.st_mode):
                self.left_out += 1
                return
            info.pax_headers = _xattrs(fd)
            self._content(info, fd, real)
        finally:
            os.close(fd)
        if status.st_nlink > 1:
            self._links[key] = info.name

    def _content(self, info: tarfile.TarInfo, fd: int, status: os.stat_result) -> None:
        size = status.st_size
        extents = _extents(fd, size) if status.st_blocks * BLOCK < size else [(0, size)]
        if extents == [(0, size)] or (not size):
            info.size = size
            self._header(info)
            self._copy(fd, [(0, size)])
            self._pad(size)
            return
        numbers = [len(extents), *(number for extent in extents for number in extent)]
        table = "".join(f"{number}\n" for number in numbers).encode()
        table += bytes(-len(table) % BLOCK)
        stored = sum(length for _, length in extents)
        head, _, tail = info.name.rpartition("/")
        info.pax_headers = {
            **info.pax_headers,
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": info.name,
            "GNU.sparse.realsize": str(size),
        }
        real_name = info.name
        info.name, info.size = f"{head + '/' if head else ''}GNUSparseFile.0/{tail}", len(table) + stored
        self._header(info)
        info.name = real_name
        self.out.write(table)
        self._copy(fd, extents)
        self._pad(stored)

    def _header(self, info: tarfile.TarInfo) -> None:
        self.entries += 1
        self.out.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _copy(self, fd: int, extents: list[tuple[int, int]]) -> None:
        for start, length in extents:
            position, end = start, start + length
            while position < end:
                data = os.pread(fd, min(_COPY_BYTES, end - position), position)
                if not data:  # it has become shorter meanwhile
                    self.changed += 1
                    data = bytes(min(_COPY_BYTES, end - position))
                self.out.write(data)
                position += len(data)
            self.size += length

    def _pad(self, size: int) -> None:
        self.out.write(bytes(-size % BLOCK))


def _names(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return sorted(entry.name for entry in entries)


def _xattrs(fd: int) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        for name in os.listxattr(fd):
            if name.startswith(_XATTRS):
                found[f"SCHILY.xattr.{name}"] = os.getxattr(fd, name).decode("utf-8", "surrogateescape")
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENODATA, errno.ENOENT):
            raise
    return found


def _extents(fd: int, size: int) -> list[tuple[int, int]]:
    """(start, length) of what is not a hole; ends with (size, 0) where the file ends in one, as GNU tar writes it."""
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
    if not found or sum(found[-1]) < size:
        found.append((size, 0))
    return found


def main() -> int:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody wants the archive of a killed appliance
    asked = json.load(sys.stdin)
    out = io.BufferedWriter(io.FileIO(1, "w", closefd=False), _COPY_BYTES)
    packer = Packer(out, exclude=frozenset(asked["exclude"]))
    for name, content in asked["first"]:
        packer.text(name, content.encode("utf-8", "surrogateescape"))
    outside = os.open("/", _DIRECTORY)
    for each in asked["trees"]:
        tree = Tree(each["fd"], each["prefix"], each["id_base"], each["id_count"])
        os.fchdir(tree.fd)
        os.chroot(".")
        packer.tree(tree)
        os.fchdir(outside)
        os.chroot(".")
    packer.close()
    told = f"{packer.entries} entries, {packer.size} bytes"
    if packer.left_out or packer.changed:
        told += f", {packer.left_out} left out, {packer.changed} changed while they were read"
    print(told, file=sys.stderr)  # noqa: T201  our answer
    return 0


def _run() -> int:
    try:
        return main()
    except BrokenPipeError:
        text = "the compressor ended early"
    except OSError as error:
        text = str(error)
    print(text.replace("\n", " "), file=sys.stderr)  # noqa: T201  our answer
    return 1


if __name__ == "__main__":
    sys.stderr = io.TextIOWrapper(sys.stderr.buffer, errors="backslashreplace")
    sys.exit(_run())
