"""A native guest with a shared directory: its virtiofsd lives and dies with it; what does not fit is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.kernel import virtiofsd
from appliance.model.guest import GuestId, MemoryBacking, NumaNode, VmDisk, VmResources, VmShare, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.tasks import TaskScope
from appliance.vmm.engine import NativeEngine
from appliance.vmm.places import share_problem, share_slot
from appliance.vmm.virtio.fs import VirtioFs
from appliance.vmm.virtio.pci_transport import VirtioPci
from tests.fakes.kernels import NOTE_PVH, elf_kernel, note
from tests.kvm.guests import Asm

MIB = 1 << 20
SHARE = VmShare(slot="virtiofs0", mapping="home")
SPEC = VmSpec(
    guest_id=GuestId(100),
    name="share",
    uuid="3f2504e0-4f89-41d3-9a0c-0305e82c3301",
    engine="native",
    cpu_model="host",
    memory_mib=32,
    display="none",
    kernel="local:kernel",
    shares=(SHARE,),
    cores=2,
    vcpus=2,
    memory_backing=MemoryBacking(numa=(NumaNode(index=0, cpus=(0, 1), memory_mib=32),)),
)


@asynccontextmanager
async def probed(directory: Path) -> AsyncIterator[NativeEngine]:
    scope = TaskScope("test")
    engine = NativeEngine(directory / "run", directory / "data", scope, SystemClock())
    await engine.probe()
    yield engine
    await engine.close()
    await scope.close()


@pytest.mark.host
@pytest.mark.skipif(virtiofsd.find_program() is None, reason="virtiofsd is not installed")
async def test_virtiofsd_lives_as_long_as_the_guest(tmp_path: Path) -> None:
    kernel, shared = tmp_path / "kernel", tmp_path / "home"
    kernel.write_bytes(elf_kernel(Asm(32).halt().bytes(), notes=note(b"Xen", NOTE_PVH, 2 * MIB)))
    shared.mkdir()
    volume = OpenedVolume(volume_id=None, path=kernel, format=VolumeFormat.RAW, size_bytes=1)
    resources = VmResources(disks={"kernel": volume}, directories={"virtiofs0": shared})
    async with probed(tmp_path) as engine:
        vm = await engine.start(SPEC, resources, on_state=lambda state, why: None, log=lambda line: None)
        function = vm.built.plugs.functions["virtiofs0"]
        assert isinstance(function, VirtioPci)
        assert isinstance(function.device, VirtioFs)
        process = function.device._helper.process
        assert process is not None
        assert await asyncio.to_thread(Path(f"/proc/{process.pid}").exists)
        await vm.stop()
        assert not await asyncio.to_thread(Path(f"/proc/{process.pid}").exists)


@pytest.mark.host
async def test_a_guest_with_a_share_is_native_only_when_asked_for(tmp_path: Path) -> None:
    async with probed(tmp_path) as engine:
        assert not any("virtiofs0" in reason for reason in engine.refuse(SPEC) if "installed" not in reason)
        assert any("virtiofs0: a guest with a shared" in reason for reason in engine.refuse(replace(SPEC, engine="")))


def test_shares_have_the_slots_of_the_last_disks() -> None:
    disks = [VmDisk(slot="virtio0", volume="local:0"), VmDisk(slot="virtio14", volume="local:14")]
    assert share_slot(SHARE) == 23
    assert share_problem(SHARE, disks) == ""
    assert "virtio14" in share_problem(VmShare(slot="virtiofs1", mapping="x"), disks)
    assert share_problem(VmShare(slot="virtiofs9", mapping="x"), disks) == ""
