"""Starting, ending and finding guests: one truth about what runs, ports only where something runs, a stop that stops."""

from __future__ import annotations

import asyncio

import pytest

from appliance.errors import Conflict, HostError, NotFound
from appliance.events import GuestStateChanged
from appliance.model.guest import GuestKind, GuestState, GuestStats
from appliance.services.guest_sampler import ROUND_S
from appliance.services.restart_policy import INTERVAL_S
from tests.fakes.guest_host import ADMIN, GuestWorld, turns

VM, CT = GuestKind.QEMU, GuestKind.LXC
PORT = (100, "net0")


# --- starting -----------------------------------------------------------------------------------------------------------


async def test_a_start_plugs_the_ports_and_gives_the_engine_volumes_and_taps_by_slot(world: GuestWorld) -> None:
    await world.running_vm()
    assert world.host.ports.plugged == {PORT}
    resources = world.host.vms.opened[0]
    assert getattr(resources, "taps", None) == {"net0": "tap100i0"}
    assert list(getattr(resources, "disks", {})) == ["scsi0"]
    assert world.states(100) == [GuestState.STARTING, GuestState.RUNNING]


@pytest.mark.parametrize("kind", GuestKind)
async def test_a_start_that_fails_leaves_the_guest_stopped_and_nothing_plugged(
    world: GuestWorld, kind: GuestKind
) -> None:
    await (world.make_vm(100) if kind is VM else world.make_ct(100))
    engine = world.host.vms if kind is VM else world.host.cts
    engine.failure = HostError("no memory")
    assert await world.fail(await world.guests.power.start(kind, 100, user=ADMIN)) == "no memory"
    assert world.state(100) is GuestState.STOPPED
    assert world.host.ports.plugged == set()
    engine.failure = None
    await world.succeed(await world.guests.power.start(kind, 100, user=ADMIN))


async def test_a_missing_bridge_is_named_and_the_guest_stays_stopped(world: GuestWorld) -> None:
    await world.make_vm()
    world.host.ports.missing.add("vmbr0")
    assert await world.fail(await world.guests.power.start(VM, 100, user=ADMIN)) == "bridge 'vmbr0' does not exist"
    assert world.state(100) is GuestState.STOPPED


async def test_what_no_engine_can_run_is_refused_with_the_reason(world: GuestWorld) -> None:
    await world.make_vm()
    world.host.vms.refusal = "no OVMF on this host"
    assert "qemu: no OVMF on this host" in await world.fail(await world.guests.power.start(VM, 100, user=ADMIN))
    assert world.state(100) is GuestState.STOPPED


async def test_a_start_cancelled_again_and_again_still_ends_as_stopped_and_unplugged(world: GuestWorld) -> None:
    await world.make_vm()
    world.host.vms.may_start.clear()
    upid = await world.guests.power.start(VM, 100, user=ADMIN)
    await world.reaches(100, GuestState.STARTING)
    for _ in range(5):
        await world.tasks.cancel(upid)
        await asyncio.sleep(0)
    assert "interrupted" in await world.fail(upid)
    assert world.state(100) is GuestState.STOPPED
    assert world.host.ports.plugged == set()


async def test_parallel_starts_queue_and_only_one_starts_it(world: GuestWorld) -> None:
    await world.make_vm()
    upids = await asyncio.gather(*(world.guests.power.start(VM, 100, user=ADMIN) for _ in range(5)))
    statuses = sorted([(await world.end_of(upid)).status or "" for upid in upids])
    assert statuses == ["OK"] + 4 * ["VM 100 already running"]
    assert world.host.vms.started == [100]


async def test_opposite_operations_asked_for_at_once_happen_one_after_another(world: GuestWorld) -> None:
    await world.make_vm()
    world.host.vms.may_start.clear()
    starting = await world.guests.power.start(VM, 100, user=ADMIN)
    stopping = await world.guests.power.stop(VM, 100, user=ADMIN)
    again = await world.guests.power.start(VM, 100, user=ADMIN)
    await turns()
    assert "waiting for 'start by admin@pve'" in (await world.tasks.read_log(stopping))[0][0]
    world.host.vms.may_start.set()
    for upid in (starting, stopping, again):
        await world.succeed(upid)
    assert world.state(100) is GuestState.RUNNING
    assert world.host.vms.started == [100, 100]


# --- ending -------------------------------------------------------------------------------------------------------------


async def test_a_guest_that_crashes_is_cleaned_up_and_can_be_started_again(world: GuestWorld) -> None:
    running = await world.running_vm()
    running.end("crashed", "QEMU was killed by signal 9")
    await world.reaches(100, GuestState.STOPPED)
    await turns()
    assert world.host.ports.plugged == set()
    assert world.guests.get(100).pid is None
    await world.succeed(await world.guests.power.start(VM, 100, user=ADMIN))


