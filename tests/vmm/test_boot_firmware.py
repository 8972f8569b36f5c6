"""Firmware images, what fw_cfg tells them, and the flash chip."""

from __future__ import annotations

import struct
from pathlib import Path
from uuid import UUID

import pytest

from appliance.errors import InvalidParameter, Unsupported
from appliance.vmm import layout
from appliance.vmm.boot import bootorder, firmware, firmware_config, pflash, smbios
from appliance.vmm.boot.bootorder import BootKind, device_path
from appliance.vmm.boot.dsdt import Platform
from appliance.vmm.boot.firmware_config import FirmwareOptions
from appliance.vmm.boot.pflash import Pflash
from appliance.vmm.layout import KIB
from appliance.vmm.legacy import fw_cfg
from appliance.vmm.legacy.fw_cfg import FwCfg
from appliance.vmm.legacy.vmgenid import VmGenId
from tests.fakes.machine import FakeMachine

IDENTITY = smbios.Identity(uuid="00112233-4455-6677-8899-aabbccddeeff", ram_bytes=16 << 20)
PLATFORM = Platform(apic_ids=(0, 1, 2, 4), ram_bytes=16 << 20, vmgenid=True)


# Images


def image(directory: Path, size: int) -> Path:
    path = directory / "bios.bin"
    path.write_bytes(bytes(n >> 12 & 0xFF for n in range(size)))
    return path


def test_a_rom_ends_at_4_gib_and_its_end_is_below_1_mib_as_well(machine: FakeMachine, tmp_path: Path) -> None:
    rom = firmware.load_firmware(image(tmp_path, 256 * KIB))
    assert (rom.base, rom.end) == (0xFFFC_0000, 1 << 32)
    rom.shadow(machine.memory)
    assert machine.memory.read(0xE0000, 128 * KIB) == rom.content[128 * KIB :]
    machine.memory.write(0xF0000, b"the guest was here")
    rom.shadow(machine.memory)  # a reset
    assert machine.memory.read(0xE0000, 128 * KIB) == rom.content[128 * KIB :]


def test_a_small_rom_lies_just_below_1_mib(machine: FakeMachine, tmp_path: Path) -> None:
    rom = firmware.load_firmware(image(tmp_path, 64 * KIB))
    rom.shadow(machine.memory)
    assert machine.memory.read(0xF0000, 64 * KIB) == rom.content
    assert machine.memory.read(0xE0000, 64 * KIB) == bytes(64 * KIB)


@pytest.mark.parametrize("size", [0, 1000, 65537, 8 * layout.MIB + 4096])
def test_a_file_that_cannot_be_a_firmware_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "bios.bin"
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(Unsupported, match=f"bios.bin: {size} bytes"):
        firmware.load_firmware(path)


def test_a_missing_firmware_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"none\.bin does not exist"):
        firmware.load_firmware(tmp_path / "none.bin")
    assert firmware.problem(tmp_path / "none.bin")
    assert firmware.problem(image(tmp_path, 4096)) == ""


def test_no_firmware_reaches_down_to_kvms_own_pages() -> None:
    assert layout.FIRMWARE_END - 2 * firmware.MOST_BYTES >= layout.KVM_TSS + 3 * layout.PAGE


def test_ovmfs_variables_lie_directly_below_its_code(tmp_path: Path) -> None:
    code, variables = tmp_path / "code", tmp_path / "vars"
    code.write_bytes(b"c" * 8192)
    variables.write_bytes(b"v" * 4096)
    pair = firmware.load_flash(code, variables)
    assert (pair.code.base, pair.variables.base, pair.variables.end) == (0xFFFF_E000, 0xFFFF_D000, 0xFFFF_E000)


# fw_cfg


def test_all_files_and_items_go_into_one_fw_cfg_together_with_the_generation_ids(machine: FakeMachine) -> None:
    device = FwCfg("fw_cfg", machine.context)
    generation = VmGenId("vmgenid", machine.context, guid=UUID(int=7), gpe=lambda _: None, fw_cfg=device)
    options = FirmwareOptions(boot_paths=[device_path(BootKind.BLOCK, 4)], serial_console=True)
    for key, data in firmware_config.items(PLATFORM, IDENTITY, options).items():
        device.add_item(key, data)
    for name, data in firmware_config.files(PLATFORM, IDENTITY, options).items():
        device.add_file(name, data)
    for name in ("etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader", "etc/e820", "bootorder", "etc/sercon-port"):
        assert device.file(name)
    assert len(device.file("etc/smbios/smbios-anchor")) == 31
    assert device.file("etc/smbios/smbios-tables") == smbios.structures(IDENTITY)
    assert device.file("etc/reserved-memory-end") == struct.pack("<Q", 32 << 30)
    assert device.file("etc/boot-fail-wait") == struct.pack("<I", 1000)
    device.close()
    generation.close()


