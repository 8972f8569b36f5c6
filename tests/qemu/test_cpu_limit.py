"""Processor time: a VM gets what its configuration says, from a control group that is there as long as it runs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from appliance.errors import HostError, Unsupported
from appliance.kernel.cgroups import Cgroup, CgroupLayout, ParentGroup, parent_name
from appliance.model.guest import GuestId, VmResources
from appliance.qemu.groups import PROCESSES_MAX
from appliance.qemu.process import read_stat
from tests.qemu.host import QemuHost, boot_spec, qemu_host

pytestmark = pytest.mark.host

ENDLESS_LOOP = b"\xfa\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa"  # cli; jmp itself
LIMIT_CPUS = 0.2
MEASURED_S = 2.0


async def cpu_seconds(pid: int) -> float:
    stat = await asyncio.to_thread(read_stat, pid)
    assert stat is not None
    return stat.cpu_seconds


async def setting(host: QemuHost, controller: str, name: str) -> str:
    """What VM 100's group says."""

    def look() -> str:
        root = CgroupLayout.detect().tree_of(controller)
        assert root is not None
        return (root / parent_name(host.run_dir) / "vm-100" / name).read_text().strip()

    return await asyncio.to_thread(look)


async def test_a_busy_guest_gets_the_processor_time_of_its_limit_and_no_more() -> None:
    async with qemu_host() as host:
        spec = boot_spec(cpu_limit=LIMIT_CPUS, cpu_units=50)
        vm = await host.start(spec, VmResources(disks={"virtio0": host.disk(ENDLESS_LOOP)}))
        began, before = time.monotonic(), await cpu_seconds(vm.pid)
        await asyncio.sleep(MEASURED_S)
        used = (await cpu_seconds(vm.pid) - before) / (time.monotonic() - began)
        assert LIMIT_CPUS / 20 < used <= 1.5 * LIMIT_CPUS
        assert await setting(host, "pids", "pids.max") == str(PROCESSES_MAX)
        assert str(vm.pid) in (await setting(host, "cpu", "cgroup.procs")).split()
        await vm.stop()
        assert await asyncio.to_thread(host.groups) == []


async def test_a_detached_vm_keeps_its_group_and_loses_it_at_its_end() -> None:
    async with qemu_host() as host:
        vm = await host.start(boot_spec(cpu_limit=0.5))
        await host.engine.release(vm.guest_id)
        await host.engine.probe()  # removes what ended VMs left, and nothing else
        again = await host.adopt()
        assert again is not None
        assert str(vm.pid) in (await setting(host, "cpu", "cgroup.procs")).split()
        await again.stop()
        assert await asyncio.to_thread(host.groups) == []


def leave_groups(host: QemuHost, *guest_ids: int) -> None:
    root = CgroupLayout.detect().tree_of("cpu")
    assert root is not None
    for guest_id in guest_ids:
        (root / parent_name(host.run_dir) / f"vm-{guest_id}").mkdir(parents=True)


async def test_groups_of_ended_vms_are_removed_at_adoption_and_at_the_probe() -> None:
    async with qemu_host() as host:
        await asyncio.to_thread(leave_groups, host, 100)
        assert await host.adopt() is None
        assert await asyncio.to_thread(host.groups) == []
        await asyncio.to_thread(leave_groups, host, 100, 999)
        assert "cpu-limit" in (await host.engine.probe()).available
        assert await asyncio.to_thread(host.groups) == []


async def test_the_group_above_stays_while_another_vm_or_a_start_needs_it() -> None:
    async with qemu_host() as host:
        first = await host.start()
        second = await host.start(boot_spec(guest_id=GuestId(101)), VmResources(disks={"virtio0": host.disk(name="b")}))
        await first.stop()
        assert {path.name for path in await asyncio.to_thread(host.groups)} > {"vm-101"}
        with ParentGroup.named(parent_name(host.run_dir)).hold():
            await second.stop()
            assert await asyncio.to_thread(host.groups) != []
        await host.engine.probe()
        assert await asyncio.to_thread(host.groups) == []


async def test_without_groups_only_a_limit_is_refused_and_a_weight_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layout = CgroupLayout({"cpu": tmp_path / "read-only"}, None)
    monkeypatch.setattr(CgroupLayout, "detect", staticmethod(lambda: layout))
    async with qemu_host() as host:
        reason = (await host.engine.probe()).missing["cpu-limit"]
        assert str(tmp_path) in reason
        with pytest.raises(Unsupported, match=r"vm 100: processor time cannot be limited: cgroup .*read-only"):
            await host.start(boot_spec(cpu_limit=1.0))
        vm = await host.start(boot_spec(cpu_units=500))
        assert any("cpuunits 500 has no effect" in line for line in host.lines)
        await vm.stop()


async def test_a_group_that_cannot_be_made_fails_the_start_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with qemu_host() as host:

        def broken(*_: object) -> None:
            raise HostError("cgroup /appliance/vm-100: no space")

        monkeypatch.setattr(Cgroup, "attach", broken)
        with pytest.raises(HostError, match="no space"):
            await host.start()
        assert await asyncio.to_thread(host.groups) == []
        assert not host.paths().path.exists()
        assert list(await host.engine.running_ids()) == []
