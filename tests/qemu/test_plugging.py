"""Disks and NICs come to a QEMU that runs, and go when its guest lets go of them, also after a restart of the appliance."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.errors import Conflict, HostError, NotFound, TimedOut, Unsupported
from appliance.model.guest import NicSpec, VmDisk, VmResources
from appliance.model.volume import OpenedVolume
from appliance.qemu import plugs as plugs_module
from appliance.qemu.console import SerialConsole
from appliance.qemu.vm import RunningVm
from tests.qemu.host import QemuHost, boot_spec, opened, qemu_host, read_until
from tests.qemu.test_resources import tap

pytestmark = pytest.mark.host

NIC = NicSpec(slot="net1", model="virtio", mac="BC:24:11:00:00:01", bridge="vmbr0")
# A boot sector that obeys ACPI hot-plug's registers (QEMU docs/specs/acpi_pci_hotplug) ten times a second, and says R as it
# starts, U when something was plugged in, E when it lets go. Typing S makes it stubborn; it says what was typed.
OBEYS = bytes.fromhex(
    "fa 31c0 8ed8 8ed0 bc007c c606000600 baf803 b052 ee"  # 00  cli; ds = ss = 0; sp; not stubborn; say R
    "fb f4"  # 15  wait for the timer
    "ba00ae 66ed 6685c0 7406 baf803 b055 ee"  # 17  what is up? say U
    "ba04ae 66ed 6685c0 7412"  # 27  what is down?
    "803e000653 740b ba08ae 66ef baf803 b045 ee"  # 31  stubborn? eject it, say E
    "bafd03 ec a801 74ca baf803 ec a20006 ee ebc0"  # 43  what was typed? keep it, say it
)
SECTOR = OBEYS.ljust(510, b"\0") + b"\x55\xaa"


def disk(slot: str, *, iothread: bool = False) -> VmDisk:
    return VmDisk(slot=slot, volume=f"local:100/{slot}.raw", iothread=iothread)


def image(host: QemuHost, name: str) -> OpenedVolume:
    path = host.directory / name
    path.write_bytes(bytes(1 << 20))
    return opened(path)


async def started(host: QemuHost, *more: VmDisk, **changes: object) -> tuple[RunningVm, SerialConsole]:
    """The guest that obeys, with `more` disks from the start."""
    boot = boot_spec(**changes)
    volumes = {"virtio0": host.disk(SECTOR), **{each.slot: image(host, f"{each.slot}-0.raw") for each in more}}
    spec = boot_spec(disks=(*boot.disks, *more), **changes)
    vm = await host.start(spec, VmResources(disks=volumes))
    console = await vm.open_console("serial0")
    await read_until(console, b"R", said=console.history())
    return vm, console


async def nodes(vm: RunningVm) -> set[str]:
    """The block nodes, I/O threads and network back ends that QEMU has."""
    blocks = await vm._monitor.execute("query-named-block-nodes")
    objects = await vm._monitor.execute("qom-list", {"path": "/objects"})
    assert isinstance(blocks, list)
    assert isinstance(objects, list)
    named = {str(each["node-name"]) for each in blocks} | {str(each["name"]) for each in objects}
    return {name for name in named if name.startswith(("drive-", "iothread-"))}


async def until_gone(vm: RunningVm, slot: str) -> None:
    async with asyncio.timeout(20):
        while slot in vm.attached:
            await asyncio.sleep(0.05)


async def test_a_disk_is_plugged_in_and_goes_with_all_that_is_behind_it_when_the_guest_lets_go() -> None:
    async with qemu_host() as host:
        vm, console = await started(host)
        second = image(host, "second.raw")
        for _ in range(2):
            await vm.attach_disk(disk("virtio1", iothread=True), second)
            await read_until(console, b"U")
            assert await nodes(vm) == {"drive-virtio0", "drive-virtio1", "iothread-virtio1"}
            assert vm.attached.keys() == {"virtio0", "virtio1"}
            await vm.detach_disk("virtio1")
            await read_until(console, b"E")
            assert await nodes(vm) == {"drive-virtio0"}
            assert vm.attached.keys() == {"virtio0"}


async def test_a_nic_is_plugged_in_and_goes_and_its_tap_is_free_again() -> None:
    async with qemu_host() as host, tap("vnet_hdr") as name:
        vm, console = await started(host)
        for _ in range(2):
            await vm.attach_nic(NIC, name)
            await read_until(console, b"U")
            await vm.set_link("net1", up=False)
            nic = vm.attached["net1"]
            assert isinstance(nic, NicSpec)
            assert nic.link_down
            await vm.detach_nic("net1")
            await read_until(console, b"E")
            assert vm.attached.keys() == {"virtio0"}


async def test_scsi_disks_come_and_go_on_a_controller_that_is_there() -> None:
    async with qemu_host() as host:
        vm, _ = await started(host, disk("scsi0"))
        await vm.attach_disk(disk("scsi1"), image(host, "second.raw"))
        assert "drive-scsi1" in await nodes(vm)
        await vm.detach_disk("scsi1")  # the controller's protocol does not ask the guest
        assert "drive-scsi1" not in await nodes(vm)


async def test_a_scsi_disk_with_a_controller_of_its_own_brings_it_and_takes_it_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with qemu_host() as host:
        vm, _ = await started(host, disk("scsi0"), scsi_controller="virtio-scsi-single")
        await vm.attach_disk(disk("scsi1"), image(host, "second.raw"))
        assert "drive-scsi1" in await nodes(vm)
        monkeypatch.setattr(plugs_module, "EJECT_TIMEOUT_S", 0.5)
        for _attempt in range(2):
            with pytest.raises(
                TimedOut, match="virtioscsi1: the guest letting go of it"
            ):  # it looks at the root bus only
                await vm.detach_disk("scsi1")
        await vm.reset()  # in which QEMU takes out what was asked for
        await until_gone(vm, "scsi1")
        assert "drive-scsi1" not in await nodes(vm)


@pytest.mark.parametrize(
    ("machine", "slot", "why"),
    [
        ("i440fx", "ide1", "only virtio and virtio-scsi disks"),
        ("i440fx", "scsi1", "it was started without a SCSI controller"),
        ("i440fx", "virtio9", "it was started without the PCI bridge"),
        ("q35", "virtio1", "the root bus of q35 takes nothing while it runs"),
    ],
)
async def test_where_nothing_can_be_plugged_the_reason_is_told_and_nothing_has_changed(
    machine: str, slot: str, why: str
) -> None:
    async with qemu_host() as host:
        vm = await host.start(boot_spec(machine=machine))
        with pytest.raises(Unsupported, match=f"{slot}: .*{why}"):
            await vm.attach_disk(disk(slot), image(host, "second.raw"))
        assert vm.attached.keys() == {"virtio0"}
        assert await nodes(vm) == {"drive-virtio0"}


async def test_what_fails_half_way_is_undone() -> None:
    async with qemu_host() as host, tap("vnet_hdr") as name:
        vm, console = await started(host)
        second = image(host, "second.raw")
        with pytest.raises(Conflict, match="virtio0 is there already"):
            await vm.attach_disk(disk("virtio0"), second)
        with pytest.raises(HostError, match="lock"):
            await vm.attach_disk(disk("virtio1"), opened(host.directory / "disk.raw"))
        with pytest.raises(HostError):
            await vm.attach_nic(NicSpec(slot="net1", model="virtio", mac="nonsense", bridge="vmbr0"), name)
        with pytest.raises(HostError, match="tap device no-tap is missing"):
            await vm.attach_nic(NIC, "no-tap")
        assert vm.attached.keys() == {"virtio0"}
        await vm.attach_nic(NIC, name)
        await read_until(console, b"U")


async def test_a_guest_that_lets_go_late_is_noticed_and_what_is_behind_goes_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with qemu_host() as host:
        vm, console = await started(host)
        await vm.attach_disk(disk("virtio1"), image(host, "second.raw"))
        await read_until(console, b"U")
        await console.write(b"S")
        await read_until(console, b"S")
        monkeypatch.setattr(plugs_module, "EJECT_TIMEOUT_S", 0.5)
        with pytest.raises(NotFound, match="virtio7"):
            await vm.detach_disk("virtio7")
        with pytest.raises(TimedOut, match="virtio1: the guest letting go of it"):
            await vm.detach_disk("virtio1")
        assert "virtio1" in vm.attached
        await console.write(b"o")
        await read_until(console, b"E")
        await until_gone(vm, "virtio1")
        assert await nodes(vm) == {"drive-virtio0"}


async def test_what_was_plugged_in_is_known_after_a_restart_of_the_appliance(tmp_path: Path) -> None:
    async with qemu_host() as host:
        vm, console = await started(host)
        await vm.attach_disk(disk("virtio1"), image(host, "second.raw"))
        await read_until(console, b"U")
        await console.close()
        await host.engine.release(vm.guest_id)
        again = await host.adopt()
        assert again is not None
        assert again.attached["virtio1"] == disk("virtio1")
        await again.detach_disk("virtio1")
        assert again.attached.keys() == {"virtio0"}
