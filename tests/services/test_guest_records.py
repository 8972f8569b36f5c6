"""Rules of guests as documents: unique ids, own id ranges, no lost update."""

from __future__ import annotations

import asyncio

import pytest

from appliance.errors import Conflict, HostError, NotFound
from appliance.model.guest import GuestKind
from appliance.services.guest_records import GuestRecord, GuestTable, used_macs
from appliance.state.store import Put
from tests.fakes.store import FakeStore


def record(guest_id: int, kind: GuestKind = GuestKind.QEMU, **config: str) -> GuestRecord:
    return GuestRecord(guest_id=guest_id, kind=kind.value, node="n", config=config, created_at=0.0)


async def test_two_creations_of_one_vmid_cannot_both_succeed() -> None:
    store = FakeStore()
    one, two = GuestTable(store), GuestTable(store)
    results = await asyncio.gather(
        one.insert(record(100), own_id_range=False), two.insert(record(100), own_id_range=False), return_exceptions=True
    )
    assert sum(isinstance(result, Conflict) for result in results) == 1


async def test_containers_never_share_a_range_of_user_ids_even_when_created_by_two_tables() -> None:
    store = FakeStore()
    one, two = GuestTable(store), GuestTable(store)
    guests = await asyncio.gather(
        *(
            table.insert(record(n, GuestKind.LXC), own_id_range=True)
            for n, table in [(100, one), (101, two), (102, one)]
        )
    )
    bases = {guest.record.id_base for guest in guests}
    assert len(bases) == 3
    assert all(base % 65_536 == 100_000 % 65_536 for base in bases)


async def test_a_removed_container_gives_its_range_back() -> None:
    table = GuestTable(FakeStore())
    first = await table.insert(record(100, GuestKind.LXC), own_id_range=True)
    await table.remove(first)
    second = await table.insert(record(101, GuestKind.LXC), own_id_range=True)
    assert second.record.id_base == first.record.id_base


async def test_a_change_made_by_somebody_else_meanwhile_is_not_overwritten() -> None:
    store = FakeStore()
    one = GuestTable(store)
    guest = await one.insert(record(100), own_id_range=False)
    two = GuestTable(store)
    await two.load()
    await two.replace(two.get(100), config={"name": "theirs"})
    with pytest.raises(Conflict):
        await one.replace(guest, config={"name": "ours"})
    assert guest.record.config == {"name": "theirs"}
    await one.replace(guest, config={"name": "ours, with theirs known"})


async def test_a_writer_cancelled_half_way_still_knows_what_is_stored() -> None:
    store = FakeStore()
    table = GuestTable(store)
    guest = await table.insert(record(100), own_id_range=False)
    writing = asyncio.ensure_future(table.replace(guest, config={"name": "first"}))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert guest.record.config == {"name": "first"}
    await table.replace(guest, config={"name": "second"})


async def test_a_guest_of_the_other_kind_does_not_exist() -> None:
    table = GuestTable(FakeStore())
    await table.insert(record(100), own_id_range=False)
    with pytest.raises(NotFound, match="ct 100 does not exist"):
        table.get(100, GuestKind.LXC)


async def test_a_damaged_document_is_named() -> None:
    store = FakeStore()
    await store.txn([], [Put("guests/100", b"{")])
    with pytest.raises(HostError, match="guests/100"):
        await GuestTable(store).load()


async def test_macs_of_all_guests_are_found_in_any_spelling() -> None:
    table = GuestTable(FakeStore())
    await table.insert(record(100, net0="virtio=bc:24:11:00:00:01,bridge=vmbr0"), own_id_range=False)
    await table.insert(record(101, GuestKind.LXC, net0="name=eth0,hwaddr=BC:24:11:00:00:02"), own_id_range=False)
    assert used_macs(table) == {"BC:24:11:00:00:01", "BC:24:11:00:00:02"}
