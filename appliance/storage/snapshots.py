"""Snapshots of volumes, each by the means its format has. On the loop; files are touched in worker threads.

    qcow2    inside the image (qemu-img; while QEMU has it open, QEMU itself must do it)
    raw      a copy beside it: by reference where the file system can, else of a small one only (UEFI variables)
    subvol   a copy beside it: a subvolume on btrfs, else by reference, or in full while nothing of it runs;
             one in layers: overlays.py

    .appliance/snapshots/100/vm-100-disk-0.raw/NAME     a copy beside

A copy appears by rename when it is whole. A return exchanges the volume with a fresh copy of the snapshot's, at one moment,
so that it can be repeated; the snapshot stays. All of it may be done again after an interruption.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from appliance.errors import Conflict, HostError, InvalidParameter, NotFound, Unsupported
from appliance.files import sync_directory
from appliance.kernel import btrfs, reflink
from appliance.kernel.rename import exchange
from appliance.model.volume import OpenedVolume, VolumeFormat, VolumeId
from appliance.storage import headroom, naming, overlays, tools
from appliance.storage.overlays import OverlaySnapshots
from appliance.storage.records import HIDDEN_DIRECTORY, OVERLAY, Records
from appliance.storage.trees import remove_any
from appliance.threads import to_the_end

T = TypeVar("T")
BeforeEffect = Callable[[str], None]

SMALL_BYTES: Final = 64 << 20
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")


def snapshots_of(root: Path, volume: str) -> Path:
    """The directory with the copies beside volume `volume`."""
    return root / HIDDEN_DIRECTORY / "snapshots" / volume


def sweep(root: Path) -> Iterator[str]:
    """Remove unfinished copies, and those whose volume is gone; one line for each. Blocks."""
    for volume in sorted((root / HIDDEN_DIRECTORY / "snapshots").glob("*/*")):
        name = volume.relative_to(root / HIDDEN_DIRECTORY / "snapshots").as_posix()
        try:
            gone = not os.path.lexists(root / naming.locate(name).path)
        except InvalidParameter:
            continue
        for path in sorted(volume.iterdir()):
            if gone or path.name.startswith(naming.TEMPORARY_PREFIX):
                remove_any(path)
                yield f"removed the remains of a snapshot, {name} {path.name}"
        if gone:
            forget(root, name)


def forget(root: Path, volume: str) -> None:
    """Remove all copies beside a volume that is gone. Blocks."""
    directory = snapshots_of(root, volume)
    if directory.exists():
        remove_any(directory)
        try:
            directory.parent.rmdir()
        except OSError:  # of other volumes of the same guest
            return


class VolumeSnapshots:
    """Of the volumes of one storage; the caller has reserved the volume."""

    def __init__(self, storage_id: str, root: Path, records: Records, before_effect: BeforeEffect) -> None:
        self._id = storage_id
        self._root = root
        self._records = records
        self._overlays = OverlaySnapshots(root, records, before_effect)
        self._before_effect = before_effect
        self._can_clone: bool | None = None

    async def check(self, volume_id: VolumeId, *, in_use: bool) -> None:
        """Raises `Unsupported` saying why there can be no snapshot now, `NotFound`."""
        path, volume_format = await self._find(volume_id)
        if volume_format is VolumeFormat.QCOW2 or await self._is_overlay(volume_id):
            return
        if await self.shares_blocks():
            return
        if volume_format is VolumeFormat.RAW:
            if (await self._thread(path.stat)).st_size > SMALL_BYTES:
                raise Unsupported(
                    f"volume {volume_id}: there are no snapshots of raw volumes on a file system that cannot copy by "
                    "reference (btrfs and XFS can); qcow2 has them, and so have directory volumes of containers"
                )
        elif in_use:
            raise Unsupported(
                f"volume {volume_id}: its file system cannot copy by reference, so a snapshot is a full copy: shut the "
                "container down first"
            )

    async def make(self, volume_id: VolumeId, name: str, *, in_use: bool) -> None:
        """Raises `Conflict` when there is one of this name, and what `check` raises."""
        _check_name(name)
        await self.check(volume_id, in_use=in_use)
        path, volume_format = await self._find(volume_id)
        if name in await self.names(volume_id):
            raise Conflict(f"volume {volume_id}: snapshot '{name}' already exists")
        await self._thread(headroom.require, self._root, f"storage {self._id}: snapshot {volume_id}")
        self._before_effect("make the snapshot")
        if await self._is_overlay(volume_id):
            await self._overlays.make(volume_id.name, name, in_use=in_use)
            return
        if volume_format is VolumeFormat.QCOW2:
            await tools.snapshot_qcow2(path, "-c", name)
            return
        directory = snapshots_of(self._root, volume_id.name)
        temporary = _temporary(directory, name)
        try:
            await self._thread(lambda: directory.mkdir(parents=True, exist_ok=True, mode=0o700))
            await self._copy(path, volume_format, temporary)
            self._before_effect("publish the snapshot")
            await self._to_the_end(_publish, temporary, directory / name)
        except BaseException:
            await to_the_end(remove_any, temporary)
            raise

    async def roll_back(self, volume_id: VolumeId, name: str) -> None:
        """Make the volume what it was. Raises `NotFound` without such a snapshot, `Conflict` while QEMU has it open."""
        path, volume_format = await self._find(volume_id)
        if name not in await self.names(volume_id):
            raise NotFound(f"volume {volume_id}: snapshot '{name}'")
        await self._thread(headroom.require, self._root, f"storage {self._id}: roll {volume_id} back")
        self._before_effect("roll back")
        if await self._is_overlay(volume_id):
            await self._overlays.roll_back(volume_id.name, name)
            return
        if volume_format is VolumeFormat.QCOW2:
            await tools.snapshot_qcow2(path, "-a", name)
            return
        fresh = _temporary(path.parent, path.name)
        try:
            await self._copy(snapshots_of(self._root, volume_id.name) / name, volume_format, fresh)
            self._before_effect("exchange")
            await self._to_the_end(exchange, fresh, path)
            await self._to_the_end(sync_directory, path.parent)
            self._before_effect("remove what it was")
        finally:
            await to_the_end(remove_any, fresh)

    async def remove(self, volume_id: VolumeId, name: str) -> None:
        """Not an error when there is none. Raises `Conflict` while QEMU has the image open, or clones stand on it."""
        path, volume_format = await self._find(volume_id)
        if name not in await self.names(volume_id):
            return
        await self.check_removal(volume_id, name)
        self._before_effect("remove the snapshot")
        if await self._is_overlay(volume_id):
            await self._overlays.remove(volume_id.name, name)
            return
        if volume_format is VolumeFormat.QCOW2:
            await tools.snapshot_qcow2(path, "-d", name)
            return
        directory = snapshots_of(self._root, volume_id.name)
        gone = _temporary(directory, name)
        await self._to_the_end((directory / name).rename, gone)
        self._before_effect("remove its data")
        await self._to_the_end(remove_any, gone)

    async def check_removal(self, volume_id: VolumeId, name: str) -> None:
        """Raises `Conflict` naming the linked clones that stand on the snapshot."""
        record = await asyncio.to_thread(self._records.get, volume_id.name)
        if record.layout != OVERLAY:
            return  # its snapshots are the volume's alone
        children = await self._thread(
            lambda: {each: self._records.get(each) for each in self._records.children(volume_id.name)}
        )
        if clones := overlays.clones_of_snapshot(volume_id.name, record, name, children):
            names = ", ".join(f"{self._id}:{clone}" for clone in sorted(clones)[:5])
            raise Conflict(f"volume {volume_id}: linked clones stand on snapshot '{name}': {names}")

    async def names(self, volume_id: VolumeId) -> list[str]:
        """The snapshots there are, sorted."""
        path, volume_format = await self._find(volume_id)
        if volume_format is VolumeFormat.QCOW2:
            return await tools.snapshot_names(path)
        if await self._is_overlay(volume_id):
            return sorted((await asyncio.to_thread(self._records.get, volume_id.name)).kept)
        return await self._thread(_names, snapshots_of(self._root, volume_id.name))

    async def open(self, volume_id: VolumeId, name: str) -> OpenedVolume:
        """What a snapshot holds, to be read only. Of qcow2, where it is inside the image, `directory.py` knows more. Raises
        `NotFound`."""
        path, volume_format = await self._find(volume_id)
        record = await asyncio.to_thread(self._records.get, volume_id.name)
        layers = None
        if record.layout == OVERLAY:
            layers = overlays.opened_snapshot(self._root, volume_id.name, record, name)
        else:
            path = snapshots_of(self._root, volume_id.name) / name
            if not await asyncio.to_thread(os.path.lexists, path):
                raise NotFound(f"volume {volume_id}: snapshot '{name}'")
        size = record.size if volume_format is VolumeFormat.SUBVOL else (await self._thread(path.stat)).st_size
        return OpenedVolume(
            volume_id=volume_id,
            path=path,
            format=volume_format,
            size_bytes=size,
            read_only=True,
            layers=layers,
            snapshot=name,
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _copy(self, source: Path, volume_format: VolumeFormat, target: Path) -> None:
        if volume_format is VolumeFormat.SUBVOL:
            await copy_directory(source, target)
        else:
            await tools.copy_file(source, target)

    async def _is_overlay(self, volume_id: VolumeId) -> bool:
        return (await asyncio.to_thread(self._records.get, volume_id.name)).layout == OVERLAY

    async def _find(self, volume_id: VolumeId) -> tuple[Path, VolumeFormat]:
        place = naming.locate(volume_id.name)
        path = self._root / place.path
        if volume_id.storage != self._id or not await asyncio.to_thread(os.path.lexists, path):
            raise NotFound(f"volume '{volume_id}'")
        if not place.is_disk:
            raise Unsupported(f"volume {volume_id}: only a guest's volume has snapshots")
        return path, VolumeFormat(place.format)

    async def shares_blocks(self) -> bool:
        """Whether the storage's file system copies by reference."""
        if self._can_clone is None:
            self._can_clone = await to_the_end(reflink.can_clone, self._root / naming.IMAGES_DIRECTORY)
        return self._can_clone

    async def _thread(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await asyncio.to_thread(function, *arguments)
        except OSError as error:
            raise HostError.from_os_error(error, f"storage {self._id}: snapshot") from error

    async def _to_the_end(self, function: Callable[..., T], *arguments: object) -> T:
        try:
            return await to_the_end(function, *arguments)
        except OSError as error:
            raise HostError.from_os_error(error, f"storage {self._id}: snapshot") from error


async def copy_directory(source: Path, target: Path) -> None:
    """A copy of a directory volume: a snapshot where it is a btrfs subvolume, else by reference where that can be."""
    if await asyncio.to_thread(btrfs.is_subvolume, source):
        try:
            await to_the_end(btrfs.snapshot, source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise HostError.from_os_error(error, f"copy {source}") from error
        else:
            return
    await tools.copy_tree(source, target)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidParameter({"snapname": f"'{name[:60]}' is not the name of a snapshot"})


def _temporary(directory: Path, name: str) -> Path:
    return directory / f"{naming.TEMPORARY_PREFIX}{secrets.token_hex(4)}-{name}"


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir() if _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []


def _publish(temporary: Path, final: Path) -> None:
    temporary.rename(final)
    sync_directory(final.parent)
