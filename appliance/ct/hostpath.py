"""A directory or file of the host as a container's mount point. Blocking: call it in a thread.

Who may ask for one holds Sys.Modify on `/`. Even so the path must name what it seems to name (no symbolic links on the
way, which others of the host may be able to turn), nothing set-id or a device works through it, and what the host mounts
below it later does not appear inside.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from appliance.ct.rootfs import IdMaps, set_mapping
from appliance.errors import HostError, InvalidParameter, Unsupported
from appliance.kernel import mount
from appliance.kernel.openat2 import open_without_links
from appliance.model.guest import CtMount


def attach(wanted: CtMount, target: Path, *, about: str, id_base: int, id_count: int, maps: IdMaps) -> None:
    """Mount the host's `wanted.volume` at `target`, which is made here. Raises `ApplianceError`; then nothing is mounted."""
    tree = -1
    source = _open(wanted)
    try:
        is_directory = _is_directory(source, wanted)
        tree = mount.open_tree_at(source, about=wanted.volume)
        attributes = mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID
        if wanted.read_only:
            attributes |= mount.MOUNT_ATTR_RDONLY
        mount.mount_setattr(tree, about=wanted.volume, set_=attributes, private=True)
        if wanted.map_ids and id_base:
            _map_ids(tree, wanted, about=about, userns_fd=maps.userns_fd(id_base, id_count))
        if is_directory:
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        mount.move_mount(tree, target)
    except OSError as error:
        raise HostError.from_os_error(error, about) from error
    finally:
        os.close(source)
        if tree >= 0:
            os.close(tree)


def _open(wanted: CtMount) -> int:
    try:
        return open_without_links(wanted.volume, os.O_PATH)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        if error.errno == errno.ELOOP:
            reason = "a part of it is a symbolic link: give the path it leads to"
        raise InvalidParameter({wanted.slot: f"{wanted.volume}: {reason}"}) from error


def _is_directory(fd: int, wanted: CtMount) -> bool:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise InvalidParameter({wanted.slot: f"{wanted.volume} is neither a directory nor a regular file"})
    return stat.S_ISDIR(mode)


def _map_ids(tree: int, wanted: CtMount, *, about: str, userns_fd: int) -> None:
    try:
        set_mapping(tree, Path(wanted.volume), userns_fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
            raise
        text = f"the file system of {wanted.volume} knows no id mappings ({error.strerror}); leave out idmap=1"
        raise Unsupported(f"{about}: {text}") from error
    finally:
        os.close(userns_fd)
