"""Directory trees a container made: counted and removed whatever they hold. Blocks.

Such a tree may be deeper than a path can be long, deeper than Python may recurse and than a process may hold files open,
and it may change while its container runs. So nothing here recurses, no link is followed, and few directories are open
at a time.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Final

from appliance.kernel import btrfs, mount
from appliance.kernel.openat2 import open_in_root
from appliance.kernel.walk import walk


class TreeKind(StrEnum):
    """What a storage's file system offers for directory volumes."""

    BTRFS = "btrfs"  # subvolumes: snapshots at once, a limit of size
    OVERLAY = "overlay"  # layers that many volumes share
    PLAIN = "plain"  # copies only


TREE_ENTRIES_LIMIT: Final = 500_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE_OR_TOO_DEEP = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EAGAIN)


def kind_of(root: Path) -> TreeKind:
    """Tried, not guessed: whether this host mounts an overlay whose layers lie below `root`."""
    if btrfs.is_btrfs(root):
        return TreeKind.BTRFS
    try:
        with tempfile.TemporaryDirectory(prefix=".tmp-overlay-", dir=root / "images") as place:
            options: dict[str, str | None] = {}
            for option, name in (("lowerdir", "l"), ("upperdir", "u"), ("workdir", "w")):
                (Path(place) / name).mkdir()
                options[option] = f"{place}/{name}"
            fd = mount.new_mount("overlay", "overlay", options)
            try:
                writable = not os.fstatvfs(fd).f_flag & os.ST_RDONLY
            finally:
                os.close(fd)
            return TreeKind.OVERLAY if writable else TreeKind.PLAIN
    except OSError:
        return TreeKind.PLAIN


def tree_bytes(path: Path) -> int:
    """Bytes occupied below a directory, hard links counted once; stops counting at `TREE_ENTRIES_LIMIT` entries.

    What vanishes meanwhile, and what lies deeper than a path can tell, is not counted. Raises `FileNotFoundError` when
    there is no such directory, `OSError`.
    """
    total, seen, count = 0, set[tuple[int, int]](), 0
    pending = ["."]
    root = os.open(path, _DIRECTORY)
    try:
        while pending and count < TREE_ENTRIES_LIMIT:
            below = pending.pop()
            for name, status in _entries(root, below):
                count += 1
                is_directory = stat.S_ISDIR(status.st_mode)
                if status.st_nlink > 1 and not is_directory:
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
                if is_directory:
                    pending.append(f"{below}/{name}")
    finally:
        os.close(root)
    return total


def _entries(root: int, below: str) -> list[tuple[str, os.stat_result]]:
    found: list[tuple[str, os.stat_result]] = []
    try:
        fd = open_in_root(root, below, _DIRECTORY)
    except OSError as error:
        if error.errno in _GONE_OR_TOO_DEEP:
            return []
        raise
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    found.append((entry.name, entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue
                if len(found) >= TREE_ENTRIES_LIMIT:
                    break
    finally:
        os.close(fd)
    return found


def remove_any(path: Path) -> None:
    """Remove a file or a whole tree; not an error when absent."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a directory, or a btrfs subvolume, with all below it; nobody else may use it any more. Raises `OSError`."""
    if btrfs.is_subvolume(path):
        try:
            btrfs.destroy(path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # the container has made subvolumes in it
                raise
        else:
            return
    walk(path, _remove_files, lambda above, name: os.rmdir(name, dir_fd=above))
    path.rmdir()


def _remove_files(directory: int) -> list[str]:
    """Remove all but the directories; their names."""
    names: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                names.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=directory)
    return names
