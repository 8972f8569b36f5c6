"""A saved machine: what was there comes back, zeros cost nothing, and a damaged file is refused."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest

from appliance.errors import HostError, NoSpace, Unsupported
from appliance.vmm import saved
from appliance.vmm.layout import GIB, HIGH_RAM, LOW_RAM_END, PAGE
from appliance.vmm.memory import GuestMemory
from tests.fakes.machine import FakeMachine

HEADER = saved.Header(
    guest_id=101, saved_at=1.5, ram_bytes=16 << 20, spec=b"spec", vm=b"vm", vcpus=[b"0", b"1"], devices={"rng0": b"x"}
)


def filled(memory: GuestMemory, *, pages: int = 40) -> None:
    chance = random.Random(7)
    for _ in range(pages):
        memory.write(0x100000 + chance.randrange(3000) * PAGE, chance.randbytes(PAGE))
    memory.write(0x100000, b"text " * 20_000)


def restore(file: bytes, memory: GuestMemory) -> None:
    source = io.BytesIO(file)
    _, checksum = saved.read_header(source, about="vm 101")
    saved.restore_ram(source, memory, checksum, about="vm 101")


def content(memory: GuestMemory) -> bytes:
    return memory.whole()[:]


def test_what_was_saved_comes_back(machine: FakeMachine) -> None:
    filled(machine.memory)
    file = io.BytesIO()
    assert saved.save(file, HEADER, machine.memory) == file.tell()
    file.seek(0)
    header, checksum = saved.read_header(file, about="vm 101")
    assert header == HEADER
    other = GuestMemory(machine.memory.size, name="vm 101")
    saved.restore_ram(file, other, checksum, about="vm 101")
    assert content(other) == content(machine.memory)
    other.close()


def test_zeros_are_not_written_and_holes_not_read(machine: FakeMachine) -> None:
    machine.memory.write(0x200000, bytes(PAGE * 100))
    machine.memory.write(0x300000, b"x")
    file = io.BytesIO()
    saved.save(file, HEADER, machine.memory)
    assert file.tell() < 1000
    before = machine.memory.resident_bytes()
    assert before == 101 * PAGE


def test_memory_above_four_gib_is_saved_by_its_own_pages() -> None:
    memory = GuestMemory(3 * GIB, name="vm 101")
    memory.write(HIGH_RAM + 5 * PAGE, b"high")
    memory.write(LOW_RAM_END - PAGE, b"low")
    file = io.BytesIO()
    saved.save(file, HEADER, memory)
    file.seek(0)
    other = GuestMemory(3 * GIB, name="vm 101")
    _, checksum = saved.read_header(file, about="vm 101")
    saved.restore_ram(file, other, checksum, about="vm 101")
    assert other.read(HIGH_RAM + 5 * PAGE, 4) == b"high"
    assert other.read(LOW_RAM_END - PAGE, 3) == b"low"
    memory.close()
    other.close()


def test_a_file_cut_anywhere_or_changed_anywhere_is_refused(machine: FakeMachine) -> None:
    filled(machine.memory, pages=3)
    file = io.BytesIO()
    saved.save(file, HEADER, machine.memory)
    whole = file.getvalue()
    chance = random.Random(3)
    for attempt in range(300):
        place = chance.randrange(len(whole))
        damaged = whole[:place] if attempt % 2 else whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :]
        other = GuestMemory(machine.memory.size, name="vm 101")
        with pytest.raises(Unsupported, match="vm 101"):
            restore(damaged, other)
        other.close()


def test_a_full_disk_is_told_as_such(machine: FakeMachine) -> None:
    machine.memory.write(0x100000, os.urandom(1 << 20))
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(NoSpace, match="vm 101: saving its state"):
        saved.save(file, HEADER, machine.memory)


def test_restoring_can_be_given_up(machine: FakeMachine) -> None:
    filled(machine.memory)
    file = io.BytesIO()
    saved.save(file, HEADER, machine.memory)
    file.seek(0)
    _, checksum = saved.read_header(file, about="vm 101")
    with pytest.raises(HostError, match="given up"):
        saved.restore_ram(file, machine.memory, checksum, about="vm 101", cancelled=lambda: True)
