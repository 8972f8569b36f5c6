"""Debian's own kernel, placed by us, brings its system up to a login on the console and down again by the power button."""

from __future__ import annotations

import pytest

from tests.lab.guest_paths import GuestFiles
from tests.lab.host import LabHost
from tests.lab.vmm_client import QUIET, SCRATCH, NativeHost, direct, disk, kernel_disks

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

LOGIN_S, SHUTDOWN_S = 400.0, 180.0


@pytest.mark.parametrize("vcpus", [1, 2])
async def test_debian_reaches_its_login(
    native: NativeHost, vmm_host: LabHost, guest_files_drivers: GuestFiles, vcpus: int
) -> None:
    overlay = f"{SCRATCH}/login.qcow2"
    base = guest_files_drivers.disk
    await vmm_host.shell(f"rm -f {overlay}; qemu-img create -q -f qcow2 -b {base} -F qcow2 {overlay}", timeout_s=60)
    spec = direct(
        cmdline=f"{QUIET} guest.root=/dev/vda3 cloud-init=disabled", memory_mib=512, vcpus=vcpus, cores=vcpus,
        disks=[disk("virtio0")],
    )  # fmt: skip
    guest = await native.start(100, spec, disks={**kernel_disks(guest_files_drivers), "virtio0": overlay})
    await guest.console.expect(rb"login: ", timeout_s=LOGIN_S)
    await guest.order("shutdown")
    assert await guest.ended(timeout_s=SHUTDOWN_S) == "shutdown"
