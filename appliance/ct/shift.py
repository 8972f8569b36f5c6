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
        for _, directories, files, fd in os.fwalk(root, follow_symlinks=False):
            for name in (*directories, *files):
                _change(name, fd, os.stat(name, dir_fd=fd, follow_symlinks=False), change)
    except OSError as error:
        raise HostError.from_os_error(error, f"change owners under {root}") from error


def _change(name: str, fd: int | None, before: os.stat_result, change: Callable[[int], int]) -> None:
    uid, gid = change(before.st_uid), change(before.st_gid)
    if (uid, gid) == (before.st_uid, before.st_gid):
        return
    os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
    if before.st_mode & (stat.S_ISUID | stat.S_ISGID) and stat.S_ISREG(before.st_mode):
        os.chmod(name, stat.S_IMODE(before.st_mode), dir_fd=fd)  # chown(2) cleared the set-id bits
