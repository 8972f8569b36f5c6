"""A snapshot goes: record "delete", lock=snapshot-delete ─▶ volumes ─▶ record gone. Also one that was not finished."""

from __future__ import annotations

import logging
from contextlib import suppress

import msgspec

from appliance.errors import ApplianceError, NotFound
from appliance.services.guest_records import SnapshotRecord
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.snapshot_parts import parts_of
from appliance.services.snapshot_records import DELETE, PREPARE, SnapshotRecords, without_lock
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskHandle
from appliance.tasks import to_its_end

log = logging.getLogger(__name__)


class SnapshotRemoval:
    """Each with the guest's lock held."""

    def __init__(self, records: SnapshotRecords, storage: StorageService) -> None:
        self._records = records
        self._storage = storage

    async def remove(self, guest: GuestRuntime, name: str, *, force: bool, task: TaskHandle) -> None:
        """With `force` the record goes even if a volume's snapshot cannot be removed."""
        record = guest.stored.record
        if not force:
            await self._check(guest, name)
        kept = msgspec.structs.replace(record.snapshots[name], state=DELETE)
        locked = record.config | {"lock": "snapshot-delete"}
        try:
            await self._records.write(guest, config=locked, snapshots={**record.snapshots, name: kept})
            await self._drop_volumes(guest, name, kept)
        except BaseException as error:
            if not (force and isinstance(error, ApplianceError)):
                await to_its_end(self._unlock(guest), name=f"unlock {guest.label}")
                raise
            task.warn(str(error))
        await to_its_end(self._records.forget(guest, name), name=f"forget snapshot {name} of {guest.label}")

    async def finish(self, guest: GuestRuntime) -> None:
        """Remove the snapshots whose removal is announced in the record."""
        for name, kept in guest.stored.record.snapshots.items():
            if kept.state == DELETE:
                log.info("%s: removing what is left of snapshot '%s'", guest.label, name)
                await self._drop_volumes(guest, name, kept)
                await self._records.forget(guest, name)

    async def undo(self, guest: GuestRuntime, name: str) -> None:
        """Take back a snapshot that was not finished; one that was just finished stays."""
        kept = guest.stored.record.snapshots.get(name)
        if kept is not None and kept.state == PREPARE:
            await self._drop_volumes(guest, name, kept)
            await self._records.forget(guest, name)

    async def _check(self, guest: GuestRuntime, name: str) -> None:
        """Before anything is touched: of several volumes a later one may refuse. Raises `Conflict`."""
        kept = guest.stored.record.snapshots[name]
        for volume in (await parts_of(guest, kept.config, self._storage)).volumes:
            with suppress(NotFound):
                await self._storage.backend(volume.storage).check_snapshot_removal(volume, name)

    async def _unlock(self, guest: GuestRuntime) -> None:
        await self._records.write(guest, config=without_lock(guest.stored.record.config))

    async def _drop_volumes(self, guest: GuestRuntime, name: str, kept: SnapshotRecord) -> None:
        parts = await parts_of(guest, kept.config, self._storage)
        if guest.running is not None and parts.open_slots:
            await guest.running.drop_disk_snapshots(name, parts.open_slots)
        for volume in parts.volumes:
            try:
                await self._storage.backend(volume.storage).delete_snapshot(volume, name)
            except NotFound:
                continue
