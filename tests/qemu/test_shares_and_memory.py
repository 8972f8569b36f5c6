"""Shared directories, huge pages and NUMA nodes of a VM under real QEMU and virtiofsd."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from appliance.errors import HostError
from appliance.kernel import hugepages, virtiofsd
from appliance.model.guest import MemoryBacking, NumaNode, VmResources, VmShare
from tests.qemu.host import QemuHost, boot_spec, greeted, qemu_host

pytestmark = pytest.mark.host

PAGES_KIB = 2048


def daemons() -> list[int]:
    """Our children that are virtiofsd, dead or alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = path.joinpath("stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if name == "virtiofsd" and int(rest.split()[1]) == os.getpid():
            found.append(int(path.name))
    return found


@pytest.fixture(autouse=True)
def _needed() -> None:
    if virtiofsd.find_program() is None:
        pytest.skip("virtiofsd is not installed")


async def gone(limit_s: float = 10.0) -> bool:
    async with asyncio.timeout(limit_s):
        while await asyncio.to_thread(daemons):
            await asyncio.sleep(0.05)
    return True


async def with_a_share(host: QemuHost) -> VmResources:
    shared = host.directory / "home"
    await asyncio.to_thread(shared.mkdir)
    return VmResources(disks={"virtio0": host.disk()}, directories={"virtiofs0": shared})


async def test_a_share_has_its_daemon_for_as_long_as_the_guest_runs() -> None:
    async with qemu_host() as host:
        vm = await host.start(boot_spec(shares=(VmShare(slot="virtiofs0", mapping="home"),)), await with_a_share(host))
        await greeted(vm)
        assert len(await asyncio.to_thread(daemons)) >= 1
        await vm.stop()
        assert await gone()


async def test_a_start_that_fails_leaves_no_daemon() -> None:
    async with qemu_host() as host:
        spec = boot_spec(shares=(VmShare(slot="virtiofs0", mapping="home"),), extra_args=("-device", "nonsense"))
        with pytest.raises(HostError, match="nonsense"):
            await host.start(spec, await with_a_share(host))
        assert await gone()


async def test_memory_is_of_huge_pages_that_go_with_the_guest() -> None:
    if PAGES_KIB not in await asyncio.to_thread(hugepages.sizes_kib):
        pytest.skip("the kernel has no huge pages of 2 MiB")
    async with qemu_host() as host:
        before = await asyncio.to_thread(hugepages.pool, PAGES_KIB)
        nodes = tuple(
            NumaNode(index=index, cpus=(index,), memory_mib=16, host_nodes=(0,), policy="bind") for index in range(2)
        )
        backing = MemoryBacking(hugepages="2", numa=nodes)
        try:
            vm = await host.start(boot_spec(memory_backing=backing, cores=2, vcpus=2))
        except HostError as error:
            pytest.skip(f"the host gives none: {error}")
        used = await asyncio.to_thread(hugepages.pool, PAGES_KIB)
        assert (used.pages - used.free) - (before.pages - before.free) == 16
        await greeted(vm)
        await vm.stop()
        assert (await asyncio.to_thread(hugepages.pool, PAGES_KIB)).pages == before.pages
