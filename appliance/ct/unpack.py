"""Unpack a container template or backup: a program of its own.

    python -I unpack.py ROOT_FD ARCHIVE BYTES IDS [OPTIONS]     JSON, {"below": "srv/data", "exclude": [...], "depth": 500}
    python -I unpack.py --list ARCHIVE                          one JSON array a line: path, type, size, mtime
    python -I unpack.py --show ARCHIVE PATH                     a regular file's content on stdout

With `below` only what lies under that directory is unpacked, as if that were the root; `exclude` are paths left out.

The archive is hostile. This process first opens it, then chroots into the volume (descriptor ROOT_FD), and only then
reads it: whatever it holds, no file outside the volume has a name here. On top of that every entry is checked: absolute
names, `..`, entries that pass through a link, links that climb out, ids outside 0…IDS-1 and more than BYTES bytes are
refused; devices under dev/ are left out (a container's /dev is made at each start), other devices are refused.

Standard library only, and no import of the package: it starts in 30 ms. Exit status: 0 done, 3 refused, 4 the volume is
full, 1 anything else; the reason is the last line of stderr. One line on stdout tells what was unpacked.
"""

# ruff: noqa: PTH101, PTH102, PTH108, PTH211  names are relative to the chroot; Path objects would double the time

from __future__ import annotations

import errno
import io
import json
import lzma
import os
import resource
import shutil
import stat
import subprocess
import sys
import tarfile
import zlib
from pathlib import PurePosixPath
from typing import IO

REFUSED, FULL = 3, 4
ENTRY_LIMIT = 5_000_000
DEPTH_LIMIT = 128
MEMORY_LIMIT_BYTES = 1 << 30
LISTED_LIMIT, LISTED_DEPTH = 2_000_000, 1000
_COPY_BYTES = 1 << 20
_KINDS = {"d": "isdir", "f": "isreg", "l": "issym", "h": "islnk", "b": "isblk", "c": "ischr", "p": "isfifo"}
_MAGIC = {b"\x28\xb5\x2f\xfd": "zst", b"\xfd7zX": "xz", b"\x1f\x8b": "gz", b"BZh": "bz2"}
_XATTR = "SCHILY.xattr."
_XATTRS_KEPT = ("security.capability", "user.", "system.posix_acl_access", "system.posix_acl_default")

_XATTRS_LOST = ("user.overlay.",)  # an overlay's own marks: what is hidden, and where else to look


class Refused(Exception):
    """The archive holds what a template must not; the text names the entry."""


def entry_path(name: str, depth_limit: int = DEPTH_LIMIT) -> str:
    """A member's path relative to the root, "" for the root itself. Raises `Refused`."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise Refused(f"{name!r}: absolute names and .. are refused")
    if len(parts) > depth_limit:
        raise Refused(f"{name[:80]!r}…: more than {depth_limit} levels deep")
    return "/".join(parts)


def climbs_out(path: str, target: str) -> bool:
    """Whether the relative link `target` at `path` climbs above the root. Absolute targets mean the container's root."""
    if target.startswith("/"):
        return False
    depth = len(PurePosixPath(path).parts) - 1
    for part in target.split("/"):
        if part == "..":
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0:
            return True
    return False


