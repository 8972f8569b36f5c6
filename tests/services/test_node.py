"""Rules of the node's figures: parsing /proc, ratios."""

from __future__ import annotations

import asyncio
import dataclasses
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.events import EventBus, NodeStatsSampled
from appliance.services import host_facts
from appliance.services.node import SAMPLE_EVERY_S, NodeService, derive
from appliance.services.node_sample import (
    CpuInfo,
    HostInfo,
    KernelInfo,
    Sample,
    parse_cpu_times,
    parse_cpuinfo,
    parse_disks,
    parse_memory,
    parse_network,
    read_host,
    read_sample,
)
from appliance.tasks import TaskScope
from tests.fakes.clock import FakeClock

HOST = HostInfo(
    cpu=CpuInfo(cpus=2),
    kernel=KernelInfo(sysname="Linux", release="6.1", version="#1", machine="x86_64"),
    boot_mode="legacy-bios",
    secure_boot=False,
)
SAMPLE = Sample(
    cpu_total=1000, cpu_idle=600, cpu_iowait=100, load=(0.5, 0.4, 0.3), memory_total_bytes=1000, memory_free_bytes=100,
    memory_available_bytes=400, swap_total_bytes=50, swap_free_bytes=20, rootfs_total_bytes=100, rootfs_free_bytes=40,
    rootfs_available_bytes=30, uptime_s=100.0, net_in_bytes=1000, net_out_bytes=2000,
)  # fmt: skip
TWO_SOCKETS = "\n\n".join(
    f"processor\t: {number}\nmodel name\t: Example CPU\ncpu MHz\t\t: 2600.000\nphysical id\t: {number // 4}\n"
    f"core id\t\t: {number // 2 % 2}\nflags\t\t: fpu vmx sse2"
    for number in range(8)
)
ARM = "processor\t: 0\nBogoMIPS\t: 125.00\nFeatures\t: fp asimd\n\nprocessor\t: 1\nFeatures\t: fp asimd\n\n"


def test_processors_are_counted_by_socket_core_and_thread() -> None:
    cpu = parse_cpuinfo(TWO_SOCKETS, machine="x86_64")
    assert (cpu.sockets, cpu.cores, cpu.cpus, cpu.mhz, cpu.hvm) == (2, 4, 8, 2600.0, True)


def test_a_processor_without_model_is_named_by_its_architecture() -> None:
    cpu = parse_cpuinfo(ARM, machine="aarch64")
    assert (cpu.model, cpu.cpus, cpu.cores, cpu.sockets, cpu.hvm) == ("aarch64", 2, 2, 1, False)


@given(st.text(max_size=300))
def test_no_cpuinfo_is_too_strange(text: str) -> None:
    assert parse_cpuinfo(text, machine="m").cpus >= 1
    parse_memory(text)


def test_cpu_times_leave_out_guest_time() -> None:
    assert parse_cpu_times("cpu  10 1 5 100 4 0 2 3 99 99\ncpu0 …") == (125, 100, 4)


def test_traffic_of_guests_and_loopback_is_not_the_nodes() -> None:
    header = "Inter-|   Receive\n face |bytes\n"
    lines = [
        f"{name}: 10 0 0 0 0 0 0 0 20 0 0 0 0 0 0 0"
        for name in ("lo", "eth0", "enp3s0", "tap100i0", "veth101i0", "vmbr0")
    ]
    assert parse_network(header + "\n".join(lines)) == (20, 40)


def test_ratios_are_of_the_time_between_two_samples() -> None:
    later = dataclasses.replace(
        SAMPLE, cpu_total=1200, cpu_idle=650, cpu_iowait=110, uptime_s=102.0, net_in_bytes=3000, net_out_bytes=2000
    )
    status = derive(later, SAMPLE, HOST, now=1.0)
    assert (status.cpu_ratio, status.iowait_ratio) == (0.7, 0.05)
    assert (status.net_in_bytes_s, status.net_out_bytes_s) == (1000.0, 0.0)
    assert (status.memory_used_bytes, status.swap_used_bytes, status.rootfs_used_bytes) == (600, 30, 60)


def test_counters_that_step_back_give_no_nonsense() -> None:
    earlier = dataclasses.replace(SAMPLE, cpu_idle=590, cpu_iowait=200, net_in_bytes=0, cpu_total=900, uptime_s=98.0)
    status = derive(earlier, SAMPLE, HOST, now=1.0)
    assert 0.0 <= status.cpu_ratio <= 1.0
    assert 0.0 <= status.iowait_ratio <= 1.0
    assert status.net_in_bytes_s == 0.0


def test_disks_are_counted_whole_and_rates_never_fall_below_zero() -> None:
    text = "8 0 sda 1 0 10 0 1 0 20 0\n8 1 sda1 1 0 10 0 1 0 20 0\n259 0 nvme0n1 1 0 2 0 1 0 4 0\n7 0 loop0 1 0 9 0 1 0 9 0\n"
    assert parse_disks(text) == (12 * 512, 24 * 512)
    later = dataclasses.replace(SAMPLE, uptime_s=102.0, disk_read_bytes=2048)
    assert derive(later, SAMPLE, HOST, now=1.0).disk_read_bytes_s == 1024
    assert derive(SAMPLE, dataclasses.replace(later, uptime_s=98.0), HOST, now=1.0).disk_read_bytes_s == 0


async def test_reading_the_status_never_waits_for_a_sample() -> None:
    events, clock, scope = EventBus(), FakeClock(), TaskScope("node-test")
    service = NodeService(events, clock, scope)
    await service.start()
    first = await service.status()
    assert await service.status() is first
    with events.subscribe() as subscription:
        await asyncio.sleep(0)
        await clock.advance(SAMPLE_EVERY_S)
        assert await asyncio.wait_for(subscription.next(), 30) == NodeStatsSampled()
    assert (await service.status()).sampled_at == first.sampled_at + SAMPLE_EVERY_S
    await scope.close()


def test_this_host_can_be_read() -> None:
    sample, host = read_sample(), read_host()
    assert sample.memory_total_bytes > sample.memory_available_bytes > 0
    assert sample.rootfs_total_bytes > 0
    assert host.cpu.cpus == os.cpu_count()
    assert host.kernel.release == os.uname().release


@pytest.mark.parametrize(
    ("text", "servers", "search"),
    [
        ("", (), ""),
        (
            "nameserver 192.0.2.1\n# x\nnameserver ::1\nsearch a.example b.example\n",
            ("192.0.2.1", "::1"),
            "a.example b.example",
        ),
        ("domain a\nsearch b\nnameserver 1\nnameserver 2\nnameserver 3\nnameserver 4", ("1", "2", "3"), "b"),
        ("nameserver\nsearch", (), ""),
    ],
)
def test_the_resolver_is_read_as_the_c_library_does(text: str, servers: tuple[str, ...], search: str) -> None:
    resolver = host_facts.parse_resolver(text)
    assert (resolver.servers, resolver.search) == (servers, search)
