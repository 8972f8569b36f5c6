"""`kill -9` of the appliance: the VM goes on, is found again with its console's history, and nothing else is touched."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from appliance.kernel.pidfd import identify
from appliance.model.guest import GuestState
from appliance.qemu.run_dir import RunRecord
from tests.qemu.boot_sector import GREETING
from tests.qemu.host import UUID, QemuHost, is_alive, qemu_host, read_until, remove_everything

pytestmark = pytest.mark.host

END_TIMEOUT_S = 60.0
START_TIMEOUT_S = 60.0


@contextlib.asynccontextmanager
async def killed_appliance(moment: str = "running") -> AsyncIterator[tuple[QemuHost, int]]:
    """A host whose appliance was killed at `moment`, and the pid of the QEMU it left."""
    directory = Path(tempfile.mkdtemp(prefix="vm-"))
    victim = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.qemu.starter", str(directory), moment), stdout=asyncio.subprocess.PIPE
    )
    assert victim.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (line := await victim.stdout.readline()).startswith(b"pid "):
                assert line, "the appliance to be killed did not start its VM"
            with contextlib.suppress(ProcessLookupError):
                victim.kill()
            await victim.communicate()
        async with qemu_host(directory) as host:
            yield host, int(line.split()[1])
    finally:
        await asyncio.to_thread(remove_everything, directory)


async def test_a_vm_outlives_its_appliance_and_is_adopted_with_its_history() -> None:
    async with killed_appliance() as (host, pid):
        assert await is_alive(pid)
        assert list(await host.engine.running_ids()) == [100]
        vm = await host.adopt()
        assert vm is not None
        assert (vm.pid, vm.state) == (pid, GuestState.RUNNING)
        console = await vm.open_console("serial0")
        assert console.history().endswith(GREETING + b"EARLY")
        await console.write(b"LATE")
        assert await read_until(console, b"LATE") == b"LATE"
        await vm.shutdown()
        assert (await asyncio.wait_for(vm.wait(), END_TIMEOUT_S)).kind == "shutdown"
        assert not host.paths().path.exists()


async def test_a_launch_cut_short_is_undone() -> None:
    async with killed_appliance("launch") as (host, pid):
        assert await host.adopt() is None
        assert not await is_alive(pid)
        assert not host.paths().path.exists()


async def test_an_adopted_vm_that_is_killed_is_a_crash() -> None:
    async with killed_appliance() as (host, pid):
        vm = await host.adopt()
        assert vm is not None
        os.kill(pid, signal.SIGKILL)
        reason = await asyncio.wait_for(vm.wait(), END_TIMEOUT_S)
        assert reason.kind == "crashed"


async def test_a_paused_vm_is_adopted_paused_and_after_a_lost_record() -> None:
    async with qemu_host() as host:
        vm = await host.start()
        await vm.pause()
        await host.engine.release(vm.guest_id)
        await asyncio.to_thread(host.paths().record.write_text, "{")
        assert list(await host.engine.running_ids()) == [100]
        again = await host.adopt()
        assert again is not None
        assert (again.pid, again.state) == (vm.pid, GuestState.PAUSED)


async def test_a_deaf_monitor_is_no_reason_to_let_go_of_a_living_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    async with qemu_host() as host:
        vm = await host.start()
        await host.engine.release(vm.guest_id)
        monkeypatch.setattr("appliance.qemu.monitor.CONNECT_TIMEOUT_S", 0.2)
        monkeypatch.setattr("appliance.qemu.vm.TERMINATE_TIMEOUT_S", 0.2)
        os.kill(vm.pid, signal.SIGSTOP)
        again = await host.adopt()
        assert again is not None
        assert again.state is GuestState.RUNNING
        os.kill(vm.pid, signal.SIGCONT)
        async with asyncio.timeout(END_TIMEOUT_S):
            while not (await again.stats()).disk_read_bytes:
                await asyncio.sleep(0.1)
        await again.stop()
        assert (await again.wait()).kind == "stopped"


async def test_what_ended_meanwhile_is_not_adopted_and_its_remains_go() -> None:
    async with killed_appliance() as (host, pid):
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(END_TIMEOUT_S):
            while await is_alive(pid):
                await asyncio.sleep(0.01)
        assert list(await host.engine.running_ids()) == []
        assert await host.adopt() is None
        assert not host.paths().path.exists()


async def test_a_foreign_process_with_the_recorded_pid_is_never_touched() -> None:
    async with qemu_host() as host:
        stranger = await asyncio.create_subprocess_exec("sleep", "60")
        try:
            await asyncio.to_thread(_record_process, host, stranger.pid)
            assert list(await host.engine.running_ids()) == []
            assert await host.adopt() is None
            assert stranger.returncode is None
            assert await is_alive(stranger.pid)
        finally:
            stranger.kill()
            await stranger.wait()


def _record_process(host: QemuHost, pid: int) -> None:
    identity = identify(pid)
    assert identity is not None
    paths = host.paths()
    paths.path.mkdir(parents=True)
    paths.pid.write_text(f"{pid}\n")
    record = RunRecord(
        guest_id=100, uuid=UUID, started_at=0.0, memory_mib=32, pid=pid, start_ticks=identity.start_ticks
    )
    paths.record.write_bytes(msgspec.json.encode(record))
