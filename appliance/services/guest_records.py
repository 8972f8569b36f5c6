"""Guests as documents: `guests/ID` holds the record, `idmaps/BASE` reserves a container's range of host user ids.

`GuestTable` keeps all records of the cluster in memory, written through: a change is in memory only once the store has
acknowledged it. Uniqueness of VMIDs and id ranges is the transaction's, never a matter of looking first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from appliance.errors import Conflict, HostError, NotFound
from appliance.model.guest import GuestId, GuestKind
from appliance.state.store import Absent, Condition, Delete, Operation, Put, RevisionIs, Store
from appliance.tasks import to_its_end

GUESTS = "guests/"
IDMAPS = "idmaps/"
ID_COUNT = 65_536
_FIRST_ID_BASE = 100_000
_ID_RANGES = 60_000


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A snapshot as stored: the configuration it keeps, where it comes from (`parent`), when it was made (epoch seconds).

    `state` names what is under way with it: "prepare" (its volumes' snapshots are being made: undone at the next start),
    "delete" (they are being removed: finished at the next start). `state_engine` is the engine that saved the machine's
    memory in it, in the volume `vmstate`; both empty when there is none.
    """

    config: dict[str, str]
    snaptime: float
    description: str = ""
    parent: str = ""
    state: str = ""
    vmstate: str = ""
    state_engine: str = ""


class GuestRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A guest as stored. `config` is PVE's flat dictionary of strings.

    `busy` names an operation ("create", "destroy") that the next start must undo or finish; `foreign_volumes` are those
    that carried this VMID before it was created, so that undoing never takes what was there already. `grow` are slots
    whose volume has grown while the container ran, on a host that could not grow the file system then. `returning` is the
    snapshot a return to which is under way: it is finished at the next start. `moving` are, while volumes are made beside
    others (a move, a restoration), those that stay in any case: the next start removes what else nobody names. `started`
    is the configuration of the last start: what a running guest runs with (`guest_config.pending`).
    """

    version: int = 1
    guest_id: int
    kind: str
    node: str
    config: dict[str, str]
    created_at: float
    id_base: int = 0
    id_count: int = ID_COUNT
    busy: str = ""
    foreign_volumes: list[str] = msgspec.field(default_factory=list)
    grow: list[str] = msgspec.field(default_factory=list)
    snapshots: dict[str, SnapshotRecord] = msgspec.field(default_factory=dict)
    returning: str = ""
    moving: list[str] | None = None
    started: dict[str, str] | None = None


@dataclass(slots=True)
class StoredGuest:
    """A record and the revision it was read at."""

    record: GuestRecord
    revision: int
    kind: GuestKind = field(init=False)
    guest_id: GuestId = field(init=False)

    def __post_init__(self) -> None:
        self.kind = GuestKind(self.record.kind)
        self.guest_id = GuestId(self.record.guest_id)


def encode(record: GuestRecord) -> bytes:
    """The document's bytes."""
    return msgspec.json.encode(record)


def decode(key: str, value: bytes) -> GuestRecord:
    """Raises `HostError` naming the document when it cannot be read."""
    try:
        record = msgspec.json.decode(value, type=GuestRecord)
    except msgspec.MsgspecError as error:
        raise HostError(f"document {key}: {error}") from error
    if record.version != 1:
        raise HostError(f"document {key}: version {record.version} was written by a newer appliance")
    return record


