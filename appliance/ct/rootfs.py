"""A container's volumes as mounts: opened, written into, mapped to its ids, attached. Blocking: call it in a thread.

On a volume, ids are always the container's own (0…). A volume is first a detached mount, without device nodes and
through which the interior is configured; then it gets the id mapping of the container and its place at `BUNDLE/SLOT`.
Where the file system knows no id mappings, owners are changed on disk for as long as the container runs (`shift`).
An overlay cannot be given a mapping: its layers are, and it is mounted a second time over those (`layers`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.ct import layers, shift
from appliance.ct.records import VolumeRecord
from appliance.ct.tree import RootTree
from appliance.errors import HostError, Unsupported
from appliance.kernel import loop, mount, ns
from appliance.model.volume import OpenedVolume, VolumeFormat

_EXT4_IOC_RESIZE_FS = 0x40086610
CAP_SYS_RESOURCE = 24
_NO_IDMAP = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)
_NAMESPACES_KEPT = 16
WRITER_LIMIT_S = 5.0
FILE_SYSTEM_OPTIONS = frozenset({"discard", "lazytime"})
"""Mount options of a whole file system: only an image has one of its own."""
Configure = Callable[[RootTree], None]


class IdMaps:
    """User namespaces by id range, kept because making one costs a process. Any thread may enter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, int], int] = {}

    def userns_fd(self, id_base: int, id_count: int) -> int:
        """A descriptor of a namespace with this range; the caller closes it."""
        key = (id_base, id_count)
        with self._lock:
            if key not in self._kept:
                if len(self._kept) >= _NAMESPACES_KEPT:
                    os.close(self._kept.pop(next(iter(self._kept))))
                self._kept[key] = ns.user_namespace(id_base, id_count)
            return os.dup(self._kept[key])

    def close(self) -> None:
        """Let go of all; it may be used again."""
        with self._lock:
            while self._kept:
                os.close(self._kept.popitem()[1])


def open_detached(volume: OpenedVolume, *, about: str, options: frozenset[str] = frozenset()) -> tuple[int, str | None]:
    """The volume as a detached mount: (descriptor, loop device). Closing the descriptor ends it unless it was attached.
    Of `options`, an image takes `FILE_SYSTEM_OPTIONS`.

    Raises `HostError`, `Unsupported` for formats that are no file system.
    """
    attributes = mount.MOUNT_ATTR_NODEV | (mount.MOUNT_ATTR_RDONLY if volume.read_only else 0)
    try:
        match volume.format:
            case VolumeFormat.SUBVOL if volume.layers is not None:
                return layers.mount_plain(volume.layers, attributes), None
            case VolumeFormat.SUBVOL:
                return _clone_directory(volume.path, attributes), None
            case VolumeFormat.RAW:
                return _mount_image(volume, attributes, options & FILE_SYSTEM_OPTIONS)
            case _:
                raise Unsupported(f"{about}: a container cannot use a {volume.format.value} volume")
    except OSError as error:
        raise HostError.from_os_error(error, about) from error


def _clone_directory(path: Path, attributes: int) -> int:
    fd = mount.open_tree(path)
    try:
        mount.mount_setattr(fd, about=path, set_=attributes)
    except OSError:
        os.close(fd)
        raise
    return fd


def _mount_image(volume: OpenedVolume, attributes: int, flags: frozenset[str]) -> tuple[int, str]:
    block_fd, device = loop.attach_file(volume.path, read_only=volume.read_only)
    try:
        # the tables of a sparse image are zeros already: no kernel thread need write them, at every start anew
        options: dict[str, str | None] = {"errors": "remount-ro", "noinit_itable": None, **dict.fromkeys(flags)}
        if volume.read_only:
            options |= {"ro": None, "noload": None}
        return mount.new_mount("ext4", str(device), options, attributes=attributes), str(device)
    finally:
        os.close(block_fd)  # the mount holds the device now; without one it clears itself


def attach(
    volume: OpenedVolume,
    target: Path,
    *,
    about: str,
    id_base: int,
    id_count: int,
    maps: IdMaps,
    options: frozenset[str] = frozenset(),
    configure: Configure | None = None,
) -> VolumeRecord:
    """Mount `volume` at `target` (made here) with its ids mapped. Raises `ApplianceError`; nothing is mounted then."""
    fd, device = open_detached(volume, about=about, options=options)
    try:
        if configure is not None and not volume.read_only:
            configure(RootTree(fd, about))
        if volume.layers is not None and id_base:
            os.close(fd)
            fd = -1  # two overlays must not write to one layer at a time
            fd = _mapped_layers(volume, target, id_base=id_base, id_count=id_count, maps=maps)
            id_base = 0  # done
        shifted = _map_ids(fd, volume, about=about, id_base=id_base, id_count=id_count, maps=maps)
        target.mkdir(exist_ok=True)
        mount.move_mount(fd, target)
    except OSError as error:
        raise HostError.from_os_error(error, about) from error
    finally:
        if fd >= 0:
            os.close(fd)
    if shifted:
        shift.shift(target, id_base=id_base, id_count=id_count)
    return VolumeRecord(path=str(volume.path), device=device, shifted=shifted)


