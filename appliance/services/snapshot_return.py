"""A guest becomes what it was: record returning=NAME, lock=rollback ─▶ volumes ─▶ configuration as it was; then it may start."""

from __future__ import annotations

import uuid

from appliance.errors import Conflict
from appliance.model.guest import GuestState, SavedState
from appliance.model.volume import VolumeFormat
from appliance.services import guest_config
from appliance.services.guest_records import SnapshotRecord
from appliance.services.guest_runner import EngineState, GuestRunner
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.ports import LogLine
from appliance.services.snapshot_parts import parts_of
from appliance.services.snapshot_records import SnapshotRecords, find, without_lock
from appliance.services.storage import StorageService
from appliance.tasks import to_its_end


class SnapshotReturn:
    """Each with the guest's lock held."""

    def __init__(self, *, records: SnapshotRecords, runner: GuestRunner, storage: StorageService) -> None:
        self._records = records
        self._runner = runner
        self._storage = storage

    async def to(self, guest: GuestRuntime, name: str, *, start: bool, log_line: LogLine) -> None:
        """The guest is ended if it runs; it starts again with `start`, or when memory was kept."""
        kept = self._records.returnable(guest, name)
        if guest.state is not GuestState.STOPPED:
            log_line("stopping it")
            await self._runner.stop(guest)
        # whole, whoever interrupts: half of it would be of no use to anybody
        await to_its_end(self.roll_back(guest, name, log_line), name=f"return {guest.label} to {name}")
        if kept.vmstate:
            await self._runner.launch(guest, log_line, state=_saved_state(guest, name, kept))
        elif start:
            await self._runner.launch(guest, log_line)

    async def roll_back(self, guest: GuestRuntime, name: str, log_line: LogLine) -> None:
        """Volumes and configuration of a stopped guest; may be repeated after an interruption. Raises `Conflict`."""
        kept = find(guest, name)
        if guest.state is not GuestState.STOPPED:
            raise Conflict(f"{guest.label} is running: it cannot return to snapshot '{name}'")
        record = guest.stored.record
        await self._records.write(guest, config=record.config | {"lock": "rollback"}, returning=name)
        for volume in (await parts_of(guest, kept.config, self._storage)).volumes:
            log_line(f"returning {volume}")
            await self._storage.backend(volume.storage).roll_back(volume, name)
        config = guest_config.rolled_back(
            guest.kind,
            guest.guest_id,
            without_lock(guest.stored.record.config),
            kept.config,
            name=name,
            new_uuid=None if kept.vmstate else uuid.uuid4,
        )
        await self._records.write(guest, config=config, returning="", grow=[])


def _saved_state(guest: GuestRuntime, name: str, kept: SnapshotRecord) -> EngineState:
    named = guest_config.snapshot_volumes(guest.kind, guest.guest_id, kept.config)
    slots = tuple(slot for slot, volume in named if volume.name.endswith(f".{VolumeFormat.QCOW2}"))
    slot = next(slot for slot, volume in named if str(volume) == kept.vmstate)
    return EngineState(engine=kept.state_engine, saved=SavedState(name=name, slot=slot, slots=slots))