async def test_why_a_guest_ended_is_in_the_log_of_what_ended_it_and_of_the_start(world: GuestWorld) -> None:
    await world.make_vm()
    started = await world.guests.power.start(VM, 100, user=ADMIN)
    await world.succeed(started)
    running = world.run_of(100)
    assert running is not None
    running.notice(GuestState.RUNNING, "the guest's kernel panicked")
    upid = await world.guests.power.shutdown(VM, 100, user=ADMIN)
    await world.succeed(upid)
    assert "ended: powered off" in (await world.tasks.read_log(upid))[0]
    async with asyncio.timeout(20):
        while len(lines := (await world.tasks.read_log(started))[0]) < 3 or lines[-1] == "TASK OK":
            await asyncio.sleep(0.01)
    assert lines[-2:] == ["the guest's kernel panicked", "vm 100 has ended: powered off"]


async def test_ports_that_cannot_be_removed_do_not_keep_the_guest_from_being_stopped(world: GuestWorld) -> None:
    running = await world.running_vm()
    world.host.ports.broken = HostError("netlink: device or resource busy")
    running.end("crashed", "gone")
    await world.reaches(100, GuestState.STOPPED)


async def test_an_orderly_shutdown_is_asked_for_and_waited_for(world: GuestWorld) -> None:
    running = await world.running_vm()
    await world.succeed(await world.guests.power.shutdown(VM, 100, user=ADMIN))
    assert running.asked == ["shutdown"]
    assert world.states(100)[-2:] == [GuestState.STOPPING, GuestState.STOPPED]
    assert world.host.ports.plugged == set()


async def test_a_guest_that_ignores_its_shutdown_goes_on_running_unless_force_was_asked_for(world: GuestWorld) -> None:
    running = await world.running_vm()
    running.complies = False
    upid = await world.guests.power.shutdown(VM, 100, user=ADMIN, timeout_s=0.01)
    assert "orderly shutdown: nothing within" in await world.fail(upid)
    assert world.state(100) is GuestState.RUNNING
    await world.succeed(await world.guests.power.shutdown(VM, 100, user=ADMIN, timeout_s=0.01, force_stop=True))
    assert running.asked == ["shutdown", "shutdown", "stop"]
    assert world.state(100) is GuestState.STOPPED


async def test_a_stop_overrules_a_shutdown_that_waits(world: GuestWorld) -> None:
    running = await world.running_vm()
    running.complies = False
    shutting = await world.guests.power.shutdown(VM, 100, user=ADMIN, timeout_s=600)
    await turns()
    await world.succeed(await world.guests.power.stop(VM, 100, user=ADMIN))
    assert "overruled by a stop" in await world.fail(shutting)
    assert world.state(100) is GuestState.STOPPED


async def test_a_stop_overrules_a_shutdown_that_has_not_begun_yet(world: GuestWorld) -> None:
    await world.make_vm()
    world.host.vms.may_start.clear()
    starting = await world.guests.power.start(VM, 100, user=ADMIN)
    shutting = await world.guests.power.shutdown(VM, 100, user=ADMIN, timeout_s=600)
    stopping = await world.guests.power.stop(VM, 100, user=ADMIN)
    world.host.vms.may_start.set()
    await world.succeed(starting)
    assert "overruled by a stop" in await world.fail(shutting)
    await world.succeed(stopping)


async def test_a_stop_that_was_cancelled_overrules_nothing_later(world: GuestWorld) -> None:
    await world.make_vm()
    world.host.vms.may_start.clear()
    starting = await world.guests.power.start(VM, 100, user=ADMIN)
    stopping = await world.guests.power.stop(VM, 100, user=ADMIN)
    await world.tasks.cancel(stopping)
    await world.fail(stopping)
    world.host.vms.may_start.set()
    await world.succeed(starting)
    await world.succeed(await world.guests.power.shutdown(VM, 100, user=ADMIN))


async def test_stopping_a_stopped_guest_succeeds_and_shutting_it_down_does_not(world: GuestWorld) -> None:
    await world.make_vm()
    await world.succeed(await world.guests.power.stop(VM, 100, user=ADMIN))
    assert await world.fail(await world.guests.power.shutdown(VM, 100, user=ADMIN)) == "VM 100 not running"


async def test_a_paused_guest_is_woken_to_be_shut_down(world: GuestWorld) -> None:
    running = await world.running_vm()
    await world.succeed(await world.guests.power.suspend(VM, 100, user=ADMIN))
    assert world.state(100) is GuestState.PAUSED
    await world.succeed(await world.guests.power.shutdown(VM, 100, user=ADMIN))
    assert running.ended


async def test_a_reboot_is_a_shutdown_and_a_start_with_the_configuration_of_now(world: GuestWorld) -> None:
    first = await world.running_vm()
    await world.guests.configuration.update(VM, 100, put={"cores": "4"}, delete=(), digest=None, user=ADMIN)
    await world.succeed(await world.guests.power.reboot(VM, 100, user=ADMIN))
    assert first.ended
    assert world.host.vms.started == [100, 100]
    assert world.state(100) is GuestState.RUNNING


