"""A guest restored over: it is the old one or the new one, whatever fails and whenever it ends; nothing is left over."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.errors import Conflict, HostError, InvalidParameter
from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.model.volume import ContentType, VolumeId
from appliance.services.guest_records import IDMAPS, GuestRecord, decode, encode
from appliance.state.store import Put
from tests.fakes.guest_host import ADMIN, GuestHost, GuestWorld, open_world

VM, CT = GuestKind.QEMU, GuestKind.LXC
OLD_DISK, NEW_DISK = "local:100/vm-100-disk-0.qcow2", "local:100/vm-100-disk-1.qcow2"
OLD_ROOT, NEW_ROOT = "local:101/vm-101-disk-0.raw", "local:101/vm-101-disk-1.raw"
VM_BACKUP = "name: saved\nmemory: 1024\nscsi0: local:100/vm-100-disk-0.qcow2,size=8G\n"
CT_BACKUP = "hostname: saved\nunprivileged: 1\nrootfs: local:101/vm-101-disk-0.raw,size=4G\n"


async def restore(
    world: GuestWorld, kind: GuestKind = VM, saved: str = "", *, start: bool = False, **asked: str
) -> str:
    """The UPID of restoring a backup that says `saved` over the guest."""
    guest_id = 100 if kind is VM else 101
    volume = world.host.back_up(kind, guest_id, saved or (VM_BACKUP if kind is VM else CT_BACKUP))
    plan = await world.guests.restores.plan(kind, volume, asked, storage=None, unique=False)
    return await world.guests.replacements.start(GuestId(guest_id), plan, user=ADMIN, start=start)


def volumes(world: GuestWorld) -> list[str]:
    """What there is of guests."""
    made = {ContentType.IMAGES, ContentType.ROOTDIR}
    return sorted(str(volume) for volume, info in world.host.volumes.infos.items() if info.content in made)


async def snapshot(world: GuestWorld, name: str, kind: GuestKind = VM) -> None:
    guest_id = 100 if kind is VM else 101
    await world.succeed(
        await world.guests.snapshots.create(kind, guest_id, name, description="", with_state=False, user=ADMIN)
    )


async def test_a_vm_becomes_what_the_backup_says_and_its_old_disk_goes(world: GuestWorld) -> None:
    await world.make_vm(name="mine", cores="4")
    await world.succeed(await restore(world))
    config, _ = world.guests.config(100)
    assert (config["name"], config["memory"], "cores" in config) == ("saved", "1024", False)
    assert config["scsi0"] == f"{NEW_DISK},size=8G"
    assert volumes(world) == [NEW_DISK]
    assert not [key for key in config if key.startswith("unused")]
    assert world.state(100) is GuestState.STOPPED


async def test_a_container_becomes_what_the_backup_says_and_keeps_its_pool_and_its_user_ids(world: GuestWorld) -> None:
    await world.make_ct(hostname="mine")
    await world.host.pools.set_pool(GuestId(101), "office")
    before = await record(world.host, 101)
    await world.succeed(await restore(world, CT, start=True))
    config, _ = world.guests.config(101)
    assert (config["hostname"], config["rootfs"]) == ("saved", f"{NEW_ROOT},size=4G")
    assert volumes(world) == [NEW_ROOT]
    assert [path.name for path, _ in world.host.provisioner.filled] == ["vm-101-disk-1.raw"]
    assert world.host.pools.members == {101: "office"}
    assert (await record(world.host, 101)).id_base == before.id_base
    assert world.state(101) is GuestState.RUNNING


async def test_what_the_backup_does_not_have_stays_as_unused(world: GuestWorld) -> None:
    await world.make_vm(scsi1="local:1", ide2="local:cloudinit")
    await world.make_ct(mp0="local:1,mp=/srv")
    vm, ct = [volume for volume in volumes(world) if "disk-1" in volume]
    await world.succeed(await restore(world))
    await world.succeed(await restore(world, CT, f"{CT_BACKUP}mp0: local:101/vm-101-disk-1.raw,mp=/srv,size=1G\n"))
    assert world.guests.config(100)[0]["unused0"] == vm
    config, _ = world.guests.config(101)
    assert config["unused0"] == ct
    assert config["mp0"].startswith("local:101/vm-101-disk-3.raw,mp=/srv")
    assert not [volume for volume in volumes(world) if "cloudinit" in volume]


async def test_a_disk_that_the_request_keeps_is_not_filled_and_not_unused(world: GuestWorld) -> None:
    await world.make_vm(scsi1="local:1")
    kept = "local:100/vm-100-disk-1.qcow2"
    saved = f"{VM_BACKUP}scsi1: local:100/vm-100-disk-1.qcow2,size=1G\n"
    await world.succeed(await restore(world, VM, saved, scsi1=kept))
    config, _ = world.guests.config(100)
    assert config["scsi1"].startswith(kept)
    assert "unused0" not in config


async def test_snapshots_are_lost_and_leave_nothing_in_the_disks_that_stay(world: GuestWorld) -> None:
    await world.make_vm(scsi1="local:1")
    for name in ("one", "two"):
        await snapshot(world, name)
    await world.succeed(await restore(world))
    assert [row["name"] for row in world.guests.snapshots.list(VM, 100)] == ["current"]
    config, _ = world.guests.config(100)
    assert not {"parent", "lock"} & config.keys()
    kept = VolumeId.parse(config["unused0"])
    assert world.host.volumes.kept[kept] == {}


@pytest.mark.parametrize("kind", [VM, CT])
async def test_a_restoration_that_fails_leaves_the_guest_exactly_as_it_was(world: GuestWorld, kind: GuestKind) -> None:
    await world.make_vm(description="mine")
    await world.make_ct(description="mine")
    guest_id = 100 if kind is VM else 101
    await snapshot(world, "one", kind)
    before, there = await record(world.host, guest_id), volumes(world)
    world.host.provisioner.failure = HostError("the archive is damaged")
    assert "damaged" in await world.fail(await restore(world, kind))
    assert await record(world.host, guest_id) == before
    assert volumes(world) == there
    world.host.provisioner.failure = None
    await world.succeed(await restore(world, kind))


async def test_a_full_storage_leaves_the_guest_exactly_as_it_was(world: GuestWorld) -> None:
    await world.make_vm()
    saved = VM_BACKUP + "scsi1: local:100/vm-100-disk-1.qcow2,size=8G\n"
    before, there = await record(world.host, 100), volumes(world)
    world.host.volumes.full_after = 1
    assert "no space" in await world.fail(await restore(world, VM, saved))
    assert (await record(world.host, 100), volumes(world)) == (before, there)


@pytest.mark.parametrize("steps", range(0, 90, 3))
async def test_a_cancelled_restoration_has_happened_or_not(world: GuestWorld, steps: int) -> None:
    await world.make_vm(name="mine")
    await snapshot(world, "one")
    upid = await restore(world)
    await world.cancel_after(upid, steps)
    config, _ = world.guests.config(100)
    happened = config["name"] == "saved"
    assert config["scsi0"].startswith(NEW_DISK if happened else OLD_DISK)
    assert volumes(world) == [NEW_DISK if happened else OLD_DISK]
    assert [row["name"] for row in world.guests.snapshots.list(VM, 100)] == [*(() if happened else ("one",)), "current"]
    assert (await record(world.host, 100)).moving is None


@pytest.mark.parametrize("kind", [VM, CT])
async def test_a_kill_at_any_step_leaves_the_old_guest_or_the_new_one_after_the_next_start(
    tmp_path: Path, kind: GuestKind
) -> None:
    """Every state of the store between two writes, with the volumes there were then, is what a kill may leave."""
    host = GuestHost(tmp_path)
    guest_id = 100 if kind is VM else 101
    left: list[tuple[bytes, dict[VolumeId, object]]] = []
    async with open_world(host) as world:
        await world.make_vm(scsi1="local:1", name="mine")
        await world.make_ct(mp0="local:1,mp=/srv", hostname="mine")
        await snapshot(world, "one", kind)
        upid = await restore(world, kind)
        ended = asyncio.ensure_future(world.end_of(upid))
        while not ended.done():
            await asyncio.sleep(0)
            document = await host.store.get(f"guests/{guest_id}")
            assert document is not None
            left.append((document.value, dict(host.volumes.infos)))
        assert (await ended).status == "OK"
    seen = set()
    for value, infos in left:
        host.volumes.infos = dict(infos)  # type: ignore[arg-type]  # what it was
        await host.store.txn([], [Put(f"guests/{guest_id}", value)])
        async with open_world(host) as world:
            config, _ = world.guests.config(guest_id, kind)
            name = config["name" if kind is VM else "hostname"]
            seen.add(name)
            disks = sorted(text.partition(",")[0] for key, text in config.items()
                           if key.startswith(("scsi", "rootfs", "mp", "unused")) and ":" in text)  # fmt: skip
            mine = [volume for volume in volumes(world) if f":{guest_id}/" in volume]
            assert disks == mine, "each volume is named, and each that is named is there"
            assert (await record(host, guest_id)).moving is None
            snapshots = [row["name"] for row in world.guests.snapshots.list(kind, guest_id)]
            assert snapshots == (["one", "current"] if name == "mine" else ["current"])
    assert seen == {"mine", "saved"}
    await host.store.close()


async def test_an_old_volume_that_cannot_be_removed_stays_as_unused(world: GuestWorld) -> None:
    await world.make_vm()
    world.host.volumes.stuck.add(VolumeId.parse(OLD_DISK))
    status = (await world.end_of(await restore(world))).status or ""
    assert status.startswith("WARNINGS")
    assert world.guests.config(100)[0]["unused0"] == OLD_DISK


async def test_a_running_protected_or_cloned_guest_is_not_restored_over(world: GuestWorld) -> None:
    await world.make_vm(start=True)
    with pytest.raises(Conflict, match="running"):
        await restore(world)
    await world.succeed(await world.guests.power.stop(VM, 100, user=ADMIN))
    await world.guests.configuration.update(VM, 100, put={"protection": "1"}, delete=(), digest=None, user=ADMIN)
    with pytest.raises(Conflict, match="protection"):
        await restore(world)
    await world.guests.configuration.update(VM, 100, put={}, delete=["protection"], digest=None, user=ADMIN)
    await world.succeed(await world.guests.configuration.make_template(VM, 100, user=ADMIN))
    await world.succeed(
        await world.guests.creation.clone(
            VM, 100, new_id=105, name=None, full=False, storage=None, pool=None, user=ADMIN
        )
    )
    assert "linked clone" in await world.fail(await restore(world))
    assert world.guests.config(100)[0]["scsi0"].startswith(OLD_DISK)


async def test_a_start_that_comes_meanwhile_waits_and_starts_what_was_restored(world: GuestWorld) -> None:
    await world.make_ct()
    world.host.provisioner.may_finish.clear()
    world.host.provisioner.begun.clear()
    upid = await restore(world, CT)
    await world.host.provisioner.begun.wait()
    started = await world.guests.power.start(CT, 101, user=ADMIN)
    world.host.provisioner.may_finish.set()
    await world.succeed(upid)
    await world.succeed(started)
    assert world.guests.config(101)[0]["hostname"] == "saved"
    assert world.state(101) is GuestState.RUNNING


async def test_nothing_is_unpacked_into_a_volume_that_is_there(world: GuestWorld) -> None:
    await world.make_ct()
    with pytest.raises(InvalidParameter, match="new volume") as refused:
        await restore(world, CT, rootfs=OLD_ROOT)
    assert list(refused.value.errors) == ["rootfs"]


async def test_a_range_of_user_ids_comes_and_goes_with_the_restored_configuration(world: GuestWorld) -> None:
    await world.make_ct()
    reserved, _ = await world.host.store.range(IDMAPS)
    assert len(reserved) == 1
    await world.succeed(await restore(world, CT, CT_BACKUP.replace("unprivileged: 1", "unprivileged: 0")))
    assert (await record(world.host, 101)).id_base == 0
    assert (await world.host.store.range(IDMAPS))[0] == []
    await world.succeed(await restore(world, CT))
    assert (await record(world.host, 101)).id_base > 0
    assert [document.value for document in (await world.host.store.range(IDMAPS))[0]] == [b"101"]


async def record(host: GuestHost, guest_id: int) -> GuestRecord:
    """The guest's record as stored."""
    document = await host.store.get(f"guests/{guest_id}")
    assert document is not None
    found = decode(document.key, document.value)
    assert encode(found) == document.value
    return found
