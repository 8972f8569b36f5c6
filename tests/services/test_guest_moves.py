"""Volumes moved to another storage: the guest uses the old one or the new one, never neither, and nothing is left over."""

from __future__ import annotations

import msgspec
import pytest

from appliance.errors import Conflict, HostError, InvalidParameter, NoSpace, Unsupported
from appliance.model.guest import GuestKind, GuestState, VmDisk
from appliance.services.guest_moves import Move
from appliance.services.guest_records import decode, encode
from appliance.state.store import Put
from tests.fakes.engines import FakeMirrors
from tests.fakes.guest_host import ADMIN, GuestHost, GuestWorld, open_world

VM, CT = GuestKind.QEMU, GuestKind.LXC


async def move(world: GuestWorld, kind: GuestKind = CT, slot: str = "rootfs", *, delete: bool = False) -> str:
    order = Move(slot=slot, storage="big", delete=delete)
    return await world.guests.moves.start(kind, 101 if kind is CT else 100, order, user=ADMIN)


def volumes(world: GuestWorld) -> tuple[list[str], list[str]]:
    """What the two storages hold of guests."""
    local = [name for name in world.host.volumes.names() if "vztmpl" not in name]
    return local, world.host.big.names()


async def test_a_stopped_container_moves_and_keeps_the_old_volume_as_unused(world: GuestWorld) -> None:
    await world.make_ct()
    await world.succeed(await move(world))
    config, _ = world.guests.config(101)
    assert config["rootfs"] == "big:101/vm-101-disk-0.raw,size=4G"
    assert config["unused0"] == "local:101/vm-101-disk-0.raw"
    ((live, _, copy),) = world.host.provisioner.copies
    assert (live, copy.passes) == (False, 1)
    assert world.state(101) is GuestState.STOPPED


async def test_a_running_container_stands_for_the_last_pass_only(world: GuestWorld) -> None:
    run = await world.make_ct(start=True)
    await world.succeed(await move(world, delete=True))
    ((live, _, copy),) = world.host.provisioner.copies
    assert (live, copy.passes) == (True, 3)
    assert run is not None
    assert run.asked == ["shutdown"]
    assert world.state(101) is GuestState.RUNNING
    assert volumes(world) == ([], ["big:101/vm-101-disk-0.raw"])
    assert "unused0" not in world.guests.config(101)[0]


@pytest.mark.parametrize("failing", [1, 2, 3])
async def test_a_pass_that_fails_leaves_the_container_as_it_was(world: GuestWorld, failing: int) -> None:
    await world.make_ct(start=True)
    world.host.provisioner.failing_pass = failing
    assert "no space" in await world.fail(await move(world))
    assert volumes(world) == (["local:101/vm-101-disk-0.raw"], [])
    assert world.guests.config(101)[0]["rootfs"].startswith("local:")
    await world.reaches(101, GuestState.RUNNING)


@pytest.mark.parametrize("steps", range(0, 60, 4))
async def test_a_cancelled_move_has_happened_or_not(world: GuestWorld, steps: int) -> None:
    await world.make_ct(start=True)
    upid = await move(world)
    await world.cancel_after(upid, steps)
    config, _ = world.guests.config(101)
    moved = config["rootfs"].startswith("big:")
    local, big = volumes(world)
    assert (local, big) == (["local:101/vm-101-disk-0.raw"], ["big:101/vm-101-disk-0.raw"] if moved else [])
    assert ("unused0" in config) == moved
    await world.reaches(101, GuestState.RUNNING)


@pytest.mark.parametrize("steps", range(12))
async def test_a_move_cancelled_at_its_beginning_leaves_no_mark(world: GuestWorld, steps: int) -> None:
    await world.make_vm()
    upid = await move(world, VM, "scsi0")
    await world.cancel_after(upid, steps)
    document = await world.host.store.get("guests/100")
    assert document is not None
    assert decode(document.key, document.value).moving is None


