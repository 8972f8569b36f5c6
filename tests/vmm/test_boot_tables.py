"""ACPI: structure, checksums and links in memory; the script for the firmware does the same; ACPICA accepts the DSDT."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from appliance.errors import Unsupported
from appliance.vmm import layout
from appliance.vmm.boot import acpi, aml, low_memory, smbios, table_loader
from appliance.vmm.boot.dsdt import Platform, definition, slot_name
from appliance.vmm.boot.e820 import Kind, direct_map, encode, firmware_map
from appliance.vmm.boot.table_loader import Blob, Checksum, Pointer, Tables, Zone
from appliance.vmm.legacy.vmgenid import FILE_ADDRESS, FILE_GUID, GUID_OFFSET
from appliance.vmm.memory import regions_of
from tests.fakes.machine import FakeMachine

UUID = "00112233-4455-6677-8899-aabbccddeeff"
SMALL = Platform(apic_ids=(0,), ram_bytes=256 * layout.MIB)
LARGE = Platform(
    apic_ids=tuple(range(layout.MAX_VCPUS)), ram_bytes=64 * layout.GIB, serials=(0, 1, 2, 3), pvpanic=True, vmgenid=True
)
PLATFORMS = pytest.mark.parametrize("platform", [SMALL, LARGE], ids=["small", "large"])


class Walk:
    """Tables as an operating system finds them: from the RSDP on, by absolute addresses, every checksum verified."""

    def __init__(self, placed: table_loader.Placed) -> None:
        self._placed = placed
        self.rsdp = placed.content[acpi.FILE_RSDP]
        assert sum(self.rsdp[:20]) & 0xFF == 0
        assert sum(self.rsdp) & 0xFF == 0
        rsdt, xsdt = struct.unpack_from("<I4xQ", self.rsdp, 16)
        assert len(self.rsdp) == 36
        self.roots = struct.unpack(f"<{(len(self.table(xsdt)) - 36) // 8}Q", self.table(xsdt)[36:])
        assert struct.unpack(f"<{len(self.roots)}I", self.table(rsdt)[36:]) == self.roots
        self.by_name = {self.table(at)[:4]: self.table(at) for at in self.roots}

    def raw(self, address: int, length: int) -> bytes:
        for name, start in self._placed.addresses.items():
            if start <= address < start + len(self._placed.content[name]):
                return self._placed.content[name][address - start : address - start + length]
        raise AssertionError(f"{address:#x} is in no table")

    def table(self, address: int) -> bytes:
        length = int.from_bytes(self.raw(address + 4, 4), "little")
        data = self.raw(address, length)
        assert len(data) == length
        assert sum(data) & 0xFF == 0, f"checksum of {data[:4]!r}"
        return data

    @property
    def dsdt(self) -> bytes:
        fadt = self.by_name[b"FACP"]
        short, long = int.from_bytes(fadt[40:44], "little"), int.from_bytes(fadt[140:148], "little")
        assert short == long
        return self.table(short)


def walk(platform: Platform) -> Walk:
    return Walk(table_loader.place(acpi.build(platform), 0xE0000, 0xF0000))


@PLATFORMS
def test_every_table_is_reached_from_the_rsdp_with_right_lengths_and_checksums(platform: Platform) -> None:
    found = walk(platform)
    assert list(found.by_name) == [b"FACP", b"APIC", b"MCFG"]
    assert found.dsdt[:4] == b"DSDT"
    facs = int.from_bytes(found.by_name[b"FACP"][36:40], "little")
    assert facs % 64 == 0
    assert found.raw(facs, 8) == b"FACS" + (64).to_bytes(4, "little")


def test_a_wrong_byte_or_length_does_not_pass_the_walk() -> None:
    placed = table_loader.place(acpi.build(SMALL), 0xE0000, 0xF0000)
    content = dict(placed.content)
    tables = bytearray(content[acpi.FILE_TABLES])
    tables[0x60] ^= 1
    content[acpi.FILE_TABLES] = bytes(tables)
    with pytest.raises(AssertionError, match="checksum of b'DSDT'"):
        _ = Walk(replace(placed, content=content)).dsdt


def test_the_fadt_names_the_ports_of_the_power_management_device() -> None:
    fadt = walk(SMALL).by_name[b"FACP"]
    assert (len(fadt), fadt[8], fadt[131]) == (276, 6, 5)  # ACPI 6.5
    assert struct.unpack_from("<HIBB", fadt, 46) == (9, 0xB2, 2, 3)
    assert struct.unpack_from("<8I", fadt, 56) == (0x600, 0, 0x604, 0, 0, 0x608, 0x620, 0)
    assert fadt[88:94] == bytes([4, 2, 0, 4, 16, 0])
    flags = int.from_bytes(fadt[112:116], "little")
    assert flags & (1 << 4 | 1 << 5 | 1 << 20) == 0  # both buttons are fixed ones; not hardware-reduced
    assert flags & 1 << 10  # the reset register
    assert fadt[116:129] == struct.pack("<BBBBQB", 1, 8, 0, 1, 0xCF9, 0x0F)
    for at, width, address in ((148, 32, 0x600), (172, 16, 0x604), (208, 32, 0x608), (220, 128, 0x620)):
        assert struct.unpack_from("<BBB", fadt, at) == (1, width, 0)
        assert int.from_bytes(fadt[at + 4 : at + 12], "little") == address


def test_more_than_eight_processors_need_the_cluster_model() -> None:
    flags = [int.from_bytes(walk(each).by_name[b"FACP"][112:116], "little") & 1 << 18 for each in (SMALL, LARGE)]
    assert flags == [0, 1 << 18]


def test_the_madt_has_each_processor_the_ioapic_and_the_two_overrides() -> None:
    platform = replace(LARGE, apic_ids=(0, 1, 2, 4, 5, 6))
    madt = walk(platform).by_name[b"APIC"]
    assert struct.unpack_from("<II", madt, 36) == (layout.LOCAL_APIC, 1)
    entries, at = [], 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert at == len(madt)
    assert [each[2:4] for each in entries if each[0] == 0] == [bytes(p) for p in enumerate((0, 1, 2, 4, 5, 6))]
    assert [struct.unpack("<BBBBII", each)[4:] for each in entries if each[0] == 1] == [(layout.IOAPIC, 0)]
    overrides = [struct.unpack("<BBBBIH", each)[2:] for each in entries if each[0] == 2]
    assert overrides == [(0, 0, 2, 0), (0, 9, 9, 0x0D)]
    assert [each for each in entries if each[0] == 4] == [bytes([4, 6, 0xFF, 0, 0, 1])]


def test_apic_ids_that_local_apic_entries_cannot_name_are_refused() -> None:
    with pytest.raises(ValueError, match="254"):
        acpi.build(replace(SMALL, apic_ids=(0, 255)))


def test_the_mcfg_describes_the_ecam_of_the_one_bus_there_is() -> None:
    assert walk(SMALL).by_name[b"MCFG"][36:] == struct.pack("<QQHBBI", 0, layout.ECAM, 0, 0, 0, 0)


def test_numa_nodes_have_their_processors_and_their_ram_around_the_holes() -> None:
    sizes = (1 << 30, 3 << 30)
    there = Platform(apic_ids=(0, 1, 4), ram_bytes=sum(sizes), numa=(((0,), sizes[0]), ((1,), sizes[1])))
    table = walk(there).by_name[b"SRAT"]
    entries, at = [], 48
    while at < len(table):
        entries.append(table[at : at + table[at + 1]])
        at += table[at + 1]
    processors = [(each[3], each[2]) for each in entries if each[0] == 0]
    assert processors == [(0, 0), (1, 1), (4, 0)], "APIC ID, node; one that nobody names is node 0's"
    memory = [struct.unpack_from("<IHQQ", each, 2) for each in entries if each[0] == 1]
    assert [(node, base, size) for node, _, base, size in memory] == [
        (0, 0, 0xA_0000), (0, 0xC_0000, (1 << 30) - 0xC_0000),
        (1, 1 << 30, 0xB000_0000 - (1 << 30)), (1, 1 << 32, (4 << 30) - 0xB000_0000),
    ]  # fmt: skip
    assert b"SRAT" not in walk(Platform(apic_ids=(0,), ram_bytes=1 << 30)).by_name


def run_script(files: dict[str, bytes], script: bytes) -> tuple[dict[str, bytes], dict[str, int], dict[str, bytes]]:
    """A firmware: follows the records literally. (memory, where each file went, what was told)."""
    assert len(script) % 128 == 0
    memory: dict[str, bytearray] = {}
    addresses: dict[str, int] = {}
    told: dict[str, bytes] = {}
    cursor = 0x7F_0123

    def text(record: bytes, at: int) -> str:
        return record[at : at + 56].split(b"\0")[0].decode()

    for at in range(0, len(script), 128):
        record = script[at : at + 128]
        name = text(record, 4)
        match int.from_bytes(record[:4], "little"):
            case 1:
                align, zone = struct.unpack_from("<IB", record, 60)
                assert align & (align - 1) == 0
                start = 0xF_5A00 if zone == Zone.FSEG else cursor
                addresses[name] = -(-start // align) * align
                memory[name] = bytearray(files[name])
                cursor = addresses[name] + len(files[name]) if zone == Zone.HIGH else cursor
            case 2:
                offset, size = struct.unpack_from("<IB", record, 116)
                old = int.from_bytes(memory[name][offset : offset + size], "little")
                memory[name][offset : offset + size] = (old + addresses[text(record, 60)]).to_bytes(size, "little")
            case 3:
                offset, start, length = struct.unpack_from("<III", record, 60)
                assert start + length <= len(memory[name])
                memory[name][offset] = (memory[name][offset] - sum(memory[name][start : start + length])) & 0xFF
            case 4:
                _, target_offset, size = struct.unpack_from("<IIB", record, 116)
                told[name] = (addresses[text(record, 60)] + target_offset).to_bytes(size, "little")
            case other:
                raise AssertionError(f"command {other}")
    return {name: bytes(data) for name, data in memory.items()}, addresses, told


@PLATFORMS
def test_a_firmware_that_follows_the_script_has_the_same_valid_tables(platform: Platform) -> None:
    tables = acpi.build(platform)
    files = table_loader.files(tables)
    assert FILE_GUID not in files  # its device's
    in_memory, addresses, told = run_script({**files, FILE_GUID: bytes(layout.PAGE)}, files[table_loader.FILE_SCRIPT])
    found = Walk(table_loader.Placed(addresses, in_memory, {}))
    assert found.dsdt[36:] != b""
    assert addresses[acpi.FILE_RSDP] % 16 == 0
    if platform.vmgenid:
        page = addresses[FILE_GUID]
        assert told == {FILE_ADDRESS: (page + GUID_OFFSET).to_bytes(8, "little")}
        assert aml.name("VGIA", aml.dword(page)) in found.dsdt
    else:
        assert told == {}


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Unsupported, match="do not fit 0xe0000-0xe07ff"):
        table_loader.place(acpi.build(LARGE), 0xE0000, 0xE0800)


def test_checksums_are_made_after_pointers_whatever_the_order_given() -> None:
    blob = Blob("a", bytes(16), align=16, zone=Zone.HIGH)
    tables = Tables((blob,), (Checksum("a", 0, 0, 16), Pointer("a", 8, 4, "a")))
    placed = table_loader.place(tables, 0x1234_5670, 0x1234_5700)
    assert sum(placed.content["a"]) & 0xFF == 0
    assert placed.content["a"][8:12] == (0x1234_5670).to_bytes(4, "little")


def test_a_file_name_longer_than_a_record_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 55 bytes"):
        table_loader.script(Tables((Blob("x" * 56, b"", align=1, zone=Zone.HIGH),), ()))


# The DSDT by ACPICA


def disassembled(definition_block: bytes, directory: Path) -> str:
    (directory / "dsdt.aml").write_bytes(definition_block)
    subprocess.run(["iasl", "-d", "dsdt.aml"], cwd=directory, check=True, capture_output=True)
    return (directory / "dsdt.dsl").read_text()


@pytest.mark.skipif(shutil.which("iasl") is None, reason="acpica-tools is not installed")
@PLATFORMS
def test_acpica_disassembles_the_dsdt_and_compiles_it_again_without_a_word(platform: Platform, tmp_path: Path) -> None:
    source = disassembled(walk(platform).dsdt, tmp_path)
    assert "External (" not in source  # every name is known
    assert "// Warning" not in source
    again = subprocess.run(
        ["iasl", "-oa", "-p", "again", "dsdt.dsl"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert "0 Errors, 0 Warnings, 0 Remarks" in again.stdout, again.stdout + again.stderr
    assert (tmp_path / "again.aml").exists()


@pytest.mark.skipif(shutil.which("iasl") is None, reason="acpica-tools is not installed")
def test_the_dsdt_says_what_the_machine_has(tmp_path: Path) -> None:
    source = disassembled(walk(LARGE).dsdt, tmp_path)
    assert all(f"Device ({slot_name(slot)})" in source for slot in range(1, 31))
    for name in ("S00", "SF8"):  # the host bridge and the LPC bridge cannot be plugged
        assert f"Device ({name})" not in source
    for name in ("RTC", "KBD", "MOU", "COM1", "COM4", "PEVT", "FWCF", "VGEN", "MBRD", "C03F"):
        assert f"Device ({name})" in source, name
    assert "Method (_E01, 0, NotSerialized)" in source
    assert "Method (_E05, 0, NotSerialized)" in source
    high = layout.pci_memory_64(LARGE.ram_bytes)
    assert f"0x{high:016X}, // Range Minimum" in source
    assert f"0x{(1 << 40) - 1:016X}, // Range Maximum" in source


_OSC = "\\_SB.PCI0._OSC (5B4DDB33F71F1C4096577441C03DD766)"
EVALUATED = {
    "\\_SB.VGEN.ADDR": f"[Integer] = {0xE1000 + GUID_OFFSET:016X}",
    "\\_SB.VGEN._STA": "[Integer] = 000000000000000F",
    # status and control of what was asked for, by UUID, revision, count, buffer
    f"{_OSC} 1 3 (000000001F0000001F000000)": "10 00 00 00 1F 00 00 00 10 00",
    f"{_OSC} 1 3 (000000001F00000010000000)": "00 00 00 00 1F 00 00 00 10 00",
    f"{_OSC} 2 3 (000000001F00000010000000)": "08 00 00 00 1F 00 00 00 10 00",
    "\\_SB.PCI0._OSC (00000000000000000000000000000000) 1 3 (000000001F0000001F000000)": "04 00 00 00 1F 00 00 00 1F 00",
    "\\_GPE._E01": "No object was returned",
    "\\_GPE._E05": "No object was returned",
    "\\_SB.PCI0.S18._EJ0 1": "No object was returned",
}


@pytest.mark.skipif(shutil.which("acpiexec") is None, reason="acpica-tools is not installed")
def test_acpicas_interpreter_runs_the_methods(tmp_path: Path) -> None:
    (tmp_path / "dsdt.aml").write_bytes(walk(LARGE).dsdt)
    arguments = ["acpiexec", "-b", ";".join(f"execute {command}" for command in EVALUATED), "dsdt.aml"]
    done = subprocess.run(arguments, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=20)
    assert "AE_" not in done.stdout, done.stdout  # an exception of the interpreter's
    answers = done.stdout.split("Evaluating ")[1:]
    assert len(answers) == len(EVALUATED), done.stdout
    for (command, wanted), answer in zip(EVALUATED.items(), answers, strict=True):
        assert wanted in answer, (command, answer)


def test_what_a_machine_lacks_its_dsdt_does_not_mention() -> None:
    bare = definition(replace(SMALL, i8042=False, fw_cfg=False, hotplug_slots=frozenset()))
    for absent in (b"KBD_", b"MOU_", b"COM1", b"PEVT", b"FWCF", b"VGEN", b"PCNT", b"_E01", b"_E05", b"_EJ0"):
        assert absent not in bare
    assert b"PCI0" in bare


def test_every_slot_has_its_pin_on_the_gsi_of_its_number_modulo_four() -> None:
    dsdt = definition(SMALL)
    for slot in range(32):
        gsi = layout.GSI_PCI_PINS[slot % 4]
        entry = aml.package(aml.integer(slot << 16 | 0xFFFF), aml.integer(0), aml.integer(0), aml.integer(gsi))
        assert entry in dsdt


def test_a_processor_of_few_address_bits_has_no_window_above_its_ram() -> None:
    assert replace(SMALL, physical_bits=36).pci_window_64() == (32 * layout.GIB, 64 * layout.GIB - 1)
    assert replace(SMALL, ram_bytes=64 * layout.GIB, physical_bits=36).pci_window_64() is None
    assert replace(SMALL, physical_bits=52).pci_window_64() == (32 * layout.GIB, (1 << 46) - 1)


# The encoder


@pytest.mark.parametrize("content", [0, 61, 62, 63, 4092, 4093, 4094, 70000])
def test_a_package_length_counts_itself_at_each_of_its_widths(content: int) -> None:
    encoded = aml.scope("\\", bytes(content))  # "\\" and the null name: two bytes
    more = encoded[1] >> 6
    length = encoded[1] & (0x3F if not more else 0xF)
    length |= int.from_bytes(encoded[2 : 2 + more], "little") << 4 if more else 0
    assert length == len(encoded) - 1
    assert more == (0 if content + 3 < 64 else 1 if content + 4 < 4096 else 2)


def test_names_integers_and_identifiers_are_encoded_as_the_specification_says() -> None:
    assert aml.name_string("\\_SB.PCI0") == b"\\\x2e_SB_PCI0"
    assert aml.name_string("^^A.B.C") == b"^^\x2f\x03A___B___C___"
    assert aml.name_string("\\") == b"\\\0"
    assert [aml.integer(n) for n in (0, 1, 2, 256, 65536)] == [
        b"\0", b"\1", b"\x0a\x02", b"\x0b\x00\x01", b"\x0c\x00\x00\x01\x00",
    ]  # fmt: skip
    assert aml.integer(1 << 32) == b"\x0e" + (1 << 32).to_bytes(8, "little")
    assert aml.eisa_id("PNP0A08") == bytes.fromhex("0c41d00a08")
    for wrong in ("pci0", "TOOLONG", "1ABC"):
        with pytest.raises(ValueError, match="is not an ACPI name"):
            aml.name_string(wrong)
    with pytest.raises(ValueError, match="not an ACPI integer"):
        aml.integer(-1)
    with pytest.raises(ValueError, match="EISA"):
        aml.eisa_id("QEMU0002")


# The memory map


@pytest.mark.parametrize("mib", [2, 16, 2816, 4096, 65536])
def test_the_memory_map_is_ordered_and_calls_nothing_ram_that_is_none(mib: int) -> None:
    entries = direct_map(mib << 20)
    for before, after in pairwise(entries):
        assert before.end <= after.base
    regions = regions_of(mib << 20)
    for entry in entries:
        if entry.kind is Kind.RAM:
            assert any(region.base <= entry.base and entry.end <= region.end for region in regions)
    reserved = sum(each.size for each in entries if each.kind is Kind.RESERVED and each.end <= layout.MIB)
    hole = layout.VGA_HOLE_END - layout.VGA_HOLE
    option_roms = 0xE0000 - layout.VGA_HOLE_END  # neither: firmware has nothing there, and Linux looks for ROMs
    assert sum(each.size for each in entries if each.kind is Kind.RAM) == (mib << 20) - reserved - hole - option_roms


def test_the_firmware_is_told_of_ram_and_of_kvms_pages() -> None:
    entries = firmware_map(4 << 30)
    assert [(e.base, e.kind) for e in entries] == [(0, 1), (layout.KVM_IDENTITY_MAP, 2), (layout.HIGH_RAM, 1)]
    assert encode(entries)[:20] == struct.pack("<QQI", 0, layout.LOW_RAM_END, 1)


# Placed in memory


def test_direct_boot_finds_acpi_and_smbios_where_they_are_looked_for(machine: FakeMachine) -> None:
    platform = replace(LARGE, ram_bytes=machine.memory.size)
    identity = smbios.Identity(uuid=UUID, ram_bytes=machine.memory.size, sockets=4, cores=16)
    found = low_memory.place_tables(machine.memory, acpi.build(platform), identity)
    assert 0xE0000 <= found.rsdp < 0xF0000
    assert found.rsdp % 16 == 0
    assert machine.memory.read(found.rsdp, 8) == b"RSD PTR "
    assert found.generation_page is not None
    assert found.generation_page % layout.PAGE == 0
    assert machine.memory.read(0xF0000, 4) == b"_SM_"
    assert machine.memory.read(0xF0020, 5) == b"_SM3_"


def test_without_a_generation_id_there_is_no_page_for_it(machine: FakeMachine) -> None:
    identity = smbios.Identity(uuid=UUID, ram_bytes=machine.memory.size)
    assert low_memory.place_tables(machine.memory, acpi.build(SMALL), identity).generation_page is None
