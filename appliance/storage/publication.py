"""How volumes of a directory storage appear and vanish: at one moment each, whatever interrupts.

    make      record, data under a temporary name, sync, rename
    remove    rename to a temporary name, data, record

A record without a volume and a temporary name are remains; `Catalog.sweep` removes them. Every effect is announced to
`before_effect` (from the loop or a worker thread), so that tests can end the process right before any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from appliance.errors import Conflict, HostError, NotFound
from appliance.files import sync_directory
from appliance.model.guest import GuestId
from appliance.model.volume import VolumeFormat, VolumeId
from appliance.storage import headroom, inspection, naming, snapshots
from appliance.storage.records import Records, VolumeRecord
from appliance.storage.trees import remove_any
from appliance.threads import to_the_end

T = TypeVar("T")
BeforeEffect = Callable[[str], None]
Maker = Callable[[Path], Awaitable[None]]


class Publisher:
    """Makes and removes volumes of one storage. On the loop; files are touched in worker threads."""

    def __init__(
        self,
        storage_id: str,
        root: Path,
        records: Records,
        before_effect: BeforeEffect,
        on_change: Callable[[], None],
    ) -> None:
        self._id = storage_id
        self._root = root
        self._records = records
        self._before_effect = before_effect
        self._on_change = on_change
        self._reserved: set[str] = set()
        self._links = asyncio.Lock()  # a parent is not removed between the look for children and a child's record

    @asynccontextmanager
    async def reserve(self, name: str) -> AsyncIterator[None]:
        """Keep every other operation off `name`. Raises `Conflict` while one is under way."""
        if name in self._reserved:
            raise Conflict(f"volume {self._id}:{name}: another operation on it is under way")
        self._reserved.add(name)
        try:
            yield
        finally:
            self._reserved.discard(name)

    @asynccontextmanager
    async def new_disk(self, guest_id: GuestId, label: str, image_format: VolumeFormat) -> AsyncIterator[str]:
        """Reserve the lowest free name of a guest's disk."""
        # reserved before and after looking: one published while we looked is in the one or the other
        before = frozenset(self._reserved)
        present = await self.in_thread("look for a free name", lambda: list(inspection.disks(self._root, guest_id)))
        name = naming.free_disk_name(guest_id, label, image_format, taken={*before, *present, *self._reserved})
        async with self.reserve(name):
            yield name

    async def make(self, name: str, record: VolumeRecord | None, make: Maker) -> VolumeId:
        """Let `make` write the data under a temporary path, then publish it as `name` (which the caller reserved).

        Raises `Conflict` when the name is taken, `NoSpace`, and what `make` raises; nothing of it is left then.
        """
        final = self._root / naming.locate(name).path
        temporary = _temporary(final)
        published = False

        def publish() -> None:
            nonlocal published
            self._publish(name, temporary, final)
            published = True

        await self.in_thread(f"create {name}", headroom.require, self._root, f"storage {self._id}: create {name}")
        try:
            self._before_effect("write the record")
            async with self._links:
                await self._to_the_end(f"create {name}", self._announce, name, record, final)
            self._before_effect("write the data")
            await make(temporary)
            self._before_effect("publish")
            await self._to_the_end(f"create {name}", publish)
        except BaseException:
            if published:  # and cancelled meanwhile: nobody will know of it
                await to_the_end(final.rename, temporary)
            await to_the_end(self._undo, name, temporary, final)
            raise
        self._on_change()
        return VolumeId(self._id, name)

    async def remove(self, volume_id: VolumeId) -> None:
        """Remove a volume. Raises `NotFound`, `Conflict` while it is protected or linked clones stand on it."""
        final = self._root / naming.locate(volume_id.name).path
        doing = f"delete {volume_id}"
        gone = _temporary(final)
        aside = False

        def set_aside() -> None:
            nonlocal aside
            self._set_aside(volume_id, final, gone)
            aside = True

        async with self.reserve(volume_id.name):
            self._before_effect("set aside")
            try:
                async with self._links:
                    await self._to_the_end(doing, set_aside)
            finally:
                if aside:  # it is no volume any more, and goes even if we are cancelled
                    await self._to_the_end(doing, self._remove_data, volume_id.name, gone, final)
        self._on_change()

    async def in_thread(self, doing: str, function: Callable[..., T], *arguments: object) -> T:
        """Run `function` in a thread; an `OSError` becomes a `HostError` that names the storage."""
        try:
            return await asyncio.to_thread(function, *arguments)
        except OSError as error:
            raise HostError.from_os_error(error, f"storage {self._id}: {doing}") from error

    async def _to_the_end(self, doing: str, function: Callable[..., T], *arguments: object) -> T:
        """`in_thread` for what changes something: never left behind by a cancellation, never undone while it runs."""
        try:
            return await to_the_end(function, *arguments)
        except OSError as error:
            raise HostError.from_os_error(error, f"storage {self._id}: {doing}") from error

    def _announce(self, name: str, record: VolumeRecord | None, final: Path) -> None:
        if os.path.lexists(final):
            raise Conflict(f"volume {self._id}:{name} already exists")
        if record is not None:
            if record.parent and not (self._root / naming.locate(record.parent).path).exists():
                raise NotFound(f"volume '{self._id}:{record.parent}'")
            self._records.put(name, record)
        final.parent.mkdir(parents=True, exist_ok=True)

    def _publish(self, name: str, temporary: Path, final: Path) -> None:
        if temporary.is_file():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if os.path.lexists(final):  # the name is reserved: only a stranger could have made it
            raise Conflict(f"volume {self._id}:{name} already exists")
        temporary.rename(final)
        sync_directory(final.parent)
        sync_directory(final.parent.parent)

    def _undo(self, name: str, temporary: Path, final: Path) -> None:
        """After an error. The volume may have been there before (`Conflict`): its record then stays."""
        with contextlib.suppress(OSError):
            remove_any(temporary)
        if not os.path.lexists(final):
            with contextlib.suppress(OSError):
                self._forget(name, final)

    def _set_aside(self, volume_id: VolumeId, final: Path, gone: Path) -> None:
        if not os.path.lexists(final):
            raise NotFound(f"volume '{volume_id}'")
        if self._records.get(volume_id.name).protected:
            raise Conflict(f"volume {volume_id}: is protected")
        if children := self._records.children(volume_id.name):
            raise Conflict(f"volume {volume_id}: linked clones stand on it: {', '.join(sorted(children)[:5])}")
        final.rename(gone)
        sync_directory(final.parent)

    def _remove_data(self, name: str, gone: Path, final: Path) -> None:
        self._before_effect("remove the data")
        try:
            remove_any(gone)
            snapshots.forget(self._root, name)
        finally:
            self._before_effect("remove the record")
            self._forget(name, final)

    def _forget(self, name: str, final: Path) -> None:
        self._records.remove(name)
        if naming.locate(name).is_disk:
            with contextlib.suppress(OSError):  # not empty: other disks of the guest
                final.parent.rmdir()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{naming.TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")
