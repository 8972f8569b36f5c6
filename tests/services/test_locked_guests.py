"""A guest whose configuration has `lock` is left alone: every operation says so, in PVE's words, unless told to skip it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.errors import Conflict, Unsupported
from appliance.events import EventBus
from appliance.model.guest import GuestId, GuestKind
from appliance.services import lifecycle
from appliance.services.guest_records import GuestRecord, GuestTable
from appliance.services.guest_runner import Engines
from appliance.services.guests import GuestService
from appliance.tasks import TaskScope
from tests.fakes.clock import FakeClock
from tests.fakes.services import NODE, FakeTasks
from tests.fakes.store import FakeStore

VM, CT = (GuestKind.QEMU, 100), (GuestKind.LXC, 101)
USER = "admin@pve"


class Bare:
    """A host with no volumes, no consoles and no ports."""

    def backends(self) -> Sequence[object]:
        return ()

    async def guest_stopped(self, guest_id: GuestId) -> None: ...

    async def unplug(self, guest_id: GuestId) -> None: ...

    def on_learned(self, heard: Callable[[GuestId], None]) -> None: ...


@pytest.fixture
async def guests(tmp_path: Path) -> AsyncIterator[GuestService]:
    """VM 100 is being backed up, container 101 has a disk moved, as their configurations say."""
    store, clock, events = FakeStore(), FakeClock(), EventBus()
    table = GuestTable(store)
    for (kind, guest_id), lock in ((VM, "backup"), (CT, "disk")):
        config = {"lock": lock, "memory": "64"}
        if kind is GuestKind.LXC:
            config |= {"rootfs": "local:101/vm-101-disk-0.raw,size=1G", "hostname": "ct"}
        record = GuestRecord(guest_id=guest_id, kind=kind, node=NODE, config=config, created_at=0)
        await table.insert(record, own_id_range=False)
    bare, nothing = cast(Any, Bare()), cast(Any, SimpleNamespace())
    scope = TaskScope("test")
    service = GuestService(
        store=store,
        events=events,
        clock=clock,
        tasks=cast(Any, FakeTasks(events, clock)),
        access=nothing,
        storage=bare,
        network=bare,
        consoles=bare,
        engines=Engines(vm=(), ct=nothing),
        provisioner=nothing,
        node=NODE,
        scope=scope,
        new_mac=lambda used: "BC:24:11:00:00:01",
    )
    await service._inventory.load()
    yield service
    await scope.close()


Operation = Callable[[GuestService, GuestKind, int], Awaitable[object]]
OPERATIONS: dict[str, Operation] = {
    "start": lambda guests, kind, vmid: guests.power.start(kind, vmid, user=USER),
    "stop": lambda guests, kind, vmid: guests.power.stop(kind, vmid, user=USER),
    "shutdown": lambda guests, kind, vmid: guests.power.shutdown(kind, vmid, user=USER),
    "reboot": lambda guests, kind, vmid: guests.power.reboot(kind, vmid, user=USER),
    "suspend": lambda guests, kind, vmid: guests.power.suspend(kind, vmid, user=USER),
    "resume": lambda guests, kind, vmid: guests.power.resume(kind, vmid, user=USER),
    "destroy": lambda guests, kind, vmid: guests.creation.destroy(kind, vmid, user=USER),
    "clone": lambda guests, kind, vmid: guests.creation.clone(kind, vmid, new_id=200, user=USER),
    "template": lambda guests, kind, vmid: guests.configuration.make_template(kind, vmid, user=USER),
    "config": lambda guests, kind, vmid: guests.configuration.update(
        kind, vmid, put={"description": "x"}, delete=(), digest=None, user=USER
    ),
    "another lock": lambda guests, kind, vmid: guests.configuration.update(
        kind, vmid, put={"lock": "migrate"}, delete=(), digest=None, user=USER
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_every_operation_on_a_locked_guest_is_a_conflict_in_pves_words(guests: GuestService, name: str) -> None:
    before = [guests.config(guest_id)[0] for _, guest_id in (VM, CT)]
    for (kind, guest_id), words in ((VM, r"VM 100 is locked \(backup\)"), (CT, r"CT 101 is locked \(disk\)")):
        with pytest.raises(Conflict, match=words):
            await OPERATIONS[name](guests, kind, guest_id)
    assert [guests.config(guest_id)[0] for _, guest_id in (VM, CT)] == before
    assert [view.guest_id for view in guests._inventory] == [100, 101]


async def test_resizing_a_locked_guests_disk_is_a_conflict(guests: GuestService) -> None:
    with pytest.raises(Conflict, match=r"CT 101 is locked \(disk\)"):
        await guests.configuration.resize(*CT, slot="rootfs", size="+1G", user=USER)


async def test_the_lock_is_skipped_on_demand(guests: GuestService) -> None:
    await guests.power.stop(*VM, skip_lock=True, user=USER)
    with pytest.raises(Unsupported, match="no engine"):
        await guests.power.start(*VM, skip_lock=True, user=USER)
    await guests.configuration.update(*VM, put={"description": "x"}, delete=(), digest=None, skip_lock=True, user=USER)
    assert guests.config(100)[0]["description"] == "x"


async def test_a_lock_is_deleted_and_then_gone(guests: GuestService) -> None:
    await guests.configuration.update(*VM, put={}, delete=("lock",), digest=None, user=USER)
    assert "lock" not in guests.config(100)[0]
    await guests.power.stop(*VM, user=USER)


def test_without_a_lock_nothing_is_refused() -> None:
    lifecycle.require_unlocked(GuestKind.QEMU, GuestId(100), {"name": "x"})
    lifecycle.require_unlocked(GuestKind.QEMU, GuestId(100), {"lock": "backup"}, skip=True)
