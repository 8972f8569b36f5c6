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
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from appliance.kernel import mount
from appliance.kernel.credentials import fs_ids
from appliance.model.volume import OverlayLayers


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
    options = [("index", "off"), ("metacopy", "off")]
    if upper is not None and work is not None:
        options += [("upperdir", str(upper)), ("workdir", str(work))]
    one_by_one = [("lowerdir+", str(lower)) for lower in lowers]
    try:
        return mount.new_mount_of("overlay", "overlay", [*one_by_one, *options], attributes=attributes)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _mount_by_links(lowers, options, attributes)  # a kernel before 6.8 knows no lowerdir+


def _mount_by_links(lowers: Sequence[Path], options: Sequence[tuple[str, str]], attributes: int) -> int:
    """The same by mount(2), with names so short that 127 layers fit its options."""
    place = Path(tempfile.mkdtemp(prefix="appliance-overlay-", dir="/run"))
    names = [f"l{number}" for number in range(len(lowers))]
    try:
        (place / "at").mkdir()
        for name, lower in zip(names, lowers, strict=True):
            (place / name).symlink_to(lower)
        text = ",".join(f"{name}={value}" for name, value in options)
        mount.mount_overlay(place, "at", lowers=names, options=text)
        try:
            fd = mount.open_tree(place / "at")
        finally:
            mount.umount(place / "at", lazy=True)
    finally:
        for name in names:
            (place / name).unlink(missing_ok=True)
        (place / "at").rmdir()
        place.rmdir()
    try:
        mount.mount_setattr(fd, about=place, set_=attributes)
    except OSError:
        os.close(fd)
        raise
    return fd
