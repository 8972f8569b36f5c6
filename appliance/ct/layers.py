"""Mounting a volume in layers as an overlay (Documentation/filesystems/overlayfs.rst). Blocking: call it in a thread.

    plain     over the layers as they are: ids are the container's own; for whoever fills or configures the volume
    mapped    each layer is first mounted with the container's id mapping, at a path of its own, for the overlay looks its
              layers up by path; the overlay keeps mounts of its own, so these are gone again when it is made

The overlay writes to its upper layer with the file-system ids of the thread that mounted it: where that layer is mapped,
these must be ids of the container (`credentials.fs_ids`).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from appliance.kernel import mount
from appliance.kernel.credentials import fs_ids
from appliance.model.volume import OverlayLayers

_STRING_LIMIT_BYTES = 255  # of one option given by fsconfig(2)


class Mapped(Protocol):
    """A detached mount of a directory with the container's id mapping."""

    def __call__(self, path: Path, *, read_only: bool) -> int: ...


def mount_plain(layers: OverlayLayers, attributes: int) -> int:
    """The volume as a detached mount, ids unchanged. Raises `OSError`."""
    if layers.upper is None:
        return _read_only(layers.lowers, attributes | mount.MOUNT_ATTR_RDONLY)
    return _overlay(layers.upper, layers.work, layers.lowers, attributes)


def mount_mapped(layers: OverlayLayers, staging: Path, *, mapped: Mapped, owner: int, attributes: int) -> int:
    """The volume as a detached mount, ids mapped; `owner` is root's id outside. `staging` is made, and gone again.

    Raises `OSError`.
    """
    staged: list[Path] = []

    def stage(path: Path, *, read_only: bool) -> Path:
        place = staging / str(len(staged))
        place.mkdir(parents=True, exist_ok=True)
        fd = mapped(path, read_only=read_only)
        try:
            mount.move_mount(fd, place)
        finally:
            os.close(fd)
        staged.append(place)
        return place

    if layers.upper is None:
        raise OSError(errno.EROFS, f"overlay {staging}: {os.strerror(errno.EROFS)}")
    try:
        own = stage(layers.upper.parent, read_only=False)
        lowers = [stage(lower, read_only=True) for lower in layers.lowers]
        with fs_ids(owner):
            return _overlay(own / layers.upper.name, own / layers.work.name, lowers, attributes)
    finally:
        _unstage(staging, staged)


def _read_only(lowers: Sequence[Path], attributes: int) -> int:
    if len(lowers) > 1:
        return _overlay(None, None, lowers, attributes)
    fd = mount.open_tree(lowers[0])  # an overlay of one layer there cannot be
    try:
        mount.mount_setattr(fd, about=lowers[0], set_=attributes)
    except OSError:
        os.close(fd)
        raise
    return fd


def _unstage(staging: Path, staged: Sequence[Path]) -> None:
    for place in reversed(staged):
        mount.umount(place, lazy=True)
        place.rmdir()
    with contextlib.suppress(FileNotFoundError):
        staging.rmdir()


def _overlay(upper: Path | None, work: Path | None, lowers: Sequence[Path], attributes: int) -> int:
    common = [("index", "off"), ("metacopy", "off")]
    if upper is not None and work is not None:
        common += [("upperdir", str(upper)), ("workdir", str(work))]
    one_by_one = [("lowerdir+", str(lower)) for lower in lowers]
    try:
        return mount.new_mount_of("overlay", "overlay", [*one_by_one, *common], attributes=attributes)
    except OSError as error:
        joined = ":".join(str(lower).replace("\\", "\\\\").replace(":", "\\:") for lower in lowers)
        if error.errno != errno.EINVAL or len(os.fsencode(joined)) > _STRING_LIMIT_BYTES:
            raise
        # a kernel before 6.8 knows no lowerdir+
        return mount.new_mount_of("overlay", "overlay", [("lowerdir", joined), *common], attributes=attributes)
