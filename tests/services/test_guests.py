"""Configuring guests: volumes follow the configuration, nobody's change is lost, what is refused changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from appliance.errors import Conflict, HostError, InvalidParameter, NotFound, Unsupported
from appliance.model.guest import GuestKind, GuestState
from appliance.model.volume import ContentType, VolumeId
from appliance.state.store import StoreFull
from tests.fakes.engines import FakeRunningGuest
from tests.fakes.guest_host import ADMIN, GuestHost, GuestWorld, open_world

GIB = 1 << 30
DISK_0, DISK_1 = "local:100/vm-100-disk-0.qcow2", "local:100/vm-100-disk-1.qcow2"


@pytest.fixture
async def world(host: GuestHost) -> AsyncIterator[GuestWorld]:
    async with open_world(host) as world:
        await world.make_vm()
        yield world


async def change(
    world: GuestWorld,
    put: dict[str, str] | None = None,
    *,
    delete: Sequence[str] = (),
    digest: str | None = None,
    guest_id: int = 100,
) -> dict[str, str]:
    """Write and delete keys of a VM; its configuration afterwards."""
    await world.guests.configuration.update(
        GuestKind.QEMU, guest_id, put=put or {}, delete=delete, digest=digest, user=ADMIN
    )
    return world.guests.config(guest_id)[0]


def disks(world: GuestWorld) -> list[str]:
    return [name for name in world.host.volumes.names() if "vm-100-" in name]


async def start(world: GuestWorld) -> FakeRunningGuest:
    await world.succeed(await world.guests.power.start(GuestKind.QEMU, 100, user=ADMIN))
    running = world.run_of(100)
    assert running is not None
    return running


async def resize(world: GuestWorld, size: str, *, slot: str = "scsi0") -> str:
    return await world.guests.configuration.resize(GuestKind.QEMU, 100, slot=slot, size=size, user=ADMIN)


# --- configuration ------------------------------------------------------------------------------------------------------


async def test_a_new_disk_becomes_a_volume_and_a_new_nic_gets_a_mac_nobody_has(world: GuestWorld) -> None:
    config = await change(world, {"scsi1": "local:2,iothread=1", "net1": "virtio,bridge=vmbr0"})
    assert config["scsi1"] == f"{DISK_1},iothread=1,size=2G"
    assert disks(world) == [DISK_0, DISK_1]
    macs = {config[slot].partition(",")[0] for slot in ("net0", "net1")}
    assert len(macs) == 2


async def test_a_detached_disk_is_kept_as_unused_and_goes_only_when_that_is_deleted(world: GuestWorld) -> None:
    config = await change(world, delete=["scsi0"])
    assert config["unused0"] == DISK_0
    assert disks(world) == [DISK_0]
    assert "unused0" not in await change(world, delete=["unused0"])
    assert disks(world) == []


async def test_a_stale_digest_is_refused_and_changes_nothing(world: GuestWorld) -> None:
    _, digest = world.guests.config(100)
    await change(world, {"cores": "2"}, digest=digest)
    with pytest.raises(Conflict, match="modified configuration"):
        await change(world, {"cores": "4", "scsi1": "local:1"}, digest=digest)
    assert world.guests.config(100)[0]["cores"] == "2"
    assert disks(world) == [DISK_0]


async def test_changes_made_at_once_are_all_there_afterwards(world: GuestWorld) -> None:
    await asyncio.gather(*(change(world, {f"scsi{n}": "local:1"}) for n in range(1, 6)), change(world, {"cores": "2"}))
    config, _ = world.guests.config(100)
    assert {f"scsi{n}" for n in range(6)} | {"cores"} <= set(config)
    assert len(disks(world)) == 6


async def test_a_change_whose_volumes_do_not_fit_changes_nothing(world: GuestWorld) -> None:
    world.host.volumes.full_after = 1
    before = world.guests.config(100)
    with pytest.raises(HostError, match="no space left"):
        await change(world, {"scsi1": "local:1", "scsi2": "local:1", "cores": "2"})
    assert world.guests.config(100) == before
    assert disks(world) == [DISK_0]


async def test_a_change_that_the_store_cannot_keep_leaves_no_volume(world: GuestWorld) -> None:
    before = world.guests.config(100)
    world.host.store.fail_with(StoreFull("store: full"))
    with pytest.raises(StoreFull):
        await change(world, {"scsi1": "local:1"})
    world.host.store.fail_with(None)
    assert world.guests.config(100) == before
    assert disks(world) == [DISK_0]


@pytest.mark.parametrize("after_turns", range(12))
async def test_a_change_cancelled_at_any_point_is_there_with_its_volume_or_not_at_all(
    world: GuestWorld, after_turns: int
) -> None:
    world.host.volumes.may_make.clear()
    changing = asyncio.ensure_future(change(world, {"scsi1": "local:1"}))
    while not world.host.volumes.waiting:
        await asyncio.sleep(0)
    world.host.volumes.may_make.set()
    for _ in range(after_turns):
        await asyncio.sleep(0)
    changing.cancel()
    await asyncio.wait([changing])
    named = "scsi1" in world.guests.config(100)[0]
    assert disks(world) == ([DISK_0, DISK_1] if named else [DISK_0])
    await change(world, {"cores": "2"})


async def test_volumes_that_a_running_guest_has_are_not_removed(world: GuestWorld) -> None:
    running = await start(world)
    running.cannot_plug = Unsupported("no hot-plug")
    await change(world, delete=["scsi0"])
    with pytest.raises(Conflict, match="shut it down"):
        await change(world, delete=["unused0"])
    assert disks(world) == [DISK_0]


async def test_a_volume_that_cannot_be_removed_stays_in_the_configuration_and_the_caller_is_told(
    world: GuestWorld,
) -> None:
    await change(world, delete=["scsi0"])
    world.host.volumes.stuck.add(VolumeId.parse(DISK_0))
    with pytest.raises(Conflict, match="input/output error"):
        await change(world, delete=["unused0"])
    assert world.guests.config(100)[0]["unused0"] == DISK_0
    world.host.volumes.stuck.clear()
    await change(world, delete=["unused0"])
    assert disks(world) == []


async def test_a_disk_of_another_guest_is_not_attached_but_its_iso_image_is(world: GuestWorld) -> None:
    iso = world.host.volumes.put("iso/debian.iso", content=ContentType.ISO)
    await world.make_vm(102, ide2=f"{iso},media=cdrom")
    with pytest.raises(Conflict, match="used by another guest"):
        await change(world, {"scsi1": "local:102/vm-102-disk-0.qcow2"})
    assert str(iso) in (await change(world, {"ide2": f"{iso},media=cdrom"}))["ide2"]


@pytest.mark.parametrize(
    ("put", "delete", "named"),
    [
        ({"colour": "red"}, [], "colour"),
        ({"cores": "none"}, [], "cores"),
        ({"scsi1": "local:../../etc/passwd"}, [], "scsi1"),
        ({"cores": "2"}, ["cores"], "delete"),
        ({}, ["colour"], "delete"),
    ],
)
async def test_what_is_wrong_with_a_change_is_named_and_nothing_changes(
    world: GuestWorld, put: dict[str, str], delete: list[str], named: str
) -> None:
    before = world.guests.config(100)
    with pytest.raises(InvalidParameter) as refused:
        await change(world, put, delete=delete)
    assert named in refused.value.errors
    assert world.guests.config(100) == before


async def test_a_guest_of_the_other_kind_does_not_exist(world: GuestWorld) -> None:
    with pytest.raises(NotFound, match="ct 100 does not exist"):
        world.guests.config(100, GuestKind.LXC)
    with pytest.raises(NotFound):
        await world.guests.power.start(GuestKind.LXC, 100, user=ADMIN)


# --- disks that grow ----------------------------------------------------------------------------------------------------


async def test_the_disk_of_a_stopped_vm_grows_in_its_storage(world: GuestWorld) -> None:
    await world.succeed(await resize(world, "+2G"))
    assert world.host.volumes.infos[VolumeId.parse(DISK_0)].size_bytes == 10 * GIB
    assert world.guests.config(100)[0]["scsi0"] == f"{DISK_0},size=10G"


async def test_the_disk_of_a_running_vm_is_grown_by_the_vm_that_holds_it(world: GuestWorld) -> None:
    running = await start(world)
    await world.succeed(await resize(world, "12G"))
    assert running.grown == {"scsi0": 12 * GIB}
    assert world.host.volumes.infos[VolumeId.parse(DISK_0)].size_bytes == 8 * GIB
    assert world.guests.config(100)[0]["scsi0"] == f"{DISK_0},size=12G"


async def test_two_relative_resizes_add_up(world: GuestWorld) -> None:
    for upid in [await resize(world, "+1G") for _ in range(2)]:
        await world.succeed(upid)
    assert world.guests.config(100)[0]["scsi0"] == f"{DISK_0},size=10G"


@pytest.mark.parametrize(("slot", "size"), [("scsi0", "4G"), ("scsi7", "+1G"), ("net0", "+1G"), ("scsi0", "big")])
async def test_shrinking_and_what_is_no_disk_are_refused_at_once(world: GuestWorld, slot: str, size: str) -> None:
    before = world.guests.config(100)
    with pytest.raises(InvalidParameter):
        await resize(world, size, slot=slot)
    assert world.guests.config(100) == before


async def test_a_file_system_that_cannot_grow_now_grows_before_the_next_start(world: GuestWorld) -> None:
    running = await world.make_ct(start=True)
    assert running is not None
    running.cannot_grow = Unsupported("this kernel cannot grow a mounted file system")
    upid = await world.guests.configuration.resize(GuestKind.LXC, 101, slot="rootfs", size="+1G", user=ADMIN)
    assert (await world.end_of(upid)).status == "WARNINGS: 1"
    root = VolumeId.parse("local:101/vm-101-disk-0.raw")
    assert world.host.volumes.resized == [root]
    await world.succeed(await world.guests.power.reboot(GuestKind.LXC, 101, user=ADMIN))
    assert world.host.volumes.resized == [root, root]
    await world.succeed(await world.guests.power.reboot(GuestKind.LXC, 101, user=ADMIN))
    assert world.host.volumes.resized == [root, root]


# --- ids and lists ------------------------------------------------------------------------------------------------------


async def test_free_ids_are_those_nobody_has(world: GuestWorld) -> None:
    assert await world.guests.next_id() == 101
    assert await world.guests.next_id(500) == 500
    for taken_or_bad in (100, 99, 10**9):
        with pytest.raises(InvalidParameter):
            await world.guests.next_id(taken_or_bad)


async def test_the_present_state_is_the_last_row_of_the_snapshots(world: GuestWorld) -> None:
    (row,) = world.guests.snapshots.list(GuestKind.QEMU, 100)
    assert (row["name"], row["running"]) == ("current", 0)
    assert row["digest"] == world.guests.config(100)[1]
    assert world.state(100) is GuestState.STOPPED
