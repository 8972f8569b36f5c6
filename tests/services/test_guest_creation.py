"""Creating, cloning and removing guests: whole or not at all, whatever fails, whoever interrupts, whenever it crashes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from appliance.errors import Conflict, HostError, InvalidParameter, NotFound
from appliance.model.guest import GuestKind, GuestState
from appliance.model.volume import ContentType, VolumeId
from appliance.services.guest_records import GuestRecord, encode
from appliance.state.store import Put, StoreFull
from tests.fakes.guest_host import ADMIN, TEMPLATE, GuestHost, GuestWorld, open_world

DISK_0, DISK_1 = "local:100/vm-100-disk-0.qcow2", "local:100/vm-100-disk-1.qcow2"


async def create_vm(world: GuestWorld, **config: str) -> str:
    return await world.guests.creation.create(
        GuestKind.QEMU, 100, {"scsi0": "local:8", "scsi1": "local:1"} | config, user=ADMIN, pool="office"
    )


async def create_ct(world: GuestWorld, guest_id: int = 101, *, start: bool = False) -> str:
    config = {"rootfs": "local:4", "net0": "name=eth0,bridge=vmbr0"}
    return await world.guests.creation.create(
        GuestKind.LXC, guest_id, config, user=ADMIN, start=start, template=TEMPLATE
    )


def nothing_is_left(world: GuestWorld, guest_id: int) -> bool:
    """No guest, no record, no id range, no volume, no membership."""
    documents = [key for key in world.host.store.documents if key.startswith(("guests/", "idmaps/"))]
    volumes = [name for name in world.host.volumes.names() if f"vm-{guest_id}-" in name]
    defined = any(view.guest_id == guest_id for view in world.guests.list())
    return not (documents or volumes or defined or guest_id in world.host.pools.members)


# --- creating -----------------------------------------------------------------------------------------------------------


async def test_a_created_vm_has_its_volumes_a_mac_and_its_pool(world: GuestWorld) -> None:
    await world.succeed(await create_vm(world, net0="virtio,bridge=vmbr0"))
    config, _ = world.guests.config(100)
    assert (config["scsi0"], config["scsi1"]) == (f"{DISK_0},size=8G", f"{DISK_1},size=1G")
    assert config["net0"].startswith("virtio=BC:24:11:")
    assert world.guests.get(100).pool == "office"
    assert world.guests.get(100).lock is None


@pytest.mark.parametrize("free_volumes", [0, 1])
async def test_a_creation_on_a_storage_that_fills_up_leaves_nothing(world: GuestWorld, free_volumes: int) -> None:
    world.host.volumes.full_after = free_volumes
    assert "no space left" in await world.fail(await create_vm(world))
    assert nothing_is_left(world, 100)


async def test_a_template_that_is_refused_leaves_nothing(world: GuestWorld) -> None:
    world.host.provisioner.failure = HostError("template: holds '../'")
    assert "holds '../'" in await world.fail(await create_ct(world))
    assert nothing_is_left(world, 101)


async def test_containers_in_directories_share_what_their_template_holds(world: GuestWorld) -> None:
    for guest_id in (101, 102):
        config = {"rootfs": "local:0"}
        upid = await world.guests.creation.create(
            GuestKind.LXC, guest_id, config, user=ADMIN, template=TEMPLATE, password="secret"
        )
        await world.succeed(upid)
    assert [path.name for path in world.host.provisioner.unpacked] == ["debian.tar.zst"]
    assert world.host.volumes.bases == ["debian.tar.zst"] * 2
    assert [bool(credentials.password_hash) for _, credentials in world.host.provisioner.populated] == [True, True]
    assert "subvol" in world.guests.config(101)[0]["rootfs"]


async def test_a_refused_template_leaves_no_directory(world: GuestWorld) -> None:
    world.host.provisioner.failure = HostError("template: holds '../'")
    upid = await world.guests.creation.create(GuestKind.LXC, 101, {"rootfs": "local:0"}, user=ADMIN, template=TEMPLATE)
    assert "holds '../'" in await world.fail(upid)
    assert nothing_is_left(world, 101)
    assert world.host.volumes.layers == []


@pytest.mark.parametrize("volume", ["nowhere:8", "isos:8"])
async def test_a_storage_that_cannot_hold_the_disk_leaves_nothing(world: GuestWorld, volume: str) -> None:
    assert volume.partition(":")[0] in await world.fail(await create_vm(world, scsi1=volume))
    assert nothing_is_left(world, 100)


async def test_a_disk_of_another_guest_is_refused_and_stays(world: GuestWorld) -> None:
    await world.make_vm(102)
    theirs = "local:102/vm-102-disk-0.qcow2"
    assert "used by another guest" in await world.fail(await create_vm(world, scsi1=theirs))
    assert nothing_is_left(world, 100) is False  # of 102 there is, and only of 102
    assert [view.guest_id for view in world.guests.list()] == [102]
    assert [name for name in world.host.volumes.names() if "vm-" in name] == [theirs]


async def test_a_pool_that_does_not_exist_leaves_nothing(world: GuestWorld) -> None:
    with pytest.raises(NotFound, match="pool 'nobodys'"):
        await world.guests.creation.create(GuestKind.QEMU, 100, {"scsi0": "local:8"}, user=ADMIN, pool="nobodys")
    assert nothing_is_left(world, 100)


async def test_a_full_disk_under_the_store_leaves_nothing(world: GuestWorld) -> None:
    world.host.store.fail_with(StoreFull("store: full"))
    with pytest.raises(StoreFull):
        await create_vm(world)
    world.host.store.fail_with(None)
    assert nothing_is_left(world, 100)


async def test_a_cancelled_creation_leaves_nothing_however_often_it_is_cancelled(world: GuestWorld) -> None:
    world.host.provisioner.may_finish.clear()
    upid = await create_ct(world)
    await world.host.provisioner.begun.wait()
    for _ in range(4):
        await world.tasks.cancel(upid)
        await asyncio.sleep(0)
    assert "interrupted" in await world.fail(upid)
    assert nothing_is_left(world, 101)


async def test_a_start_that_fails_does_not_undo_the_creation(world: GuestWorld) -> None:
    world.host.cts.failure = HostError("ct 101: no cgroups")
    assert "no cgroups" in await world.fail(await create_ct(world, start=True))
    assert world.state(101) is GuestState.STOPPED
    assert world.guests.get(101).lock is None


async def test_volumes_that_carried_the_id_before_survive_a_failed_creation(world: GuestWorld) -> None:
    before = world.host.volumes.put("100/vm-100-disk-7.qcow2", guest_id=100)
    world.host.volumes.full_after = 1
    await world.fail(await create_vm(world))
    assert [name for name in world.host.volumes.names() if "vm-100-" in name] == [str(before)]


async def test_two_creations_of_one_id_cannot_both_succeed(world: GuestWorld) -> None:
    results = await asyncio.gather(create_vm(world), create_vm(world), return_exceptions=True)
    refused = [result for result in results if isinstance(result, Conflict)]
    assert len(refused) == 1
    await world.succeed(next(result for result in results if isinstance(result, str)))
    assert [name for name in world.host.volumes.names() if "vm-100-" in name] == [DISK_0, DISK_1]


@pytest.mark.parametrize(
    ("config", "named"), [({"scsi0": "nonsense"}, "scsi0"), ({"cores": "many"}, "cores"), ({"colour": "red"}, "colour")]
)
async def test_wrong_parameters_are_named_before_anything_happens(
    world: GuestWorld, config: dict[str, str], named: str
) -> None:
    with pytest.raises(InvalidParameter) as refused:
        await world.guests.creation.create(GuestKind.QEMU, 100, config, user=ADMIN)
    assert named in refused.value.errors
    assert nothing_is_left(world, 100)


async def test_a_container_needs_a_template_that_is_one(world: GuestWorld) -> None:
    iso = world.host.volumes.put("iso/debian.iso", content=ContentType.ISO)
    for template in (None, str(iso)):
        with pytest.raises(InvalidParameter, match="ostemplate"):
            await world.guests.creation.create(GuestKind.LXC, 101, {}, user=ADMIN, template=template)
    assert nothing_is_left(world, 101)


async def test_what_is_asked_of_a_guest_while_it_is_made_waits_for_it(world: GuestWorld) -> None:
    world.host.provisioner.may_finish.clear()
    creating = await create_ct(world)
    assert world.guests.get(101).lock == "create"
    starting = await world.guests.power.start(GuestKind.LXC, 101, user=ADMIN)
    renaming = asyncio.ensure_future(
        world.guests.configuration.update(
            GuestKind.LXC, 101, put={"hostname": "dns"}, delete=(), digest=None, user=ADMIN
        )
    )
    await asyncio.sleep(0)
    world.host.provisioner.may_finish.set()
    await world.succeed(creating)
    await world.succeed(starting)
    await renaming
    assert world.guests.config(101)[0]["hostname"] == "dns"
    assert world.state(101) is GuestState.RUNNING


async def test_a_guest_removed_while_operations_waited_is_gone_for_all_of_them(world: GuestWorld) -> None:
    await world.make_vm()
    destroying = [await world.guests.creation.destroy(GuestKind.QEMU, 100, user=ADMIN) for _ in range(2)]
    resizing = await world.guests.configuration.resize(GuestKind.QEMU, 100, slot="scsi0", size="+1G", user=ADMIN)
    await world.succeed(destroying[0])
    again = await world.guests.creation.create(GuestKind.QEMU, 100, {"scsi0": "local:8"}, user=ADMIN)
    assert await world.fail(destroying[1]) == "vm 100 does not exist"
    assert await world.fail(resizing) == "vm 100 does not exist"
    await world.succeed(again)
    assert world.host.volumes.infos[VolumeId.parse(DISK_0)].size_bytes == 8 << 30


# --- after a crash ------------------------------------------------------------------------------------------------------


def interrupted(guest_id: int, busy: str, **config: str) -> Put:
    record = GuestRecord(
        guest_id=guest_id, kind="qemu", node="n", config=config, created_at=0.0, busy=busy,
        foreign_volumes=["local:100/vm-100-disk-7.qcow2"] if busy == "create" else [],
    )  # fmt: skip
    return Put(f"guests/{guest_id}", encode(record))


async def test_a_creation_that_a_crash_interrupted_is_undone_at_the_next_start(host: GuestHost) -> None:
    for number in (0, 7):
        host.volumes.put(f"100/vm-100-disk-{number}.qcow2", guest_id=100)
    await host.store.txn([], [interrupted(100, "create", scsi0="local:8")])
    async with open_world(host) as world:
        assert world.guests.list() == []
    assert "guests/100" not in host.store.documents
    assert [name for name in host.volumes.names() if "vm-" in name] == ["local:100/vm-100-disk-7.qcow2"]
    assert host.pools.forgotten == [100]


async def test_a_removal_that_a_crash_interrupted_is_finished_at_the_next_start(host: GuestHost) -> None:
    host.volumes.put("100/vm-100-disk-1.qcow2", guest_id=100)  # disk-0 is gone already
    await host.store.txn([], [interrupted(100, "destroy", scsi0=DISK_0, scsi1=DISK_1)])
    async with open_world(host) as world:
        assert nothing_is_left(world, 100)


async def test_one_guest_that_cannot_be_undone_does_not_keep_the_others_from_loading(host: GuestHost) -> None:
    stuck = host.volumes.put("100/vm-100-disk-0.qcow2", guest_id=100)
    host.volumes.stuck.add(stuck)
    await host.store.txn([], [interrupted(100, "destroy", scsi0=DISK_0), interrupted(102, "")])
    async with open_world(host) as world:
        assert [view.guest_id for view in world.guests.list()] == [100, 102]
        host.volumes.stuck.clear()
        await world.succeed(await world.guests.creation.destroy(GuestKind.QEMU, 100, user=ADMIN))
        assert [view.guest_id for view in world.guests.list()] == [102]


async def test_what_could_not_be_undone_is_refused_everything_but_its_removal(world: GuestWorld) -> None:
    world.host.provisioner.may_finish.clear()
    creating = await create_ct(world)
    await world.host.provisioner.begun.wait()
    world.host.store.fail_with(StoreFull("store: full"))
    world.host.provisioner.failure = HostError("unpacking failed")
    world.host.provisioner.may_finish.set()
    await world.fail(creating)
    world.host.store.fail_with(None)
    assert "not finished" in await world.fail(await world.guests.power.start(GuestKind.LXC, 101, user=ADMIN))
    await world.succeed(await world.guests.creation.destroy(GuestKind.LXC, 101, user=ADMIN))
    assert nothing_is_left(world, 101)


# --- removing -----------------------------------------------------------------------------------------------------------


async def test_a_removed_guest_takes_its_volumes_its_pool_and_its_id_range_along(world: GuestWorld) -> None:
    await world.succeed(await create_vm(world))
    await world.succeed(await world.guests.creation.destroy(GuestKind.QEMU, 100, user=ADMIN))
    assert nothing_is_left(world, 100)
    assert world.host.pools.forgotten == [100]


async def test_volumes_of_its_id_that_nobody_names_go_with_the_guest_only_when_asked(world: GuestWorld) -> None:
    await world.make_vm()
    await world.make_vm(102)
    stray = world.host.volumes.put("100/vm-100-disk-5.qcow2", guest_id=100)
    lent = world.host.volumes.put("100/vm-100-disk-6.qcow2", guest_id=100)
    await world.guests.configuration.update(
        GuestKind.QEMU, 102, put={"scsi1": str(lent)}, delete=(), digest=None, user=ADMIN
    )
    await world.succeed(await world.guests.creation.destroy(GuestKind.QEMU, 100, user=ADMIN))
    assert str(stray) in world.host.volumes.names()
    await world.make_vm()
    await world.succeed(await world.guests.creation.destroy(GuestKind.QEMU, 100, unreferenced=True, user=ADMIN))
    assert [name for name in world.host.volumes.names() if "vm-100-" in name] == [str(lent)]


async def test_running_and_protected_guests_are_not_removed(world: GuestWorld) -> None:
    await world.make_vm(start=True)
    await world.make_vm(102, protection="1")
    for guest_id in (100, 102):
        with pytest.raises(Conflict):
            await world.guests.creation.destroy(GuestKind.QEMU, guest_id, user=ADMIN)
    assert len(world.guests.list()) == 2


async def test_a_volume_that_cannot_be_removed_keeps_the_guest_which_can_be_removed_later(world: GuestWorld) -> None:
    await world.succeed(await create_vm(world))
    world.host.volumes.stuck.add(VolumeId.parse(DISK_0))
    assert "stays" in await world.fail(await world.guests.creation.destroy(GuestKind.QEMU, 100, user=ADMIN))
    assert world.guests.get(100).lock is None
    world.host.volumes.stuck.clear()
    await world.succeed(await world.guests.creation.destroy(GuestKind.QEMU, 100, user=ADMIN))
    assert nothing_is_left(world, 100)


# --- cloning and templates ----------------------------------------------------------------------------------------------


async def clone(world: GuestWorld, *, full: bool = True, storage: str | None = None, new_id: int = 200) -> str:
    return await world.guests.creation.clone(
        GuestKind.QEMU, 100, new_id=new_id, full=full, storage=storage, pool="office", user=ADMIN
    )


async def test_a_clone_has_disks_and_macs_of_its_own(world: GuestWorld) -> None:
    await world.make_vm(name="web", protection="1")
    await world.succeed(await clone(world))
    original, copy = world.guests.config(100)[0], world.guests.config(200)[0]
    assert copy["scsi0"] == "local:200/vm-200-disk-0.qcow2,size=8G"
    assert copy["net0"] != original["net0"]
    assert copy["smbios1"] != original["smbios1"]
    assert (copy["name"], copy.get("protection")) == ("Copy-of-web", None)
    assert world.guests.get(200).pool == "office"


async def test_a_running_guest_is_not_cloned_and_nothing_is_left_of_the_attempt(world: GuestWorld) -> None:
    await world.make_vm(start=True)
    assert "shut it down" in await world.fail(await clone(world))
    assert [view.guest_id for view in world.guests.list()] == [100]
    assert 200 not in world.host.pools.members


async def test_a_clone_cancelled_while_it_waits_for_the_original_leaves_nothing(world: GuestWorld) -> None:
    running = await world.make_vm(start=True)
    assert running is not None
    running.complies = False
    shutting = await world.guests.power.shutdown(GuestKind.QEMU, 100, user=ADMIN, timeout_s=30)
    upid = await clone(world)
    await asyncio.sleep(0)
    await world.tasks.cancel(upid)
    assert "interrupted" in await world.fail(upid)
    assert [view.guest_id for view in world.guests.list()] == [100]
    running.end()
    await world.succeed(shutting)


@pytest.mark.parametrize("storage", ["isos", "nowhere"])
async def test_a_clone_to_a_storage_that_cannot_hold_it_leaves_nothing(world: GuestWorld, storage: str) -> None:
    await world.make_vm()
    assert storage in await world.fail(await clone(world, storage=storage))
    assert [view.guest_id for view in world.guests.list()] == [100]


async def test_linked_clones_are_made_of_templates_and_templates_never_start(world: GuestWorld) -> None:
    await world.make_vm()
    with pytest.raises(Conflict, match="templates and of containers"):
        await clone(world, full=False)
    await world.succeed(await world.guests.configuration.make_template(GuestKind.QEMU, 100, user=ADMIN))
    await world.succeed(await clone(world, full=False))
    linked = VolumeId.parse("local:200/vm-200-disk-0.qcow2")
    assert world.host.volumes.infos[linked].parent == VolumeId.parse(DISK_0)
    with pytest.raises(Conflict, match="only cloned"):
        await world.guests.power.start(GuestKind.QEMU, 100, user=ADMIN)


async def test_a_running_guests_snapshot_is_cloned_as_it_was(world: GuestWorld) -> None:
    await world.make_vm(name="web")
    await world.succeed(
        await world.guests.snapshots.create(GuestKind.QEMU, 100, "one", description="", with_state=False, user=ADMIN)
    )
    await world.guests.configuration.update(
        GuestKind.QEMU, 100, put={"name": "later", "cores": "3"}, delete=(), digest=None, user=ADMIN
    )
    await world.succeed(await world.guests.power.start(GuestKind.QEMU, 100, user=ADMIN))
    world.host.volumes.infos[VolumeId.parse(DISK_0)] = replace(
        world.host.volumes.infos[VolumeId.parse(DISK_0)], size_bytes=16 << 30
    )
    await world.succeed(
        await world.guests.creation.clone(GuestKind.QEMU, 100, new_id=200, full=True, user=ADMIN, snapshot="one")
    )
    copy = world.guests.config(200)[0]
    assert (copy["name"], copy.get("cores")) == ("Copy-of-web", None)
    assert copy["scsi0"] == "local:200/vm-200-disk-0.qcow2,size=8G"
    assert copy.keys() & {"parent", "snaptime", "vmstate"} == set()


async def test_a_clone_of_a_snapshot_that_is_not_there_or_shall_be_linked_is_refused(world: GuestWorld) -> None:
    await world.make_vm()
    with pytest.raises(NotFound, match="snapshot 'two'"):
        await world.guests.creation.clone(GuestKind.QEMU, 100, new_id=200, user=ADMIN, snapshot="two")
    await world.succeed(await world.guests.configuration.make_template(GuestKind.QEMU, 100, user=ADMIN))
    with pytest.raises(Conflict, match="a full one"):
        await world.guests.creation.clone(GuestKind.QEMU, 100, new_id=200, full=False, user=ADMIN, snapshot="one")
    assert [view.guest_id for view in world.guests.list()] == [100]


async def test_a_containers_snapshot_has_linked_clones_and_stays_while_they_do(world: GuestWorld) -> None:
    await world.make_ct(start=True)
    await world.succeed(
        await world.guests.snapshots.create(GuestKind.LXC, 101, "one", description="", with_state=False, user=ADMIN)
    )
    await world.succeed(
        await world.guests.creation.clone(GuestKind.LXC, 101, new_id=200, full=False, user=ADMIN, snapshot="one")
    )
    (linked,) = (info.volume_id for info in world.host.volumes.infos.values() if info.guest_id == 200)
    said = await world.fail(await world.guests.snapshots.remove(GuestKind.LXC, 101, "one", force=False, user=ADMIN))
    assert str(linked) in said
    assert "lock" not in world.guests.config(101)[0]
    assert [row["name"] for row in world.guests.snapshots.list(GuestKind.LXC, 101)] == ["one", "current"]
    await world.succeed(await world.guests.creation.destroy(GuestKind.LXC, 200, user=ADMIN))
    await world.succeed(await world.guests.snapshots.remove(GuestKind.LXC, 101, "one", force=False, user=ADMIN))


async def test_a_running_guest_does_not_become_a_template(world: GuestWorld) -> None:
    await world.make_vm(start=True)
    await world.fail(await world.guests.configuration.make_template(GuestKind.QEMU, 100, user=ADMIN))
    assert not world.guests.get(100).template


async def test_a_template_with_linked_clones_loses_none_of_its_volumes_when_its_removal_is_refused(
    world: GuestWorld,
) -> None:
    await world.make_vm(scsi1="local:1")
    await world.succeed(await world.guests.configuration.make_template(GuestKind.QEMU, 100, user=ADMIN))
    await world.succeed(await clone(world, full=False))
    del world.host.volumes.infos[VolumeId.parse("local:200/vm-200-disk-0.qcow2")]  # only disk-1 has a linked clone left
    before = world.host.volumes.names()
    assert "linked clone" in await world.fail(await world.guests.creation.destroy(GuestKind.QEMU, 100, user=ADMIN))
    assert world.host.volumes.names() == before
    assert world.guests.get(100).template


async def test_a_container_cloned_to_another_storage_keeps_a_root_file_system(world: GuestWorld) -> None:
    await world.make_ct()
    upid = await world.guests.creation.clone(GuestKind.LXC, 101, new_id=200, storage="big", user=ADMIN)
    await world.succeed(upid)
    root = VolumeId.parse(world.guests.config(200)[0]["rootfs"].partition(",")[0])
    assert world.host.big.infos[root].content is ContentType.ROOTDIR
