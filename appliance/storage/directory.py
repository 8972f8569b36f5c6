"""The directory storage: volumes as files below one directory. Fulfils `services.ports.volumes.VolumeBackend`.

    naming.py         where a volume lies and what its name says (pure)
    records.py        what a name cannot say: content, parent, notes; marks of file systems being grown
    catalog.py        listing, and the sweep at start
    publication.py    how a volume appears and vanishes at one moment
    inspection.py     measuring, and judging images before QEMU sees them; qcow2_header.py reads their first bytes
    trees.py          counting and removing what a container made of a directory volume; what kind a file system offers
    cloning.py        volumes made of other volumes, in full or linked
    backups.py        archives of guests, and what is made and taken apart on the way
    overlays.py       directory volumes in layers; layers.py: unpacked templates, which many of them stand on
    receiving.py      streams with a checksum
    headroom.py       the space new volumes leave alone
    snapshots.py      snapshots of volumes, by the means each format has
    sparse.py         raw images, which begin as holes
    tools.py          qemu-img, mkfs, cp: bounded

Resizing is one system call or one command, but for a container's file system: there a mark says what `recover` finishes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from appliance.errors import Conflict, HostError, InvalidParameter, NotFound, Unsupported
from appliance.kernel import btrfs
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, OpenedVolume, StorageUsage, VolumeFormat, VolumeId, VolumeInfo
from appliance.storage import inspection, naming, overlays, receiving, sparse, tools, trees
from appliance.storage.backups import BackupArea
from appliance.storage.catalog import DISK_CONTENT, Catalog
from appliance.storage.cloning import Cloning, NewClone
from appliance.storage.layers import Fill, LayerStore
from appliance.storage.oci.store import ImageStore
from appliance.storage.publication import BeforeEffect, Maker, Publisher
from appliance.storage.qcow2_header import SIZE_LIMIT_BYTES
from appliance.storage.records import OVERLAY, Records, VolumeRecord
from appliance.storage.snapshots import VolumeSnapshots
from appliance.storage.trees import TreeKind

log = logging.getLogger(__name__)
T = TypeVar("T")

ALL_CONTENT: Final = frozenset(ContentType)
RECEIVE_LIMIT_BYTES: Final = 4 << 40


def _no_effect(_: str) -> None:
    """Nobody listens for effects."""


def _no_change() -> None:
    """Nobody listens for changes."""


class DirectoryBackend:
    """One directory storage. `root` is made when it is missing; nothing else may write below it while we run.

    `on_change` is called on the loop after a volume appeared, vanished or was changed.
    """

    def __init__(
        self,
        storage_id: str,
        root: Path,
        *,
        content_types: frozenset[ContentType] = ALL_CONTENT,
        before_effect: BeforeEffect = _no_effect,
        on_change: Callable[[], None] = _no_change,
    ) -> None:
        self._id = storage_id
        self._root = root
        self._content_types = content_types
        self._records = Records(root)
        self._before_effect = before_effect
        self._on_change = on_change
        self._catalog = Catalog(storage_id, root, self._records)
        self._publisher = Publisher(storage_id, root, self._records, before_effect, on_change)
        self._snapshots = VolumeSnapshots(storage_id, root, self._records, before_effect)
        self._cloning = Cloning(storage_id, root, self._records, self._publisher, self._snapshots)
        self._layers = LayerStore(storage_id, root, self._records, before_effect)
        self._trees = TreeKind.PLAIN
        self.backups = BackupArea(self, root, self._publisher)
        self.images = ImageStore(root)

    @property
    def storage_id(self) -> str:
        return self._id

    @property
    def content_types(self) -> frozenset[ContentType]:
        return self._content_types

    def limit_content(self, content_types: frozenset[ContentType]) -> None:
        """Change what may be stored from now on; what is there stays."""
        self._content_types = content_types

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    # --- start ------------------------------------------------------------------------------------------------

    async def recover(self) -> Sequence[str]:
        """Make the layout, remove what interrupted operations left, finish interrupted growing; says what it did."""
        done = await self._publisher.in_thread("prepare the storage", self._catalog.sweep)
        self._trees = await self._publisher.in_thread("look at the file system", trees.kind_of, self._root)
        done += await self._publisher.in_thread("prepare the images", self.images.prepare)
        for mark in await self._publisher.in_thread("read the marks", self._records.growing):
            path = self._root / naming.locate(mark.volume).path
            if await asyncio.to_thread(inspection.is_attached, path):
                done.append(f"{self._id}:{mark.volume}: growing is finished when its container is stopped")
                continue
            if await asyncio.to_thread(path.exists):
                await asyncio.to_thread(sparse.extend, path, mark.size)
                try:
                    await tools.grow_ext4(path)
                except HostError as error:
                    done.append(f"{self._id}:{mark.volume}: growing could not be finished: {error}")
                    continue
            await self._publisher.in_thread("remove a mark", self._records.unmark_growing, mark.volume)
            done.append(f"{self._id}:{mark.volume}: finished growing")
        return done

    # --- disks ------------------------------------------------------------------------------------------------

    async def create(
        self,
        guest_id: GuestId,
        *,
        format: VolumeFormat,
        size_bytes: int,
        content: ContentType,
        label: str = "disk",
        base: str = "",
        layers: Sequence[str] = (),
    ) -> VolumeId:
        """See `VolumeBackend.create`. Raises `InvalidParameter`, `Unsupported`, `NoSpace`, `HostError`."""
        self._check_disk(format, size_bytes, content)
        async with self._publisher.new_disk(guest_id, label, format) as name:
            if layers or (base and self._trees is TreeKind.OVERLAY):
                record = overlays.new_record(content, size_bytes, list(layers) or [base])
            else:
                record = VolumeRecord(content=content, size=size_bytes)
            return await self._publisher.make(name, record, self._maker(format, record, base))

    @asynccontextmanager
    async def layer(self, archive: Path, fill: Fill) -> AsyncIterator[str]:
        """See `VolumeBackend.layer`."""
        if self._trees is TreeKind.PLAIN:
            yield ""
            return
        async with self._layers.of(archive, fill, subvolume=self._trees is TreeKind.BTRFS) as layer:
            yield layer

    async def create_named(self, name: str, *, size_bytes: int, content: ContentType = ContentType.IMAGES) -> VolumeId:
        """As `create`, for a name chosen by the caller (`100/vm-100-disk-7.raw`). Raises `Conflict` when it exists."""
        place = naming.locate(name)
        if not place.is_disk:
            raise InvalidParameter({"filename": f"'{name}' is not the name of a guest's disk"})
        image_format = VolumeFormat(place.format)
        self._check_disk(image_format, size_bytes, content)
        async with self._publisher.reserve(name):
            record = VolumeRecord(content=content, size=size_bytes)
            return await self._publisher.make(name, record, self._maker(image_format, record, ""))

    def _maker(self, image_format: VolumeFormat, record: VolumeRecord, base: str) -> Maker:
        async def make(path: Path) -> None:
            match image_format:
                case VolumeFormat.SUBVOL:
                    await self._publisher.in_thread(f"create {path.name}", self._make_tree, path, record, base)
                case VolumeFormat.RAW:
                    await self._publisher.in_thread(f"create {path.name}", sparse.make, path, record.size)
                    if record.content == ContentType.ROOTDIR:
                        self._before_effect("make the file system")
                        await tools.make_ext4(path)
                case VolumeFormat.QCOW2:
                    await tools.create_qcow2(path, record.size)

        return make

    def _make_tree(self, path: Path, record: VolumeRecord, base: str) -> None:
        if record.layout == OVERLAY:
            overlays.make(self._root, path, record)
        elif self._trees is TreeKind.BTRFS:
            if base:
                btrfs.snapshot(self._root / base, path)
            else:
                btrfs.create(path)
            if record.size:
                btrfs.limit(path, record.size)
        else:
            path.mkdir(0o755)

    def _check_disk(self, image_format: VolumeFormat, size_bytes: int, content: ContentType) -> None:
        if content not in DISK_CONTENT or content not in self._content_types:
            raise Unsupported(f"storage {self._id}: does not hold '{content}' volumes of guests")
        if image_format is VolumeFormat.SUBVOL and content is not ContentType.ROOTDIR:
            raise InvalidParameter({"format": "subvol is for containers only"})
        if image_format is VolumeFormat.QCOW2 and content is ContentType.ROOTDIR:
            raise InvalidParameter({"format": "a container's volume is raw or subvol"})
        if not 0 < size_bytes <= SIZE_LIMIT_BYTES and image_format is not VolumeFormat.SUBVOL:
            raise InvalidParameter({"size": f"{size_bytes} bytes is not between 1 and {SIZE_LIMIT_BYTES}"})

    async def clone(
        self,
        source: OpenedVolume,
        guest_id: GuestId,
        *,
        format: VolumeFormat,
        full: bool,
        log: Callable[[str], None],
        content: ContentType | None = None,
        label: str = "disk",
    ) -> VolumeId:
        """See `VolumeBackend.clone`. `content` defaults to the source's own (an imported file becomes `images`).

        Raises `Unsupported` for a pair of formats that cannot be, and for linked clones there cannot be, `NoSpace`, `HostError`.
        """
        made = NewClone(guest_id, format, label, content or await self._content_of(source), log)
        return await self._cloning.clone(source, made, full=full, subvolumes=self._trees is TreeKind.BTRFS)

    async def _content_of(self, source: OpenedVolume) -> ContentType:
        if source.volume_id is not None and source.volume_id.storage == self._id:
            content = (await self._describe(source.volume_id, count_tree=False)).content
            if content in DISK_CONTENT:
                return content
        return ContentType.ROOTDIR if source.format is VolumeFormat.SUBVOL else ContentType.IMAGES

    async def resize(self, volume_id: VolumeId, size_bytes: int) -> None:
        """See `VolumeBackend.resize`. Raises `Conflict` for a qcow2 that QEMU has open: QEMU must grow it itself.

        Of a container that runs, the file alone is lengthened: its engine then grows the mounted file system.
        """
        name, place = self._locate(volume_id)
        if not place.is_disk:
            raise InvalidParameter({"volume": f"{volume_id} is not a guest's disk"})
        async with self._publisher.reserve(name):
            await self._resize(volume_id, place, size_bytes)
        self._on_change()

    async def _resize(self, volume_id: VolumeId, place: naming.Place, size_bytes: int) -> None:
        name = volume_id.name
        info = await self._describe(volume_id, count_tree=False)
        if size_bytes < info.size_bytes:
            raise InvalidParameter({"size": f"{volume_id}: shrinking from {info.size_bytes} bytes is not possible"})
        if size_bytes > SIZE_LIMIT_BYTES:
            raise InvalidParameter({"size": f"{size_bytes} bytes is over the limit of {SIZE_LIMIT_BYTES}"})
        path = self._root / place.path
        match place.format:
            case "subvol":
                if await asyncio.to_thread(btrfs.is_subvolume, path):
                    self._before_effect("set the limit")
                    await self._publisher.in_thread(f"resize {volume_id}", btrfs.limit, path, size_bytes)
                await self._publisher.in_thread(f"resize {volume_id}", self._record_size, name, size_bytes)
            case "qcow2":
                await self._publisher.in_thread(
                    f"resize {volume_id}", inspection.check_image, self._root, self._records, name
                )
                self._before_effect("grow the image")
                await tools.resize_qcow2(path, size_bytes)
            case _ if info.content is ContentType.ROOTDIR and not await asyncio.to_thread(inspection.is_attached, path):
                await self._grow_file_system(name, path, size_bytes)
            case _:
                self._before_effect("lengthen the file")
                await self._publisher.in_thread(f"resize {volume_id}", sparse.extend, path, size_bytes)

    async def _grow_file_system(self, name: str, path: Path, size_bytes: int) -> None:
        self._before_effect("mark")
        await self._publisher.in_thread(f"mark {name}", self._records.mark_growing, name, size_bytes)
        self._before_effect("lengthen the file")
        await self._publisher.in_thread(f"resize {name}", sparse.extend, path, size_bytes)
        self._before_effect("grow the file system")
        await tools.grow_ext4(path)
        self._before_effect("unmark")
        await self._publisher.in_thread(f"unmark {name}", self._records.unmark_growing, name)

    def _record_size(self, name: str, size_bytes: int) -> None:
        record = self._records.get(name)
        self._before_effect("write the record")
        content = record.content or ContentType.ROOTDIR
        self._records.put(name, msgspec.structs.replace(record, content=content, size=size_bytes))

    # --- snapshots: see `VolumeBackend` -------------------------------------------------------------------------

    async def check_snapshot(self, volume_id: VolumeId, *, in_use: bool) -> None:
        """Raises `Unsupported` saying why there can be none now, `NotFound`."""
        await self._snapshots.check(volume_id, in_use=in_use)

    async def snapshot(self, volume_id: VolumeId, name: str, *, in_use: bool = False) -> None:
        """Raises `Conflict` when there is one of this name, `Unsupported`, `NoSpace`, `HostError`; none is made then."""
        async with self._publisher.reserve(volume_id.name):
            await self._snapshots.make(volume_id, name, in_use=in_use)

    async def roll_back(self, volume_id: VolumeId, name: str) -> None:
        """Raises `NotFound`, `Conflict` while it is open, `NoSpace`, `HostError`; it may be repeated then."""
        async with self._publisher.reserve(volume_id.name):
            await self._snapshots.roll_back(volume_id, name)
        self._on_change()

    async def check_snapshot_removal(self, volume_id: VolumeId, name: str) -> None:
        """Raises `Conflict` naming the linked clones that stand on it."""
        await self._snapshots.check_removal(volume_id, name)

    async def delete_snapshot(self, volume_id: VolumeId, name: str) -> None:
        """Not an error when there is none. Raises what `check_snapshot_removal` does."""
        async with self._publisher.reserve(volume_id.name):
            await self._snapshots.remove(volume_id, name)

    async def snapshots(self, volume_id: VolumeId) -> Sequence[str]:
        """The names of a volume's snapshots, sorted."""
        return await self._snapshots.names(volume_id)

    async def open_snapshot(self, volume_id: VolumeId, name: str) -> OpenedVolume:
        """See `VolumeBackend.open_snapshot`."""
        if not volume_id.name.endswith(f".{VolumeFormat.QCOW2}"):
            return await self._snapshots.open(volume_id, name)
        image = await self.open(volume_id)  # judged as an image that is shown to QEMU
        if name not in await self.snapshots(volume_id):
            raise NotFound(f"volume {volume_id}: snapshot '{name}'")
        return replace(image, read_only=True, snapshot=name)

    # --- all volumes ------------------------------------------------------------------------------------------

    async def delete(self, volume_id: VolumeId) -> None:
        """Remove it. Raises `NotFound`, `Conflict` while it is protected or linked clones stand on it."""
        self._locate(volume_id)
        record = await asyncio.to_thread(self._records.get, volume_id.name)
        await self._publisher.remove(volume_id)
        if record.layers or naming.locate(volume_id.name).content is ContentType.VZTMPL:
            await self._layers.collect()

    async def open(self, volume_id: VolumeId) -> OpenedVolume:
        """See `VolumeBackend.open`. Raises `NotFound`, `InvalidParameter` for an image QEMU must not be shown."""
        name, place = self._locate(volume_id)
        measured, record = await self._publisher.in_thread(
            f"open {volume_id}",
            lambda: (inspection.check_image(self._root, self._records, name), self._records.get(name)),
        )
        known = place.format in tuple(VolumeFormat)
        return OpenedVolume(
            volume_id=volume_id,
            path=self._root / place.path,
            format=VolumeFormat(place.format) if known else VolumeFormat.RAW,
            size_bytes=measured.size_bytes or (await self._describe(volume_id, count_tree=False)).size_bytes,
            read_only=not place.is_disk,
            layers=overlays.opened(self._root, name, record) if record.layout == OVERLAY else None,
        )

    async def list(self, content: ContentType | None = None, guest_id: GuestId | None = None) -> Sequence[VolumeInfo]:
        """All volumes (of one content, of one guest), in the order of their names."""
        return await self._publisher.in_thread("list the storage", self._catalog.list, content, guest_id)

    async def info(self, volume_id: VolumeId) -> VolumeInfo:
        """One volume. For a `subvol` the used bytes are counted, which takes time. Raises `NotFound`."""
        return await self._describe(volume_id, count_tree=True)

    async def _describe(self, volume_id: VolumeId, *, count_tree: bool) -> VolumeInfo:
        name, _ = self._locate(volume_id)
        return await self._publisher.in_thread(
            f"read {volume_id}", lambda: self._catalog.describe(name, count_tree=count_tree)
        )

    @property
    def shares_layers(self) -> bool:
        """Whether directory volumes can stand on layers here."""
        return self._trees is not TreeKind.PLAIN

    async def layers_in_use(self) -> frozenset[str]:
        """The layers that volumes and their snapshots stand on, relative to the storage."""
        return await self._publisher.in_thread("read the records", overlays.layers_in_use, self._records)

    async def annotate(
        self,
        volume_id: VolumeId,
        *,
        notes: str | None = None,
        protected: bool | None = None,
        size_bytes: int | None = None,
    ) -> None:
        """Change notes or protection, of an image's archive also its image's size; None leaves as is. Raises `NotFound`."""
        await self._describe(volume_id, count_tree=False)
        change = partial(self._records.change, volume_id.name, notes=notes, protected=protected, size=size_bytes)
        async with self._publisher.reserve(volume_id.name):
            await self._publisher.in_thread(f"annotate {volume_id}", change)
        self._on_change()

    async def usage(self) -> StorageUsage:
        """Of the file system the storage lies on."""
        status = await self._publisher.in_thread("measure the storage", os.statvfs, self._root)
        return StorageUsage(
            total_bytes=status.f_blocks * status.f_frsize,
            used_bytes=(status.f_blocks - status.f_bfree) * status.f_frsize,
            available_bytes=status.f_bavail * status.f_frsize,
        )

    async def receive(
        self,
        content: ContentType,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        checksum: tuple[str, str] | None,
        size_limit_bytes: int = RECEIVE_LIMIT_BYTES,
    ) -> VolumeId:
        """See `VolumeBackend.receive`. A disk image is judged before it appears. Raises also `TooLarge`, `NoSpace`."""
        self._check_receivable(content, name)
        if checksum is not None:
            receiving.new_digest(checksum[0])
        full_name = f"{content}/{name}"

        async def write(path: Path) -> None:
            await receiving.write_stream(path, chunks, checksum=checksum, size_limit_bytes=size_limit_bytes)
            if content is ContentType.IMPORT:
                await receiving.judge_import(name, path)

        async with self._publisher.reserve(full_name):
            return await self._publisher.make(full_name, None, write)

    async def check_receivable(self, content: ContentType, name: str) -> None:
        """Raises what `receive` would raise for this name: `InvalidParameter`, `Conflict` when it exists."""
        self._check_receivable(content, name)
        path = self._root / naming.FILE_DIRECTORIES[content] / name
        if await asyncio.to_thread(os.path.lexists, path):
            raise Conflict(f"volume {self._id}:{content}/{name} already exists")

    def _check_receivable(self, content: ContentType, name: str) -> None:
        if content not in self._content_types:
            raise InvalidParameter({"content": f"storage {self._id} does not hold '{content}'"})
        if content not in naming.UPLOADABLE:
            raise InvalidParameter({"content": f"'{content}' cannot be uploaded"})
        naming.check_file_name(content, name)

    def _locate(self, volume_id: VolumeId) -> tuple[str, naming.Place]:
        if volume_id.storage != self._id:
            raise NotFound(f"volume '{volume_id}' in storage '{self._id}'")
        return volume_id.name, naming.locate(volume_id.name)
