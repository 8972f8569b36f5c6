"""fw_cfg as SeaBIOS and Linux' qemu_fw_cfg use it, and as a hostile guest does."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from appliance.errors import Conflict, Unsupported
from appliance.vmm.legacy.fw_cfg import KEY_MAX_CPUS, MOST_PADDING, FwCfg, FwCfgState
from tests.fakes.legacy_driver import Driver, hammer, transplant
from tests.fakes.machine import FakeMachine

REQUEST, BUFFER = 0x1000, 0x2000
READ, SKIP, SELECT, WRITE = 2, 4, 8, 16


class Firmware:
    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.driver = Driver(machine)

    def select(self, key: int) -> None:
        self.driver.write(0x510, 2, key)

    def bytes(self, count: int) -> bytes:
        return bytes(self.driver.inb(0x511) for _ in range(count))

    def files(self) -> dict[str, tuple[int, int]]:
        """name -> (key, size), as SeaBIOS' qemu_romfile_init reads the directory."""
        self.select(0x19)
        count = int.from_bytes(self.bytes(4), "big")
        entries = [struct.unpack(">IHH56s", self.bytes(64)) for _ in range(count)]
        return {name.rstrip(b"\0").decode(): (key, size) for size, key, _, name in entries}

    def dma(self, control: int, length: int, *, buffer: int = BUFFER, at: int = REQUEST) -> int:
        """The request's control word afterwards."""
        memory = self.machine.memory
        memory.write(at, struct.pack(">IIQ", control, length, buffer))
        self.driver.write(0x514, 4, int.from_bytes((at >> 32).to_bytes(4, "big"), "little"))
        self.driver.write(0x518, 4, int.from_bytes((at & 0xFFFF_FFFF).to_bytes(4, "big"), "little"))
        return int.from_bytes(memory.read(at, 4), "big")


@pytest.fixture
def fw_cfg(machine: FakeMachine) -> Iterator[FwCfg]:
    made = FwCfg("fw_cfg", machine.context)
    made.add_item(KEY_MAX_CPUS, (4).to_bytes(2, "little"))
    made.add_file("etc/table-loader", b"loader" * 100)
    made.add_file("bootorder", b"/pci@i0cf8/scsi@3\n\0")
    yield made
    made.close()


@pytest.fixture
def firmware(machine: FakeMachine, fw_cfg: FwCfg) -> Firmware:
    return Firmware(machine)


def test_the_signature_and_dma_are_found(firmware: Firmware) -> None:
    firmware.select(0)
    assert firmware.bytes(6) == b"QEMU\0\0"
    firmware.select(1)
    assert int.from_bytes(firmware.bytes(4), "little") == 3
    assert firmware.driver.read(0x514, 4).to_bytes(4, "little") == b"QEMU"
    assert firmware.driver.read(0x518, 4).to_bytes(4, "little") == b" CFG"
    assert firmware.driver.read(0x514, 8).to_bytes(8, "little") == b"QEMU CFG"


def test_files_are_found_by_name_and_read_by_ports_and_dma(machine: FakeMachine, firmware: Firmware) -> None:
    key, size = firmware.files()["etc/table-loader"]
    assert size == 600
    firmware.select(key)
    assert firmware.bytes(12) == b"loaderloader"
    assert firmware.dma(key << 16 | SELECT | READ, size) == 0
    assert machine.memory.read(BUFFER, size) == b"loader" * 100
    assert firmware.dma(key << 16 | SELECT | SKIP, 597) == 0
    assert firmware.dma(READ, 5) == 0
    assert machine.memory.read(BUFFER, 5) == b"der\0\0"
    firmware.select(KEY_MAX_CPUS)
    assert firmware.bytes(3) == b"\4\0\0"
    firmware.select(0x3FFF)
    assert firmware.bytes(2) == b"\0\0"


