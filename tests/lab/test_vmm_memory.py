"""Linux on the native machine with what its memory is made of, and what it shares with the host."""

from __future__ import annotations

import pytest

from tests.lab.guest_paths import GuestFiles
from tests.lab.host import LabHost
from tests.lab.vmm_client import NativeHost, direct, kernel_disks, native_host

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SHARED = "/srv/shared"


async def test_linux_mounts_a_shared_directory_and_knows_its_numa_nodes(
    vmm_host: LabHost, guest_files: GuestFiles
) -> None:
    async with native_host(vmm_host, directory="/var/tmp/vmm-memory") as native:
        await _use(native, vmm_host, guest_files)


async def _use(native: NativeHost, vmm_host: LabHost, guest_files: GuestFiles) -> None:
    await vmm_host.shell(f"mkdir -p {SHARED}; echo of the host >{SHARED}/ours", timeout_s=60)
    nodes = [{"index": 0, "cpus": [0], "memory_mib": 192}, {"index": 1, "cpus": [1], "memory_mib": 128}]
    nodes[1] |= {"host_nodes": [0], "policy": "bind"}
    spec = direct(
        memory_mib=320,
        cores=2,
        vcpus=2,
        shares=[{"slot": "virtiofs0", "mapping": "home", "xattr": True}],
        memory_backing={"hugepages": "2", "numa": nodes},
    )
    guest = await native.start(100, spec, disks=kernel_disks(guest_files), directories={"virtiofs0": SHARED})
    await guest.console.ready()
    assert (
        await guest.run("mkdir -p /tmp/home && mount -t virtiofs home /tmp/home && cat /tmp/home/ours") == "of the host"
    )
    await guest.run("echo of the guest >/tmp/home/theirs && sync")
    assert await vmm_host.shell(f"cat {SHARED}/theirs", timeout_s=60) == "of the guest"
    assert await guest.run("cat /sys/devices/system/node/online") == "0-1"
    assert await guest.run("cat /sys/devices/system/node/node1/cpulist") == "1"
    await guest.order("stop")
    assert await vmm_host.shell("pgrep virtiofsd | wc -l", timeout_s=60) == "0"
    assert await vmm_host.shell("cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", timeout_s=60) == "0"