def test_firmware_is_told_how_many_processors_and_how_far_their_ids_go() -> None:
    items = firmware_config.items(PLATFORM, IDENTITY, FirmwareOptions(boot_menu=True))
    assert items[fw_cfg.KEY_NB_CPUS] == b"\x04\x00"
    assert items[fw_cfg.KEY_MAX_CPUS] == b"\x05\x00"
    assert items[fw_cfg.KEY_UUID] == UUID(IDENTITY.uuid).bytes
    assert items[fw_cfg.KEY_BOOT_MENU] == b"\x01\x00"
    assert items[fw_cfg.KEY_IRQ0_OVERRIDE] == b"\x01"


def test_the_boot_order_is_open_firmware_paths_by_line() -> None:
    paths = [device_path(BootKind.BLOCK, 10), device_path(BootKind.NETWORK, 3)]
    assert bootorder.content(paths) == (b"/pci@i0cf8/scsi@a/disk@0,0\n/pci@i0cf8/ethernet@3/ethernet-phy@0\nHALT\0")
    assert bootorder.content(paths[:1], strict=False) == b"/pci@i0cf8/scsi@a/disk@0,0\0"
    assert device_path(BootKind.SCSI, 5, target=11, lun=1) == "/pci@i0cf8/scsi@5/channel@0/disk@b,1"
    with pytest.raises(InvalidParameter, match="32"):
        device_path(BootKind.BLOCK, 32)


# Flash


class Chip:
    """A chip of two blocks, and a driver of it."""

    def __init__(self, machine: FakeMachine, *, writable: bool = True) -> None:
        self.changes: list[tuple[int, int]] = []
        self.modes: list[bool] = []
        content = bytes(range(256)) * 32
        self.bus = machine.mmio
        self.base = 0xFFFF_E000
        self.device = Pflash(
            *("pflash0", machine.context, self.base, content),
            writable=writable,
            on_change=lambda offset, length: self.changes.append((offset, length)),
            on_array=self.modes.append,
        )

    def read(self, offset: int, size: int = 1) -> int:
        return self.bus.read(self.base + offset, size)

    def write(self, offset: int, *values: int, size: int = 1) -> None:
        for value in values:
            self.bus.write(self.base + offset, size, value)


@pytest.fixture
def chip(machine: FakeMachine) -> Chip:
    return Chip(machine)


def test_a_chip_reads_as_memory_until_it_is_commanded(chip: Chip) -> None:
    assert (chip.read(5), chip.read(4, 4)) == (5, 0x0706_0504)
    chip.write(5, pflash.READ_STATUS)
    assert chip.read(0) == pflash.STATUS_READY
    chip.write(0, pflash.READ_ARRAY)
    assert chip.read(5) == 5
    assert chip.modes == [False, True]


def test_the_probe_of_ovmf_takes_it_for_a_flash_chip(chip: Chip) -> None:
    """EDK2's QemuFlashDetected: after "clear status" the status reads 0, which neither RAM nor ROM would give."""
    chip.write(9, pflash.CLEAR_STATUS)
    assert chip.read(9) == 9
    chip.write(9, pflash.READ_STATUS)
    assert chip.read(9) == 0
    chip.write(9, pflash.READ_ARRAY)


def test_programming_clears_bits_and_erasing_sets_a_block(chip: Chip) -> None:
    chip.write(0x0F, pflash.PROGRAM, 0xF3)
    assert chip.read(0x0F) == pflash.STATUS_READY
    chip.write(0, pflash.READ_ARRAY)
    assert chip.read(0x0F) == 0x03
    chip.write(0x1010, pflash.ERASE, pflash.CONFIRM, pflash.READ_ARRAY)
    assert chip.device.content[0x1000:] == b"\xff" * 0x1000
    assert chip.device.content[0x0FFF] == 0xFF
    assert chip.device.content[0x0FFE] == 0xFE
    assert chip.changes == [(0x0F, 1), (0x1000, 0x1000)]


