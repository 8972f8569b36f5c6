"""Disks and NICs of VMs that run: what a change does at once, what waits, and what a guest that does not play along costs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from appliance.errors import Conflict, HostError, InvalidParameter, Unsupported
from appliance.model.guest import GuestKind, NicSpec
from tests.fakes.engines import FakeRunningGuest
from tests.fakes.guest_host import ADMIN, GuestWorld

DISK_0, DISK_1 = "local:100/vm-100-disk-0.qcow2", "local:100/vm-100-disk-1.qcow2"
NIC = "virtio=BC:24:11:0A:00:01,bridge=vmbr0"


@pytest.fixture
async def vm(world: GuestWorld) -> FakeRunningGuest:
    """One that runs, with scsi0 and net0."""
    running = await world.make_vm(start=True)
    assert running is not None
    return running


async def change(
    world: GuestWorld, put: dict[str, str] | None = None, *, delete: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """The configuration afterwards, and what was told meanwhile."""
    told: list[str] = []
    await world.guests.configuration.update(
        GuestKind.QEMU, 100, put=put or {}, delete=delete, digest=None, user=ADMIN, log_line=told.append
    )
    return world.guests.config(100)[0], told


def pending(world: GuestWorld) -> set[str]:
    return {each.key for each in world.guests.configuration.pending(GuestKind.QEMU, 100)}


async def test_a_new_disk_is_plugged_in_and_a_deleted_one_taken_out_and_may_be_destroyed(
    world: GuestWorld, vm: FakeRunningGuest
) -> None:
    config, told = await change(world, {"scsi1": "local:1"})
    assert config["scsi1"].startswith(DISK_1)
    assert vm.volumes["scsi1"].path.name == "vm-100-disk-1.qcow2"
    assert "scsi1: plugged in" in told
    config, told = await change(world, delete=["scsi1"])
    assert config["unused0"] == DISK_1
    assert vm.attached.keys() == {"scsi0", "net0"}
    assert told == ["scsi1: taken out"]
    assert pending(world) == set()
    await change(world, delete=["unused0"])
    assert not any("disk-1" in name for name in world.host.volumes.names())


async def test_a_new_nic_gets_a_port_which_goes_with_it(world: GuestWorld, vm: FakeRunningGuest) -> None:
    await change(world, {"net1": NIC})
    assert world.host.ports.plugged == {(100, "net0"), (100, "net1")}
    assert vm.taps == {"net1": "tap100i1"}
    await change(world, {"net1": NIC + ",link_down=1"})
    assert world.host.ports.links == {(100, "net1"): False}
    nic = vm.attached["net1"]
    assert isinstance(nic, NicSpec)
    assert nic.link_down
    await change(world, delete=["net1"])
    assert world.host.ports.plugged == {(100, "net0")}


async def test_what_the_key_hotplug_forbids_waits_for_the_next_start(world: GuestWorld, vm: FakeRunningGuest) -> None:
    _, told = await change(world, {"hotplug": "network", "scsi1": "local:1", "net1": NIC})
    assert vm.attached.keys() == {"scsi0", "net0", "net1"}
    assert told[-2:] == ["net1: plugged in", "scsi1: applies at the next start"]
    await change(world, delete=["scsi0"])
    assert pending(world) == {"scsi0", "scsi1"}
    await world.succeed(await world.guests.power.stop(GuestKind.QEMU, 100, user=ADMIN))
    assert pending(world) == set()


async def test_what_the_engine_cannot_do_live_waits_and_the_reason_is_told(
    world: GuestWorld, vm: FakeRunningGuest
) -> None:
    vm.cannot_plug = Unsupported("vm 100: bus 'pcie.0' takes nothing")
    config, told = await change(world, {"scsi1": "local:1", "net1": NIC}, delete=["scsi0"])
    assert {"scsi1", "net1", "unused0"} <= config.keys()
    assert vm.attached.keys() == {"scsi0", "net0"}
    assert f"scsi1: applies at the next start: {vm.cannot_plug}" in told
    assert world.host.ports.plugged == {(100, "net0")}  # nothing is left of the attempt


async def test_a_guest_that_keeps_its_disk_is_an_error_that_names_it_and_its_volume_stays(
    world: GuestWorld, vm: FakeRunningGuest
) -> None:
    vm.keeps.add("scsi0")
    with pytest.raises(InvalidParameter, match=r"scsi0: hotplug problem - scsi0: the guest letting go of it"):
        await change(world, delete=["scsi0"])
    assert world.guests.config(100)[0]["unused0"] == DISK_0
    with pytest.raises(Conflict, match="vm 100 is running: shut it down before volumes are removed"):
        await change(world, delete=["unused0"])
    await world.succeed(await world.guests.power.stop(GuestKind.QEMU, 100, user=ADMIN))
    await change(world, delete=["unused0"])


async def test_one_device_that_fails_does_not_keep_others_from_coming(world: GuestWorld, vm: FakeRunningGuest) -> None:
    vm.keeps.add("net0")
    with pytest.raises(InvalidParameter, match="net0: hotplug problem"):
        await change(world, {"net0": NIC, "scsi1": "local:1"})
    assert vm.attached.keys() == {"scsi0", "net0", "scsi1"}
    assert world.host.ports.plugged == {(100, "net0")}
    vm.plug_fails = HostError("vm 100: tap: busy")
    with pytest.raises(InvalidParameter, match="net1: hotplug problem - vm 100: tap: busy"):
        await change(world, {"net1": NIC})
    assert world.host.ports.plugged == {(100, "net0")}


async def test_a_nic_on_a_missing_bridge_is_told_and_makes_no_port(world: GuestWorld, vm: FakeRunningGuest) -> None:
    world.host.ports.missing.add("vmbr7")
    with pytest.raises(InvalidParameter, match="net1: hotplug problem - bridge 'vmbr7'"):
        await change(world, {"net1": NIC.replace("vmbr0", "vmbr7")})
    assert world.host.ports.plugged == {(100, "net0")}


async def test_a_volume_moves_to_another_slot_of_a_running_guest(world: GuestWorld, vm: FakeRunningGuest) -> None:
    config, _ = await change(world, {"scsi1": DISK_0}, delete=["scsi0"])
    assert "unused0" not in config
    assert vm.attached.keys() == {"scsi1", "net0"}


async def test_a_guest_that_does_not_run_is_only_written(world: GuestWorld) -> None:
    await world.make_vm()
    config, told = await change(world, {"scsi1": "local:1", "net1": NIC})
    assert {"scsi1", "net1"} <= config.keys()
    assert not any("plugged" in line for line in told)
    assert world.host.ports.plugged == set()
