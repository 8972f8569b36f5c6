"""Single files of backups: what lies in a directory of an archive, and a file's content. The newest indexes are kept."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from appliance.errors import InvalidParameter, NotFound
from appliance.model.volume import ContentType, VolumeId
from appliance.services.ports.archives import ArchivedFile, ArchiveReader
from appliance.services.storage import StorageService

INDEXES_KEPT = 2


@dataclass(frozen=True, slots=True)
class _Index:
    """The entries of an archive by the directory they lie in."""

    children: dict[str, dict[str, ArchivedFile]]


class BackupFiles:
    """See the module's docstring."""

    def __init__(self, storage: StorageService, reader: ArchiveReader) -> None:
        self._storage = storage
        self._reader = reader
        self._indexes: OrderedDict[tuple[str, float, int], _Index] = OrderedDict()
        self._reading = asyncio.Lock()  # an archive is read from end to end: one at a time

    async def list(self, volume: VolumeId, path: str) -> Sequence[ArchivedFile]:
        """What lies in the directory `path` ("" is the root), by name. Raises `NotFound`, `InvalidParameter`."""
        children = (await self._index(volume)).children.get(path)
        if children is None:
            raise NotFound(f"directory '/{path}' in {volume}")
        return [children[name] for name in sorted(children)]

    async def stream(self, volume: VolumeId, path: str) -> tuple[ArchivedFile, AsyncGenerator[bytes, None]]:
        """A regular file and its content. Raises `NotFound`, `InvalidParameter` for what is none."""
        above, _, name = path.rpartition("/")
        found = (await self._index(volume)).children.get(above, {}).get(name)
        if found is None:
            raise NotFound(f"'/{path}' in {volume}")
        if found.kind != "f":
            raise InvalidParameter({"filepath": f"'/{path}' is no regular file"})
        opened = await self._storage.open(volume)
        return found, self._reader.stream_archived(opened.path, path)

    async def _index(self, volume: VolumeId) -> _Index:
        info = await self._storage.backend(volume.storage).info(volume)
        if info.content is not ContentType.BACKUP:
            raise InvalidParameter({"volume": f"{volume} is not a backup"})
        key = (str(volume), info.created_at, info.size_bytes)
        async with self._reading:
            if key not in self._indexes:
                opened = await self._storage.open(volume)
                members = await self._reader.archived_files(opened.path)
                self._indexes[key] = await asyncio.to_thread(_build, members)
                while len(self._indexes) > INDEXES_KEPT:
                    self._indexes.popitem(last=False)
            self._indexes.move_to_end(key)
            return self._indexes[key]


def _build(members: Sequence[ArchivedFile]) -> _Index:
    children: dict[str, dict[str, ArchivedFile]] = {"": {}}
    for member in members:
        if not member.path:
            continue
        above, _, name = member.path.rpartition("/")
        children.setdefault(above, {})[name] = member
        if member.kind == "d":
            children.setdefault(member.path, {})
    return _Index(children)
