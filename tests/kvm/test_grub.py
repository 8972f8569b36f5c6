"""Firmware and a boot loader nobody here wrote, on the real /dev/kvm: SeaBIOS finds GRUB on a virtio disk, and it answers."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from appliance.model.guest import GuestId, VmDisk, VmSpec
from appliance.storage.recipes import grub
from tests.kvm.native import Console, native_engine, native_vm

pytestmark = [pytest.mark.host, pytest.mark.timeout(240)]

CORE_SECTOR = 1
DISK_BYTES = 4 << 20
CONFIG = "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\n"
PROMPT = b"grub> "
MODULES = ("biosdisk", "serial", "terminal", "echo", "ls", "reboot", "halt")
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


async def test_grub_reaches_its_prompt_on_the_serial_console_and_answers(tmp_path: Path) -> None:
    """Each command is typed at the prompt: while GRUB reads its disk through the firmware, the firmware polls the same line
    for keys of its own (SeaBIOS, `sercon_check_event`, by the timer's interrupt), and what it takes GRUB never sees."""
    disk = await asyncio.to_thread(make_disk, tmp_path)
    async with native_engine(tmp_path) as engine, native_vm(engine, SPEC, {"virtio0": disk}) as vm:
        console = await Console.of(vm)
        await console.until(PROMPT)
        await console.type(b"echo native-machine\r")
        await console.until(
            b"native-machine"
        )  # what is typed comes back letter by letter, with cursor movements between
        await console.until(PROMPT)
        await console.type(b"ls\r")
        await console.until(b"(hd0)")
        await console.until(PROMPT)
        await console.type(b"halt\r")
        assert (await console.end(vm)).kind == "shutdown"
        await console.close()
