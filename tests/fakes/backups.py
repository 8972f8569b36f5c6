"""Backups of a house: volumes of its storage, with archives that are lists of files. What was asked for is in `calls`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from appliance.errors import NotFound
from appliance.model.guest import GuestId, GuestKind
from appliance.model.volume import ContentType, VolumeId, VolumeInfo
from appliance.services import backup_names
from appliance.services.guest_backup import BackupJob
from appliance.services.guest_replacement import Exchange
from appliance.services.guest_restore import Restoration
from tests.fakes.services import FakeTasks

if TYPE_CHECKING:
    from tests.fakes.house import HouseStorage


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive."""

    path: str
    kind: str = "f"
    content: bytes = b""
    mtime: int = 1_700_000_000

    @property
    def size(self) -> int:
        return len(self.content)


@dataclass(slots=True)
class FakeBackups:
    """Everything that is done with backups. `config` and `entries` are what every archive says."""

    storage: HouseStorage
    tasks: FakeTasks
    config: str = "hostname: dns\nmemory: 512\n"
    entries: list[Entry] = field(default_factory=list)
    calls: list[tuple[str, object]] = field(default_factory=list)
    made_at: float = 1_764_400_000.0
    is_read: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.is_read.set()

    def add(
        self, kind: GuestKind, guest_id: int, *, storage: str = "local", notes: str = "", protected: bool = False,
        days: int = 0,
    ) -> str:  # fmt: skip
        """A backup made so many days earlier."""
        name = backup_names.file_name(kind, guest_id, self.made_at - days * 86_400, "zstd")
        self.storage.add(
            f"backup/{name}", ContentType.BACKUP, 300 << 20, guest_id=guest_id, storage=storage, notes=notes,
            protected=protected,
        )  # fmt: skip
        return f"{storage}:backup/{name}"

    # --- as `GuestBackups` --------------------------------------------------------------------------------------------

    async def start(self, job: BackupJob, *, user: str) -> str:
        self.calls.append(("back up", job))

        async def work(task: object) -> None:
            for guest_id in job.guest_ids:
                self.made_at += 86_400
                self.add(GuestKind.LXC, guest_id, storage=job.storage, notes=job.notes, protected=job.protected)

        return await self.tasks.run("vzdump", object_id=str(job.guest_ids[0]), user=user, work=work)

    async def marks(
        self, storage: str, keep: Mapping[str, int], *, guest_id: int | None, kind: str | None
    ) -> list[tuple[VolumeInfo, str]]:
        return backup_names.marks(await self.storage.content(storage, ContentType.BACKUP, guest_id), keep)

    async def prune(
        self, storage: str, keep: Mapping[str, int], *, guest_id: int | None, kind: str | None
    ) -> list[VolumeId]:
        found = await self.marks(storage, keep, guest_id=guest_id, kind=kind)
        gone = [info.volume_id for info, mark in found if mark == "remove"]
        for volume in gone:
            self.storage.remove(volume)
        return gone

    # --- as `BackupFiles` ---------------------------------------------------------------------------------------------

    async def list(self, volume: VolumeId, path: str) -> Sequence[Entry]:
        await self.is_read.wait()
        if path and not any(entry.path == path and entry.kind == "d" for entry in self.entries):
            raise NotFound(f"directory '/{path}' in {volume}")
        return sorted(
            (each for each in self.entries if each.path.rpartition("/")[0] == path), key=lambda each: each.path
        )

    async def stream(self, volume: VolumeId, path: str) -> tuple[Entry, AsyncGenerator[bytes, None]]:
        found = next((entry for entry in self.entries if entry.path == path), None)
        if found is None:
            raise NotFound(f"'/{path}' in {volume}")

        async def content() -> AsyncGenerator[bytes, None]:
            yield found.content

        return found, content()


@dataclass(slots=True)
class FakeRestores:
    """`GuestRestore` of a house: `start` makes what `plan` planned."""

    backups: FakeBackups

    async def read_config(self, volume: VolumeId) -> str:
        await self.backups.storage.backend(volume.storage).info(volume)
        return self.backups.config

    async def plan(
        self, kind: GuestKind, volume: VolumeId, params: Mapping[str, str], *, storage: str | None, unique: bool
    ) -> Restoration:
        asked = {"volume": str(volume), **params, "storage": storage, "unique": unique}
        self.backups.calls.append(("plan", asked))
        return Restoration(volume=volume, kind=kind, config=dict(params))

    async def start(self, guest_id: GuestId, plan: Restoration, *, user: str, pool: str | None, start: bool) -> str:
        self.backups.calls.append(("restore", {"vmid": int(guest_id), "pool": pool, "start": start}))

        async def work(task: object) -> None:
            """It is made."""

        return await self.backups.tasks.run("vzrestore", object_id=str(guest_id), user=user, work=work)


@dataclass(slots=True)
class FakeReplacements:
    """`GuestReplacement` of a house: what was planned is asked for over the guest. `exchange` is what would become of it."""

    backups: FakeBackups
    exchange: Exchange = field(
        default_factory=lambda: Exchange(
            config={"unused0": "local:101/vm-101-disk-1.raw"},
            removed=(VolumeId("local", "101/vm-101-disk-0.raw"),),
            snapshots={},
        )
    )

    def preview(self, guest_id: GuestId, plan: Restoration) -> Exchange:
        return self.exchange

    async def start(self, guest_id: GuestId, plan: Restoration, *, user: str, start: bool) -> str:
        self.backups.calls.append(("restore over", {"vmid": int(guest_id), "start": start}))

        async def work(task: object) -> None:
            """It is replaced."""

        word = "vzrestore" if plan.kind is GuestKind.LXC else "qmrestore"
        return await self.backups.tasks.run(word, object_id=str(guest_id), user=user, work=work)
