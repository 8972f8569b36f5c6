"""Snapshots of guests: all volumes and the configuration at one moment, or nothing, whatever fails and whenever it ends."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from appliance.errors import Conflict, HostError, InvalidParameter, NotFound, Unsupported
from appliance.model.guest import GuestKind, GuestState, VmResources
from appliance.model.volume import VolumeId
from appliance.services.guest_records import decode, encode
from appliance.state.store import Put
from tests.fakes.guest_host import ADMIN, GuestHost, GuestWorld, open_world

VM, CT = GuestKind.QEMU, GuestKind.LXC
DISK = VolumeId.parse("local:100/vm-100-disk-0.qcow2")
DISK_1 = VolumeId.parse("local:100/vm-100-disk-1.qcow2")
ROOT = VolumeId.parse("local:101/vm-101-disk-0.raw")


async def snapshot(
    world: GuestWorld, name: str = "one", kind: GuestKind = VM, *, with_state: bool = False, description: str = ""
) -> str:
    guest_id = 100 if kind is VM else 101
    return await world.guests.snapshots.create(
        kind, guest_id, name, description=description, with_state=with_state, user=ADMIN
    )


async def roll_back(world: GuestWorld, name: str = "one", kind: GuestKind = VM, *, start: bool = False) -> str:
    return await world.guests.snapshots.roll_back(kind, 100 if kind is VM else 101, name, start=start, user=ADMIN)


async def remove(world: GuestWorld, name: str = "one", *, force: bool = False) -> str:
    return await world.guests.snapshots.remove(VM, 100, name, force=force, user=ADMIN)


def rows(world: GuestWorld, kind: GuestKind = VM) -> list[tuple[object, object]]:
    """(name, parent) of each row."""
    listed = world.guests.snapshots.list(kind, 100 if kind is VM else 101)
    return [(row["name"], row.get("parent")) for row in listed]


async def test_a_snapshot_keeps_every_volume_and_the_configuration(world: GuestWorld) -> None:
    await world.make_vm(scsi1="local:1", description="the guest's", cores="2")
    await world.succeed(await snapshot(world, description="before the update"))
    assert set(world.host.volumes.kept) == {DISK, DISK_1}
    kept = world.guests.snapshots.config(VM, 100, "one")
    assert (kept["cores"], kept["description"]) == ("2", "before the update")
    assert rows(world) == [("one", None), ("current", "one")]
    config, _ = world.guests.config(100)
    assert "lock" not in config
    assert config["description"] == "the guest's"


async def test_snapshots_form_a_chain_that_a_removal_closes(world: GuestWorld) -> None:
    await world.make_vm()
    for name in ("one", "two", "three"):
        await world.host.clock.advance(1)
        await world.succeed(await snapshot(world, name))
    await world.succeed(await roll_back(world, "two"))
    assert rows(world) == [("one", None), ("two", "one"), ("three", "two"), ("current", "two")]
    await world.succeed(await remove(world, "two"))
    assert rows(world) == [("one", None), ("three", "one"), ("current", "one")]
    await world.succeed(await remove(world, "one"))
    assert rows(world) == [("three", None), ("current", None)]


async def test_a_return_brings_back_volumes_and_configuration(world: GuestWorld) -> None:
    await world.make_vm(cores="2")
    await world.succeed(await snapshot(world))
    await world.guests.configuration.update(
        VM, 100, put={"cores": "4", "scsi1": "local:1", "description": "new notes"}, delete=[], digest=None, user=ADMIN
    )
    await world.succeed(await world.guests.configuration.resize(VM, 100, slot="scsi0", size="16G", user=ADMIN))
    generation = world.guests.config(100)[0]["vmgenid"]
    await world.succeed(await roll_back(world, start=True))
    config, _ = world.guests.config(100)
    assert (config["cores"], config["description"]) == ("2", "new notes")
    assert config["scsi0"].endswith("size=8G")
    assert config["unused0"] == str(DISK_1)
    assert config["vmgenid"] != generation
    assert world.host.volumes.returned == [(DISK, "one")]
    assert world.state(100) is GuestState.RUNNING


async def test_a_running_guest_is_ended_before_it_returns(world: GuestWorld) -> None:
    run = await world.make_ct(start=True)
    await world.succeed(await snapshot(world, kind=CT))
    await world.succeed(await roll_back(world, kind=CT))
    assert run is not None
    assert run.ended
    assert world.state(101) is GuestState.STOPPED


async def test_a_running_container_stands_still_meanwhile_and_goes_on(world: GuestWorld) -> None:
    await world.make_ct(start=True)
    await world.succeed(await snapshot(world, kind=CT))
    assert world.states(101)[-2:] == [GuestState.PAUSED, GuestState.RUNNING]
    assert ROOT in world.host.volumes.kept


async def test_a_running_vm_keeps_its_images_itself(world: GuestWorld) -> None:
    run = await world.make_vm(start=True, efidisk0="local:1")
    assert run is not None
    await world.succeed(await snapshot(world))
    assert run.kept == {"scsi0": {"one"}}
    assert list(world.host.volumes.kept) == [VolumeId.parse("local:100/vm-100-disk-0.raw")]
    assert world.state(100) is GuestState.RUNNING
    await world.succeed(await remove(world))
    assert run.kept == {"scsi0": set()}


async def test_a_disk_that_waits_for_the_next_start_is_the_storages(world: GuestWorld) -> None:
    run = await world.make_vm(start=True, hotplug="0")
    assert run is not None
    await world.guests.configuration.update(VM, 100, put={"scsi1": "local:1"}, delete=[], digest=None, user=ADMIN)
    await world.succeed(await snapshot(world))
    assert run.kept == {"scsi0": {"one"}}
    assert list(world.host.volumes.kept) == [DISK_1]


async def test_memory_is_kept_in_a_disk_and_gone_on_from(world: GuestWorld) -> None:
    run = await world.make_vm(start=True)
    assert run is not None
    run.state_engine = "qemu"
    await world.succeed(await snapshot(world, with_state=True))
    assert run.asked == ["snapshot one memory in scsi0"]
    world.host.volumes.kept[DISK] = {"one": world.host.volumes.infos[DISK]}
    generation = world.guests.config(100)[0]["vmgenid"]
    await world.succeed(await roll_back(world))
    resources = world.host.vms.opened[-1]
    assert isinstance(resources, VmResources)
    assert resources.state is not None
    assert (resources.state.name, resources.state.slot, resources.state.slots) == ("one", "scsi0", ("scsi0",))
    assert world.state(100) is GuestState.RUNNING
    assert world.guests.config(100)[0]["vmgenid"] == generation


async def test_memory_that_cannot_be_kept_is_refused(world: GuestWorld) -> None:
    await world.make_vm(start=True)
    assert "engine=qemu" in await world.fail(await snapshot(world, with_state=True))
    assert rows(world) == [("current", None)]
    assert world.state(100) is GuestState.RUNNING


async def test_a_failure_takes_back_what_was_made(world: GuestWorld) -> None:
    await world.make_vm(scsi1="local:1")
    world.host.volumes.cannot_keep[DISK_1] = HostError("no space left")
    assert "no space" in await world.fail(await snapshot(world))
    assert not any(world.host.volumes.kept.values())
    assert rows(world) == [("current", None)]
    assert "lock" not in world.guests.config(100)[0]


async def test_a_failure_of_the_engine_takes_back_what_was_made(world: GuestWorld) -> None:
    run = await world.make_vm(start=True, efidisk0="local:1")
    assert run is not None
    run.cannot_keep = HostError("input/output error")
    await world.fail(await snapshot(world))
    assert not any(world.host.volumes.kept.values())
    assert world.state(100) is GuestState.RUNNING


async def test_what_cannot_be_kept_is_said_at_once(world: GuestWorld) -> None:
    await world.make_vm()
    world.host.volumes.cannot_keep[DISK] = Unsupported("raw volumes have none")
    with pytest.raises(Unsupported):
        await snapshot(world)
    assert not await world.guests.snapshots.possible(VM, 100)


async def test_names_are_taken_once_and_current_never(world: GuestWorld) -> None:
    await world.make_vm()
    await world.succeed(await snapshot(world))
    with pytest.raises(Conflict, match="already used"):
        await snapshot(world)
    with pytest.raises(InvalidParameter):
        await snapshot(world, "current")
    for operation in (roll_back, remove):
        with pytest.raises(NotFound):
            await operation(world, "never")


async def test_the_lock_is_seen_and_others_wait_for_it(world: GuestWorld) -> None:
    await world.make_vm()
    volumes, began, may_go_on = world.host.volumes, asyncio.Event(), asyncio.Event()
    keep = volumes.snapshot

    async def slow(volume_id: VolumeId, name: str, *, in_use: bool = False) -> None:
        began.set()
        await may_go_on.wait()
        await keep(volume_id, name, in_use=in_use)

    volumes.snapshot = slow  # type: ignore[method-assign]
    upid = await snapshot(world)
    await began.wait()
    assert world.guests.get(100).lock == "snapshot"
    start = await world.guests.power.start(VM, 100, user=ADMIN)
    assert world.state(100) is GuestState.STOPPED
    may_go_on.set()
    await world.succeed(upid)
    await world.succeed(start)


@pytest.mark.parametrize("steps", range(12))
async def test_a_cancelled_snapshot_is_whole_or_gone(world: GuestWorld, steps: int) -> None:
    await world.make_vm(scsi1="local:1")
    upid = await snapshot(world)
    for _ in range(steps * 3):
        await asyncio.sleep(0)
    await world.tasks.cancel(upid)
    await world.end_of(upid)
    held = [volume for volume, kept in world.host.volumes.kept.items() if kept]
    assert (rows(world), held) in (([("current", None)], []), ([("one", None), ("current", "one")], [DISK, DISK_1]))
    assert "lock" not in world.guests.config(100)[0]


async def test_a_volume_of_a_snapshot_is_not_removed(world: GuestWorld) -> None:
    await world.make_vm(scsi1="local:1")
    await world.succeed(await snapshot(world))
    await world.guests.configuration.update(VM, 100, put={}, delete=["scsi1"], digest=None, user=ADMIN)
    with pytest.raises(Conflict, match="belongs to snapshot 'one'"):
        await world.guests.configuration.update(VM, 100, put={}, delete=["unused0"], digest=None, user=ADMIN)
    assert DISK_1 in world.guests.named_volumes()
    await world.succeed(await remove(world))
    await world.guests.configuration.update(VM, 100, put={}, delete=["unused0"], digest=None, user=ADMIN)
    assert DISK_1 not in world.host.volumes.infos


async def test_everything_goes_with_the_guest(world: GuestWorld) -> None:
    await world.make_vm(scsi1="local:1")
    await world.succeed(await snapshot(world))
    await world.guests.configuration.update(VM, 100, put={}, delete=["scsi1"], digest=None, user=ADMIN)
    await world.succeed(await world.guests.creation.destroy(VM, 100, user=ADMIN))
    assert not [volume for volume in world.host.volumes.infos if "vm-100" in volume.name]


async def test_a_guest_with_snapshots_becomes_no_template(world: GuestWorld) -> None:
    await world.make_vm()
    await world.succeed(await snapshot(world))
    assert "snapshots" in await world.fail(await world.guests.configuration.make_template(VM, 100, user=ADMIN))
    await world.succeed(await remove(world))
    await world.succeed(await world.guests.configuration.make_template(VM, 100, user=ADMIN))
    with pytest.raises(Conflict, match="template"):
        await snapshot(world)


async def test_a_removal_that_fails_can_be_forced(world: GuestWorld) -> None:
    await world.make_vm()
    await world.succeed(await snapshot(world))
    world.host.volumes.stuck.add(DISK)
    assert "input/output" in await world.fail(await remove(world))
    assert "lock" not in world.guests.config(100)[0]
    with pytest.raises(Conflict, match="incomplete"):
        await roll_back(world)
    assert "WARNINGS" in (await world.end_of(await remove(world, force=True))).status  # type: ignore[operator]
    assert rows(world) == [("current", None)]


async def test_a_return_that_fails_stays_locked_until_it_succeeds(world: GuestWorld) -> None:
    await world.make_vm()
    await world.succeed(await snapshot(world))
    world.host.volumes.cannot_return.add(DISK)
    await world.fail(await roll_back(world))
    assert world.guests.get(100).lock == "rollback"
    with pytest.raises(Conflict, match="locked"):
        await world.guests.power.start(VM, 100, user=ADMIN)
    world.host.volumes.cannot_return.clear()
    await world.succeed(await roll_back(world))
    assert world.guests.get(100).lock is None


# --- after a crash ------------------------------------------------------------------------------------------------------


async def interrupt(host: GuestHost, **changes: object) -> None:
    """What a killed process leaves: the record of guest 100 with an operation under way."""
    document = await host.store.get("guests/100")
    assert document is not None
    record = msgspec.structs.replace(decode("guests/100", document.value), **changes)
    await host.store.txn([], [Put("guests/100", encode(record))])


async def prepared(host: GuestHost, *, start: bool = False) -> None:
    async with open_world(host) as world:
        await world.make_vm(start=start)
        await world.succeed(await snapshot(world))


@pytest.mark.parametrize("running", [False, True])
async def test_an_interrupted_snapshot_is_undone(host: GuestHost, *, running: bool) -> None:
    await prepared(host, start=running)
    await mark(host, "prepare", "snapshot")
    async with open_world(host) as world:
        assert rows(world) == [("current", None)]
        assert world.guests.get(100).lock is None
        run = world.run_of(100)
        assert run.kept["scsi0"] == set() if run else host.volumes.kept[DISK] == {}


async def test_an_interrupted_removal_is_finished(host: GuestHost) -> None:
    await prepared(host)
    await mark(host, "delete", "snapshot-delete")
    async with open_world(host) as world:
        assert rows(world) == [("current", None)]
        assert (host.volumes.kept[DISK], world.guests.get(100).lock) == ({}, None)


async def test_an_interrupted_return_is_finished(host: GuestHost) -> None:
    await prepared(host)
    document = await host.store.get("guests/100")
    assert document is not None
    config = decode("guests/100", document.value).config
    await interrupt(host, returning="one", config=config | {"lock": "rollback", "cores": "7"})
    async with open_world(host) as world:
        config, _ = world.guests.config(100)
        assert not {"cores", "lock"} & set(config)
        assert host.volumes.returned == [(DISK, "one")]


async def mark(host: GuestHost, state: str, lock: str) -> None:
    document = await host.store.get("guests/100")
    assert document is not None
    record = decode("guests/100", document.value)
    kept = msgspec.structs.replace(record.snapshots["one"], state=state)
    await interrupt(host, snapshots={"one": kept}, config=record.config | {"lock": lock})
