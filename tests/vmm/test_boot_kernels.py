"""Kernels booted without firmware: what is put where, and which files are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import InvalidParameter
from appliance.vmm import layout
from appliance.vmm.boot import elf, linux, low_memory, pvh
from appliance.vmm.boot.e820 import direct_map
from appliance.vmm.boot.kernel_file import BadKernel, Buffer
from appliance.vmm.boot.low_memory import DirectTables
from appliance.vmm.boot.regs import Entry
from appliance.vmm.layout import KIB, MIB
from tests.fakes.kernels import NOTE_PVH, bzimage, elf_kernel, note
from tests.fakes.machine import FakeMachine

TABLES = DirectTables(rsdp=0xE0000, generation_page=None)
NAME = "vm 101: kernel"


def load_linux(machine: FakeMachine, kernel: Buffer, initrd: bytes = b"", cmdline: str = "") -> Entry:
    return linux.load_linux(machine.memory, kernel, initrd, cmdline, tables=TABLES, name=NAME)


def load_pvh(machine: FakeMachine, kernel: Buffer, initrd: bytes = b"", cmdline: str = "") -> Entry:
    return pvh.load_pvh(machine.memory, kernel, initrd, cmdline, tables=TABLES, name=NAME)


def zero_page(machine: FakeMachine, at: int, size: int) -> int:
    return int.from_bytes(machine.memory.read(low_memory.ZERO_PAGE + at, size), "little")


# bzImage


def test_a_bzimage_lies_where_it_prefers_and_is_entered_at_its_64_bit_entry_point(machine: FakeMachine) -> None:
    entry = load_linux(machine, bzimage(b"payload", pref_address=4 * MIB))
    assert (entry.ip, entry.rsi, entry.cr3) == (4 * MIB + 0x200, low_memory.ZERO_PAGE, low_memory.PAGE_TABLES)
    assert machine.memory.read(4 * MIB + 0x200, 7) == b"payload"
    assert zero_page(machine, 0x214, 4) == 4 * MIB


def test_the_zero_page_has_the_files_header_and_our_fields(machine: FakeMachine) -> None:
    kernel = bzimage(b"x", version=0x20F)
    load_linux(machine, kernel, b"initrd", "console=ttyS0 ü")
    assert machine.memory.read(low_memory.ZERO_PAGE + 0x1FE, 0x10) == kernel[0x1FE:0x20E]
    assert zero_page(machine, 0x210, 1) == 0xFF  # a loader without a number
    assert zero_page(machine, 0x070, 8) == TABLES.rsdp
    assert zero_page(machine, 0x1EF, 1) == 0  # the sentinel
    command_line = zero_page(machine, 0x228, 4)
    assert machine.memory.read(command_line, 17) == "console=ttyS0 ü".encode() + b"\0"
    address, length = zero_page(machine, 0x218, 4), zero_page(machine, 0x21C, 4)
    assert machine.memory.read(address, length) == b"initrd"
    entries = direct_map(machine.memory.size)
    assert zero_page(machine, 0x1E8, 1) == len(entries)
    for number, entry in enumerate(entries):
        found = struct.unpack("<QQI", machine.memory.read(low_memory.ZERO_PAGE + 0x2D0 + 20 * number, 20))
        assert found == (entry.base, entry.size, entry.kind)


def test_an_initrd_goes_to_the_top_of_ram_or_below_what_the_kernel_reaches(machine: FakeMachine) -> None:
    load_linux(machine, bzimage(b"x"), bytes(5000))
    assert zero_page(machine, 0x218, 4) == 16 * MIB - 8 * KIB
    load_linux(machine, bzimage(b"x", initrd_addr_max=8 * MIB - 1), bytes(5000))
    assert zero_page(machine, 0x218, 4) == 8 * MIB - 8 * KIB
    load_linux(machine, bzimage(b"x"))
    assert zero_page(machine, 0x218, 4) == zero_page(machine, 0x21C, 4) == 0


def test_a_movable_kernel_is_put_lower_where_it_cannot_be_where_it_prefers(machine: FakeMachine) -> None:
    kernel = bzimage(b"x", pref_address=16 * MIB, init_size=4 * MIB)
    assert load_linux(machine, kernel).ip == 2 * MIB + 0x200
    with pytest.raises(BadKernel, match="vm 101: kernel: it needs 4 MiB from 16 MiB on, RAM ends at 16 MiB"):
        load_linux(machine, bzimage(b"x", pref_address=16 * MIB, init_size=4 * MIB, relocatable=0))


def test_the_first_four_gibibytes_are_mapped_as_they_are(machine: FakeMachine) -> None:
    load_linux(machine, bzimage(b"x"))

    def physical(linear: int) -> int:
        table = low_memory.PAGE_TABLES
        for shift in (39, 30, 21):
            item = machine.memory.load_u64(table + 8 * (linear >> shift & 511))
            assert item & 3 == 3, f"{linear:#x} is not mapped"
            table = item & ~0xFFF
        return table | linear & (2 * MIB - 1)

    for linear in (0, 0x7000, 5 * MIB + 1, 0xFEE0_0020, 0xFFFF_FFFF):
        assert physical(linear) == linear
    with pytest.raises(AssertionError, match="is not mapped"):
        physical(1 << 32)


def test_the_gdt_has_flat_segments_at_the_protocols_selectors(machine: FakeMachine) -> None:
    load_linux(machine, bzimage(b"x"))
    assert machine.memory.load_u64(low_memory.GDT) == 0
    assert machine.memory.load_u64(low_memory.GDT + 0x10) == 0x00AF_9B00_0000_FFFF
    assert machine.memory.load_u64(low_memory.GDT + 0x18) == 0x00CF_9300_0000_FFFF
    load_pvh(machine, elf_kernel(b"\xf4", notes=note(b"Xen", NOTE_PVH, 2 * MIB)))
    assert machine.memory.load_u64(low_memory.GDT + 0x10) == 0x00CF_9B00_0000_FFFF


HOSTILE_BZIMAGES: dict[str, tuple[Buffer, str]] = {
    "empty": (b"", "neither a Linux bzImage nor an ELF file"),
    "text": (b"#!/bin/sh\n" * 200, "neither a Linux bzImage nor an ELF file"),
    "old": (bzimage(b"x", version=0x20B), "boot protocol 0x20b; 2.12"),
    "32-bit": (bzimage(b"x", xloadflags=0), "no 64-bit entry point"),
    "zImage": (bzimage(b"x", loadflags=0), "no 64-bit entry point"),
    "cut": (bzimage(b"x")[:1500], "it ends at 1500 bytes"),
    "sectors": (bzimage(b"x", setup_sects=255), "before its 64-bit entry point"),
    "short header": (bzimage(b"x", jump=0x20), "setup header is too short"),
    "odd alignment": (bzimage(b"x", kernel_alignment=0x30_0000), "alignment 0x300000"),
    "tiny alignment": (bzimage(b"x", kernel_alignment=0), "alignment 0x0"),
    "huge": (bzimage(b"x", init_size=0xFFFF_FFFF), "it needs 4096 MiB"),
    "far": (bzimage(b"x", pref_address=(1 << 64) - 1, relocatable=0), "it needs"),
    "over our tables": (bzimage(b"x", pref_address=0x7000, relocatable=0), "it needs"),
}


@pytest.mark.parametrize(("kernel", "why"), HOSTILE_BZIMAGES.values(), ids=HOSTILE_BZIMAGES.keys())
def test_a_bad_bzimage_is_refused_with_its_name_and_the_reason(machine: FakeMachine, kernel: Buffer, why: str) -> None:
    with pytest.raises(BadKernel, match=f"vm 101: kernel: .*{why}"):
        load_linux(machine, kernel)


def test_random_headers_never_raise_anything_else(machine: FakeMachine) -> None:
    good = bytearray(bzimage(b"x"))
    for at in range(0x1F1, 0x264):
        for value in (0, 0x7F, 0xFF):
            kernel = bytearray(good)
            kernel[at] = value
            try:
                load_linux(machine, kernel, b"initrd", "quiet")
            except (BadKernel, InvalidParameter):
                continue


def test_an_initrd_without_room_above_the_kernel_is_refused(machine: FakeMachine) -> None:
    with pytest.raises(BadKernel, match=r"an initrd of 15\.0 MiB, and 13\.0 MiB above the kernel"):
        load_linux(machine, bzimage(b"x", init_size=MIB, pref_address=2 * MIB), bytes(15 * MIB))


def test_a_command_line_has_the_length_the_kernel_says(machine: FakeMachine) -> None:
    load_linux(machine, bzimage(b"x", cmdline_size=10), cmdline="0123456789")
    with pytest.raises(InvalidParameter, match="11 bytes; this kernel takes 10 at most"):
        load_linux(machine, bzimage(b"x", cmdline_size=10), cmdline="0123456789a")
    with pytest.raises(InvalidParameter, match="this kernel takes"):
        load_linux(machine, bzimage(b"x", cmdline_size=0xFFFF_FFFF), cmdline="a" * 0x10_0000)
    with pytest.raises(InvalidParameter, match="null"):
        load_linux(machine, bzimage(b"x"), cmdline="a\0b")


# ELF


def test_a_pvh_kernel_is_entered_at_its_notes_address_in_protected_mode(machine: FakeMachine) -> None:
    kernel = elf_kernel(b"code", address=2 * MIB, entry=0xFFFF, notes=note(b"Xen", NOTE_PVH, 2 * MIB + 2))
    entry = load_pvh(machine, kernel, b"initrd", "a=b")
    assert (entry.ip, entry.rbx, entry.cr0, entry.efer) == (2 * MIB + 2, low_memory.START_INFO, 0x11, 0)
    assert machine.memory.read(2 * MIB, 4) == b"code"


def test_the_start_info_has_module_command_line_tables_and_map(machine: FakeMachine) -> None:
    load_pvh(machine, elf_kernel(b"x", notes=note(b"Xen", NOTE_PVH, 2 * MIB)), b"initrd", "a=b")
    info = struct.unpack("<IIIIQQQQII", machine.memory.read(low_memory.START_INFO, 56))
    magic, version, flags, modules, module_list, cmdline, rsdp, memory_map, entries, _ = info
    assert (magic, version, flags, modules, rsdp) == (0x336EC578, 1, 0, 1, TABLES.rsdp)
    assert machine.memory.read(cmdline, 4) == b"a=b\0"
    address, size, _, _ = struct.unpack("<QQQQ", machine.memory.read(module_list, 32))
    assert machine.memory.read(address, size) == b"initrd"
    wanted = direct_map(machine.memory.size)
    assert entries == len(wanted)
    for number, each in enumerate(wanted):
        found = struct.unpack("<QQII", machine.memory.read(memory_map + 24 * number, 24))
        assert found == (each.base, each.size, each.kind, 0)


def test_without_initrd_and_command_line_the_start_info_says_none(machine: FakeMachine) -> None:
    load_pvh(machine, elf_kernel(b"x", notes=note(b"Xen", NOTE_PVH, 2 * MIB)))
    info = struct.unpack("<IIIIQQQQII", machine.memory.read(low_memory.START_INFO, 56))
    assert info[3:6] == (0, 0, 0)


def test_an_elf_kernel_without_the_note_is_entered_by_linux_64_bit_protocol(machine: FakeMachine) -> None:
    for notes in (b"", note(b"GNU", NOTE_PVH, 1), note(b"Xen", 6, 1)):
        entry = load_pvh(machine, elf_kernel(b"\xf4", notes=notes), cmdline="q")
        assert (entry.ip, entry.rsi) == (2 * MIB, low_memory.ZERO_PAGE)
        assert zero_page(machine, 0x202, 4) == int.from_bytes(b"HdrS", "little")
        assert zero_page(machine, 0x070, 8) == TABLES.rsdp


def test_what_a_segment_has_not_in_the_file_is_zero_also_when_memory_was_used_before(machine: FakeMachine) -> None:
    machine.memory.write(2 * MIB, b"\xaa" * (3 * MIB))
    load_pvh(machine, elf_kernel(b"code", memory_bytes=2 * MIB + 3))
    assert machine.memory.read(2 * MIB, 5) == b"code\0"
    assert machine.memory.read(4 * MIB, 5) == b"\0\0\0\xaa\xaa"


HOSTILE_ELFS: dict[str, tuple[Buffer, str]] = {
    "32-bit": (elf_kernel(b"x", elf_class=1), "no 64-bit x86 executable"),
    "ARM": (elf_kernel(b"x", machine=183), "no 64-bit x86 executable"),
    "object": (elf_kernel(b"x", kind=1), "no 64-bit x86 executable"),
    "no headers": (elf_kernel(b"x", header_count=0), "0 program headers"),
    "many headers": (elf_kernel(b"x", header_count=65), "65 program headers"),
    "headers beyond the end": (elf_kernel(b"x", headers_at=1 << 60), "ends before its program headers"),
    "segment beyond the end": (elf_kernel(b"x", file_bytes=1 << 62), "ends before its segment 0"),
    "more in the file than in memory": (elf_kernel(b"xyz", memory_bytes=2), "more bytes in the file"),
    "below 1 MiB": (elf_kernel(b"x", address=0x7000), "not in RAM from 1 MiB"),
    "beyond RAM": (elf_kernel(b"x", memory_bytes=1 << 40), "not in RAM from 1 MiB to 16 MiB"),
    "wrapping": (elf_kernel(b"x", address=(1 << 64) - 4), "not in RAM"),
    "entry elsewhere": (elf_kernel(b"x", entry=3 * MIB), "entry point 0x300000 is in none"),
    "PVH entry elsewhere": (elf_kernel(b"x", notes=note(b"Xen", NOTE_PVH, 0x500)), "entry point 0x500 is in none"),
    "nothing to load": (elf_kernel(b"", memory_bytes=0), "nothing to load"),
}


@pytest.mark.parametrize(("kernel", "why"), HOSTILE_ELFS.values(), ids=HOSTILE_ELFS.keys())
def test_a_bad_elf_kernel_is_refused_with_its_name_and_the_reason(
    machine: FakeMachine, kernel: Buffer, why: str
) -> None:
    with pytest.raises(BadKernel, match=f"vm 101: kernel: .*{why}"):
        load_pvh(machine, kernel)


def test_overlapping_segments_are_refused() -> None:
    two = elf_kernel(b"x" * 8, segments=2)
    with pytest.raises(BadKernel, match="segments overlap at 0x200000"):
        elf.parse(two, NAME)


@pytest.mark.parametrize("cut", [0, 3, 4, 40, 63, 64, 100])
def test_a_cut_elf_file_is_refused_wherever_it_ends(cut: int) -> None:
    with pytest.raises(BadKernel):
        elf.parse(elf_kernel(b"x" * 100, notes=note(b"Xen", NOTE_PVH, 1))[:cut], NAME)


def test_notes_that_run_over_their_segment_are_not_read() -> None:
    broken = struct.pack("<III", 0xFFFF_FFF0, 0xFFFF_FFF0, NOTE_PVH)
    assert elf.parse(elf_kernel(b"x", notes=note(b"Xen", 5, 7) + broken), NAME).notes[0].kind == 5
    assert pvh.entry_point(elf.parse(elf_kernel(b"x", notes=broken), NAME)) is None
    assert pvh.entry_point(elf.parse(elf_kernel(b"x", notes=note(b"Xen", NOTE_PVH, b"abc")), NAME)) is None


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("load", [load_linux, load_pvh])
def test_files_may_come_as_any_buffer(machine: FakeMachine, wrap: Callable[[bytes], Any], load: Any) -> None:
    kernel = bzimage(b"payload") if load is load_linux else elf_kernel(b"payload")
    load(machine, wrap(kernel), wrap(b"initrd"))
    assert machine.memory.read(layout.MIB * 2 + (0x200 if load is load_linux else 0), 7) == b"payload"
