"""Stock Linux on the native machine, its kernel placed by us: Debian's kernels boot, use every device, and end as they should.

Each boot costs a quarter of a minute and more: so a guest here is asked many things.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.lab.guest_paths import GuestFiles
from tests.lab.host import LabHost
from tests.lab.vmm_client import (
    SCRATCH,
    NativeGuest,
    NativeHost,
    OrderFailed,
    direct,
    disk,
    equipped,
    kernel_disks,
    native_host,
    nic,
    raw_image,
    tap,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

MIB = 1 << 20
PATTERN = "yes 0123456789abcde | head -c 8388608"
PANIC = "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger"
LSPCI = "for d in /sys/bus/pci/devices/*; do echo ${d##*/} $(cat $d/vendor):$(cat $d/device); done | sed s/0x//g"
HOST, GUEST = "10.88.0.1", "10.88.0.2"
UP = f"ip link set eth0 up && ip addr add {GUEST}/24 dev eth0 && ip link set lo up"


async def test_a_guest_keeps_what_it_wrote_and_sees_what_is_plugged_in(
    native: NativeHost, vmm_host: LabHost, guest_files: GuestFiles
) -> None:
    image, second = await raw_image(vmm_host, "disk.raw", 64), await raw_image(vmm_host, "second.raw", 32)
    cables = {"net0": await tap(vmm_host, "vmmtap0", address=f"{HOST}/24")}
    files = {**kernel_disks(guest_files), "virtio0": image}
    spec = direct(disks=[disk("virtio0", discard=True)], nics=[nic("net0")], data_plane="python")
    guest = await native.start(100, spec, disks=files, taps=cables)
    release = await guest.console.ready()
    assert await guest.run("uname -r") == release
    assert await guest.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource") == "kvm-clock"
    assert (await guest.run(LSPCI)).count("1af4:10") == 2

    written = await guest.run(f"{PATTERN} | dd of=/dev/vda bs=64k seek=16 2>/dev/null; sync; {PATTERN} | sha256sum")
    await guest.order("resize", slot="virtio0", size_bytes=96 * MIB)
    await guest.run(f"until [ $(blockdev --getsize64 /dev/vda) = {96 * MIB} ]; do usleep 200000; done")
    await _talks_both_ways(guest, vmm_host)
    await _plugs(guest, vmm_host, second)

    await guest.order("attach_disk", slot="virtio2", path=second)
    await guest.type("reboot -f")
    assert await guest.console.ready() == release
    assert await guest.run("dd if=/dev/vda bs=64k skip=16 count=128 2>/dev/null | sha256sum") == written
    assert await guest.run("cat /sys/block/vdb/size") == str(32 * MIB // 512)
    assert (
        await vmm_host.shell(f"dd if={image} bs=64k skip=16 count=128 status=none | sha256sum", timeout_s=60) == written
    )
    used = await _used_kib(vmm_host, image)
    await guest.run(f"blkdiscard -o {MIB} -l {8 * MIB} /dev/vda")
    assert await _used_kib(vmm_host, image) <= used - 8 * 1024
    assert await guest.run("dd if=/dev/vda bs=64k skip=16 count=128 2>/dev/null | tr -d '\\0' | wc -c") == "0"
    assert guest.states == []  # a restart from inside is no new start
    await guest.type("poweroff -f")
    assert await guest.ended() == "shutdown"


async def _talks_both_ways(guest: NativeGuest, host: LabHost) -> None:
    """Pings, and four megabytes by TCP each way."""
    await guest.run(UP)
    assert "3 packets received" in await guest.run(f"ping -c 3 -W 20 {HOST}")
    assert "3 received" in await host.shell(f"ping -c 3 -W 20 {GUEST}", timeout_s=90)
    sending = f"{PATTERN} | head -c {4 * MIB}"
    expected = await guest.run(f"{sending} | sha256sum")
    theirs = asyncio.create_task(host.shell(f"{_listen('timeout 90 busybox nc', 7000)} | sha256sum", timeout_s=120))
    await guest.run(_until(f"{sending} | nc {HOST} 7000"), timeout_s=120)
    assert await theirs == expected
    await guest.run(f"({_listen('nc', 7001)} | sha256sum >/tmp/sum) </dev/null >/dev/null 2>&1 &")
    await host.shell(
        _until(f"yes 0123456789abcde | head -c {4 * MIB} | timeout 60 busybox nc {GUEST} 7001"), timeout_s=120
    )
    assert await guest.run("until [ -s /tmp/sum ]; do sleep 1; done; cat /tmp/sum") == expected


async def _plugs(guest: NativeGuest, host: LabHost, image: str) -> None:
    """A disk and a NIC come while it runs, are used, and go; the guest may refuse by being too busy to answer only."""
    await guest.order("attach_disk", slot="virtio1", path=image)
    await guest.run("until [ -b /dev/vdb ]; do usleep 100000; done; echo plugged >/dev/vdb; sync")
    assert await host.shell(f"head -c 7 {image}", timeout_s=30) == "plugged"
    await guest.order("detach_disk", slot="virtio1")
    await guest.run("test ! -e /sys/block/vdb")
    cable = await tap(host, "vmmtap1", address="10.89.0.1/24")
    await guest.order("attach_nic", nic=nic("net1"), tap=cable)
    await guest.run("until [ -e /sys/class/net/eth1 ]; do usleep 100000; done; cat /sys/class/net/eth1/address")
    await guest.run("ip link set eth1 up && ip addr add 10.89.0.2/24 dev eth1")
    assert "1 packets received" in await guest.run("ping -c 1 -W 20 10.89.0.1")
    await guest.order("detach_nic", slot="net1")
    await guest.run("test ! -e /sys/class/net/eth1")
    with pytest.raises(OrderFailed, match="virtio1"):
        await guest.order("detach_disk", slot="virtio1")


async def test_two_processors_stand_still_are_saved_and_go_on_with_the_right_time(
    vmm_host: LabHost, guest_files: GuestFiles
) -> None:
    spec, directory = direct(vcpus=2, cores=2), f"{SCRATCH}/saved"
    async with native_host(vmm_host, directory=directory) as first:
        guest = await first.start(100, spec, disks=kernel_disks(guest_files, bzimage=True))
        await guest.console.ready()
        assert await guest.run("nproc") == "2"
        for number in ("0", "1"):
            where = await guest.run(f"taskset -c {number} sh -c 'cut -d\" \" -f39 /proc/self/stat'")
            assert where == number
        await guest.run("(while :; do date +%s >>/tmp/ticks; usleep 200000; done) </dev/null >/dev/null 2>&1 &")
        await guest.order("pause")
        before = (await guest.order("stats"))["cpu_seconds"]
        await asyncio.sleep(3)
        assert (await guest.order("stats"))["cpu_seconds"] - before < 0.3
        await guest.order("resume")
        first_ticks = int(await guest.run("wc -l </tmp/ticks"))
        await guest.order("detach")
    async with native_host(vmm_host, directory=directory) as second:
        guest = await second.adopt(100, spec)
        told = int(await guest.run("date +%s"))
        now = int(await vmm_host.shell("date +%s", timeout_s=30))
        assert abs(told - now) <= 5, "its clock went on while it was saved"
        await guest.run("sleep 2")
        assert int(await guest.run("wc -l </tmp/ticks")) > first_ticks
        await guest.run("modprobe evdev; until [ -e /dev/input/event0 ]; do usleep 100000; done")
        waits = "(head -c 1 $each && poweroff -f) </dev/null >/dev/null 2>&1 &"  # the keyboard may be first
        await guest.run(f"for each in /dev/input/event*; do {waits} done")
        await guest.run("sleep 2")
        assert guest.states == []
        await guest.order("shutdown")
        assert await guest.ended() == "shutdown"


async def test_every_device_has_its_driver_and_does_its_work(
    native: NativeHost, vmm_host: LabHost, guest_files_drivers: GuestFiles
) -> None:
    """With the kernel's data plane for the network, and the storage daemon's for the disk."""
    image = await raw_image(vmm_host, "drivers.raw", 16)
    files = {**kernel_disks(guest_files_drivers), "virtio0": image}
    cables = {"net0": await tap(vmm_host, "vmmtap2", address=f"{HOST}/24")}
    spec = equipped(disks=[disk("virtio0")], nics=[nic("net0")], data_plane="offload")
    guest = await native.start(100, spec, disks=files, taps=cables)
    await guest.console.ready()
    planes = {"virtio0: data plane: vhost-user", "net0: data plane: offload", "vsock: data plane: offload"}
    assert planes == {line.partition(": ")[2] for line in native.noise if "data plane: " in line}, native.tail()
    bound = await guest.run("for d in /sys/bus/virtio/devices/*; do basename $(readlink $d/driver); done | sort")
    expected = ["virtio_balloon", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng"]
    assert [name for name in bound.split() if not name.startswith("vmw_vsock")] == expected
    assert "vmw_vsock_virtio_transport" in bound
    assert "i6300ESB timer" in await guest.run("for d in /sys/bus/pci/devices/*; do readlink $d/driver; done; true")
    shown = await guest.run(LSPCI)
    assert shown.count("1af4:10") == 6, shown
    assert len(await guest.run("dd if=/dev/hwrng bs=16 count=1 2>/dev/null | xxd -p")) == 32
    assert await guest.run("test -c /dev/watchdog0 && ls /dev/vport*")
    assert await guest.run("cat /sys/firmware/dmi/entries/1-0/raw >/dev/null; cat /sys/class/dmi/id/product_uuid")
    await guest.run(f"{PATTERN} | head -c {MIB} | dd of=/dev/vda bs=64k 2>/dev/null; sync")
    assert await vmm_host.shell(f"head -c 15 {image}", timeout_s=30) == "0123456789abcde"
    await _talks_both_ways(guest, vmm_host)
    await _balloon(guest)
    await guest.type(
        "echo 10 >/dev/watchdog0"
    )  # opened and closed without the magic letter: it runs, and nobody serves it
    await guest.console.ready()
    assert any("watchdog expired" in line for line in native.noise), native.tail()
    await guest.type(PANIC)
    await guest.console.ready()
    assert guest.states == [("running", "the guest's kernel panicked")]


async def _balloon(guest: NativeGuest) -> None:
    """What Linux has free: what it has in all stays the same where it may take pages back when it runs out of memory."""
    free = int(await guest.run("awk '/MemFree/ {print $2}' /proc/meminfo"))
    for mib, test in ((256, f"-le {free - 65536}"), (384, f"-ge {free - 32768}")):
        await guest.order("balloon", mib=mib)
        await guest.run(f"until [ $(awk '/MemFree/ {{print $2}}' /proc/meminfo) {test} ]; do usleep 200000; done")


async def test_a_guest_that_fails_does_not_disturb_its_neighbour(native: NativeHost, guest_files: GuestFiles) -> None:
    async def boot(number: int) -> NativeGuest:
        guest = await native.start(number, direct(), disks=kernel_disks(guest_files))
        await guest.console.ready()
        return guest

    bad, good = await asyncio.gather(boot(100), boot(101))
    await bad.order("fault")
    assert await bad.ended() == "crashed"
    assert bad.states[-1][0] == "stopped"
    assert "INTERNAL_ERROR" in bad.states[-1][1], bad.states
    assert await good.run("echo here") == "here"
    assert good.states == []


def _listen(nc: str, port: int) -> str:
    """What comes to `port`. Its own input never ends: the other side takes the end of that for the end of everything."""
    return f"rm -f /tmp/idle; mkfifo /tmp/idle; {nc} -l -p {port} <>/tmp/idle"


def _until(command: str) -> str:
    """Tried until it succeeds: the other side may not listen yet."""
    return f"n=0; until {command} || [ $n = 20 ]; do n=$((n+1)); sleep 1; done"


async def _used_kib(host: LabHost, path: str) -> int:
    return int((await host.shell(f"sync {path}; du -k {path}", timeout_s=60)).split()[0])
