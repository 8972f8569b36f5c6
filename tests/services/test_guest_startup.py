"""When the appliance starts: what runs is found again, `onboot` guests start once a boot, stray volumes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import Conflict, HostError, InvalidParameter
from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.services import guest_startup
from appliance.state.store import StoreFull
from tests.fakes.guest_host import ADMIN, GuestHost, GuestWorld, open_world, turns

VM = GuestKind.QEMU
PORT = (100, "net0")


async def test_guests_outlive_the_appliance_and_are_found_again_with_their_ports_and_their_age(host: GuestHost) -> None:
    async with open_world(host) as world:
        running = await world.running_vm()
        await world.make_ct(start=True)
    assert not running.held
    assert not running.ended
    await host.clock.advance(500)
    async with open_world(host) as world:
        assert [view.state for view in world.guests.list()] == [GuestState.RUNNING] * 2
        assert world.guests.get(100).uptime_s == 500
        assert world.guests.running_slots() == {(GuestId(100), "net0"), (GuestId(101), "net0")}
        running.end()
        await world.reaches(100, GuestState.STOPPED)
        await turns()
        assert host.ports.plugged == {(101, "net0")}


async def test_ports_of_a_guest_that_ended_meanwhile_are_removed_at_the_next_start(host: GuestHost) -> None:
    async with open_world(host) as world:
        running = await world.running_vm()
    running.end()
    async with open_world(host) as world:
        assert world.state(100) is GuestState.STOPPED
        assert host.ports.plugged == set()


async def test_a_paused_guest_is_found_paused(host: GuestHost) -> None:
    async with open_world(host) as world:
        await world.running_vm()
        await world.succeed(await world.guests.power.suspend(VM, 100, user=ADMIN))
    async with open_world(host) as world:
        assert world.state(100) is GuestState.PAUSED


async def test_a_guest_that_runs_but_cannot_be_taken_over_counts_as_running_and_keeps_its_ports(
    host: GuestHost,
) -> None:
    async with open_world(host) as world:
        running = await world.running_vm()
    host.vms.unreachable = InvalidParameter({"cpu": "no longer understood"})
    async with open_world(host) as world:
        assert world.state(100) is GuestState.RUNNING
        assert host.ports.plugged == {PORT}
        assert world.guests.running_slots() == {(GuestId(100), "net0")}
        with pytest.raises(Conflict):
            await world.guests.creation.destroy(VM, 100, user=ADMIN)
        assert "already running" in await world.fail(await world.guests.power.start(VM, 100, user=ADMIN))
        assert "no longer understood" in await world.fail(await world.guests.power.stop(VM, 100, user=ADMIN))
        host.vms.unreachable = None
        await world.succeed(await world.guests.power.stop(VM, 100, user=ADMIN))
        assert running.ended
        assert world.state(100) is GuestState.STOPPED
        assert host.ports.plugged == set()


async def test_one_guest_that_cannot_be_taken_over_does_not_keep_the_others_from_being_found(host: GuestHost) -> None:
    async with open_world(host) as world:
        await world.running_vm()
        await world.make_ct(start=True)
    host.vms.unreachable = HostError("monitor is deaf")
    async with open_world(host) as world:
        assert world.guests.running(101).pid == 4101


@pytest.fixture
def boot_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's boot id; another text is another boot of the host."""
    path = tmp_path / "boot_id"
    path.write_text("first boot\n")
    monkeypatch.setattr(guest_startup, "BOOT_ID", path)
    return path


async def start_onboot(world: GuestWorld) -> None:
    """As the appliance does when it listens; returns when the task it may have begun has ended."""
    await world.guests.start_onboot()
    for info in await world.tasks.list(kinds=("startall",), running=True):
        await world.host.clock.advance(3600)
        assert (await world.end_of(info.upid)).status == "OK"


async def test_onboot_guests_start_once_a_boot_of_the_host(host: GuestHost, boot_id: Path) -> None:
    async with open_world(host) as world:
        await world.make_vm(onboot="1")
        await world.make_vm(102)
        await start_onboot(world)
        assert host.vms.started == [100]
        await world.succeed(await world.guests.power.stop(VM, 100, user=ADMIN))
    async with open_world(host) as world:  # the appliance restarted: whoever stopped the guest wanted it stopped
        await start_onboot(world)
        assert host.vms.started == [100]
    boot_id.write_text("second boot\n")
    async with open_world(host) as world:
        await start_onboot(world)
        assert host.vms.started == [100, 100]


async def test_a_full_disk_at_boot_does_not_end_the_appliance(
    host: GuestHost, boot_id: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world(host) as world:
        await world.make_vm(onboot="1")
        host.store.fail_with(StoreFull("store: no space left"))
        await world.guests.start_onboot()
        assert "no space left" in caplog.text
        host.store.fail_with(None)
        await start_onboot(world)
        assert host.vms.started == [100]


async def test_a_start_names_the_volumes_of_guests_that_no_configuration_names_and_leaves_them_alone(
    host: GuestHost, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world(host) as world:
        await world.make_vm(100)
        await world.make_vm(102)
        lent = host.volumes.put("100/vm-100-disk-6.qcow2", guest_id=100)
        await world.guests.configuration.update(VM, 102, put={"scsi1": str(lent)}, delete=(), digest=None, user=ADMIN)
    strays = [host.volumes.put(f"100/vm-100-disk-{n}.qcow2", guest_id=100) for n in (7, 8)]
    caplog.clear()
    async with open_world(host) as world:
        config = world.guests.config(100)
        await turns()
        assert world.guests.config(100) == config
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [f"vm 100: volumes of its id that no configuration names: {strays[0]}, {strays[1]}"]
    assert {str(volume) for volume in strays} <= set(host.volumes.names())