def test_one_64_bit_write_starts_a_dma_too(machine: FakeMachine, firmware: Firmware) -> None:
    machine.memory.write(REQUEST, struct.pack(">IIQ", SELECT | READ, 4, BUFFER))
    firmware.driver.write(0x514, 8, int.from_bytes(REQUEST.to_bytes(8, "big"), "little"))
    assert machine.memory.read(BUFFER, 4) == b"QEMU"


def test_a_writable_file_takes_a_pointer_and_tells(machine: FakeMachine, fw_cfg: FwCfg, firmware: Firmware) -> None:
    """The table loader's write_pointer: select, skip to the offset, write (SeaBIOS qemu_cfg_write_file)."""
    told: list[bytes] = []
    key = fw_cfg.add_file("etc/vmgenid_addr", bytes(8), writable=True, on_write=told.append)
    machine.memory.write(BUFFER, b"\x78\x56\x34\x12")
    assert firmware.dma(key << 16 | SELECT | SKIP, 2) == 0
    assert firmware.dma(WRITE, 4) == 0
    assert told == [b"\0\0\x78\x56\x34\x12\0\0"]
    assert firmware.dma(WRITE, 3) == 1  # past the end
    assert fw_cfg.file("etc/vmgenid_addr") == told[0]
    assert firmware.dma(firmware.files()["bootorder"][0] << 16 | SELECT | WRITE, 4) == 1


@pytest.mark.parametrize(
    ("length", "buffer"),
    [(16, 0xA0000), (16, 16 << 20), (16, (16 << 20) - 8), (16, 2**64 - 8), (0xFFFF_FFFF, 0), (MOST_PADDING + 4097, 0)],
)
def test_a_dma_out_of_memory_or_of_proportion_is_an_error(firmware: Firmware, length: int, buffer: int) -> None:
    assert firmware.dma(SELECT | READ, length, buffer=buffer) == 1


def test_a_request_outside_of_memory_is_noted_and_dropped(machine: FakeMachine, firmware: Firmware) -> None:
    for address in (0xA0000, (16 << 20) - 8, 0xFFFF_FFFF_FFFF_FFF8):
        firmware.driver.write(0x514, 8, int.from_bytes(address.to_bytes(8, "big"), "little"))
    assert len(machine.notes) == 3


def test_names_and_keys_are_taken_once(fw_cfg: FwCfg) -> None:
    with pytest.raises(Conflict):
        fw_cfg.add_file("bootorder", b"")
    with pytest.raises(Conflict):
        fw_cfg.add_file("x" * 56, b"")
    with pytest.raises(Conflict):
        fw_cfg.add_item(0, b"")
    assert fw_cfg.add_file("etc/table-loader", b"loader" * 100) == 0x20  # the same twice is once


def test_it_is_saved_in_the_middle_of_reading(machine: FakeMachine, fw_cfg: FwCfg, firmware: Firmware) -> None:
    key = fw_cfg.add_file("etc/vmgenid_addr", bytes(8), writable=True)
    assert firmware.dma(key << 16 | SELECT | WRITE, 8) == 0
    firmware.select(0x20)
    firmware.bytes(3)
    other = FakeMachine()
    try:
        new = FwCfg("fw_cfg", other.context)
        new.add_file("etc/table-loader", b"loader" * 100)
        new.add_file("bootorder", b"")
        new.add_file("etc/vmgenid_addr", b"\1" * 8, writable=True)
        transplant(fw_cfg, new)
        assert Firmware(other).bytes(3) == b"der"
        assert new.file("etc/vmgenid_addr") == bytes(8)
        with pytest.raises(Unsupported, match="bootorder"):
            new.restore(FwCfgState(written={"bootorder": b""}))
        new.close()
    finally:
        other.close()


@pytest.mark.parametrize("seed", range(3))
def test_random_accesses_raise_nothing(machine: FakeMachine, firmware: Firmware, seed: int) -> None:
    hammer(firmware.driver, [(0x510, 12)], seed=seed)