class Unpacker:
    """Makes the entries below the present root directory, in the archive's order."""

    def __init__(
        self,
        *,
        byte_limit: int,
        id_limit: int,
        below: str = "",
        exclude: frozenset[str] = frozenset(),
        depth_limit: int = DEPTH_LIMIT,
    ) -> None:
        self._depth_limit = depth_limit
        self._byte_limit = byte_limit
        self._below = below
        self._exclude = exclude
        self._id_limit = id_limit
        self._known = {""}
        self._times: dict[str, float] = {}
        self.entries = 0
        self.size = 0
        self.skipped = 0

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Make one entry. Raises `Refused`, `OSError`."""
        path = entry_path(member.name, self._depth_limit)
        if self._is_left_out(path):
            return
        if self._below:
            if path != self._below and not path.startswith(f"{self._below}/"):
                return
            path = path[len(self._below) + 1 :]
        self._count(member)
        if member.ischr() or member.isblk():
            if path.split("/")[0] != "dev":
                raise Refused(f"{path}: devices are refused")
            self.skipped += 1
            return
        self._parents(path)
        if member.isdir():
            self._directory(path, member)
            return
        if not path:
            raise Refused("the root is not a directory")
        self._clear(path)
        if member.isreg():
            self._file(path, archive, member)
        elif member.issym():
            self._symlink(path, member)
        elif member.islnk():
            self._hard_link(path, member)
        elif member.isfifo():
            os.mkfifo(path, 0o600)
            self._finish(path, member)
        else:
            raise Refused(f"{path}: entry type {member.type!r} is refused")

    def _is_left_out(self, path: str) -> bool:
        return any(path == each or path.startswith(f"{each}/") for each in self._exclude)

    def close(self) -> None:
        """Set the directories' times, which making entries in them had changed."""
        for path, mtime in self._times.items():
            os.utime(path or ".", (mtime, mtime), follow_symlinks=False)

    def _count(self, member: tarfile.TarInfo) -> None:
        self.entries += 1
        if member.isreg():
            self.size += stored_bytes(member)
        if member.size < 0 or self.size > self._byte_limit:
            raise Refused(f"{member.name}: the content is over {self._byte_limit} bytes")
        if self.entries > ENTRY_LIMIT:
            raise Refused(f"more than {ENTRY_LIMIT} entries")
        if not (0 <= member.uid < self._id_limit and 0 <= member.gid < self._id_limit):
            raise Refused(f"{member.name}: owner {member.uid}:{member.gid} is outside 0…{self._id_limit - 1}")

    def _parents(self, path: str) -> None:
        """Check that nothing above `path` is a link; make what is missing."""
        parts = path.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            above = "/".join(parts[:count])
            if above in self._known:
                continue
            try:
                mode = os.lstat(above).st_mode
            except FileNotFoundError:
                self._implied(above)
                mode = stat.S_IFDIR
            if not stat.S_ISDIR(mode):
                raise Refused(f"{path}: passes through {above}, which is not a directory")
            self._known.add(above)

    def _implied(self, path: str) -> None:
        """Make a directory that the archive needs and does not name."""
        os.mkdir(path, 0o755)

    def _clear(self, path: str) -> None:
        """Make room for a non-directory: a later entry of the same name replaces an earlier one."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except IsADirectoryError as error:
            raise Refused(f"{path}: replaces a directory") from error

    def _directory(self, path: str, member: tarfile.TarInfo) -> None:
        here = path or "."
        try:
            os.mkdir(here, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(here).st_mode):
                raise Refused(f"{path}: a directory where a file was") from None
        self._known.add(path)
        self._finish(here, member)
        self._times[path] = member.mtime

    def _file(self, path: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb", buffering=0) as target:
            write_content(archive, member, target)
        self._finish(path, member)

    def _symlink(self, path: str, member: tarfile.TarInfo) -> None:
        if climbs_out(path, member.linkname):
            raise Refused(f"{path}: link to {member.linkname!r} leads out")
        os.symlink(member.linkname, path)
        os.chown(path, member.uid, member.gid, follow_symlinks=False)

    def _hard_link(self, path: str, member: tarfile.TarInfo) -> None:
        target = entry_path(member.linkname, self._depth_limit)
        if self._below:
            target = target[len(self._below) + 1 :] if target.startswith(f"{self._below}/") else ""
            if not target:
                raise Refused(f"{path}: hard link to {member.linkname!r}, which belongs to another volume")
        self._parents(target)
        try:
            os.link(target, path, follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as error:
            raise Refused(f"{path}: hard link to {member.linkname!r}, which the archive has not made") from error

    def _finish(self, path: str, member: tarfile.TarInfo) -> None:
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
        os.chmod(path, stat.S_IMODE(member.mode))
        for key, value in member.pax_headers.items():
            name = key.removeprefix(_XATTR)
            if name != key and name.startswith(_XATTRS_KEPT) and not name.startswith(_XATTRS_LOST):
                os.setxattr(path, name, value.encode("utf-8", "surrogateescape"), follow_symlinks=False)
        if not member.isdir():
            os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)


def pieces_of(member: tarfile.TarInfo) -> list[tuple[int, int]] | None:
    """(start, length) of what is no hole in a sparse file; None for any other."""
    return member.sparse  # type: ignore[return-value]  # typeshed calls it bytes


def stored_bytes(member: tarfile.TarInfo) -> int:
    """What a file occupies: holes take no space."""
    sparse = pieces_of(member)
    return member.size if sparse is None else sum(length for _, length in sparse)


def write_content(archive: tarfile.TarFile, member: tarfile.TarInfo, target: IO[bytes]) -> None:
    """A file's content, holes kept. In a stream, the pieces of a sparse file follow each other."""
    sparse = pieces_of(member)
    if sparse is None:
        source = archive.extractfile(member)
        assert source is not None
        shutil.copyfileobj(source, target, _COPY_BYTES)
        return
    stream = archive.fileobj
    assert stream is not None
    stream.seek(member.offset_data)
    for start, length in sparse:
        if start < 0 or length < 0 or start + length > member.size:
            raise Refused(f"{member.name}: a piece of it lies outside")
        target.seek(start)
        left = length
        while left > 0:
            data = stream.read(min(_COPY_BYTES, left))
            if not data:
                raise Refused(f"{member.name}: it ends early")
            target.write(data)
            left -= len(data)
    target.truncate(member.size)


