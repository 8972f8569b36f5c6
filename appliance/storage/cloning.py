"""Volumes made of other volumes of guests: full copies, and linked clones, which share what they have in common.

What a linked clone is made of, and what it stands on:

    qcow2 image              an overlay; on the image, which nobody writes to any more (a template's)
    layers                   a layer over the others'; on a template's, or on those of a snapshot, which never change either
    subvolume of btrfs       a snapshot; on nothing, blocks are shared
    raw image                a copy by reference, where the file system can; on nothing

Of a snapshot inside a qcow2 image there is none: an image behind another is read as it is now, and its guest goes on writing.
A volume and a snapshot that a clone stands on cannot be deleted before it: `Publisher.remove`, `VolumeSnapshots.check_removal`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import Unsupported
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, OpenedVolume, VolumeFormat, VolumeId
from appliance.storage import inspection, naming, overlays, tools
from appliance.storage.publication import Publisher
from appliance.storage.records import Records, VolumeRecord
from appliance.storage.snapshots import VolumeSnapshots, copy_directory


@dataclass(frozen=True, slots=True)
class NewClone:
    """What shall become of a clone."""

    guest_id: GuestId
    format: VolumeFormat
    label: str
    content: ContentType
    log: Callable[[str], None]


class Cloning:
    """Of the volumes of one storage."""

    def __init__(
        self, storage_id: str, root: Path, records: Records, publisher: Publisher, snapshots: VolumeSnapshots
    ) -> None:
        self._id = storage_id
        self._root = root
        self._records = records
        self._publisher = publisher
        self._snapshots = snapshots

    async def clone(self, source: OpenedVolume, made: NewClone, *, full: bool, subvolumes: bool) -> VolumeId:
        """`subvolumes`: directories here are those of btrfs. Raises `Unsupported`, `NotFound`, `Conflict`, `NoSpace`,
        `HostError`."""
        if (source.format is VolumeFormat.SUBVOL) != (made.format is VolumeFormat.SUBVOL):
            raise Unsupported(f"a {source.format} volume cannot become a {made.format} volume")
        if source.layers is not None:
            return await self._layers(source, made, full=full)
        parent = "" if full else await self._linkable(source, made.format, subvolumes=subvolumes)
        record = VolumeRecord(content=made.content, size=source.size_bytes, parent=parent)
        async with self._publisher.new_disk(made.guest_id, made.label, made.format) as name:

            async def copy(path: Path) -> None:
                if parent:
                    await tools.create_overlay(path, inspection.backing_path(name, parent), source.format)
                elif made.format is VolumeFormat.SUBVOL:
                    await copy_directory(source.path, path)
                elif not full:
                    await tools.copy_file(source.path, path)
                elif source.snapshot:
                    await tools.convert_snapshot(
                        source.path, source.format, path, made.format, snapshot=source.snapshot
                    )
                else:
                    await tools.convert(source.path, source.format, path, made.format)

            made.log(f"{'copying' if full else 'linking'} {source.volume_id or source.path} to {self._id}:{name}")
            return await self._publisher.make(name, record, copy)

    async def _layers(self, source: OpenedVolume, made: NewClone, *, full: bool) -> VolumeId:
        if source.volume_id is None or source.volume_id.storage != self._id:
            raise Unsupported(f"volume {source.volume_id}: its layers are on another storage than {self._id}")
        old = source.volume_id.name
        async with contextlib.AsyncExitStack() as held:
            if source.snapshot and not full:  # which is not removed before the clone that stands on it is known
                await held.enter_async_context(self._publisher.reserve(old))
            old_record = await asyncio.to_thread(self._records.get, old)
            if source.snapshot:
                old_record = overlays.kept_record(old, old_record, source.snapshot)
            name = await held.enter_async_context(
                self._publisher.new_disk(made.guest_id, made.label, VolumeFormat.SUBVOL)
            )
            record = overlays.copied_record(name, old_record) if full else overlays.linked_record(old, old_record)

            async def copy(path: Path) -> None:
                if full:
                    await overlays.copy(self._root, old, old_record, path)
                else:
                    await self._publisher.in_thread(f"create {name}", overlays.make, self._root, path, record)

            made.log(f"{'copying' if full else 'linking'} {source.volume_id} to {self._id}:{name}")
            return await self._publisher.make(name, record, copy)

    async def _linkable(self, source: OpenedVolume, image_format: VolumeFormat, *, subvolumes: bool) -> str:
        """The volume a linked clone stands on, "" for none. Raises `Unsupported` saying why there can be no such clone."""
        if source.volume_id is None or source.volume_id.storage != self._id:
            raise Unsupported(f"storage {self._id}: a linked clone must be on the storage of its parent")
        if not naming.locate(source.volume_id.name).is_disk:
            raise Unsupported(f"volume {source.volume_id}: only a guest's disk can have linked clones")
        if image_format is VolumeFormat.SUBVOL and subvolumes:
            return ""
        if image_format is source.format is VolumeFormat.RAW and await self._snapshots.shares_blocks():
            return ""
        if image_format is not VolumeFormat.QCOW2:
            raise Unsupported(
                f"volume {source.volume_id}: there are no linked clones of {source.format} volumes on this file system"
            )
        if source.snapshot:
            raise Unsupported(
                f"volume {source.volume_id}: a snapshot inside an image has no linked clones, only full ones"
            )
        return source.volume_id.name
