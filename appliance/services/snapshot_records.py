"""What is written of a guest's snapshots: their names, whether one may be made or returned to, their chain. No volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from appliance.errors import Conflict, InvalidParameter, NotFound
from appliance.events import EventBus, GuestConfigChanged
from appliance.model.guest import GuestState
from appliance.services import guest_config
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_records import SnapshotRecord
from appliance.services.guest_runtime import GuestRuntime

PREPARE, DELETE = "prepare", "delete"
"""States of a record whose volumes are being kept, or removed."""
CURRENT = "current"
TEMPORARY = "vzdump"
"""A snapshot that lasts as long as a backup reads it."""
SNAPSHOTS_LIMIT = 128


class SnapshotRecords:
    """Checks and changes the records. Who changes one holds the guest's lock; every change is a transaction."""

    def __init__(self, inventory: GuestInventory, events: EventBus) -> None:
        self._inventory = inventory
        self._events = events

    def returnable(self, guest: GuestRuntime, name: str) -> SnapshotRecord:
        """One that can be returned to. Raises `NotFound`, `Conflict`."""
        kept = whole(guest, name)
        self.check_template(guest)
        return kept

    def check_new(self, guest: GuestRuntime, name: str) -> None:
        """Raises `Conflict`, `InvalidParameter` where there can be no snapshot of that name."""
        self.check_template(guest)
        if name in (CURRENT, TEMPORARY):
            raise InvalidParameter({"snapname": f"'{name}' is a word of our own"})
        if name in guest.stored.record.snapshots:
            raise Conflict(f"{guest.label}: snapshot name '{name}' already used")
        if len(guest.stored.record.snapshots) >= SNAPSHOTS_LIMIT:
            raise Conflict(f"{guest.label}: it has {SNAPSHOTS_LIMIT} snapshots already")

    def check_template(self, guest: GuestRuntime) -> None:
        """Raises `Conflict` for a template."""
        if self._inventory.summary(guest).template:
            raise Conflict(f"{guest.label} is a template: it has no snapshots")

    async def write(self, guest: GuestRuntime, **changes: object) -> None:
        """Change fields of the guest's record, and tell."""
        await self._inventory.table.replace(guest.stored, **changes)
        self._events.publish(GuestConfigChanged(guest_id=guest.guest_id, kind=guest.kind))

    async def forget(self, guest: GuestRuntime, name: str) -> None:
        """The record goes; what came from it now comes from what it came from."""
        record = guest.stored.record
        gone = record.snapshots[name]
        rest = {
            each: msgspec.structs.replace(kept, parent=gone.parent) if kept.parent == name else kept
            for each, kept in record.snapshots.items()
            if each != name
        }
        config = without_lock(record.config)
        if config.get("parent") == name:
            config["parent"] = gone.parent
            config = {key: value for key, value in config.items() if key != "parent" or value}
        await self.write(guest, config=config, snapshots=rest)


def find(guest: GuestRuntime, name: str) -> SnapshotRecord:
    """Raises `NotFound`."""
    kept = guest.stored.record.snapshots.get(name)
    if kept is None:
        raise NotFound(f"{guest.label}: snapshot '{name}'")
    return kept


def whole(guest: GuestRuntime, name: str) -> SnapshotRecord:
    """One that holds everything. Raises `NotFound`, `Conflict` for one that is being made or removed."""
    kept = find(guest, name)
    if kept.state:
        raise Conflict(f"{guest.label}: snapshot '{name}' is incomplete: remove it")
    return kept


def without_lock(config: Mapping[str, str]) -> dict[str, str]:
    """The configuration of a guest that no operation has locked."""
    return {key: value for key, value in config.items() if key != "lock"}


def rows(guest: GuestRuntime) -> Sequence[dict[str, object]]:
    """PVE's list, oldest first; the last row is the present state, "current"."""
    record = guest.stored.record
    kept = [_row(name, each) for name, each in sorted(record.snapshots.items(), key=lambda each: each[1].snaptime)]
    current: dict[str, object] = {
        "name": CURRENT,
        "description": "You are here!",
        "digest": guest_config.digest(record.config),
        "running": int(guest.state is not GuestState.STOPPED),
    }
    if parent := record.config.get("parent"):
        current["parent"] = parent
    return [*kept, current]


def _row(name: str, kept: SnapshotRecord) -> dict[str, object]:
    row: dict[str, object] = {"name": name, "description": kept.description, "snaptime": int(kept.snaptime)}
    if kept.parent:
        row["parent"] = kept.parent
    if kept.vmstate:
        row["vmstate"] = 1
    if kept.state:
        row["snapstate"] = kept.state
    return row
