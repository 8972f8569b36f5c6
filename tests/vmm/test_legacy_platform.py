"""pvpanic, the debug console, the generation identifier."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from uuid import UUID

import pytest

from appliance.errors import Unsupported
from appliance.vmm.device import MachineRequest
from appliance.vmm.legacy.debug_port import LINE_BYTES, DebugPort
from appliance.vmm.legacy.fw_cfg import FwCfg
from appliance.vmm.legacy.pvpanic import PvPanic
from appliance.vmm.legacy.vmgenid import GUID_OFFSET, VmGenId, VmGenIdState
from appliance.vmm.memory import BadAddress
from tests.fakes.legacy_driver import Driver, hammer, transplant
from tests.fakes.machine import FakeMachine

FIRST, SECOND = UUID("324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"), UUID("00112233-4455-6677-8899-aabbccddeeff")
PAGE_AT = 0x7000
GUID_AT = PAGE_AT + GUID_OFFSET


def test_a_panic_asks_for_the_machines_attention_and_a_crash_kernel_does_not(machine: FakeMachine) -> None:
    """drivers/misc/pvpanic: reads the events, writes the one that happened."""
    device, driver = PvPanic("pvpanic", machine.context), Driver(machine)
    assert driver.inb(0x505) == 3
    driver.outb(0x505, 2)
    assert machine.requests == []
    assert machine.notes == ["the guest's kernel has panicked and loads its crash kernel"]
    driver.outb(0x505, 1)
    assert [request for request, _ in machine.requests] == [MachineRequest.PANIC]
    device.close()


def test_what_firmware_says_is_told_line_by_line_and_bounded(machine: FakeMachine) -> None:
    device, driver = DebugPort("debug", machine.context), Driver(machine)
    assert driver.inb(0x402) == 0xE9
    for byte in b"SeaBIOS (version 1.16)\r\n\n\x1b[0mok?\n" + b"x" * LINE_BYTES + b"half":
        driver.outb(0x402, byte)
    assert machine.notes == ["firmware: SeaBIOS (version 1.16)", "firmware: ?[0mok?", "firmware: " + "x" * LINE_BYTES]
    device.reset()
    hammer(driver, [(0x402, 1)], seed=1)
    device.close()


class Genid:
    """The device with fw_cfg, and firmware that places it."""

    def __init__(self, machine: FakeMachine, guid: UUID) -> None:
        self.machine = machine
        self.events: list[int] = []
        self.fw_cfg = FwCfg("fw_cfg", machine.context)
        self.device = VmGenId("vmgenid", machine.context, guid=guid, gpe=self.events.append, fw_cfg=self.fw_cfg)

    def firmware(self, address: int = GUID_AT) -> None:
        """The table loader: allocate, then write_pointer by DMA."""
        memory = self.machine.memory
        memory.write(PAGE_AT, self.fw_cfg.file("etc/vmgenid_guid"))
        memory.write(0x2000, address.to_bytes(8, "little"))
        memory.write(0x1000, struct.pack(">IIQ", 0x21 << 16 | 8 | 16, 8, 0x2000))
        self.machine.ports.write(0x514, 8, int.from_bytes((0x1000).to_bytes(8, "big"), "little"))

    def guest_sees(self) -> UUID:
        return UUID(bytes_le=self.machine.memory.read(GUID_AT, 16))

    def close(self) -> None:
        self.device.close()
        self.fw_cfg.close()


@pytest.fixture
def genid(machine: FakeMachine) -> Iterator[Genid]:
    made = Genid(machine, FIRST)
    yield made
    made.close()


def test_firmware_places_the_identifier_and_a_new_one_is_told(genid: Genid) -> None:
    genid.firmware()
    assert genid.guest_sees() == FIRST
    genid.device.renew(FIRST)
    assert genid.events == []
    genid.device.renew(SECOND)
    assert genid.guest_sees() == SECOND
    assert genid.events == [5]


@pytest.mark.parametrize(("guid", "events"), [(FIRST, []), (SECOND, [5])])
def test_a_restored_guest_hears_of_another_identifier_as_it_resumes(
    machine: FakeMachine, genid: Genid, guid: UUID, events: list[int]
) -> None:
    genid.firmware()
    other = FakeMachine()
    new = Genid(other, guid)
    other.memory.write(PAGE_AT, machine.memory.read(PAGE_AT, 4096))
    transplant(genid.device, new.device)
    assert new.guest_sees() == guid
    assert new.events == events
    with pytest.raises(Unsupported):
        new.device.restore(VmGenIdState(guid=b""))
    new.close()
    other.close()


def test_while_paused_a_new_identifier_waits(genid: Genid) -> None:
    genid.firmware()
    genid.device.pause()
    genid.device.renew(SECOND)
    assert genid.guest_sees() == FIRST
    genid.device.resume()
    assert genid.guest_sees() == SECOND


def test_a_pointer_out_of_memory_is_noted_only(machine: FakeMachine, genid: Genid) -> None:
    genid.firmware(0xFFFF_FFFF_FFFF_FFF0)
    genid.device.renew(SECOND)
    assert genid.events == []
    assert len(machine.notes) == 1


def test_reset_forgets_firmwares_page_but_not_one_placed_by_the_host(machine: FakeMachine, genid: Genid) -> None:
    genid.firmware()
    genid.device.reset()
    genid.device.renew(SECOND)
    assert genid.guest_sees() == FIRST
    assert genid.fw_cfg.file("etc/vmgenid_addr") == bytes(8)
    genid.device.place(PAGE_AT)
    genid.device.reset()
    genid.device.renew(FIRST)
    assert genid.guest_sees() == FIRST
    with pytest.raises(BadAddress):
        genid.device.place(0xA0000)