def unpack(
    stream: IO[bytes],
    mode: str,
    *,
    byte_limit: int,
    id_limit: int,
    below: str = "",
    exclude: frozenset[str] = frozenset(),
    depth_limit: int = DEPTH_LIMIT,
) -> Unpacker:
    """Unpack a tar stream into the present root directory. `mode` is "", "gz", "xz" or "bz2"."""
    unpacker = Unpacker(byte_limit=byte_limit, id_limit=id_limit, below=below, exclude=exclude, depth_limit=depth_limit)
    try:
        # the members are read one after the other, never by tarfile's own extraction
        with tarfile.open(fileobj=stream, mode=f"r|{mode}", bufsize=_COPY_BYTES) as archive:  # type: ignore[call-overload]  # typeshed lists the modes one by one
            for member in archive:
                unpacker.add(archive, member)
                archive.members.clear()  # it would keep every entry
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, MemoryError, ValueError, OverflowError) as error:
        raise Refused(f"damaged archive: {error or type(error).__name__}") from error
    unpacker.close()
    return unpacker


def open_archive(path: str) -> tuple[IO[bytes], str, subprocess.Popen[bytes] | None]:
    """The archive's stream, tarfile's word for its compression, and the decompressor where that is a program."""
    stream = open(path, "rb")  # noqa: SIM115  lives as long as the process
    magic = os.pread(stream.fileno(), 4, 0)
    kind = next((kind for known, kind in _MAGIC.items() if magic.startswith(known)), "")
    if kind != "zst":
        return stream, kind, None
    child = subprocess.Popen(["zstd", "-dcq", "--long=27"], stdin=stream, stdout=subprocess.PIPE)
    stream.close()
    assert child.stdout is not None
    return child.stdout, "", child


def list_members(stream: IO[bytes], mode: str) -> None:
    """Write a line of JSON for each member to stdout. Raises `Refused`."""
    try:
        with tarfile.open(fileobj=stream, mode=f"r|{mode}", bufsize=_COPY_BYTES) as archive:  # type: ignore[call-overload]
            for count, member in enumerate(archive):
                if count >= LISTED_LIMIT:
                    raise Refused(f"more than {LISTED_LIMIT} entries")
                archive.members.clear()
                kind = next((word for word, test in _KINDS.items() if getattr(member, test)()), "v")
                row = [entry_path(member.name, LISTED_DEPTH), kind, member.size, int(member.mtime)]
                sys.stdout.write(json.dumps(row) + "\n")
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, MemoryError, ValueError, OverflowError) as error:
        raise Refused(f"damaged archive: {error or type(error).__name__}") from error
    sys.stdout.flush()


def show_member(stream: IO[bytes], mode: str, wanted: str) -> None:
    """Write a regular file to stdout. Raises `Refused` when there is none of this name."""
    try:
        with tarfile.open(fileobj=stream, mode=f"r|{mode}", bufsize=_COPY_BYTES) as archive:  # type: ignore[call-overload]
            for member in archive:
                archive.members.clear()
                if entry_path(member.name, LISTED_DEPTH) == wanted:
                    source = archive.extractfile(member) if member.isreg() else None
                    if source is None:
                        raise Refused(f"{wanted}: not a regular file")
                    shutil.copyfileobj(source, sys.stdout.buffer, _COPY_BYTES)
                    sys.stdout.buffer.flush()
                    return
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, MemoryError, ValueError, OverflowError) as error:
        raise Refused(f"damaged archive: {error or type(error).__name__}") from error
    raise Refused(f"{wanted}: not in the archive")


def look_into(arguments: list[str]) -> int:
    """`--list` and `--show`: nothing is written, so what it holds need not be confined."""
    stream, mode, child = open_archive(arguments[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    try:
        if arguments[0] == "--list":
            list_members(stream, mode)
        else:
            show_member(stream, mode, arguments[2])
    finally:
        if child is not None:
            child.kill()
            child.wait()
    return 0


def main(arguments: list[str]) -> int:
    if arguments[0].startswith("--"):
        return look_into(arguments)
    options = json.loads(arguments[4]) if len(arguments) > 4 else {}
    root_fd, path, byte_limit, id_limit = int(arguments[0]), arguments[1], int(arguments[2]), int(arguments[3])
    stream, mode, child = open_archive(path)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    os.fchdir(root_fd)
    os.chroot(".")
    os.close(root_fd)
    os.umask(0)
    done = unpack(
        stream,
        mode,
        byte_limit=byte_limit,
        id_limit=id_limit,
        below=options.get("below", ""),
        exclude=frozenset(options.get("exclude", ())),
        depth_limit=options.get("depth", DEPTH_LIMIT),
    )
    while stream.read(_COPY_BYTES):  # padding after the end mark
        pass
    if child is not None and child.wait() != 0:
        raise Refused("damaged archive: zstd failed")
    print(f"{done.entries} entries, {done.size} bytes, {done.skipped} devices left out")  # noqa: T201  our answer
    return 0


def status_of(error: OSError) -> int:
    """The exit status that tells of `error`."""
    return FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else 1


def _run() -> int:
    try:
        return main(sys.argv[1:])
    except Refused as error:
        status, text = REFUSED, str(error)
    except OSError as error:
        status, text = status_of(error), str(error)
    print(text.replace("\n", " "), file=sys.stderr)  # noqa: T201  our answer
    return status


if __name__ == "__main__":
    sys.stderr = io.TextIOWrapper(sys.stderr.buffer, errors="backslashreplace")
    sys.exit(_run())
