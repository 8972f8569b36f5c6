"""A firmware of a few instructions on the flash chips, on the real /dev/kvm: it changes its variables, and they stay."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.errors import Conflict, Unsupported
from appliance.model.guest import GuestId, VmDisk, VmResources, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.tasks import TaskScope
from appliance.vmm.boot import firmware
from appliance.vmm.boot.firmware import FlashPair, Rom
from appliance.vmm.boot.variables import VariablesFile
from appliance.vmm.engine import NativeEngine
from appliance.vmm.layout import FIRMWARE_END
from tests.kvm.guests import Asm

pytestmark = pytest.mark.host

CODE_BYTES, VARIABLES_BYTES = 0x1_0000, 0x2000
CODE, VARIABLES = FIRMWARE_END - CODE_BYTES, FIRMWARE_END - CODE_BYTES - VARIABLES_BYTES
TEMPLATE = b"\xff" * 0x1000 + b"template".ljust(0x1000, b"\xff")
COM1 = 0x3F8
EFI = VmDisk(slot="efidisk0", volume="local:100/vm-100-disk-1.raw")
SPEC = VmSpec(
    guest_id=GuestId(100),
    name="flash",
    uuid="3f2504e0-4f89-41d3-9a0c-0305e82c3301",
    engine="native",
    firmware="ovmf",
    cpu_model="host",
    memory_mib=32,
    serials=(0,),
    display="none",
    efi_disk=EFI,
)


def firmware_code() -> bytes:
    """From the reset vector into protected mode; then it programs a byte, and says status, the byte and the template's."""
    table, pointer, main = 0x100, 0x120, 0x200
    gdt = bytes(8) + bytes.fromhex("ffff0000009bcf00ffff00000093cf00")  # accessed already: a ROM takes no bits
    enter = bytes.fromhex("fa662e0f0116") + struct.pack("<H", pointer)  # cli; lgdt cs:[pointer]
    enter += bytes.fromhex("0f20c00c010f22c066ea") + struct.pack("<IH", CODE + main, 8)  # cr0.PE; far jump
    code = Asm(32).raw("66b810008ed8")  # ds
    code.store(VARIABLES, 0x40, 1).store(VARIABLES + 5, 0x5A, 1).load(VARIABLES, 1).out_acc(COM1)
    code.store(VARIABLES, 0xFF, 1).load(VARIABLES + 5, 1).out_acc(COM1).load(VARIABLES + 0x1000, 1).out_acc(COM1).halt()
    image = bytearray(CODE_BYTES)
    for at, part in ((0, enter), (table, gdt), (main, code.bytes()), (0xFFF0, b"\xe9\x0d\x00")):
        image[at : at + len(part)] = part
    image[pointer : pointer + 6] = struct.pack("<HI", len(gdt) - 1, CODE + table)
    return bytes(image)


@pytest.fixture(autouse=True)
def _firmware(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = FlashPair(Rom(CODE, firmware_code()), Rom(VARIABLES, TEMPLATE))
    monkeypatch.setattr(firmware, "load_flash", lambda: pair)
    monkeypatch.setattr(firmware, "problem", lambda path=None: "")


def volume(path: Path) -> OpenedVolume:
    return OpenedVolume(volume_id=None, path=path, format=VolumeFormat.RAW, size_bytes=1)


async def run(directory: Path, spec: VmSpec, resources: VmResources) -> tuple[bytes, list[str]]:
    """What it says on its serial line, and the task's log."""
    scope, lines = TaskScope("test"), list[str]()
    engine = NativeEngine(directory / "run", directory / "data", scope, SystemClock())
    await engine.probe()
    vm = await engine.start(spec, resources, on_state=lambda state, why: None, log=lines.append)
    console = await vm.open_console("serial0")
    said = console.history()
    try:
        async with asyncio.timeout(30):
            while len(said) < 3:
                said += await console.read()
    finally:
        await console.close()
        await vm.stop()
        await engine.close()
        await scope.close()
    return said, lines


async def test_what_the_firmware_writes_is_in_the_efi_disk_and_there_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "efi.raw"
    path.write_bytes(bytes(0x4000))
    for _ in range(2):
        said, lines = await run(tmp_path, SPEC, VmResources(disks={"efidisk0": volume(path)}))
        assert said == bytes([0x80, 0x5A, ord("t")]), "status ready, the byte, and the template"
        kept = await asyncio.to_thread(path.read_bytes)
        assert kept[: len(TEMPLATE)] == TEMPLATE[:5] + b"\x5a" + TEMPLATE[6:]
        assert lines[0].startswith("EXPERIMENTAL")


async def test_without_an_efi_disk_variables_are_forgotten_and_that_is_said(tmp_path: Path) -> None:
    said, lines = await run(tmp_path, replace(SPEC, efi_disk=None), VmResources())
    assert said == bytes([0x80, 0x5A, ord("t")])
    assert "no EFI disk" in lines[1]


async def test_uefi_is_native_only_when_it_is_asked_for(tmp_path: Path) -> None:
    scope = TaskScope("test")
    engine = NativeEngine(tmp_path / "run", tmp_path / "data", scope, SystemClock())
    await engine.probe()
    assert engine.refuse(SPEC) == []
    assert any("experimental" in reason for reason in engine.refuse(replace(SPEC, engine="")))
    qcow2 = replace(SPEC, efi_disk=replace(EFI, volume="local:100/vm-100-disk-1.qcow2"))
    assert engine.refuse(qcow2) == ["efidisk0: the variables' volume must be raw natively"]
    await engine.close()
    await scope.close()


def test_a_volume_is_held_alone_and_must_hold_the_variables(tmp_path: Path) -> None:
    path = tmp_path / "efi.raw"
    path.write_bytes(bytes(0x4000))
    held = VariablesFile(path, TEMPLATE)
    with pytest.raises(Conflict):
        VariablesFile(path, TEMPLATE)
    held.close()
    path.write_bytes(bytes(16))
    with pytest.raises(Unsupported, match="8192 bytes"):
        VariablesFile(path, TEMPLATE)
