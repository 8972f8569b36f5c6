"""All guests of this node in memory: the stored record, the runtime and the summary of each. No effects on guests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from appliance.clock import Clock
from appliance.model.guest import GuestId, GuestKind
from appliance.model.volume import VolumeId
from appliance.services import lifecycle
from appliance.services.guest_lock import GuestLock
from appliance.services.guest_records import GuestTable, StoredGuest, used_macs
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.guest_view import GuestSummary, summarize
from appliance.services.guest_volumes import volumes_in_use
from appliance.state.store import Store


class GuestInventory:
    """Looks guests up; one `GuestRuntime` a guest for as long as it is defined."""

    def __init__(self, store: Store, clock: Clock, new_mac: Callable[[frozenset[str]], str]) -> None:
        self.table = GuestTable(store)
        self._clock = clock
        self._new_mac = new_mac
        self._runtimes: dict[GuestId, GuestRuntime] = {}
        self._summaries: dict[GuestId, tuple[int, GuestSummary]] = {}

    async def load(self) -> None:
        """Read all guests from the store."""
        await self.table.load()
        for stored in self.table:
            self.add(stored)

    def __iter__(self) -> Iterator[GuestRuntime]:
        return iter(sorted(self._runtimes.values(), key=lambda guest: guest.guest_id))

    def __contains__(self, guest_id: object) -> bool:
        return guest_id in self._runtimes

    def get(self, guest_id: int, kind: GuestKind | None = None) -> GuestRuntime:
        """Raises `NotFound` when there is no such guest, or it is of the other kind."""
        stored = self.table.get(guest_id, kind)
        return self._runtimes[stored.guest_id]

    def find(self, guest_id: GuestId) -> GuestRuntime | None:
        """None when there is no such guest."""
        return self._runtimes.get(guest_id)

    def add(self, stored: StoredGuest) -> GuestRuntime:
        """Make the runtime of a guest that has just been stored."""
        label = f"{stored.kind.prefix} {stored.guest_id}"
        runtime = GuestRuntime(stored=stored, lock=GuestLock(label, self._clock))
        runtime.ended.set()
        self._runtimes[stored.guest_id] = runtime
        return runtime

    def drop(self, guest_id: GuestId) -> None:
        """Forget a guest whose record is gone."""
        runtime = self._runtimes.pop(guest_id, None)
        if runtime is not None:
            runtime.removed = True
        self._summaries.pop(guest_id, None)

    def summary(self, guest: GuestRuntime) -> GuestSummary:
        """What its configuration says, computed once a revision."""
        cached = self._summaries.get(guest.guest_id)
        if cached is None or cached[0] != guest.stored.revision:
            cached = (guest.stored.revision, summarize(guest.stored.record))
            self._summaries[guest.guest_id] = cached
        return cached[1]

    def require_unlocked(self, guest: GuestRuntime, *, skip: bool = False) -> None:
        """See `lifecycle.require_unlocked`. Called before an operation's task, and again once it holds the guest's lock.

        The first time a lock of this process's own is no refusal: the operation waits for the end of that one.
        """
        if guest.own_lock:
            return
        lifecycle.require_unlocked(guest.kind, guest.guest_id, guest.stored.record.config, skip=skip)

    def mac_source(self) -> Callable[[], str]:
        """Gives new MAC addresses, for one configuration: none that is in use, and none twice."""
        used = set(used_macs(self.table))

        def new() -> str:
            mac = self._new_mac(frozenset(used))
            used.add(mac.upper())
            return mac

        return new

    def volumes_of_others(self, guest_id: GuestId | None) -> frozenset[VolumeId]:
        """Every volume that a guest other than `guest_id` names, snapshots included; with None that any guest names."""
        return volumes_in_use(
            (stored.kind, config)
            for stored in self.table
            if stored.guest_id != guest_id
            for config in (stored.record.config, *(kept.config for kept in stored.record.snapshots.values()))
        )
