"""One VM's life under real QEMU: what it says, how it pauses, resets and ends, and that nothing remains."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from appliance.errors import Conflict, GuestFault, HostError, NotFound
from appliance.model.guest import GuestState, VmResources
from appliance.qemu import vm as vm_module
from tests.qemu.boot_sector import GREETING, sector
from tests.qemu.host import READ_TIMEOUT_S, boot_spec, greeted, is_alive, qemu_host, read_until

pytestmark = pytest.mark.host

END_TIMEOUT_S = 60.0


async def test_a_guest_boots_speaks_listens_and_powers_off() -> None:
    async with qemu_host() as host:
        vm = await host.start()
        assert vm.state is GuestState.RUNNING
        assert list(await host.engine.running_ids()) == [100]
        console = await vm.open_console("serial0")
        said = await read_until(console, GREETING, said=console.history())
        assert said.endswith(GREETING)
        await console.write(b"x")
        assert await read_until(console, b"x") == b"x"
        await vm.shutdown()
        reason = await asyncio.wait_for(vm.wait(), END_TIMEOUT_S)
        assert (reason.kind, reason.detail) == ("shutdown", "the guest powered off")
        assert host.states == [(GuestState.STOPPED, "the guest powered off")]
        assert not host.paths().path.exists()
        assert await console.read() == b""
        await console.close()
        assert await console.read() == b""
        with pytest.raises(HostError, match="serial0"):
            await console.write(b"x")
        assert list(await host.engine.running_ids()) == []


async def test_pause_holds_the_guest_and_resume_lets_it_go() -> None:
    async with qemu_host() as host:
        vm = await host.start()
        console = await greeted(vm)
        await vm.pause()
        assert vm.state is GuestState.PAUSED
        await console.write(b"x")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(console.read(), 0.3)
        await vm.resume()
        assert await read_until(console, b"x") == b"x"
        assert [state for state, _ in host.states] == [GuestState.PAUSED, GuestState.RUNNING]


async def test_a_reset_starts_the_guest_anew_in_the_same_process() -> None:
    async with qemu_host() as host:
        vm = await host.start()
        console = await greeted(vm)
        pid = vm.pid
        await vm.reset()
        await read_until(console, GREETING)
        await console.write(b"r")
        await read_until(console, GREETING)
        assert (vm.pid, vm.state) == (pid, GuestState.RUNNING)


async def test_a_guest_that_ignores_the_power_button_goes_on_until_it_is_stopped() -> None:
    async with qemu_host() as host:
        disk = host.disk(sector(heeds_power_button=False))
        vm = await host.start(resources=VmResources(disks={"virtio0": disk}))
        await (await greeted(vm)).close()
        await vm.shutdown()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(vm.wait(), 0.5)
        await vm.stop()
        assert (await vm.wait()).kind == "stopped"
        assert not await is_alive(vm.pid)
        await vm.stop()
        await vm.shutdown()
        assert (await vm.stats()).cpu_seconds == 0
        with pytest.raises(HostError):
            await vm.pause()


async def test_a_killed_qemu_is_a_crash_and_leaves_nothing() -> None:
    async with qemu_host() as host:
        vm = await host.start()
        os.kill(vm.pid, signal.SIGKILL)
        reason = await asyncio.wait_for(vm.wait(), END_TIMEOUT_S)
        assert (reason.kind, reason.detail) == ("crashed", "QEMU was killed by SIGKILL")
        assert not host.paths().path.exists()


async def test_a_hung_qemu_is_stopped_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    async with qemu_host() as host:
        vm = await host.start()
        os.kill(vm.pid, signal.SIGSTOP)
        monkeypatch.setattr(vm_module, "QUIT_TIMEOUT_S", 0.2)
        monkeypatch.setattr(vm_module, "TERMINATE_TIMEOUT_S", 0.2)
        await vm.stop()
        assert (await vm.wait()).kind == "stopped"


async def test_a_panic_is_told_and_the_guest_decides_what_follows() -> None:
    async with qemu_host() as host:
        vm = await host.start()
        console = await greeted(vm)
        await console.write(b"px")
        await read_until(console, b"x")
        await vm.pause()  # an answer on the monitor comes after the event
        assert host.states[0] == (GuestState.RUNNING, "the guest's kernel panicked")


async def test_a_guest_that_floods_the_monitor_with_events_is_paused_and_can_be_stopped() -> None:
    async with qemu_host() as host:
        vm = await host.start()
        console = await greeted(vm)
        await console.write(b"P")
        async with asyncio.timeout(READ_TIMEOUT_S):
            while vm.state is not GuestState.PAUSED:
                await asyncio.sleep(0.01)
        assert host.states[-1] == (GuestState.PAUSED, "paused: the guest floods QEMU's monitor with events")
        await vm.stop()


async def test_a_vm_that_runs_cannot_be_started_twice() -> None:
    async with qemu_host() as host:
        vm = await host.start()
        with pytest.raises(Conflict, match="vm 100"):
            await host.start()
        await host.engine.release(vm.guest_id)
        with pytest.raises(Conflict, match="process"):
            await host.start()
        assert await is_alive(vm.pid)
        adopted = await host.adopt()
        assert adopted is not None


async def test_consoles_and_displays_a_vm_has_not_are_not_found() -> None:
    async with qemu_host() as host:
        vm = await host.start(boot_spec(display="serial0"))
        with pytest.raises(NotFound, match="serial1"):
            await vm.open_console("serial1")
        with pytest.raises(NotFound):
            await vm.open_display()
        with pytest.raises(GuestFault, match="agent"):
            await vm.agent("ping")


async def test_an_agent_that_never_opened_its_port_is_not_running() -> None:
    async with qemu_host() as host:
        vm = await host.start(boot_spec(agent=True, balloon_min_mib=16, rng=True))
        with pytest.raises(GuestFault, match="QEMU guest agent is not running"):
            await vm.agent("ping")
        await (await greeted(vm)).close()
        figures = await vm.stats()
        assert figures.cpu_seconds > 0
        assert figures.disk_read_bytes >= 512
        assert 0 < figures.memory_bytes <= figures.memory_max_bytes == 32 << 20
        await vm.shutdown()
        assert (await asyncio.wait_for(vm.wait(), END_TIMEOUT_S)).kind == "shutdown"


async def test_a_disk_grows_under_the_running_guest() -> None:
    async with qemu_host() as host:
        disk = host.disk()
        vm = await host.start(resources=VmResources(disks={"virtio0": disk}))
        await vm.resize_disk("virtio0", 2 << 20)
        assert disk.path.stat().st_size == 2 << 20
        with pytest.raises(HostError, match="scsi3"):
            await vm.resize_disk("scsi3", 2 << 20)


async def test_a_cancelled_start_leaves_nothing() -> None:
    async with qemu_host() as host:
        for delay_s in (0.0, 0.005, 0.01, 0.02, 0.03):
            start = asyncio.ensure_future(host.start())
            await asyncio.sleep(delay_s)
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            if not start.cancelled():
                await start.result().stop()
            assert list(await host.engine.running_ids()) == []
            assert not host.paths().path.exists()


async def test_a_full_disk_pauses_the_vm_and_says_which() -> None:
    async with qemu_host() as host:
        vm = await host.start()
        # What QEMU reports when an image cannot grow; a real full file system would need a mount of its own here.
        vm._on_event(
            "BLOCK_IO_ERROR",
            {"action": "stop", "nospace": True, "node-name": "drive-virtio0", "operation": "write"},
        )
        await vm._monitor.execute("stop")
        assert host.states == [(GuestState.PAUSED, "paused: virtio0: write failed: no space left")]
        await vm.resume()
        assert vm.state is GuestState.RUNNING
