"""Firmware and a boot loader nobody here wrote, on the real /dev/kvm: SeaBIOS finds GRUB on a virtio disk, and it answers."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.model.guest import GuestId, GuestState, VmDisk, VmResources, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.storage.recipes import grub
from appliance.tasks import TaskScope
from appliance.vmm.engine import NativeEngine
from appliance.vmm.vm import NativeVm

pytestmark = [pytest.mark.host, pytest.mark.timeout(240)]

CORE_SECTOR = 1
DISK_BYTES = 4 << 20
CONFIG = "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\n"
MODULES = ("biosdisk", "serial", "terminal", "echo", "ls", "reboot", "halt")
DEADLINE_S = 200.0  # the processor is emulated here
SPEC = VmSpec(
    guest_id=GuestId(100),
    name="grub",
    uuid="3f2504e0-4f89-41d3-9a0c-0305e82c3301",
    engine="native",
    cpu_model="host",
    memory_mib=64,
    serials=(0,),
    display="none",
    disks=(VmDisk(slot="virtio0", volume="local:100/vm-100-disk-0.raw"),),
    boot_order=("virtio0",),
)


def make_disk(directory: Path) -> Path:
    """A disk of GRUB's boot sector and core image, which ends in its shell on the serial line."""
    config, core = directory / "early.cfg", directory / "core.img"
    config.write_text(CONFIG)
    subprocess.run(
        ["grub-mkimage", "-O", "i386-pc", "-p", "/boot", "-c", config, "-o", core, *MODULES], check=True, timeout=60
    )
    disk = directory / "disk.raw"
    sector = grub.boot_sector(grub.read_boot_image(), core_sector=CORE_SECTOR).ljust(510, b"\0") + b"\x55\xaa"
    disk.write_bytes((sector + grub.placed_core(core.read_bytes(), core_sector=CORE_SECTOR)).ljust(DISK_BYTES, b"\0"))
    return disk


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[NativeVm]:
    disk = await asyncio.to_thread(make_disk, directory)
    volume = OpenedVolume(volume_id=None, path=disk, format=VolumeFormat.RAW, size_bytes=DISK_BYTES)
    scope = TaskScope("test")
    engine = NativeEngine(directory / "run", directory / "data", scope, SystemClock())
    await engine.probe()
    vm = await engine.start(
        SPEC, VmResources(disks={"virtio0": volume}), on_state=lambda state, reason: None, log=lambda line: None
    )
    try:
        yield vm
    finally:
        if vm.state is not GuestState.STOPPED:
            await vm.stop()
        await engine.close()
        await scope.close()


async def test_grub_reaches_its_prompt_on_the_serial_console_and_answers(tmp_path: Path) -> None:
    async with running(tmp_path) as vm:
        console = await vm.open_console("serial0")
        said = console.history()

        async def until(text: bytes) -> None:
            nonlocal said
            while text not in said:
                said += await console.read()

        async with asyncio.timeout(DEADLINE_S):
            await until(b"grub> ")
            await console.write(b"echo native-machine\r")
            await until(b"native-machine")  # what is typed comes back letter by letter, with cursor movements between
            await console.write(b"ls\r")
            await until(b"(hd0)")
            await console.write(b"halt\r")
            reason = await vm.wait()
        assert reason.kind == "shutdown"
        await console.close()
