"""Unpack a layer of an image: a program of its own, run as `python -I -S unpack_layer.py ROOT_FD BLOB KIND BYTES FREE IDS DIFF_ID
[LOWER_FD …]`.

The layer is hostile, and everything `unpack.py` refuses of a template is refused here. On top of that:

- whiteouts (image-spec layer.md) become those of an overlay: a device 0:0 for a name, an attribute for an opaque directory.
  They hide what lower layers hold and never what this layer holds, whatever the order; their names must be plain;
- an overlay's own attributes cannot come from outside;
- directories that the layer needs and does not name get the owner and mode they have in the layers below (LOWER_FD, the
  nearest first): otherwise /tmp would lose its sticky bit to a layer that only adds /tmp/x;
- the stream ends at BYTES unpacked bytes (BLOB's size times a ratio: a bomb) and at FREE (what the storage has), and its
  digest must be DIFF_ID.

KIND is "", "gz" or "zst"; gzip and zstd decompress beside us, on another CPU. Exit statuses and output are `unpack.py`'s.
"""

# ruff: noqa: PTH101, PTH102, PTH108  names are relative to the chroot

from __future__ import annotations

import hashlib
import io
import lzma
import os
import resource
import stat
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

if __name__ == "__main__":  # -I leaves the place of the package out of the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from appliance.ct import unpack
from appliance.ct.unpack import FULL, REFUSED, Refused, Unpacker, entry_path

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
_META = ".wh..wh."
_OPAQUE_ATTRIBUTE = "trusted.overlay.opaque"
_PROGRAMS = {"gz": ["gzip", "-dcq"], "zst": ["zstd", "-dcq", "--long=27"]}
_COPY_BYTES = 1 << 20


class Full(Exception):
    """The layer is larger than what the storage has left."""


class LayerUnpacker(Unpacker):
    """Makes a layer's entries below the present root directory. `lowers` are the trees below it, the nearest first."""

    def __init__(self, *, byte_limit: int, id_limit: int, lowers: Sequence[int] = ()) -> None:
        super().__init__(byte_limit=byte_limit, id_limit=id_limit)
        self._lowers = lowers
        self._whiteouts: set[str] = set()

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = entry_path(member.name)
        above, _, name = path.rpartition("/")
        if not name.startswith(WHITEOUT):
            self._reveal(path, member)
            super().add(archive, member)
            return
        self._count(member)
        if not member.isreg() and not member.islnk():
            raise Refused(f"{path}: a whiteout that is no file")
        if name == OPAQUE:
            self._make_opaque(above)
        elif name.startswith(_META):  # aufs's own bookkeeping
            self.skipped += 1
        else:
            self._whiteout(above, name.removeprefix(WHITEOUT))

    def _reveal(self, path: str, member: tarfile.TarInfo) -> None:
        """What this layer holds is not hidden by its own whiteout; a directory in place of another is opaque."""
        if path not in self._whiteouts:
            return
        self._whiteouts.discard(path)
        os.unlink(path)
        if member.isdir():
            os.mkdir(path, 0o700)
            self._known.add(path)
            os.setxattr(path, _OPAQUE_ATTRIBUTE, b"y", follow_symlinks=False)

    def _make_opaque(self, path: str) -> None:
        if path:
            self._parents(f"{path}/x")
        os.setxattr(path or ".", _OPAQUE_ATTRIBUTE, b"y", follow_symlinks=False)

    def _whiteout(self, above: str, name: str) -> None:
        if name in ("", ".", ".."):
            raise Refused(f"{above}/{WHITEOUT}{name}: a whiteout of nothing")
        path = f"{above}/{name}" if above else name
        self._parents(path)
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
            self._whiteouts.add(path)
            return
        if stat.S_ISDIR(mode):  # this layer's own: only what is below it is hidden
            os.setxattr(path, _OPAQUE_ATTRIBUTE, b"y", follow_symlinks=False)

    def _implied(self, path: str) -> None:
        super()._implied(path)
        found = self._shown_below(path)
        if found is not None:
            os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)
            os.chmod(path, stat.S_IMODE(found.st_mode))
            self._times.setdefault(path, found.st_mtime)

    def _shown_below(self, path: str) -> os.stat_result | None:
        """The directory as the layers below show it; None when they show none, or something else."""
        parts = path.split("/")
        for lower in self._lowers:
            for count in range(1, len(parts) + 1):
                # every part is looked at before the next one is reached through it: no link is ever followed
                try:
                    found = os.stat("/".join(parts[:count]), dir_fd=lower, follow_symlinks=False)
                except FileNotFoundError:
                    break
                if not stat.S_ISDIR(found.st_mode):
                    return None
                if count == len(parts):
                    return found
        return None


