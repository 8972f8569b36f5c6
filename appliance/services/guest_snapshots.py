"""Snapshots of guests: all volumes and the configuration at one moment, kept under a name; the return to one; removal.

    create   record "prepare", lock=snapshot ─▶ volumes ─▶ record done, parent=NAME        interrupted: undone
    remove   record "delete", lock=snapshot-delete ─▶ volumes ─▶ record gone               interrupted: finished
    return   record returning=NAME, lock=rollback ─▶ volumes ─▶ configuration as it was    interrupted: finished

This is what may be asked of them, each as a task under the guest's lock. How it is done: `snapshot_making.py`,
`snapshot_removal.py`, `snapshot_return.py`; what is written of it: `snapshot_records.py`; whose a volume is: `snapshot_parts.py`.

A guest that runs stands still while its volumes are kept. Images that an engine has open are the engine's to change; all
others the storage's. A running guest is ended before a return. Every change of a record is a transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.events import EventBus
from appliance.model.guest import GuestKind
from appliance.services import lifecycle, snapshot_records
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_runner import GuestRunner
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.ports import LogLine
from appliance.services.snapshot_making import SnapshotMaking
from appliance.services.snapshot_parts import parts_of
from appliance.services.snapshot_records import PREPARE, SnapshotRecords
from appliance.services.snapshot_removal import SnapshotRemoval
from appliance.services.snapshot_return import SnapshotReturn
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskHandle, TaskService

log = logging.getLogger(__name__)

Act = Callable[[GuestRuntime, TaskHandle], Awaitable[None]]


class GuestSnapshots:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        inventory: GuestInventory,
        runner: GuestRunner,
        storage: StorageService,
        tasks: TaskService,
        events: EventBus,
        clock: Clock,
    ) -> None:
        self._inventory = inventory
        self._storage = storage
        self._tasks = tasks
        self._records = SnapshotRecords(inventory, events)
        self._removal = SnapshotRemoval(self._records, storage)
        self._making = SnapshotMaking(
            inventory=inventory, records=self._records, removal=self._removal, storage=storage, clock=clock
        )
        self._return = SnapshotReturn(records=self._records, runner=runner, storage=storage)

    # --- reading ------------------------------------------------------------------------------------------------------

    def list(self, kind: GuestKind, guest_id: int) -> Sequence[dict[str, object]]:
        """PVE's list, oldest first; the last row is the present state, "current"."""
        return snapshot_records.rows(self._inventory.get(guest_id, kind))

    def config(self, kind: GuestKind, guest_id: int, name: str) -> dict[str, str]:
        """The configuration a snapshot keeps, with what is known of it. Raises `NotFound`."""
        kept = snapshot_records.find(self._inventory.get(guest_id, kind), name)
        told = {"snaptime": str(int(kept.snaptime)), "description": kept.description, "parent": kept.parent}
        told["vmstate"], told["snapstate"] = kept.vmstate, kept.state
        return kept.config | {key: value for key, value in told.items() if value}

    async def possible(self, kind: GuestKind, guest_id: int) -> bool:
        """Whether a snapshot could be made now."""
        guest = self._inventory.get(guest_id, kind)
        try:
            self._records.check_template(guest)
            await parts_of(guest, guest.stored.record.config, self._storage, check=True)
        except ApplianceError:
            return False
        return True

    # --- operations ---------------------------------------------------------------------------------------------------

    async def create(
        self, kind: GuestKind, guest_id: int, name: str, *, description: str, with_state: bool, user: str
    ) -> str:
        """Returns the task's UPID. `with_state` keeps a running VM's memory, too (of one that does not run: ignored)."""
        guest = self._inventory.get(guest_id, kind)
        self._records.check_new(guest, name)
        await parts_of(guest, guest.stored.record.config, self._storage, check=True)

        async def act(guest: GuestRuntime, task: TaskHandle) -> None:
            self._records.check_new(guest, name)
            await self._making.make(guest, name, description, with_state=with_state, log_line=task.log)

        return await self._task("snapshot", guest, user, act)

    async def roll_back(self, kind: GuestKind, guest_id: int, name: str, *, start: bool, user: str) -> str:
        """Returns the UPID. The guest is ended if it runs; it starts again with `start`, or when memory was kept."""
        guest = self._inventory.get(guest_id, kind)
        self._records.returnable(guest, name)

        async def act(guest: GuestRuntime, task: TaskHandle) -> None:
            await self._return.to(guest, name, start=start, log_line=task.log)

        return await self._task("rollback", guest, user, act, resuming="rollback")

    async def remove(self, kind: GuestKind, guest_id: int, name: str, *, force: bool, user: str) -> str:
        """Returns the UPID. With `force` the record goes even if a volume's snapshot cannot be removed."""
        guest = self._inventory.get(guest_id, kind)
        snapshot_records.find(guest, name)

        async def act(guest: GuestRuntime, task: TaskHandle) -> None:
            snapshot_records.find(guest, name)
            await self._removal.remove(guest, name, force=force, task=task)

        return await self._task("delsnapshot", guest, user, act)

    async def describe(self, kind: GuestKind, guest_id: int, name: str, description: str | None, *, user: str) -> None:
        """Change a snapshot's description."""
        guest = self._inventory.get(guest_id, kind)
        async with guest.hold(f"snapshot {name} described by {user}"):
            kept = snapshot_records.find(guest, name)
            changed = msgspec.structs.replace(kept, description=description or "")
            await self._records.write(guest, snapshots={**guest.stored.record.snapshots, name: changed})

    def temporary(self, guest: GuestRuntime, log_line: LogLine) -> AbstractAsyncContextManager[None]:
        """See `SnapshotMaking.temporary`."""
        return self._making.temporary(guest, log_line)

    async def recover(self, guest: GuestRuntime) -> None:
        """Undo or finish what a crash interrupted. Called once it is known whether the guest runs."""
        record = guest.stored.record
        for name, kept in record.snapshots.items():
            if kept.state == PREPARE:
                log.warning("%s: snapshot '%s' was not finished, undoing it", guest.label, name)
                await self._removal.undo(guest, name)
        await self.finish_removals(guest)
        if record.returning:
            log.warning("%s: the return to snapshot '%s' was interrupted, finishing it", guest.label, record.returning)
            await self._return.roll_back(guest, record.returning, log.info)

    async def finish_removals(self, guest: GuestRuntime) -> None:
        """Remove the snapshots whose removal is announced in the record. The caller holds the guest's lock."""
        await self._removal.finish(guest)

    async def _task(self, word: str, guest: GuestRuntime, user: str, act: Act, *, resuming: str = "") -> str:
        """As a task under the guest's lock. A `lock` that says `resuming` is an earlier one that failed half-way."""

        def check() -> None:
            skip = bool(resuming) and guest.stored.record.config.get("lock") == resuming
            self._inventory.require_unlocked(guest, skip=skip)

        async def work(task: TaskHandle) -> None:
            async with guest.hold(f"{word} by {user}", log=task.log):
                check()
                with guest.locked_by_us():
                    await act(guest, task)

        check()
        return await self._tasks.run(
            lifecycle.task_type(word, guest.kind), object_id=str(guest.guest_id), user=user, work=work
        )