def test_a_buffer_is_programmed_when_confirmed_and_not_before(chip: Chip) -> None:
    chip.write(0x100, pflash.PROGRAM_BUFFER, 3)
    for offset in range(0x103, 0xFF, -1):
        chip.write(offset, 0)
    assert chip.changes == []
    chip.write(0x100, pflash.CONFIRM, pflash.READ_ARRAY)
    assert chip.device.content[0x100:0x105] == b"\0\0\0\0\x04"
    assert chip.changes == [(0x100, 4)]


def test_wide_data_is_programmed_whole(chip: Chip) -> None:
    chip.write(0x200, pflash.PROGRAM)
    chip.write(0x200, 0, size=8)
    assert chip.device.content[0x200:0x209] == bytes(8) + b"\x08"


def test_a_chip_that_is_not_writable_says_that_it_is_locked(machine: FakeMachine) -> None:
    chip = Chip(machine, writable=False)
    before = bytes(chip.device.content)
    chip.write(0, pflash.PROGRAM, 0)
    assert chip.read(0) == pflash.STATUS_READY | pflash.STATUS_PROGRAM_ERROR | pflash.STATUS_LOCKED
    chip.write(0, pflash.CLEAR_STATUS, pflash.ERASE, pflash.CONFIRM)
    assert chip.read(0) == pflash.STATUS_READY | pflash.STATUS_ERASE_ERROR | pflash.STATUS_LOCKED
    assert chip.device.content == before
    assert chip.changes == []


@pytest.mark.parametrize(
    "values",
    [
        (pflash.ERASE, 0),
        (pflash.PROGRAM_BUFFER, 0, 1, 0),
    ],
)
def test_an_improper_sequence_changes_nothing_and_sets_both_errors(chip: Chip, values: tuple[int, ...]) -> None:
    chip.write(0, *values)
    assert chip.read(0) & 0x30 == 0x30
    assert chip.changes == []


def test_a_buffer_that_is_too_long_or_too_wide_is_improper(chip: Chip) -> None:
    chip.write(0, pflash.PROGRAM_BUFFER)
    chip.write(0, 256, size=2)
    assert chip.read(0) & 0x30 == 0x30
    chip.write(0, pflash.CLEAR_STATUS, pflash.PROGRAM_BUFFER, 5, 1)
    chip.write(0x1000, 1)
    assert chip.read(0) & 0x30 == 0x30
    assert chip.changes == []


def test_the_query_describes_the_chip(chip: Chip) -> None:
    chip.write(0x55, pflash.QUERY)
    assert bytes(chip.read(0x10 + n) for n in range(5)) == b"QRY\x01\x00"
    assert 1 << chip.read(0x27) == 8192
    assert (chip.read(0x2D, 2) + 1) * chip.read(0x2F, 2) * 256 == 8192
    chip.write(0, pflash.READ_IDENTITY)
    assert (chip.read(0), chip.read(1), chip.read(7)) == (0x89, 0x18, 0)


def test_reset_goes_back_to_memory_and_keeps_the_content(chip: Chip) -> None:
    chip.write(0, pflash.PROGRAM, 0x00)
    chip.write(5, pflash.PROGRAM)
    chip.device.reset()
    assert (chip.read(5), chip.modes[-1]) == (5, True)


def test_a_saved_chip_goes_on_in_the_middle_of_a_command(machine: FakeMachine, chip: Chip) -> None:
    chip.write(0x10, pflash.PROGRAM_BUFFER, 1, 0)
    state = chip.device.save()
    chip.device.close()
    other = Chip(machine)
    other.device.restore(state)
    other.write(0x11, 0)
    other.write(0x11, pflash.CONFIRM)
    assert other.device.content[0x10:0x13] == b"\0\0\x12"
    assert other.modes == [False]


def test_a_state_of_another_chip_is_refused(chip: Chip) -> None:
    for state in (
        pflash.PflashState(content=b"x" * 4096),
        pflash.PflashState(content=bytes(8192), mode=99),
        pflash.PflashState(content=bytes(8192), buffer={9000: 1}),
        pflash.PflashState(version=2, content=bytes(8192)),
    ):
        with pytest.raises(Unsupported, match="vm 101: pflash0"):
            chip.device.restore(state)


def test_whatever_a_guest_writes_raises_nothing(chip: Chip) -> None:
    seed = 12345
    for _ in range(20_000):
        seed = (seed * 1103515245 + 12345) & 0x7FFF_FFFF
        size = 1 << (seed >> 8 & 3)
        offset = (seed >> 3) % (8192 - size)
        chip.write(offset, seed & ((1 << 8 * size) - 1), size=size)
        chip.read(offset, size)
    assert len(chip.device.content) == 8192
