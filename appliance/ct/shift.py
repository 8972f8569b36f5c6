"""Changing the owners of a whole tree: what stands in for an idmapped mount where the kernel cannot make one.

On the volume ids are always the container's own (0…). For the time a container runs without idmapped mounts its root is
shifted by id_base, and back afterwards. Each inode tells by its owner whether it has been done, so a run that was
interrupted is simply run again, in either direction. File capabilities are lost (chown(2) drops them). Blocking.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from appliance.errors import HostError
from appliance.kernel.walk import walk


def shift(root: Path, *, id_base: int, id_count: int) -> None:
    """0… becomes id_base…"""
    _each(root, lambda owner: owner + id_base if owner < id_count else owner)


def unshift(root: Path, *, id_base: int, id_count: int) -> None:
    """id_base… becomes 0…"""
    _each(root, lambda owner: owner - id_base if id_base <= owner < id_base + id_count else owner)


def can_shift(*, id_base: int, id_count: int) -> bool:
    """Whether shifted and unshifted owners can be told apart."""
    return id_base >= id_count


def _each(root: Path, change: Callable[[int], int]) -> None:
    try:
        _change(str(root), None, os.lstat(root), change)
        walk(root, lambda fd: _children(fd, change))
    except OSError as error:
        raise HostError.from_os_error(error, f"change owners under {root}") from error


def _children(directory: int, change: Callable[[int], int]) -> list[str]:
    """Change the owners of what is in a directory; the names of the directories among it."""
    directories: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            _change(entry.name, directory, status, change)
            if stat.S_ISDIR(status.st_mode):
                directories.append(entry.name)
    return directories


def _change(name: str, fd: int | None, before: os.stat_result, change: Callable[[int], int]) -> None:
    uid, gid = change(before.st_uid), change(before.st_gid)
    if (uid, gid) == (before.st_uid, before.st_gid):
        return
    os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
    if before.st_mode & (stat.S_ISUID | stat.S_ISGID) and stat.S_ISREG(before.st_mode):
        os.chmod(name, stat.S_IMODE(before.st_mode), dir_fd=fd)  # chown(2) cleared the set-id bits
