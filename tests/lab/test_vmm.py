"""Stock Linux on the native machine: Debian's kernels boot, find their devices, use them, and end as they should."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.lab.conftest import GuestFiles
from tests.lab.host import LabHost
from tests.lab.vmm_client import (
    NativeGuest,
    NativeHost,
    direct,
    disk,
    equipped,
    input_initramfs,
    kernel_disks,
    nic,
    raw_image,
    tap,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

MIB = 1 << 20
PATTERN = "yes 0123456789abcde | head -c 8388608"
PANIC = "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger"


async def _boot(native: NativeHost, files: GuestFiles, number: int = 100, **more: Any) -> NativeGuest:
    guest = await native.start(number, direct(**more), disks=kernel_disks(files))
    await guest.console.ready()
    return guest


async def test_an_uncompressed_kernel_boots_and_powers_off(native: NativeHost, guest_files: GuestFiles) -> None:
    guest = await native.start(100, direct(), disks=kernel_disks(guest_files))
    release = await guest.console.ready()
    assert await guest.run("uname -r") == release
    assert await guest.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource") == "kvm-clock"
    await guest.type("poweroff -f")
    assert await guest.ended() == "shutdown"


async def test_a_compressed_kernel_boots(native: NativeHost, guest_files: GuestFiles) -> None:
    guest = await native.start(100, direct(), disks=kernel_disks(guest_files, bzimage=True))
    await guest.console.ready()
    assert "MemTotal" in await guest.run("cat /proc/meminfo")


async def test_two_processors_both_work(native: NativeHost, guest_files: GuestFiles) -> None:
    guest = await _boot(native, guest_files, vcpus=2, cores=2)
    assert await guest.run("nproc") == "2"
    assert await guest.run("cat /sys/devices/system/cpu/online") == "0-1"
    for number in ("0", "1"):
        where = await guest.run(f"taskset -c {number} sh -c 'cut -d\" \" -f39 /proc/self/stat'")
        assert where == number
    assert await guest.run("grep -c . /sys/devices/system/cpu/cpu*/topology/core_id")


async def test_every_device_has_its_driver(
    native: NativeHost, lab_source: LabHost, guest_files_drivers: GuestFiles
) -> None:
    image = await raw_image(lab_source, "drivers.raw", 16)
    cable = await tap(lab_source, "vmmtap0")
    files = {**kernel_disks(guest_files_drivers), "virtio0": image}
    guest = await native.start(100, equipped(disks=[disk("virtio0")], nics=[nic("net0")]), disks=files, taps=cable)
    await guest.console.ready()
    bound = await guest.run("for d in /sys/bus/virtio/devices/*; do basename $(readlink $d/driver); done | sort")
    expected = ["virtio_balloon", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng"]
    assert [name for name in bound.split() if not name.startswith("vmw_vsock")] == expected
    assert "vmw_vsock_virtio_transport" in bound
    assert "i6300ESB timer" in await guest.run("readlink /sys/bus/pci/devices/*/driver")
    shown = await guest.run("lspci")
    assert shown.count("1af4:10") == 6, shown
    assert len(await guest.run("dd if=/dev/hwrng bs=16 count=1 2>/dev/null | xxd -p")) == 32
    assert await guest.run("test -c /dev/watchdog0 && ls /dev/vport*")
    assert await guest.run("cat /sys/firmware/dmi/entries/1-0/raw >/dev/null; cat /sys/class/dmi/id/product_uuid")


async def test_what_was_written_and_synced_is_there_after_a_restart(
    native: NativeHost, lab_source: LabHost, guest_files: GuestFiles
) -> None:
    image = await raw_image(lab_source, "disk.raw", 64)
    files = {**kernel_disks(guest_files), "virtio0": image}
    guest = await native.start(100, direct(disks=[disk("virtio0", discard=True)]), disks=files)
    await guest.console.ready()
    written = await guest.run(f"{PATTERN} | dd of=/dev/vda bs=64k seek=16 2>/dev/null; sync; {PATTERN} | sha256sum")
    await guest.type("reboot -f")
    await guest.console.ready()
    assert await guest.run("dd if=/dev/vda bs=64k skip=16 count=128 2>/dev/null | sha256sum") == written
    assert (
        await lab_source.shell(f"dd if={image} bs=64k skip=16 count=128 status=none | sha256sum", timeout_s=60)
    ) == (written)
    used = await _used_kib(lab_source, image)
    await guest.run(f"blkdiscard -o {MIB} -l {8 * MIB} /dev/vda")
    assert await _used_kib(lab_source, image) <= used - 8 * 1024
    assert await guest.run("dd if=/dev/vda bs=64k skip=16 count=128 2>/dev/null | tr -d '\\0' | wc -c") == "0"
    assert ("running", "") not in guest.states  # a restart from inside is no new start


async def test_the_network_carries_pings_and_tcp_both_ways(
    native: NativeHost, lab_source: LabHost, guest_files: GuestFiles
) -> None:
    cable = await tap(lab_source, "vmmtap1", address="10.88.0.1/24")
    files = kernel_disks(guest_files)
    guest = await native.start(100, direct(nics=[nic("net0")]), disks=files, taps=cable)
    await guest.console.ready()
    await guest.run("ip link set eth0 up && ip addr add 10.88.0.2/24 dev eth0 && ip link set lo up")
    assert "3 packets received" in await guest.run("ping -c 3 -W 20 10.88.0.1")
    assert "3 received" in await lab_source.shell("ping -c 3 -W 20 10.88.0.2", timeout_s=90)

    size, listen = 4 * MIB, "timeout 90 busybox nc -l -p 7000"
    theirs = asyncio.create_task(lab_source.shell(f"{listen} | sha256sum", timeout_s=120))
    send = f"{PATTERN} | head -c {size} | nc 10.88.0.1 7000"
    await guest.run(f"n=0; until {send} || [ $n = 20 ]; do n=$((n+1)); sleep 1; done", timeout_s=120)
    expected = await guest.run(f"{PATTERN} | head -c {size} | sha256sum")
    assert await theirs == expected

    await guest.run("(nc -l -p 7001 | sha256sum >/tmp/sum) </dev/null >/dev/null 2>&1 &")
    send = f"yes 0123456789abcde | head -c {size} | timeout 60 busybox nc 10.88.0.2 7001"
    await lab_source.shell(f"n=0; until {send} || [ $n = 20 ]; do n=$((n+1)); sleep 1; done", timeout_s=120)
    assert await guest.run("until [ -s /tmp/sum ]; do sleep 1; done; cat /tmp/sum") == expected


async def test_the_power_button_reaches_the_guest(
    native: NativeHost, lab_source: LabHost, guest_files: GuestFiles
) -> None:
    """What a session of systemd makes of it is the debian-12 image's test."""
    files = {**kernel_disks(guest_files), "initrd": await input_initramfs(lab_source, guest_files)}
    guest = await native.start(100, direct(), disks=files)
    await guest.console.ready()
    await guest.run("insmod /extra/evdev.ko && insmod /extra/button.ko && sleep 1 && ls /dev/input/event0")
    await guest.run("(head -c 1 /dev/input/event0 && poweroff -f) </dev/null >/dev/null 2>&1 &")
    await guest.run("sleep 2")
    assert guest.states == []
    await guest.order("shutdown")
    assert await guest.ended() == "shutdown"