def _mapped_layers(volume: OpenedVolume, target: Path, *, id_base: int, id_count: int, maps: IdMaps) -> int:
    assert volume.layers is not None
    attributes = mount.MOUNT_ATTR_NODEV | (mount.MOUNT_ATTR_RDONLY if volume.read_only else 0)
    userns_fd = maps.userns_fd(id_base, id_count)

    def mapped(path: Path, *, read_only: bool) -> int:
        fd = _clone_directory(path, mount.MOUNT_ATTR_NODEV | (mount.MOUNT_ATTR_RDONLY if read_only else 0))
        try:
            set_mapping(fd, path, userns_fd)
        except OSError:
            os.close(fd)
            raise
        return fd

    try:
        staging = target.with_name(f".{target.name}-layers")
        return layers.mount_mapped(volume.layers, staging, mapped=mapped, owner=id_base, attributes=attributes)
    finally:
        os.close(userns_fd)


def _map_ids(fd: int, volume: OpenedVolume, *, about: str, id_base: int, id_count: int, maps: IdMaps) -> bool:
    """Give the detached mount its mapping; True when owners must be changed on disk instead."""
    if id_base == 0:
        return False
    userns_fd = maps.userns_fd(id_base, id_count)
    try:
        set_mapping(fd, volume.path, userns_fd)
    except OSError as error:
        if error.errno not in _NO_IDMAP:
            raise
        if volume.read_only or not shift.can_shift(id_base=id_base, id_count=id_count):
            raise Unsupported(f"{about}: its file system knows no id mappings ({error.strerror})") from error
        return True
    finally:
        os.close(userns_fd)
    return False


def set_mapping(fd: int, about: Path, userns_fd: int) -> None:
    """Give a detached mount its id mapping. Raises `OSError`.

    Retries while the mount has a writer: a child forked by another thread holds our files open until its exec.
    """
    deadline = time.monotonic() + WRITER_LIMIT_S
    while True:
        try:
            mount.mount_setattr(fd, about=about, userns_fd=userns_fd)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return


def detach_all(bundle: Path) -> None:
    """Unmount everything at or under `bundle`, innermost first. Raises `HostError` when something stays."""
    for target in mount.mounts_under(bundle):
        try:
            mount.umount(target)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise HostError.from_os_error(error, f"unmount {target}") from error
            with contextlib.suppress(OSError):  # somebody on the host looks into it: gone when they leave
                mount.umount(target, lazy=True)
    if left := mount.mounts_under(bundle):
        raise HostError(f"{bundle}: still mounted: {', '.join(map(str, left))}")


def undo_shifts(volumes: Mapping[str, VolumeRecord], bundle: Path, *, id_base: int, id_count: int) -> None:
    """Change owners back on volumes whose ids could not be mapped; before `detach_all`."""
    mounted = mount.mounts_under(bundle)
    for slot, volume in volumes.items():
        if volume.shifted and bundle / slot in mounted:
            shift.unshift(bundle / slot, id_base=id_base, id_count=id_count)


def grow(mounted: Path, device: Path, *, about: str) -> None:
    """Make a mounted ext4 fill its image, which has grown. Raises `Unsupported` where the kernel refuses it online.

    What it takes (linux fs/ext4/resize.c, ioctl.c; drivers/block/loop.c): a loop device open for writing, whose size is read
    anew by LOOP_SET_CAPACITY; CAP_SYS_RESOURCE in the first user namespace; a mount that can be written to; a file system
    without noted errors. Whether the descriptor is of an idmapped mount or not makes no difference.
    """
    try:
        loop.set_capacity(device)
        fd = os.open(mounted, os.O_RDONLY | os.O_CLOEXEC)
        try:
            block_size = os.fstatvfs(fd).f_bsize
            with device.open("rb") as block:
                blocks = block.seek(0, os.SEEK_END) // block_size
            fcntl.ioctl(fd, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
        finally:
            os.close(fd)
    except PermissionError as error:
        # the kernel says the same of a file system with noted errors (ext4_resize_begin)
        lack = (
            "it has errors, which are mended"
            if _has_capability(CAP_SYS_RESOURCE)
            else "this host lacks CAP_SYS_RESOURCE"
        )
        raise Unsupported(
            f"{about}: the volume has grown, its file system cannot while mounted: {lack}; it grows when the container is "
            "stopped and resized again"
        ) from error
    except OSError as error:
        raise HostError.from_os_error(error, f"{about}: grow the file system") from error


def _has_capability(number: int) -> bool:
    status = Path("/proc/thread-self/status").read_text()
    mask = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(mask, 16) >> number & 1)
