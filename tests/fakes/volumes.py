"""Storages without files: volumes are names and sizes. What guests use of `StorageService` and `VolumeBackend`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from appliance.errors import ApplianceError, Conflict, HostError, InvalidParameter, NotFound, Unsupported
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, OpenedVolume, VolumeFormat, VolumeId, VolumeInfo
from appliance.services.ports import LogLine


class FakeVolumes:
    """A storage of names and sizes. `full_after` operations it is full; `stuck` volumes cannot be deleted.

    `kept` are snapshots, `returned` the returns to them; `cannot_keep` and `cannot_return` play volumes that fail.
    `may_make` holds up who makes volumes (`waiting` of them); `resized` are those that grew, in order.
    """

    def __init__(
        self, storage_id: str = "local", content_types: frozenset[ContentType] = frozenset(ContentType)
    ) -> None:
        self.storage_id = storage_id
        self.content_types = content_types
        self.infos: dict[VolumeId, VolumeInfo] = {}
        self.full_after: int | None = None
        self.stuck: set[VolumeId] = set()
        self.may_make = asyncio.Event()
        self.may_make.set()
        self.waiting = 0
        self.resized: list[VolumeId] = []
        self.layers: list[str] = []
        self.bases: list[str] = []
        self.kept: dict[VolumeId, dict[str, VolumeInfo]] = {}
        self.returned: list[tuple[VolumeId, str]] = []
        self.cannot_keep: dict[VolumeId, ApplianceError] = {}
        self.cannot_return: set[VolumeId] = set()

    def names(self) -> list[str]:
        """The volumes there are, sorted."""
        return sorted(str(volume) for volume in self.infos)

    def put(
        self,
        name: str,
        *,
        content: ContentType = ContentType.IMAGES,
        size_bytes: int = 1 << 30,
        guest_id: int | None = None,
    ) -> VolumeId:
        """A volume that is there."""
        volume = VolumeId(self.storage_id, name)
        self.infos[volume] = VolumeInfo(
            volume_id=volume, content=content, format=name.rpartition(".")[2], size_bytes=size_bytes, used_bytes=0,
            created_at=0.0, guest_id=guest_id,
        )  # fmt: skip
        return volume

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
        self.bases.append(base)
        return await self._make(guest_id, format, size_bytes, content, label, None)

    @contextlib.asynccontextmanager
    async def layer(self, archive: Path, fill: Callable[[Path], Awaitable[None]]) -> AsyncIterator[str]:
        if archive.name not in self.layers:
            await fill(Path("/storage/layers") / archive.name)
            self.layers.append(archive.name)
        yield archive.name

    async def clone(
        self,
        source: OpenedVolume,
        guest_id: GuestId,
        *,
        format: VolumeFormat,
        full: bool,
        log: LogLine,
        content: ContentType = ContentType.IMAGES,
        label: str = "disk",
    ) -> VolumeId:
        return await self._make(guest_id, format, source.size_bytes, content, label, None if full else source.volume_id)

    @property
    def backups(self) -> FakeVolumes:
        """As `VolumeBackend.backups`."""
        return self

    @contextlib.asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        yield Path("/storage") / self.storage_id / "scratch"

    async def adopt_image(self, source: Path, guest_id: GuestId, *, format: VolumeFormat, log: LogLine) -> VolumeId:
        await asyncio.sleep(0)
        return await self._make(guest_id, format, 8 << 30, ContentType.IMAGES, "disk", None)

    async def resize(self, volume_id: VolumeId, size_bytes: int) -> None:
        self.resized.append(volume_id)
        self.infos[volume_id] = replace(self.infos[volume_id], size_bytes=size_bytes)

    async def delete(self, volume_id: VolumeId) -> None:
        await asyncio.sleep(0)
        if volume_id in self.stuck:
            raise HostError(f"volume {volume_id}: input/output error")
        if volume_id not in self.infos:
            raise NotFound(f"volume '{volume_id}'")
        if any(info.parent == volume_id for info in self.infos.values()):
            raise Conflict(f"volume {volume_id}: linked clones stand on it")
        del self.infos[volume_id]

    async def check_snapshot(self, volume_id: VolumeId, *, in_use: bool) -> None:
        if isinstance(refusal := self.cannot_keep.get(volume_id), Unsupported):
            raise refusal

    async def snapshot(self, volume_id: VolumeId, name: str, *, in_use: bool = False) -> None:
        await asyncio.sleep(0)
        if (failure := self.cannot_keep.get(volume_id)) is not None:
            raise failure
        self.kept.setdefault(volume_id, {})[name] = self.infos[volume_id]

    async def roll_back(self, volume_id: VolumeId, name: str) -> None:
        await asyncio.sleep(0)
        if volume_id in self.cannot_return:
            raise HostError(f"volume {volume_id}: input/output error")
        self.infos[volume_id] = self.kept[volume_id][name]
        self.returned.append((volume_id, name))

    async def check_snapshot_removal(self, volume_id: VolumeId, name: str) -> None:
        clones = [str(info.volume_id) for info in self.infos.values() if info.parent == volume_id]
        if clones:
            raise Conflict(f"volume {volume_id}: linked clones stand on snapshot '{name}': {', '.join(clones)}")

    async def delete_snapshot(self, volume_id: VolumeId, name: str) -> None:
        await asyncio.sleep(0)
        if volume_id in self.stuck:
            raise HostError(f"volume {volume_id}: input/output error")
        self.kept.get(volume_id, {}).pop(name, None)

    async def snapshots(self, volume_id: VolumeId) -> Sequence[str]:
        return sorted(self.kept.get(volume_id, {}))

    async def open_snapshot(self, volume_id: VolumeId, name: str) -> OpenedVolume:
        if name not in self.kept.get(volume_id, {}):
            raise NotFound(f"volume {volume_id}: snapshot '{name}'")
        size_bytes = self.kept[volume_id][name].size_bytes
        return replace(await self.open(volume_id), size_bytes=size_bytes, read_only=True, snapshot=name)

    async def list(self, content: ContentType | None = None, guest_id: GuestId | None = None) -> Sequence[VolumeInfo]:
        await asyncio.sleep(0)
        return [
            info
            for info in self.infos.values()
            if content in (None, info.content) and guest_id in (None, info.guest_id)
        ]

    async def info(self, volume_id: VolumeId) -> VolumeInfo:
        return self.infos[volume_id]

    async def open(self, volume_id: VolumeId) -> OpenedVolume:
        await asyncio.sleep(0)
        if volume_id not in self.infos:
            raise NotFound(f"volume '{volume_id}'")
        info = self.infos[volume_id]
        known = info.format in tuple(VolumeFormat)
        return OpenedVolume(
            volume_id=volume_id,
            path=Path("/storage") / self.storage_id / volume_id.name,
            format=VolumeFormat(info.format) if known else VolumeFormat.RAW,
            size_bytes=info.size_bytes,
        )

    async def _make(
        self,
        guest_id: GuestId,
        format: VolumeFormat,
        size_bytes: int,
        content: ContentType,
        label: str,
        parent: VolumeId | None,
    ) -> VolumeId:
        self.waiting += 1
        try:
            await self.may_make.wait()
        finally:
            self.waiting -= 1
        if self.full_after is not None:
            if self.full_after == 0:
                raise HostError(f"storage {self.storage_id}: no space left on device")
            self.full_after -= 1
        taken = set(self.infos)
        names = (f"{guest_id}/vm-{guest_id}-{label}-{n}.{format}" for n in range(100))
        volume = self.put(
            next(name for name in names if VolumeId(self.storage_id, name) not in taken),
            content=content, size_bytes=size_bytes, guest_id=guest_id,
        )  # fmt: skip
        self.infos[volume] = replace(self.infos[volume], parent=parent)
        return volume


class FakeStorages:
    """What guests use of `StorageService`."""

    def __init__(self, *volumes: FakeVolumes) -> None:
        self._backends = {each.storage_id: each for each in volumes}

    def backends(self) -> Sequence[FakeVolumes]:
        return list(self._backends.values())

    def backend(self, storage_id: str) -> FakeVolumes:
        if storage_id not in self._backends:
            raise NotFound(f"storage '{storage_id}'")
        return self._backends[storage_id]

    async def open(self, volume: VolumeId) -> OpenedVolume:
        return await self.backend(volume.storage).open(volume)

    async def resolve_template(self, volume: VolumeId) -> Path:
        opened = await self.open(volume)
        if not volume.name.startswith("vztmpl/"):
            raise InvalidParameter({"ostemplate": f"{volume} is not a container template"})
        return opened.path