async def test_a_panic_is_told_and_the_guest_restarts_itself(native: NativeHost, guest_files: GuestFiles) -> None:
    guest = await _boot(native, guest_files)
    await guest.type(PANIC)
    await guest.console.ready()
    assert ("running", "the guest's kernel panicked") in guest.states


async def test_a_paused_guest_stands_still_and_goes_on(native: NativeHost, guest_files: GuestFiles) -> None:
    guest = await _boot(native, guest_files, vcpus=2, cores=2)
    await guest.run("(while :; do date +%s >/tmp/tick; usleep 100000; done) </dev/null >/dev/null 2>&1 &")
    await guest.order("pause")
    before = (await guest.order("stats"))["cpu_seconds"]
    await asyncio.sleep(3)
    assert (await guest.order("stats"))["cpu_seconds"] - before < 0.3
    await guest.order("resume")
    first = await guest.run("cat /tmp/tick")
    await guest.run("sleep 2")
    assert int(await guest.run("cat /tmp/tick")) > int(first)


async def test_the_balloon_takes_memory_and_gives_it_back(native: NativeHost, guest_files: GuestFiles) -> None:
    guest = await _boot(native, guest_files, balloon_min_mib=64)
    total = int(await guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo"))
    await guest.order("balloon", mib=192)
    await guest.run(
        f"until [ $(awk '/MemTotal/ {{print $2}}' /proc/meminfo) -le {total - 65536} ]; do usleep 200000; done"
    )
    await guest.order("balloon", mib=256)
    await guest.run(f"until [ $(awk '/MemTotal/ {{print $2}}' /proc/meminfo) -ge {total} ]; do usleep 200000; done")


async def test_a_guest_that_fails_does_not_disturb_its_neighbour(native: NativeHost, guest_files: GuestFiles) -> None:
    bad, good = await asyncio.gather(_boot(native, guest_files, 100), _boot(native, guest_files, 101))
    await bad.order("fault")
    assert await bad.ended() == "crashed"
    assert bad.states[-1][0] == "stopped"
    assert "INTERNAL_ERROR" in bad.states[-1][1], bad.states
    assert await good.run("echo here") == "here"
    assert good.states == []


async def _used_kib(host: LabHost, path: str) -> int:
    return int((await host.shell(f"sync {path}; du -k {path}", timeout_s=60)).split()[0])
