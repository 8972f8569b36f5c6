"""A snapshot is made: record "prepare", lock=snapshot ─▶ volumes ─▶ record done, parent=NAME. Also one for a backup's length."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from appliance.clock import Clock
from appliance.errors import Unsupported
from appliance.model.guest import GuestKind
from appliance.services import guest_config
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_records import SnapshotRecord
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.guest_standstill import standing_still
from appliance.services.ports import LogLine
from appliance.services.snapshot_parts import Parts, parts_of
from appliance.services.snapshot_records import PREPARE, TEMPORARY, SnapshotRecords, without_lock
from appliance.services.snapshot_removal import SnapshotRemoval
from appliance.services.storage import StorageService
from appliance.tasks import to_its_end


class SnapshotMaking:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        inventory: GuestInventory,
        records: SnapshotRecords,
        removal: SnapshotRemoval,
        storage: StorageService,
        clock: Clock,
    ) -> None:
        self._inventory = inventory
        self._records = records
        self._removal = removal
        self._storage = storage
        self._clock = clock

    async def make(
        self, guest: GuestRuntime, name: str, description: str, *, with_state: bool, log_line: LogLine
    ) -> None:
        """All of it, or nothing is left. With the guest's lock held, as its own."""
        try:
            await self._begin(guest, name, description, lock="snapshot", with_state=with_state, log_line=log_line)
            record = guest.stored.record
            done = msgspec.structs.replace(record.snapshots[name], state="")
            await self._records.write(
                guest,
                config=without_lock(record.config) | {"parent": name},
                snapshots={**record.snapshots, name: done},
            )
        except BaseException:
            await to_its_end(self._removal.undo(guest, name), name=f"undo snapshot {name} of {guest.label}")
            raise

    @asynccontextmanager
    async def temporary(self, guest: GuestRuntime, log_line: LogLine) -> AsyncIterator[None]:
        """A snapshot `TEMPORARY` for as long as somebody reads it; the guest goes on, its configuration locked ("backup").

        A crash meanwhile is an unfinished snapshot, which the next start undoes. Raises what making one raises.
        """

        async def take_back() -> None:
            async with guest.hold("end of the backup"):
                with guest.locked_by_us():
                    await self._removal.undo(guest, TEMPORARY)

        try:
            async with guest.hold("backup"):
                self._inventory.require_unlocked(guest)
                await self._begin(guest, TEMPORARY, "", lock="backup", with_state=False, log_line=log_line)
            yield
        finally:
            await to_its_end(take_back(), name=f"end of the backup of {guest.label}")

    async def _begin(
        self, guest: GuestRuntime, name: str, description: str, *, lock: str, with_state: bool, log_line: LogLine
    ) -> None:
        """Make the volumes' parts; the record says `PREPARE`. After an error the removal's `undo` is called for."""
        record = guest.stored.record
        parts = await parts_of(guest, record.config, self._storage, check=True)
        state_slot, engine = _where_memory_goes(guest, parts, with_state=with_state, log_line=log_line)
        of_slot = dict(guest_config.snapshot_volumes(guest.kind, guest.guest_id, record.config))
        kept = SnapshotRecord(
            config=guest_config.snapshot_config(record.config),
            snaptime=self._clock.now(),
            description=description,
            parent=record.config.get("parent", ""),
            state=PREPARE,
            vmstate=str(of_slot[state_slot]) if state_slot else "",
            state_engine=engine,
        )
        locked = record.config | {"lock": lock}
        await self._records.write(guest, config=locked, snapshots={**record.snapshots, name: kept})
        async with standing_still(guest, log_line):
            for volume in parts.volumes:
                log_line(f"keeping {volume}")
                backend = self._storage.backend(volume.storage)
                await backend.snapshot(volume, name, in_use=guest.running is not None)
            if guest.running is not None and parts.open_slots:
                log_line(f"keeping {', '.join(parts.open_slots)}{' and its memory' if state_slot else ''}")
                await guest.running.snapshot_disks(name, parts.open_slots, state_slot=state_slot or None)


def _where_memory_goes(guest: GuestRuntime, parts: Parts, *, with_state: bool, log_line: LogLine) -> tuple[str, str]:
    """(slot, engine) of the image that keeps the memory; empty ones for none. Raises `Unsupported`."""
    if not with_state or guest.kind is GuestKind.LXC:
        return "", ""
    if guest.running is None:
        log_line("it does not run: there is no memory to keep")
        return "", ""
    if not guest.running.state_engine:
        raise Unsupported(f"{guest.label}: its engine cannot keep a machine's memory in a snapshot (engine=qemu can)")
    if not parts.open_slots:
        raise Unsupported(f"{guest.label}: it has no qcow2 disk that could keep its memory")
    return parts.open_slots[0], guest.running.state_engine
