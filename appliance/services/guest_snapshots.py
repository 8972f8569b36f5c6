"""Snapshots of guests: all volumes and the configuration at one moment, kept under a name; the return to one; removal.

    create   record "prepare", lock=snapshot ─▶ volumes ─▶ record done, parent=NAME        interrupted: undone
    remove   record "delete", lock=snapshot-delete ─▶ volumes ─▶ record gone               interrupted: finished
    return   record returning=NAME, lock=rollback ─▶ volumes ─▶ configuration as it was    interrupted: finished

A guest that runs stands still while its volumes are kept. Images that an engine has open are the engine's to change; all
others the storage's. A running guest is ended before a return. Every change of a record is a transaction.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from appliance.clock import Clock
from appliance.errors import ApplianceError, Conflict, GuestFault, HostError, InvalidParameter, NotFound, Unsupported
from appliance.events import EventBus, GuestConfigChanged
from appliance.model.guest import GuestKind, GuestState, SavedState
from appliance.model.volume import VolumeFormat
from appliance.services import guest_config, lifecycle
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_records import SnapshotRecord
from appliance.services.guest_runner import EngineState, GuestRunner
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.ports import LogLine
from appliance.services.ports.running_guest import RunningGuest
from appliance.services.snapshot_parts import Parts, parts_of
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskHandle, TaskService
from appliance.tasks import to_its_end

log = logging.getLogger(__name__)

PREPARE, DELETE = "prepare", "delete"
CURRENT = "current"
TEMPORARY = "vzdump"
"""A snapshot that lasts as long as a backup reads it."""
SNAPSHOTS_LIMIT = 128
FREEZE_LIMIT_S = 10.0

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
        self._runner = runner
        self._storage = storage
        self._tasks = tasks
        self._events = events
        self._clock = clock

    # --- reading ------------------------------------------------------------------------------------------------------

    def list(self, kind: GuestKind, guest_id: int) -> Sequence[dict[str, object]]:
        """PVE's list, oldest first; the last row is the present state, "current"."""
        guest = self._inventory.get(guest_id, kind)
        record = guest.stored.record
        rows = [_row(name, kept) for name, kept in sorted(record.snapshots.items(), key=lambda each: each[1].snaptime)]
        current: dict[str, object] = {
            "name": CURRENT,
            "description": "You are here!",
            "digest": guest_config.digest(record.config),
            "running": int(guest.state is not GuestState.STOPPED),
        }
        if parent := record.config.get("parent"):
            current["parent"] = parent
        return [*rows, current]

    def config(self, kind: GuestKind, guest_id: int, name: str) -> dict[str, str]:
        """The configuration a snapshot keeps, with what is known of it. Raises `NotFound`."""
        kept = self._find(self._inventory.get(guest_id, kind), name)
        told = {"snaptime": str(int(kept.snaptime)), "description": kept.description, "parent": kept.parent}
        told["vmstate"], told["snapstate"] = kept.vmstate, kept.state
        return kept.config | {key: value for key, value in told.items() if value}

    async def possible(self, kind: GuestKind, guest_id: int) -> bool:
        """Whether a snapshot could be made now."""
        guest = self._inventory.get(guest_id, kind)
        try:
            self._check_template(guest)
            await self._parts(guest, guest.stored.record.config, check=True)
        except ApplianceError:
            return False
        return True

    # --- operations ---------------------------------------------------------------------------------------------------

    async def create(
        self, kind: GuestKind, guest_id: int, name: str, *, description: str, with_state: bool, user: str
    ) -> str:
        """Returns the task's UPID. `with_state` keeps a running VM's memory, too (of one that does not run: ignored)."""
        guest = self._inventory.get(guest_id, kind)
        self._check_new(guest, name)
        await self._parts(guest, guest.stored.record.config, check=True)

        async def act(guest: GuestRuntime, task: TaskHandle) -> None:
            self._check_new(guest, name)
            await self._create(guest, name, description, with_state=with_state, log_line=task.log)

        return await self._task("snapshot", guest, user, act)

    async def roll_back(self, kind: GuestKind, guest_id: int, name: str, *, start: bool, user: str) -> str:
        """Returns the UPID. The guest is ended if it runs; it starts again with `start`, or when memory was kept."""
        guest = self._inventory.get(guest_id, kind)
        self._check_whole(guest, name)

        async def act(guest: GuestRuntime, task: TaskHandle) -> None:
            kept = self._check_whole(guest, name)
            if guest.state is not GuestState.STOPPED:
                task.log("stopping it")
                await self._runner.stop(guest)
            # whole, whoever interrupts: half of it would be of no use to anybody
            await to_its_end(self._roll_back(guest, name, task.log), name=f"return {guest.label} to {name}")
            if kept.vmstate:
                await self._runner.launch(guest, task.log, state=self._state(guest, name, kept))
            elif start:
                await self._runner.launch(guest, task.log)

        return await self._task("rollback", guest, user, act, resuming="rollback")

    async def remove(self, kind: GuestKind, guest_id: int, name: str, *, force: bool, user: str) -> str:
        """Returns the UPID. With `force` the record goes even if a volume's snapshot cannot be removed."""
        guest = self._inventory.get(guest_id, kind)
        self._find(guest, name)

        async def act(guest: GuestRuntime, task: TaskHandle) -> None:
            self._find(guest, name)
            await self._remove(guest, name, force=force, task=task)

        return await self._task("delsnapshot", guest, user, act)

    async def describe(self, kind: GuestKind, guest_id: int, name: str, description: str | None, *, user: str) -> None:
        """Change a snapshot's description."""
        guest = self._inventory.get(guest_id, kind)
        async with guest.hold(f"snapshot {name} described by {user}"):
            kept = self._find(guest, name)
            changed = msgspec.structs.replace(kept, description=description or "")
            await self._write(guest, snapshots={**guest.stored.record.snapshots, name: changed})

    async def recover(self, guest: GuestRuntime) -> None:
        """Undo or finish what a crash interrupted. Called once it is known whether the guest runs."""
        record = guest.stored.record
        for name, kept in record.snapshots.items():
            if kept.state == PREPARE:
                log.warning("%s: snapshot '%s' was not finished, undoing it", guest.label, name)
                await self._undo(guest, name)
        await self.finish_removals(guest)
        if record.returning:
            log.warning("%s: the return to snapshot '%s' was interrupted, finishing it", guest.label, record.returning)
            await self._roll_back(guest, record.returning, log.info)

    async def finish_removals(self, guest: GuestRuntime) -> None:
        """Remove the snapshots whose removal is announced in the record. The caller holds the guest's lock."""
        for name, kept in guest.stored.record.snapshots.items():
            if kept.state == DELETE:
                log.info("%s: removing what is left of snapshot '%s'", guest.label, name)
                await self._drop_volumes(guest, name, kept)
                await self._forget(guest, name)

    # --- inside: making -----------------------------------------------------------------------------------------------

    async def _create(
        self, guest: GuestRuntime, name: str, description: str, *, with_state: bool, log_line: LogLine
    ) -> None:
        try:
            await self._begin(guest, name, description, lock="snapshot", with_state=with_state, log_line=log_line)
            record = guest.stored.record
            done = msgspec.structs.replace(record.snapshots[name], state="")
            await self._write(
                guest,
                config=_without_lock(record.config) | {"parent": name},
                snapshots={**record.snapshots, name: done},
            )
        except BaseException:
            await to_its_end(self._undo(guest, name), name=f"undo snapshot {name} of {guest.label}")
            raise

    async def _begin(
        self, guest: GuestRuntime, name: str, description: str, *, lock: str, with_state: bool, log_line: LogLine
    ) -> None:
        """Make the volumes' parts; the record says `PREPARE`. After an error `_undo` is called for."""
        record = guest.stored.record
        parts = await self._parts(guest, record.config, check=True)
        state_slot, engine = self._where_memory_goes(guest, parts, with_state=with_state, log_line=log_line)
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
        await self._write(guest, config=locked, snapshots={**record.snapshots, name: kept})
        async with self.standing_still(guest, log_line):
            for volume in parts.volumes:
                log_line(f"keeping {volume}")
                backend = self._storage.backend(volume.storage)
                await backend.snapshot(volume, name, in_use=guest.running is not None)
            if guest.running is not None and parts.open_slots:
                log_line(f"keeping {', '.join(parts.open_slots)}{' and its memory' if state_slot else ''}")
                await guest.running.snapshot_disks(name, parts.open_slots, state_slot=state_slot or None)

    @asynccontextmanager
    async def temporary(self, guest: GuestRuntime, log_line: LogLine) -> AsyncIterator[None]:
        """A snapshot `TEMPORARY` for as long as somebody reads it; the guest goes on, its configuration locked ("backup").

        A crash meanwhile is an unfinished snapshot, which the next start undoes. Raises what making one raises.
        """

        async def take_back() -> None:
            async with self._own(guest, "end of the backup"):
                await self._undo(guest, TEMPORARY)

        try:
            async with guest.hold("backup"):
                self._inventory.require_unlocked(guest)
                await self._begin(guest, TEMPORARY, "", lock="backup", with_state=False, log_line=log_line)
            yield
        finally:
            await to_its_end(take_back(), name=f"end of the backup of {guest.label}")

    @asynccontextmanager
    async def _own(self, guest: GuestRuntime, what: str) -> AsyncIterator[None]:
        async with guest.hold(what):
            guest.own_lock = True
            try:
                yield
            finally:
                guest.own_lock = False

    def _where_memory_goes(
        self, guest: GuestRuntime, parts: Parts, *, with_state: bool, log_line: LogLine
    ) -> tuple[str, str]:
        """(slot, engine) of the image that keeps the memory; empty ones for none. Raises `Unsupported`."""
        if not with_state or guest.kind is GuestKind.LXC:
            return "", ""
        if guest.running is None:
            log_line("it does not run: there is no memory to keep")
            return "", ""
        if not guest.running.state_engine:
            raise Unsupported(
                f"{guest.label}: its engine cannot keep a machine's memory in a snapshot (engine=qemu can)"
            )
        if not parts.open_slots:
            raise Unsupported(f"{guest.label}: it has no qcow2 disk that could keep its memory")
        return parts.open_slots[0], guest.running.state_engine

    @asynccontextmanager
    async def standing_still(self, guest: GuestRuntime, log_line: LogLine) -> AsyncIterator[None]:
        """Hold a running guest, its file systems flushed where its agent can do that; it goes on whatever happens."""
        running = guest.running
        if running is None or guest.state is not GuestState.RUNNING:
            yield
            return
        thaw = await self._freeze(guest, running, log_line)
        try:
            await running.pause()
            try:
                yield
            finally:
                await to_its_end(self._resume(guest, running), name=f"resume {guest.label}")
        finally:
            if thaw is not None:
                await to_its_end(thaw(), name=f"thaw {guest.label}")

    @staticmethod
    async def _resume(guest: GuestRuntime, running: RunningGuest) -> None:
        try:
            await running.resume()
        except ApplianceError as error:  # it may have ended meanwhile; else somebody must know
            log.error("%s: going on after a snapshot: %s", guest.label, error)

    @staticmethod
    async def _freeze(
        guest: GuestRuntime, running: RunningGuest, log_line: LogLine
    ) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """Have the guest agent flush and hold the file systems; how to let them go, None when that was not done."""
        agent: Callable[..., Awaitable[object]] | None = getattr(running, "agent", None)
        if agent is None or not _has_agent(guest.stored.record.config):
            return None

        async def thaw() -> None:
            try:
                await agent("fsfreeze-thaw")
            except ApplianceError as error:
                log.error("%s: its file systems stay frozen: %s", guest.label, error)

        try:
            async with asyncio.timeout(FREEZE_LIMIT_S):
                await agent("fsfreeze-freeze")
        except (GuestFault, HostError, TimeoutError) as error:
            log_line(f"its agent did not flush its file systems ({error}): the snapshot is as after a power cut")
            await thaw()
            return None
        return thaw

    async def _undo(self, guest: GuestRuntime, name: str) -> None:
        """Take back a snapshot that was not finished; one that was just finished stays."""
        kept = guest.stored.record.snapshots.get(name)
        if kept is not None and kept.state == PREPARE:
            await self._drop_volumes(guest, name, kept)
            await self._forget(guest, name)

    # --- inside: returning --------------------------------------------------------------------------------------------

    async def _roll_back(self, guest: GuestRuntime, name: str, log_line: LogLine) -> None:
        kept = self._find(guest, name)
        if guest.state is not GuestState.STOPPED:
            raise Conflict(f"{guest.label} is running: it cannot return to snapshot '{name}'")
        record = guest.stored.record
        await self._write(guest, config=record.config | {"lock": "rollback"}, returning=name)
        for volume in (await self._parts(guest, kept.config)).volumes:
            log_line(f"returning {volume}")
            await self._storage.backend(volume.storage).roll_back(volume, name)
        config = guest_config.rolled_back(
            guest.kind,
            guest.guest_id,
            _without_lock(guest.stored.record.config),
            kept.config,
            name=name,
            new_uuid=None if kept.vmstate else uuid.uuid4,
        )
        await self._write(guest, config=config, returning="", grow=[])

    def _state(self, guest: GuestRuntime, name: str, kept: SnapshotRecord) -> EngineState:
        named = guest_config.snapshot_volumes(guest.kind, guest.guest_id, kept.config)
        slots = tuple(slot for slot, volume in named if volume.name.endswith(f".{VolumeFormat.QCOW2}"))
        slot = next(slot for slot, volume in named if str(volume) == kept.vmstate)
        return EngineState(engine=kept.state_engine, saved=SavedState(name=name, slot=slot, slots=slots))

    # --- inside: removing ---------------------------------------------------------------------------------------------

    async def _remove(self, guest: GuestRuntime, name: str, *, force: bool, task: TaskHandle) -> None:
        record = guest.stored.record
        if not force:
            await self._check_removal(guest, name)
        kept = msgspec.structs.replace(record.snapshots[name], state=DELETE)
        locked = record.config | {"lock": "snapshot-delete"}
        try:
            await self._write(guest, config=locked, snapshots={**record.snapshots, name: kept})
            await self._drop_volumes(guest, name, kept)
        except BaseException as error:
            if not (force and isinstance(error, ApplianceError)):
                await to_its_end(self._unlock(guest), name=f"unlock {guest.label}")
                raise
            task.warn(str(error))
        await to_its_end(self._forget(guest, name), name=f"forget snapshot {name} of {guest.label}")

    async def _check_removal(self, guest: GuestRuntime, name: str) -> None:
        """Before anything is touched: of several volumes a later one may refuse. Raises `Conflict`."""
        for volume in (await self._parts(guest, guest.stored.record.snapshots[name].config)).volumes:
            with suppress(NotFound):
                await self._storage.backend(volume.storage).check_snapshot_removal(volume, name)

    async def _unlock(self, guest: GuestRuntime) -> None:
        await self._write(guest, config=_without_lock(guest.stored.record.config))

    async def _drop_volumes(self, guest: GuestRuntime, name: str, kept: SnapshotRecord) -> None:
        parts = await self._parts(guest, kept.config)
        if guest.running is not None and parts.open_slots:
            await guest.running.drop_disk_snapshots(name, parts.open_slots)
        for volume in parts.volumes:
            try:
                await self._storage.backend(volume.storage).delete_snapshot(volume, name)
            except NotFound:
                continue

    async def _forget(self, guest: GuestRuntime, name: str) -> None:
        """The record goes; what came from it now comes from what it came from."""
        record = guest.stored.record
        gone = record.snapshots[name]
        rest = {
            each: msgspec.structs.replace(kept, parent=gone.parent) if kept.parent == name else kept
            for each, kept in record.snapshots.items()
            if each != name
        }
        config = _without_lock(record.config)
        if config.get("parent") == name:
            config["parent"] = gone.parent
            config = {key: value for key, value in config.items() if key != "parent" or value}
        await self._write(guest, config=config, snapshots=rest)

    # --- inside: all --------------------------------------------------------------------------------------------------

    async def _parts(self, guest: GuestRuntime, config: Mapping[str, str], *, check: bool = False) -> Parts:
        return await parts_of(guest, config, self._storage, check=check)

    def _find(self, guest: GuestRuntime, name: str) -> SnapshotRecord:
        kept = guest.stored.record.snapshots.get(name)
        if kept is None:
            raise NotFound(f"{guest.label}: snapshot '{name}'")
        return kept

    def _check_whole(self, guest: GuestRuntime, name: str) -> SnapshotRecord:
        kept = self._find(guest, name)
        if kept.state:
            raise Conflict(f"{guest.label}: snapshot '{name}' is incomplete: remove it")
        self._check_template(guest)
        return kept

    def _check_new(self, guest: GuestRuntime, name: str) -> None:
        self._check_template(guest)
        if name in (CURRENT, TEMPORARY):
            raise InvalidParameter({"snapname": f"'{name}' is a word of our own"})
        if name in guest.stored.record.snapshots:
            raise Conflict(f"{guest.label}: snapshot name '{name}' already used")
        if len(guest.stored.record.snapshots) >= SNAPSHOTS_LIMIT:
            raise Conflict(f"{guest.label}: it has {SNAPSHOTS_LIMIT} snapshots already")

    def _check_template(self, guest: GuestRuntime) -> None:
        if self._inventory.summary(guest).template:
            raise Conflict(f"{guest.label} is a template: it has no snapshots")

    async def _write(self, guest: GuestRuntime, **changes: object) -> None:
        await self._inventory.table.replace(guest.stored, **changes)
        self._events.publish(GuestConfigChanged(guest_id=guest.guest_id, kind=guest.kind))

    async def _task(self, word: str, guest: GuestRuntime, user: str, act: Act, *, resuming: str = "") -> str:
        """As a task under the guest's lock. A `lock` that says `resuming` is an earlier one that failed half-way."""

        def check() -> None:
            skip = bool(resuming) and guest.stored.record.config.get("lock") == resuming
            self._inventory.require_unlocked(guest, skip=skip)

        async def work(task: TaskHandle) -> None:
            async with guest.hold(f"{word} by {user}", log=task.log):
                check()
                guest.own_lock = True
                try:
                    await act(guest, task)
                finally:
                    guest.own_lock = False

        check()
        return await self._tasks.run(
            lifecycle.task_type(word, guest.kind), object_id=str(guest.guest_id), user=user, work=work
        )


def _row(name: str, kept: SnapshotRecord) -> dict[str, object]:
    row: dict[str, object] = {"name": name, "description": kept.description, "snaptime": int(kept.snaptime)}
    if kept.parent:
        row["parent"] = kept.parent
    if kept.vmstate:
        row["vmstate"] = 1
    if kept.state:
        row["snapstate"] = kept.state
    return row


def _without_lock(config: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in config.items() if key != "lock"}


def _has_agent(config: Mapping[str, str]) -> bool:
    text = config.get("agent", "")
    return bool(text) and guest_config.parse_one(GuestKind.QEMU, "agent", text).get("enabled") == "1"
