"""Backups in a directory storage: whole archives appear, and everything on the way to them is made and removed here."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from appliance.errors import HostError, InvalidParameter, NotFound
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, OpenedVolume, VolumeFormat, VolumeId
from appliance.storage import headroom, inspection, naming, receiving, tools, trees
from appliance.storage.publication import Maker, Publisher
from appliance.storage.records import VolumeRecord
from appliance.threads import to_the_end


class Volumes(Protocol):
    """What is used of the storage's volumes."""

    @property
    def storage_id(self) -> str: ...

    @property
    def content_types(self) -> frozenset[ContentType]: ...

    async def open(self, volume_id: VolumeId) -> OpenedVolume: ...

    async def open_snapshot(self, volume_id: VolumeId, name: str) -> OpenedVolume: ...

    async def clone(
        self,
        source: OpenedVolume,
        guest_id: GuestId,
        *,
        format: VolumeFormat,
        full: bool,
        log: Callable[[str], None],
        content: ContentType | None = None,
    ) -> VolumeId: ...


class BackupArea:
    """Of one storage."""

    def __init__(self, storage: Volumes, root: Path, publisher: Publisher) -> None:
        self._storage = storage
        self._root = root
        self._publisher = publisher

    async def write(self, file_name: str, make: Maker, *, notes: str = "", protected: bool = False) -> VolumeId:
        """A backup with what `make` writes: whole, or nothing of it. Raises `Conflict`, `InvalidParameter`, `NoSpace`."""
        naming.check_file_name(ContentType.BACKUP, file_name)
        if ContentType.BACKUP not in self._storage.content_types:
            raise InvalidParameter({"storage": f"storage '{self._storage.storage_id}' does not hold backups"})
        name = f"{ContentType.BACKUP}/{file_name}"
        record = VolumeRecord(notes=notes, protected=protected) if notes or protected else None

        async def make_private(path: Path) -> None:
            # it holds all of a guest, passwords' hashes included: nobody else on the host reads it
            await self._publisher.in_thread(f"create {name}", lambda: path.touch(mode=0o600, exist_ok=False))
            await make(path)

        async with self._publisher.reserve(name):
            return await self._publisher.make(name, record, make_private)

    async def export_disk(self, volume_id: VolumeId, target: Path, *, snapshot: str = "", in_use: bool = False) -> None:
        """Copy a disk (its snapshot) to `target` as qcow2 standing alone. Raises `NotFound`, `NoSpace`, `HostError`."""
        opened = await self._storage.open(volume_id)
        if snapshot and opened.format is not VolumeFormat.QCOW2:
            opened, snapshot = await self._storage.open_snapshot(volume_id, snapshot), ""
        await tools.export(opened.path, opened.format, target, snapshot=snapshot, in_use=in_use)

    async def adopt_image(
        self, path: Path, guest_id: GuestId, *, format: VolumeFormat, log: Callable[[str], None]
    ) -> VolumeId:
        """A disk with the content of a qcow2 file that came out of an archive: judged before QEMU sees it, copied.

        Raises `NotFound` when there is no such file, `InvalidParameter` for one that must not be shown to QEMU.
        """
        try:
            await receiving.judge_import(path.name, path)
        except (FileNotFoundError, OSError) as error:
            raise NotFound(f"'{path.name}' in the archive") from error
        measured = await self._publisher.in_thread(f"measure {path.name}", inspection.measure, path, "qcow2")
        opened = OpenedVolume(volume_id=None, path=path, format=VolumeFormat.QCOW2, size_bytes=measured.size_bytes)
        return await self._storage.clone(
            opened, guest_id, format=format, full=True, log=log, content=ContentType.IMAGES
        )

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """An empty directory of the storage for as long as somebody works in it."""
        path = (
            self._root
            / naming.FILE_DIRECTORIES[ContentType.BACKUP]
            / f"{naming.TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        )
        await self._publisher.in_thread(
            "make a directory", headroom.require, self._root, f"storage {self._storage.storage_id}: work"
        )
        try:
            await to_the_end(path.mkdir, 0o700)
            yield path
        except OSError as error:
            raise HostError.from_os_error(error, f"storage {self._storage.storage_id}: {path.name}") from error
        finally:
            await to_the_end(trees.remove_any, path)

    async def put_text(self, path: Path, text: str) -> None:
        """Write a file in a scratch directory."""
        await self._publisher.in_thread(f"write {path.name}", path.write_text, text)

    async def pack_scratch(self, directory: Path, names: Sequence[str], target: Path, compressor: str) -> None:
        """A tar of files of a scratch directory. Raises `NoSpace`, `HostError`."""
        await tools.pack_files(directory, names, target, compressor)
