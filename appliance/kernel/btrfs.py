"""Btrfs subvolumes (linux/btrfs.h): made, snapshot, limited and removed by ioctl. Blocking; any thread may enter.

A subvolume looks like a directory whose inode number is 256. Errors are `OSError` naming the call and the path.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

_SUPER_MAGIC = 0x9123683E
_ROOT_INODE = 256
_READ_ONLY = 1 << 1
_QUOTA_ENABLE = 1
_LIMIT_REFERENCED = 1
_SUBVOL_CREATE, _SNAP_DESTROY, _SNAP_CREATE_V2 = 0x5000940E, 0x5000940F, 0x50009417
_INO_LOOKUP, _QUOTA_CTL, _QGROUP_LIMIT = 0xD0009412, 0xC0109428, 0x8030942B
_ARGS = struct.Struct("=q4088s")  # struct btrfs_ioctl_vol_args: fd, name
_ARGS_V2 = struct.Struct("=qQQ32x4040s")  # struct btrfs_ioctl_vol_args_v2: fd, transid, flags, unused, name
_LOOKUP = struct.Struct("=QQ4080s")  # struct btrfs_ioctl_ino_lookup_args: treeid, objectid, name
_LIMIT = struct.Struct("=QQQQQQ")  # qgroupid, struct btrfs_qgroup_limit
assert _ARGS.size == _ARGS_V2.size == _LOOKUP.size == 4096
_NAME_LIMIT_BYTES = 255

_libc = ctypes.CDLL(None, use_errno=True)


def is_btrfs(path: Path) -> bool:
    """Whether `path` lies on btrfs; False when it cannot be told."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs: the type is its first long
    # SAFETY: the kernel writes at most sizeof(struct statfs), 120 bytes, into `buffer`, which outlives the call.
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        return False
    return bool(struct.unpack_from("l", buffer)[0] & 0xFFFFFFFF == _SUPER_MAGIC)


def is_subvolume(path: Path) -> bool:
    """Whether `path` is the top of a btrfs subvolume; False when there is nothing."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return status.st_ino == _ROOT_INODE and path.is_dir() and not path.is_symlink() and is_btrfs(path)


def create(path: Path) -> None:
    """A new, empty subvolume."""
    _on_parent(path, _SUBVOL_CREATE, bytearray(_ARGS.pack(0, _name(path))), "BTRFS_IOC_SUBVOL_CREATE")


def snapshot(source: Path, target: Path, *, read_only: bool = False) -> None:
    """`target` becomes a snapshot of the subvolume `source`, at one moment, on the same file system."""
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        args = bytearray(_ARGS_V2.pack(fd, 0, _READ_ONLY if read_only else 0, _name(target)))
        _on_parent(target, _SNAP_CREATE_V2, args, "BTRFS_IOC_SNAP_CREATE_V2")
    finally:
        os.close(fd)


def destroy(path: Path) -> None:
    """Remove a subvolume with all in it; ENOTEMPTY when other subvolumes lie in it."""
    _on_parent(path, _SNAP_DESTROY, bytearray(_ARGS.pack(0, _name(path))), "BTRFS_IOC_SNAP_DESTROY")


def limit(path: Path, size_bytes: int) -> None:
    """Let the subvolume refer to at most `size_bytes`; turns on the file system's quota accounting when it is off."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lookup = bytearray(_LOOKUP.pack(0, _ROOT_INODE, b""))
        _ioctl(fd, _INO_LOOKUP, lookup, "BTRFS_IOC_INO_LOOKUP", path)
        group = _LOOKUP.unpack(lookup)[0]
        _ioctl(fd, _QUOTA_CTL, bytearray(struct.pack("=QQ", _QUOTA_ENABLE, 0)), "BTRFS_IOC_QUOTA_CTL", path)
        limits = bytearray(_LIMIT.pack(group, _LIMIT_REFERENCED, size_bytes, 0, 0, 0))
        _ioctl(fd, _QGROUP_LIMIT, limits, "BTRFS_IOC_QGROUP_LIMIT", path)
    finally:
        os.close(fd)


def _name(path: Path) -> bytes:
    name = os.fsencode(path.name)
    if len(name) > _NAME_LIMIT_BYTES:
        raise OSError(36, f"btrfs {path}: File name too long")
    return name


def _on_parent(path: Path, request: int, args: bytearray, call: str) -> None:
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _ioctl(fd, request, args, call, path)
    finally:
        os.close(fd)


def _ioctl(fd: int, request: int, args: bytearray, call: str, about: Path) -> None:
    try:
        fcntl.ioctl(fd, request, args)  # a mutable buffer is passed itself, whatever its size
    except OSError as error:
        raise OSError(error.errno, f"{call} {about}: {os.strerror(error.errno or 0)}") from error