async def test_a_vm_of_an_engine_that_does_not_mirror_moves_while_it_is_off(
    world: GuestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(FakeMirrors, "mirroring")
    await world.make_vm(start=True)
    with pytest.raises(Unsupported, match="off"):
        await move(world, VM, "scsi0")
    await world.succeed(await world.guests.power.stop(VM, 100, user=ADMIN))
    await world.succeed(await move(world, VM, "scsi0", delete=True))
    assert volumes(world) == ([], ["big:100/vm-100-disk-0.qcow2"])


OLD_DISK, NEW_DISK = "local:100/vm-100-disk-0.qcow2", "big:100/vm-100-disk-0.qcow2"


@pytest.mark.parametrize("delete", [False, True])
async def test_a_running_vm_does_not_notice_that_its_disk_moves(world: GuestWorld, *, delete: bool) -> None:
    run = await world.make_vm(start=True)
    assert run is not None
    await world.succeed(await move(world, VM, "scsi0", delete=delete))
    config, _ = world.guests.config(100)
    assert config["scsi0"] == f"{NEW_DISK},size=8G"
    assert config.get("unused0") == (None if delete else OLD_DISK)
    assert volumes(world) == ([] if delete else [OLD_DISK], [NEW_DISK])
    disk = run.attached["scsi0"]
    assert isinstance(disk, VmDisk)
    assert disk.volume == NEW_DISK
    assert (run.asked, world.state(100)) == ([], GuestState.RUNNING)
    assert world.guests.configuration.pending(VM, 100) == []


async def test_what_else_waits_for_a_moved_disk_still_does(world: GuestWorld) -> None:
    await world.make_vm(start=True)
    slower = {"scsi0": f"{OLD_DISK},cache=writeback"}
    await world.guests.configuration.update(VM, 100, put=slower, delete=(), digest=None, user=ADMIN)
    (before,) = world.guests.configuration.pending(VM, 100)
    await world.succeed(await move(world, VM, "scsi0"))
    (after,) = world.guests.configuration.pending(VM, 100)
    assert before.running is not None
    assert before.configured is not None
    assert after.running == before.running.replace("local:", "big:")
    assert after.configured == before.configured.replace("local:", "big:")


@pytest.mark.parametrize("failing", ["copy_fails", "cannot_switch"])
async def test_a_mirror_that_fails_leaves_the_vm_on_its_old_disk(world: GuestWorld, failing: str) -> None:
    run = await world.make_vm(start=True)
    setattr(run, failing, NoSpace("vm 100: scsi0: No space left on device"))
    assert "No space" in await world.fail(await move(world, VM, "scsi0", delete=True))
    assert volumes(world) == ([OLD_DISK], [])
    config, _ = world.guests.config(100)
    assert (config["scsi0"], config.get("unused0")) == (f"{OLD_DISK},size=8G", None)
    assert world.state(100) is GuestState.RUNNING
    assert world.guests.configuration.pending(VM, 100) == []


async def test_a_switch_that_nobody_knows_of_loses_neither_disk(world: GuestWorld) -> None:
    run = await world.make_vm(start=True)
    assert run is not None
    run.unknown = True
    await world.succeed(await move(world, VM, "scsi0", delete=True))
    assert volumes(world) == ([OLD_DISK], [NEW_DISK])
    assert world.guests.config(100)[0]["unused0"] == OLD_DISK


@pytest.mark.parametrize("steps", range(0, 60, 4))
async def test_a_cancelled_mirror_has_switched_or_not(world: GuestWorld, steps: int) -> None:
    run = await world.make_vm(start=True)
    assert run is not None
    upid = await move(world, VM, "scsi0")
    await world.cancel_after(upid, steps)
    config, _ = world.guests.config(100)
    moved = config["scsi0"].startswith("big:")
    assert volumes(world) == ([OLD_DISK], [NEW_DISK] if moved else [])
    disk = run.attached["scsi0"]
    assert isinstance(disk, VmDisk)
    assert disk.volume == (NEW_DISK if moved else OLD_DISK)


async def test_a_stop_does_not_wait_for_a_disk_that_moves(world: GuestWorld) -> None:
    run = await world.make_vm(start=True)
    assert run is not None
    run.may_copy.clear()
    upid = await move(world, VM, "scsi0")
    await world.succeed(await world.guests.power.stop(VM, 100, user=ADMIN))
    assert "overruled by a stop" in await world.fail(upid)
    assert volumes(world) == ([OLD_DISK], [])
    assert world.guests.config(100)[0]["scsi0"].startswith(OLD_DISK)


@pytest.mark.parametrize("moment", ["copying", "taken over", "taken over, cannot switch"])
async def test_a_mirror_that_a_crash_interrupted_ends_as_the_configuration_says(host: GuestHost, moment: str) -> None:
    async with open_world(host) as world:
        run = await world.make_vm(start=True)
        assert run is not None
    host.big.put("100/vm-100-disk-0.qcow2", guest_id=100, size_bytes=8 << 30)
    document = await host.store.get("guests/100")
    assert document is not None
    record = msgspec.structs.replace(decode("guests/100", document.value), moving=[OLD_DISK])
    if moment != "copying":
        config = record.config | {"scsi0": f"{NEW_DISK},size=8G", "unused0": OLD_DISK}
        started = (record.started or {}) | {"scsi0": f"{NEW_DISK},size=8G"}
        record = msgspec.structs.replace(record, config=config, started=started)
    if "cannot" in moment:
        run.cannot_switch = HostError("the job has failed")
    await host.store.txn([], [Put("guests/100", encode(record))])
    async with open_world(host) as world:
        switched = moment == "taken over"
        assert run.settled == [{} if moment == "copying" else {"scsi0": NEW_DISK}]
        assert volumes(world) == ([OLD_DISK], [NEW_DISK] if switched else [])
        config, _ = world.guests.config(100)
        assert config["scsi0"] == f"{NEW_DISK if switched else OLD_DISK},size=8G"
        assert config.get("unused0") == (OLD_DISK if switched else None)
        assert world.guests.configuration.pending(VM, 100) == []
    async with open_world(host):
        assert len(run.settled) == 1, "it is settled once"


async def test_what_makes_no_sense_is_refused_at_once(world: GuestWorld) -> None:
    await world.make_ct()
    for slot, storage in (("mp0", "big"), ("rootfs", "local"), ("rootfs", "isos"), ("hostname", "big")):
        with pytest.raises(InvalidParameter):
            await world.guests.moves.start(CT, 101, Move(slot=slot, storage=storage), user=ADMIN)
    await world.succeed(
        await world.guests.snapshots.create(CT, 101, "one", description="", with_state=False, user=ADMIN)
    )
    with pytest.raises(Conflict, match="snapshot 'one'"):
        await move(world)


async def test_a_crash_leaves_the_old_volume_in_use_and_the_new_one_nowhere(host: GuestHost) -> None:
    async with open_world(host) as world:
        await world.make_ct()
    document = await host.store.get("guests/101")
    assert document is not None
    record = decode("guests/101", document.value)
    record = msgspec.structs.replace(record, moving=["local:101/vm-101-disk-0.raw"])
    await host.store.txn([], [Put("guests/101", encode(record))])
    host.big.put("101/vm-101-disk-0.raw", guest_id=101)
    async with open_world(host) as world:
        assert volumes(world) == (["local:101/vm-101-disk-0.raw"], [])
