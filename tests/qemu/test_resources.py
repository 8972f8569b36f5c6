"""What a VM is given: taps of every model, EFI variables that last, a cloud-init drive written at the start."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import HostError
from appliance.model.guest import CloudInitSpec, NicSpec, VmDisk, VmResources
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.qemu.firmware import find_firmware, volume_vars
from tests.qemu.host import boot_spec, qemu_host

pytestmark = pytest.mark.host


async def _run(*argv: str) -> None:
    assert await (await asyncio.create_subprocess_exec(*argv)).wait() == 0, argv


@contextlib.asynccontextmanager
async def tap(*flags: str) -> AsyncIterator[str]:
    """A persistent tap device, gone afterwards."""
    name = f"vmt{secrets.token_hex(4)}"
    await _run("ip", "tuntap", "add", "dev", name, "mode", "tap", *flags)
    try:
        yield name
    finally:
        await _run("ip", "link", "delete", name)


async def test_every_nic_model_takes_a_tap_and_queues_need_one_made_for_them() -> None:
    async with (
        qemu_host() as host,
        tap() as first,
        tap("multi_queue", "vnet_hdr") as second,
        tap() as third,
        tap() as last,
    ):
        nics = tuple(
            NicSpec(
                slot=f"net{n}",
                model=model,
                mac=f"BC:24:11:00:00:0{n}",
                bridge="b",
                queues=queues,
                mtu=1400,
                link_down=n == 0,
            )
            for n, model, queues in ((0, "virtio", 1), (1, "virtio", 2), (2, "e1000", 1), (7, "vmxnet3", 1))
        )
        taps = {"net0": first, "net1": second, "net2": third, "net7": last}
        resources = VmResources(disks={"virtio0": host.disk()}, taps=taps)
        vm = await host.start(boot_spec(nics=nics, boot_order=("virtio0", "net0", "net7")), resources)
        await vm.stop()


async def test_blank_efi_disks_are_filled_once_and_what_they_hold_is_kept() -> None:
    firmware = await asyncio.to_thread(find_firmware, "x86_64")
    assert firmware is not None
    template = await asyncio.to_thread(firmware.vars_template.read_bytes)
    async with qemu_host() as host:
        raw, qcow2 = host.directory / "efi.raw", host.directory / "efi.qcow2"
        await _run("qemu-img", "create", "-q", "-f", "raw", str(raw), "1M")
        await _run("qemu-img", "create", "-q", "-f", "qcow2", str(qcow2), "540672")
        for path, format, size in ((raw, VolumeFormat.RAW, 1 << 20), (qcow2, VolumeFormat.QCOW2, 540672)):
            volume = OpenedVolume(volume_id=None, path=path, format=format, size_bytes=size)
            await volume_vars(firmware, volume)
            assert (await _content(path, format))[: len(template)] == template
            vm = await host.start(
                boot_spec(firmware="ovmf", memory_mib=64, efi_disk=VmDisk(slot="efidisk0", volume="local:efi")),
                VmResources(disks={"virtio0": host.disk(), "efidisk0": volume}),
            )
            await vm.stop()
            marked = bytearray(await _content(path, format))
            marked[5000] ^= 0xFF
            source = host.directory / "marked"
            await asyncio.to_thread(source.write_bytes, marked)
            await _run("qemu-img", "convert", "-n", "-f", "raw", "-O", format.value, str(source), str(path))
            await volume_vars(firmware, volume)
            assert await _content(path, format) == marked
            with pytest.raises(HostError, match="the firmware needs"):
                await volume_vars(firmware, replace(volume, size_bytes=4096))


async def _content(path: Path, format: VolumeFormat) -> bytes:
    raw = path.with_suffix(".content")
    await _run("qemu-img", "convert", "-f", format.value, "-O", "raw", str(path), str(raw))
    return await asyncio.to_thread(raw.read_bytes)


async def test_the_cloud_init_drive_is_written_at_the_start() -> None:
    async with qemu_host() as host:
        drive = replace(host.disk(name="cloudinit.raw"), size_bytes=1 << 20)
        disks = (*boot_spec().disks, VmDisk(slot="ide2", volume="local:ci", cdrom=True, cloudinit=True))
        spec = boot_spec(disks=disks, cloud_init=CloudInitSpec(user="me", ip_configs={0: "ip=dhcp"}))
        await host.start(spec, VmResources(disks={"virtio0": host.disk(), "ide2": drive}))
        content = await asyncio.to_thread(drive.path.read_bytes)
        assert b'"user": "me"' in content
        assert content[16 * 2048 + 40 :].startswith(b"cidata ")
        broken = replace(drive, path=host.directory / "no.raw")
    async with qemu_host() as host:
        with pytest.raises(HostError, match=r"no\.raw"):
            await host.start(spec, VmResources(disks={"virtio0": host.disk(), "ide2": broken}))
        assert not host.paths().path.exists()


async def test_aarch64_firmware_speaks_on_the_serial_console() -> None:
    async with qemu_host() as host:
        if "arch:aarch64" not in (await host.engine.probe()).available:
            pytest.skip("no qemu-system-aarch64 here")
        disk = VmDisk(slot="scsi0", volume="local:x")
        spec = boot_spec(
            arch="aarch64", machine="virt", memory_mib=128, disks=(disk,), boot_order=(), serials=(0, 1, 2, 3)
        )
        vm = await host.start(spec, VmResources(disks={"scsi0": host.disk()}))
        console = await vm.open_console("serial0")
        said = console.history()
        async with asyncio.timeout(90):
            while b"EFI" not in said and b"Press" not in said:
                said += await console.read()