class Measured(io.RawIOBase):
    """The unpacked stream on its way: counted, hashed, ended at its limits."""

    def __init__(self, stream: IO[bytes], *, byte_limit: int, free: int, algorithm: str) -> None:
        super().__init__()
        self._stream = stream
        self._limit = byte_limit
        self._free = free
        self.hash = hashlib.new(algorithm)
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.size += len(data)
        if self.size > self._limit:
            raise Refused(f"unpacks to more than {self._limit} bytes, which is out of proportion to its size")
        if self.size > self._free:
            raise Full(f"unpacks to more than the {self._free} bytes the storage has left")
        self.hash.update(data)
        return data


def unpack_layer(
    stream: IO[bytes], *, byte_limit: int, free: int, id_limit: int, diff_id: str, lowers: Sequence[int] = ()
) -> LayerUnpacker:
    """Unpack a plain tar stream into the present root directory. Raises `Refused`, `Full`, `OSError`."""
    algorithm, _, wanted = diff_id.partition(":")
    measured = Measured(stream, byte_limit=byte_limit, free=free, algorithm=algorithm)
    unpacker = LayerUnpacker(byte_limit=byte_limit, id_limit=id_limit, lowers=lowers)
    try:
        with tarfile.open(fileobj=measured, mode="r|", bufsize=_COPY_BYTES) as archive:
            for member in archive:
                unpacker.add(archive, member)
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every entry
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, MemoryError, ValueError, OverflowError) as error:
        raise Refused(f"damaged layer: {error or type(error).__name__}") from error
    while measured.read(_COPY_BYTES):  # padding after the end mark belongs to the digest
        pass
    if measured.hash.hexdigest() != wanted:
        raise Refused(f"its content has the digest {algorithm}:{measured.hash.hexdigest()}, not {diff_id}")
    unpacker.close()
    return unpacker


def main(arguments: list[str]) -> int:
    root_fd, blob, kind = int(arguments[0]), arguments[1], arguments[2]
    byte_limit, free, id_limit, diff_id = *map(int, arguments[3:6]), arguments[6]
    lowers = [int(each) for each in arguments[7:]]
    stream: IO[bytes] = open(blob, "rb")  # noqa: SIM115  lives as long as the process
    child = None
    if kind:
        child = subprocess.Popen(_PROGRAMS[kind], stdin=stream, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        stream.close()
        assert child.stdout is not None
        stream = child.stdout
    limit = unpack.MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.fchdir(root_fd)
    os.chroot(".")
    os.close(root_fd)
    os.umask(0)
    done = unpack_layer(stream, byte_limit=byte_limit, free=free, id_limit=id_limit, diff_id=diff_id, lowers=lowers)
    if child is not None and child.wait() != 0:
        raise Refused(f"damaged layer: {_PROGRAMS[kind][0]} failed")
    print(f"{done.entries} entries, {done.size} bytes, {done.skipped} left out")  # noqa: T201  our answer
    return 0


def _run() -> int:
    try:
        return main(sys.argv[1:])
    except Refused as error:
        status, text = REFUSED, str(error)
    except Full as error:
        status, text = FULL, str(error)
    except OSError as error:
        status, text = unpack.status_of(error), str(error)
    print(text.replace("\n", " "), file=sys.stderr)  # noqa: T201  our answer
    return status


if __name__ == "__main__":
    sys.stderr = io.TextIOWrapper(sys.stderr.buffer, errors="backslashreplace")
    sys.exit(_run())
