"""Snapshots inside images that a real QEMU has open, with and without the machine's memory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from appliance.errors import HostError
from appliance.model.guest import GuestState, SavedState, VmDisk, VmResources
from appliance.model.volume import OpenedVolume, VolumeFormat
from tests.qemu.host import QemuHost, boot_spec, greeted, opened, qemu_host, read_until

pytestmark = pytest.mark.host

SPEC = boot_spec(
    disks=(
        VmDisk(slot="virtio0", volume="local:100/vm-100-disk-0.qcow2"),
        VmDisk(slot="virtio1", volume="local:100/vm-100-disk-1.qcow2"),
    )
)


def qcow2(host: QemuHost, name: str) -> OpenedVolume:
    """The boot disk as a qcow2 image."""
    raw, path = host.disk(name=f"{name}.raw").path, host.directory / f"{name}.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True, timeout=30)
    return opened(path, VolumeFormat.QCOW2)


def kept(path: Path) -> list[str]:
    argv = ["qemu-img", "snapshot", "-U", "-l", str(path)]
    listed = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout
    return [line.split()[1] for line in listed.splitlines()[2:]]


async def test_a_snapshot_is_made_in_all_images_and_removed() -> None:
    async with qemu_host() as host:
        disks = {"virtio0": qcow2(host, "a"), "virtio1": qcow2(host, "b")}
        vm = await host.start(SPEC, VmResources(disks=disks))
        await greeted(vm)
        await vm.snapshot_disks("one", ["virtio0", "virtio1"])
        assert [kept(disk.path) for disk in disks.values()] == [["one"], ["one"]]
        with pytest.raises(HostError):  # one of the two has it already: the other must not get it
            await vm.snapshot_disks("one", ["virtio0"])
        await vm.drop_disk_snapshots("one", ["virtio0"])
        with pytest.raises(HostError):
            await vm.snapshot_disks("one", ["virtio0", "virtio1"])
        assert [kept(disk.path) for disk in disks.values()] == [[], ["one"]]
        await vm.drop_disk_snapshots("one", ["virtio0", "virtio1"])
        await vm.stop()


async def test_a_machine_goes_on_from_its_memory() -> None:
    async with qemu_host() as host:
        disks = {"virtio0": qcow2(host, "a"), "virtio1": qcow2(host, "b")}
        vm = await host.start(SPEC, VmResources(disks=disks))
        console = await greeted(vm)
        await vm.pause()
        await vm.snapshot_disks("one", ["virtio0", "virtio1"], state_slot="virtio0")
        await vm.resume()
        await console.write(b"x")
        assert await read_until(console, b"x") == b"x"
        await console.close()
        await vm.stop()
        state = SavedState(name="one", slot="virtio0", slots=("virtio0", "virtio1"))
        again = await host.start(SPEC, VmResources(disks=disks, state=state))
        assert again.state is GuestState.RUNNING
        console = await again.open_console("serial0")
        await console.write(b"y")
        assert (await read_until(console, b"y")).endswith(b"y")
        assert console.history() == b""  # it went on: it did not boot and greet again
        await console.close()
        await again.stop()


async def test_a_memory_that_is_not_there_is_an_error_and_leaves_nothing() -> None:
    async with qemu_host() as host:
        disks = {"virtio0": qcow2(host, "a"), "virtio1": qcow2(host, "b")}
        state = SavedState(name="never", slot="virtio0", slots=("virtio0", "virtio1"))
        with pytest.raises(HostError, match="snapshot-load"):
            await host.start(SPEC, VmResources(disks=disks, state=state))
        assert not host.paths().path.exists()
