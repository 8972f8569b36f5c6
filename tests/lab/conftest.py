"""Lab hosts for tests. Started once a module; a test that needs fresh ones makes its own with `lab_cluster`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from tests.images import build_images
from tests.lab import image, recipe
from tests.lab.appliance import LabAppliance
from tests.lab.guest_paths import GuestFiles
from tests.lab.host import LabHost
from tests.lab.vmm_client import NativeHost, native_host
from tests.lab.wire import Switch

T = TypeVar("T")
MakeCluster = Callable[[int], Awaitable[list[LabHost]]]
FAILURES = image.DIRECTORY / "failures"
_LIVE: list[LabHost] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep the hosts' consoles and journals of a failed test below .build/lab/failures."""
    report = yield
    if report.failed and _LIVE:  # type: ignore[attr-defined]
        directory = FAILURES / item.name.replace("/", "_")
        directory.mkdir(parents=True, exist_ok=True)
        for host in _LIVE:
            text = in_loop(host.evidence())
            (directory / f"{host.name}.txt").write_text(text)
        item.add_report_section(report.when, "lab", f"hosts' consoles and journals: {directory}")  # type: ignore[attr-defined]
    return report


@pytest.fixture(scope="session")
def host_image() -> image.HostImage:
    """The image of lab hosts, built when there is none."""
    return in_loop(image.build(print))


@pytest.fixture(scope="session")
def guest_disk() -> Path:
    """Debian 12 as a VM's disk image, here; hosts see it as `guest_files.disk`."""
    return in_loop(build_images(print))[0]


@pytest.fixture(scope="module")
def lab_host(host_image: image.HostImage, guest_disk: Path) -> Iterator[LabHost]:
    """One host, without others, for the tests of a module."""
    with started_host(LabHost(host_image, guest_disk=guest_disk)) as host:
        yield host


@pytest.fixture(scope="module")
def lab_source(lab_host: LabHost) -> LabHost:
    """`lab_host` with this repository in it: `python -m pytest`, `appliance` and the like work there."""
    in_loop(lab_host.put_source())
    return lab_host


@pytest.fixture(scope="session")
def vmm_host(host_image: image.HostImage, guest_disk: Path) -> Iterator[LabHost]:
    """The host that all tests of the native machine share, with this repository in it."""
    with started_host(LabHost(host_image, guest_disk=guest_disk)) as host:
        in_loop(host.put_source())
        yield host


@pytest.fixture
async def native(vmm_host: LabHost) -> AsyncIterator[NativeHost]:
    """The native engine in that host, for one test."""
    async with native_host(vmm_host) as running:
        yield running


@pytest.fixture(scope="module")
def lab_appliance(lab_source: LabHost) -> Iterator[LabAppliance]:
    """An appliance that runs as a service of `lab_host`; its API is reached from here."""
    running = LabAppliance(lab_source)
    in_loop(running.start())
    yield running
    in_loop(running.stop())


@pytest.fixture
async def lab_cluster(host_image: image.HostImage) -> AsyncIterator[MakeCluster]:
    """`await lab_cluster(3)`: hosts lab1 … lab3 on a network of their own, started at the same time."""
    async with AsyncExitStack() as stack:
        switch = Switch()
        stack.callback(switch.close)

        async def make(count: int) -> list[LabHost]:
            hosts = [LabHost(host_image, number=n, switch=switch, memory_mib=2048) for n in range(1, count + 1)]
            for host in hosts:
                stack.push_async_callback(_forget, host)
                _LIVE.append(host)
            async with asyncio.TaskGroup() as group:
                for host in hosts:
                    group.create_task(host.start(), name=f"start-{host.name}")
            return hosts

        yield make


@pytest.fixture(scope="session")
def guest_files() -> GuestFiles:
    """Debian's cloud kernel, which boots fastest."""
    return _guest_files(recipe.GUEST_DIR)


@pytest.fixture(scope="session")
def guest_files_drivers() -> GuestFiles:
    """Debian's usual kernel: also i6300esb, ahci, nvme, e1000."""
    return _guest_files(f"{recipe.GUEST_DIR}/drivers")


def _guest_files(directory: str) -> GuestFiles:
    return GuestFiles(
        vmlinux=f"{directory}/vmlinux",
        bzimage=f"{directory}/bzImage",
        initramfs=f"{directory}/initramfs",
        disk=recipe.GUEST_DISK,
    )


@contextlib.contextmanager
def started_host(host: LabHost) -> Iterator[LabHost]:
    """A host for as long as the context lasts; when a test fails meanwhile, what it has to say is kept."""
    _LIVE.append(host)
    try:
        in_loop(host.start())
        yield host
    finally:
        in_loop(_forget(host))


async def _forget(host: LabHost) -> None:
    await host.destroy()
    _LIVE.remove(host)


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Hosts belong to no loop: what outlives one test is started and ended in a loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
