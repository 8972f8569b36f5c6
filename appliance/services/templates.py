"""Templates: images this host builds itself from Debian's packages (`storage/recipes`), listed as PVE's `aplinfo`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.errors import Conflict, NotFound
from appliance.model.volume import ContentType, VolumeId
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskHandle, TaskService
from appliance.storage.recipes.builder import build
from appliance.storage.recipes.recipe import RECIPES, ImageKind, Recipe

CHUNK_BYTES: Final = 1 << 20
_CONTENT: Final = {ImageKind.CT: ContentType.VZTMPL, ImageKind.VM: ContentType.IMPORT}

Builder = Callable[[str, str, Path, Callable[[str], None]], Awaitable[Path]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Something that can be built. `file_name` is its name on a storage, and how the API names it."""

    recipe: Recipe
    kind: ImageKind

    @property
    def file_name(self) -> str:
        """ "debian-12-standard_12_amd64.tar.zst"."""
        return self.recipe.volume_name(self.kind)

    @property
    def is_container(self) -> bool:
        """A container's root, as against a virtual machine's disk."""
        return self.kind is ImageKind.CT

    @property
    def content(self) -> ContentType:
        """Where a storage keeps it."""
        return _CONTENT[self.kind]

    def volume_id(self, storage_id: str) -> VolumeId:
        """Its volume on a storage, built or not."""
        return VolumeId(storage_id, f"{self.content}/{self.file_name}")


class TemplateService:
    """Builds templates, one after another, into `cache_dir` (default: below the data directory), for any storage."""

    def __init__(
        self, storage: StorageService, tasks: TaskService, *, cache_dir: Path | None = None, builder: Builder = build
    ) -> None:
        self._storage = storage
        self._tasks = tasks
        self._cache_dir = cache_dir or storage.data_dir / "cache" / "images"
        self._build = builder

    def list(self) -> Sequence[Template]:
        """All templates."""
        return [
            Template(recipe=recipe, kind=kind) for recipe in RECIPES.values() for kind in (ImageKind.CT, ImageKind.VM)
        ]

    def find(self, file_name: str) -> Template:
        """Raises `NotFound`."""
        for template in self.list():
            if template.file_name == file_name:
                return template
        raise NotFound(f"template '{file_name}'")

    async def fetch(self, storage_id: str, file_name: str, *, user: str) -> str:
        """Start the task that builds a template and puts it on a storage; returns its UPID.

        A template that is there already is left as it is. Raises `NotFound`, `Conflict` (the storage cannot hold it).
        """
        template = self.find(file_name)
        backend = self._storage.backend(storage_id)
        if template.content not in backend.content_types:
            raise Conflict(f"storage '{storage_id}' does not hold '{template.content}'")

        async def work(task: TaskHandle) -> None:
            volume_id = template.volume_id(storage_id)
            try:
                await backend.info(volume_id)
            except NotFound:
                image = await self._build(template.recipe.name, template.kind, self._cache_dir, task.log)
                await backend.receive(template.content, file_name, _read(image), checksum=None)
                task.log(f"stored {volume_id}")
            else:
                task.log(f"{volume_id} is there already; delete it to have it built anew")

        return await self._tasks.run("download", object_id=file_name, user=user, work=work)


async def _read(path: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
    finally:
        file.close()