# --- restarts asked for inside ------------------------------------------------------------------------------------------


async def test_a_container_that_reboots_from_inside_is_started_again(world: GuestWorld) -> None:
    first = await world.running_ct()
    await world.host.clock.advance(3600)
    first.end("reset", "restart asked for inside")
    await world.reaches(101, GuestState.STOPPED)
    await world.reaches(101, GuestState.RUNNING)
    assert world.host.cts.started == [101, 101]


async def test_a_container_that_reboots_at_once_waits_before_it_starts_again(world: GuestWorld) -> None:
    (await world.running_ct()).end("reset", "restart asked for inside")
    await world.reaches(101, GuestState.STOPPED)
    await turns()
    assert world.host.cts.started == [101]
    await world.host.clock.advance(INTERVAL_S)
    await world.reaches(101, GuestState.RUNNING)


async def test_a_stop_in_the_middle_of_a_reboot_from_inside_wins(world: GuestWorld) -> None:
    (await world.running_ct()).end("reset", "restart asked for inside")
    await world.reaches(101, GuestState.STOPPED)
    await world.succeed(await world.guests.power.stop(CT, 101, user=ADMIN))
    await world.host.clock.advance(INTERVAL_S)
    await turns()
    assert world.state(101) is GuestState.STOPPED
    assert world.host.cts.started == [101]


async def test_a_guest_removed_in_the_middle_of_a_reboot_from_inside_is_not_started(world: GuestWorld) -> None:
    (await world.running_ct()).end("reset", "restart asked for inside")
    await world.reaches(101, GuestState.STOPPED)
    await world.succeed(await world.guests.creation.destroy(CT, 101, user=ADMIN))
    await world.host.clock.advance(INTERVAL_S)
    await turns()
    assert world.host.cts.started == [101]


# --- start order ---------------------------------------------------------------------------------------------------------


async def test_guests_start_in_their_order_with_their_delays_and_stop_backwards(world: GuestWorld) -> None:
    await world.make_vm(100, startup="order=2")
    await world.make_vm(102, startup="order=1,up=30")
    await world.make_vm(103)
    upid = await world.guests.power.start_all(user=ADMIN, force=True)
    await world.reaches(102, GuestState.RUNNING)
    await turns()
    assert world.host.vms.started == [102]
    await world.host.clock.advance(29)
    assert world.host.vms.started == [102]
    await world.host.clock.advance(2)
    await world.succeed(upid)
    assert world.host.vms.started == [102, 100, 103]
    await world.succeed(await world.guests.power.stop_all(user=ADMIN))
    ends = [
        event.guest_id
        for event in world.events
        if isinstance(event, GuestStateChanged) and event.new is GuestState.STOPPED
    ]
    assert ends == [103, 100, 102]


async def test_one_guest_that_fails_is_a_warning_and_delays_no_other(world: GuestWorld) -> None:
    await world.make_vm(startup="order=1")
    await world.make_ct(101, startup="order=2")
    world.host.vms.failure = HostError("no memory")
    info = await world.end_of(await world.guests.power.start_all(user=ADMIN, force=True))
    assert info.status == "WARNINGS: 1"
    assert world.state(101) is GuestState.RUNNING


async def test_stop_all_ends_by_force_what_does_not_comply_in_its_own_time(world: GuestWorld) -> None:
    running = await world.running_vm(startup="down=0")
    running.complies = False
    await world.succeed(await world.guests.power.stop_all(user=ADMIN))
    assert running.asked == ["shutdown", "stop"]


# --- figures and consoles -----------------------------------------------------------------------------------------------


async def test_cpu_is_a_share_of_the_guests_own_cpus_and_one_bad_guest_spoils_no_other_figures(
    world: GuestWorld, caplog: pytest.LogCaptureFixture
) -> None:
    vm = await world.running_vm(cores="4")
    bad = await world.running_ct()
    vars(bad)["figures"] = None
    await world.host.clock.advance(ROUND_S)
    await turns()
    vm.figures = GuestStats(cpu_seconds=2 * ROUND_S)
    await world.host.clock.advance(ROUND_S)
    await turns()
    assert world.guests.get(100).cpu_ratio == pytest.approx(0.5)
    assert world.guests.get(101).stats is None
    assert "ct 101: no figures" in caplog.text


async def test_consoles_and_displays_need_a_guest_that_runs(world: GuestWorld) -> None:
    await world.make_vm()
    with pytest.raises(Conflict, match="VM 100 not running"):
        await world.guests.attach_console(100, "console")
    with pytest.raises(NotFound):
        await world.guests.open_display(999)
    await world.succeed(await world.guests.power.start(VM, 100, user=ADMIN))
    client = await world.guests.attach_console(100, "console")
    await world.succeed(await world.guests.power.stop(VM, 100, user=ADMIN))
    assert await client.read() == b""