class GuestTable:
    """All guests' records, and the only writer of them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guests: dict[GuestId, StoredGuest] = {}

    async def load(self) -> None:
        """Read every record. Raises `HostError` naming a damaged document."""
        documents, _ = await self._store.range(GUESTS)
        self._guests = {
            GuestId(record.guest_id): StoredGuest(record, document.mod_revision)
            for document in documents
            for record in (decode(document.key, document.value),)
        }

    def __iter__(self) -> Iterator[StoredGuest]:
        return iter(sorted(self._guests.values(), key=lambda guest: guest.guest_id))

    def __contains__(self, guest_id: object) -> bool:
        return guest_id in self._guests

    def get(self, guest_id: int, kind: GuestKind | None = None) -> StoredGuest:
        """Raises `NotFound` when there is no such guest, or it is of the other kind."""
        guest = self._guests.get(GuestId(guest_id))
        if guest is None or (kind is not None and guest.kind is not kind):
            raise NotFound(f"{(kind or GuestKind.QEMU).prefix} {guest_id}")
        return guest

    def lowest_free_id(self, *, lower: int, upper: int) -> GuestId:
        """The lowest VMID from `lower` on, below `upper`, that nobody has now. Raises `Conflict` when there is none."""
        for candidate in range(lower, upper):
            if candidate not in self._guests:
                return GuestId(candidate)
        raise Conflict(f"unable to get any free VMID in range [{lower}, {upper}]")

    async def insert(self, record: GuestRecord, *, own_id_range: bool) -> StoredGuest:
        """Create the guest's document and, if asked, reserve its id range. Raises `Conflict` if the VMID is taken."""
        for base in self._free_id_bases() if own_id_range else (0,):
            placed = msgspec.structs.replace(record, id_base=base)
            key = f"{GUESTS}{record.guest_id}"
            then: list[Operation] = [Put(key, encode(placed))]
            when = [Absent(key)]
            if base:
                when.append(Absent(f"{IDMAPS}{base}"))
                then.append(Put(f"{IDMAPS}{base}", str(record.guest_id).encode()))
            result = await self._store.txn(when, then)
            if result.succeeded:
                return self._remember(placed, result.revision)
            if await self._store.get(key) is not None:
                raise Conflict(f"unable to create guest {record.guest_id}: VMID {record.guest_id} already exists")
        raise HostError(f"guest {record.guest_id}: no range of {ID_COUNT} user ids is free")

    async def replace(self, guest: StoredGuest, **changes: object) -> StoredGuest:
        """Write `changes` of the record. Raises `Conflict` when somebody else has changed the document meanwhile.

        Memory follows the store also when the caller is cancelled, and after a conflict.
        """
        record = msgspec.structs.replace(guest.record, **changes)
        return await to_its_end(self._replace(guest, record), name=f"write {GUESTS}{guest.guest_id}")

    async def exchange(self, guest: StoredGuest, *, own_id_range: bool, **changes: object) -> StoredGuest:
        """`replace`; in the same transaction a range of user ids is reserved or given back, as `own_id_range` says."""
        record = msgspec.structs.replace(guest.record, **changes)
        base = guest.record.id_base
        if own_id_range == bool(base):
            return await self.replace(guest, **changes)
        if base:
            record = msgspec.structs.replace(record, id_base=0)
            given_back = self._replace(guest, record, then=[Delete(f"{IDMAPS}{base}")])
            return await to_its_end(given_back, name=f"write {GUESTS}{guest.guest_id}")
        for free in self._free_id_bases():
            if await self._store.get(f"{IDMAPS}{free}") is None:
                record = msgspec.structs.replace(record, id_base=free)
                reserved = self._replace(
                    guest,
                    record,
                    when=[Absent(f"{IDMAPS}{free}")],
                    then=[Put(f"{IDMAPS}{free}", str(record.guest_id).encode())],
                )
                return await to_its_end(reserved, name=f"write {GUESTS}{guest.guest_id}")
        raise HostError(f"guest {record.guest_id}: no range of {ID_COUNT} user ids is free")

    async def _replace(
        self,
        guest: StoredGuest,
        record: GuestRecord,
        when: Sequence[Condition] = (),
        then: Sequence[Operation] = (),
    ) -> StoredGuest:
        key = f"{GUESTS}{record.guest_id}"
        result = await self._store.txn([RevisionIs(key, guest.revision), *when], [Put(key, encode(record)), *then])
        if not result.succeeded:
            document = await self._store.get(key)
            if document is not None:
                guest.record, guest.revision = decode(key, document.value), document.mod_revision
            raise Conflict(f"{guest.kind.prefix} {guest.guest_id}: its configuration was changed by somebody else")
        guest.record, guest.revision = record, result.revision
        return guest

    async def remove(self, guest: StoredGuest) -> None:
        """Delete the document and its id range. Raises `Conflict` like `replace`."""
        key = f"{GUESTS}{guest.guest_id}"
        then: list[Operation] = [Delete(key)]
        if guest.record.id_base:
            then.append(Delete(f"{IDMAPS}{guest.record.id_base}"))
        result = await self._store.txn([RevisionIs(key, guest.revision)], then)
        if not result.succeeded:
            raise Conflict(f"{guest.kind.prefix} {guest.guest_id}: its configuration was changed by somebody else")
        self._guests.pop(guest.guest_id, None)

    def _remember(self, record: GuestRecord, revision: int) -> StoredGuest:
        guest = StoredGuest(record, revision)
        self._guests[guest.guest_id] = guest
        return guest

    def _free_id_bases(self) -> Iterable[int]:
        taken = {guest.record.id_base for guest in self._guests.values()}
        bases = (_FIRST_ID_BASE + n * ID_COUNT for n in range(_ID_RANGES))
        return (base for base in bases if base not in taken)


def used_macs(guests: Iterable[StoredGuest]) -> frozenset[str]:
    """Every MAC address that any configuration mentions, in upper case."""
    return frozenset(mac for guest in guests for mac in _macs(guest.record.config))


def _macs(config: Mapping[str, str]) -> Iterator[str]:
    for key, value in config.items():
        if key.startswith("net") and key[3:].isdigit():
            for part in value.split(","):
                text = part.partition("=")[2].upper()
                if text.count(":") == 5:
                    yield text
