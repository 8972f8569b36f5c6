"""Stock Linux on the native machine: Debian's kernels boot, find their devices, use them, end and are saved."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.lab.conftest import GuestFiles
from tests.lab.host import LabHost
from tests.lab.vmm_client import NativeHost, direct, kernel_disks, native_host

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@pytest.fixture
async def native(lab_source: LabHost) -> AsyncIterator[NativeHost]:
    """The native engine in the host, with this repository's code."""
    async with native_host(lab_source) as host:
        yield host


async def test_an_uncompressed_kernel_boots_to_its_first_process(native: NativeHost, guest_files: GuestFiles) -> None:
    guest = await native.start(100, direct(), disks=kernel_disks(guest_files))
    release = await guest.console.ready()
    assert await guest.run("uname -r") == release
