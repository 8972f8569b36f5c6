"""A guest that writes anything anywhere: no exception, no overlap on the buses, no BAR over RAM, ever."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from appliance.vmm import layout
from appliance.vmm.bus import Bus
from appliance.vmm.pci.bus import PciBus
from appliance.vmm.pci.hotplug import PciHotplug
from tests.fakes.machine import FakeMachine
from tests.vmm.pci_software import Card, Cf8, Config, Ecam

OPERATIONS = 100_000
CHECKED_EVERY = 500
SLOTS = (0, 1, 2, 3, 31)
REGISTERS = (0x04, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x40, 0x42, 0x60, 0x64, 0xF0)
VALUES = (
    *(0, 1, 2, 7, 0xFFFF_FFFF, 0xFFFF_FFF0, 0x8000, 0xC000, 0x8000_0000, 0xB000_0001, 0xB000_0005, 0xC000_0001),
    *(0xC040, 0xC000_0000, 0xC000_1000, 0xC000_3000, 0xFEE0_0000, 0xFEBF_F000, 0x0010_0000, 0x00FF_F000, 0x0100_0000),
)


class Guest:
    """Everything it does is drawn from `seed`."""

    def __init__(self, machine: FakeMachine, seed: int) -> None:
        self.machine = machine
        self.random = random.Random(seed)
        self.bus = PciBus("pci", machine.context)
        self.hotplug = PciHotplug("h", machine.context, self.bus, gpe=lambda _: None, ejected=lambda _: None)
        for number in range(1, 4):
            self.bus.plug(Card(machine.context, f"card{number}").with_bars(), number)

    def value(self) -> int:
        choice = self.random.random()
        if choice < 0.6:
            return self.random.choice(VALUES)
        return self.random.getrandbits(self.random.choice((1, 8, 16, 32, 64)))

    def step(self) -> None:
        draw = self.random
        size = draw.choice((1, 2, 4, 4, 4, 8))
        choice = draw.random()
        if choice < 0.5:
            offset = draw.choice(REGISTERS) + draw.choice((0, 0, 0, 1, 2, 3))
            self.configure(draw.choice(SLOTS), offset, size)
        elif choice < 0.6:
            self.configure(draw.choice(SLOTS), draw.randrange(4096), size)
        elif choice < 0.7:
            self.bus.config_write(0, draw.choice(SLOTS) << 3, 4, 2, 7)
        elif choice < 0.9:
            self.touch(self.machine.mmio, size)
        elif choice < 0.995:
            self.machine.ports.write(0xCF8 + draw.randrange(8), min(size, 4), self.value())
        else:
            self.bus.reset()  # ECAM comes back

    def configure(self, slot: int, offset: int, size: int) -> None:
        config: Config = Cf8(self.machine.ports)
        if size == 8 or offset > 255 or self.random.random() < 0.5:
            config = Ecam(self.machine.mmio, self.bus.host_bridge.ecam_base or layout.ECAM)
        config.write(slot, offset, size, self.value() & ((1 << 8 * size) - 1))
        assert 0 <= config.read(slot, offset, size) < 1 << 8 * size

    def touch(self, bus: Bus, size: int) -> None:
        ranges = [each for each in bus.ranges() if "BAR" in each.name]
        if ranges:
            found = self.random.choice(ranges)
            address = found.base + self.random.randrange(min(found.length, 0x1000))
            if self.random.random() < 0.5:  # the MSI-X table, as if it were meant
                entry = found.base + 0x800 + 16 * self.random.randrange(4)
                bus.write(entry, 8, 0xFEE0_0000)
                bus.write(entry + 12, 4, 0)
            bus.write(address, size, self.value() & ((1 << 8 * size) - 1))
            assert 0 <= bus.read(address, size) < 1 << 8 * size


def assert_sane(machine: FakeMachine) -> None:
    for bus in (machine.ports, machine.mmio):
        ranges = bus.ranges()
        for left, right in pairwise(ranges):
            assert left.end <= right.base, f"{left.name} overlaps {right.name}"
    for each in machine.mmio.ranges():
        if each.name == "pci RCBA":
            continue
        assert not each.base < layout.FIRMWARE_END < each.end
        assert each.base >= layout.FIRMWARE_END or each.end <= layout.PCI_MEMORY_END
        assert all(each.end <= region.base or each.base >= region.end for region in machine.memory.regions)
    assert set(machine.controller.bound) <= set(machine.controller.messages())


@pytest.fixture
def guest(machine: FakeMachine) -> Guest:
    return Guest(machine, 20261123)


def test_a_hundred_thousand_random_operations(machine: FakeMachine, guest: Guest) -> None:
    decoded = bound = 0
    for number in range(OPERATIONS):
        guest.step()
        if number % CHECKED_EVERY == 0:
            assert_sane(machine)
            decoded += sum("BAR" in each.name for each in machine.mmio.ranges())
            bound += len(machine.controller.bound)
    moved = sum(len(card.moves) for card in guest.bus.functions.values() if isinstance(card, Card))
    assert (decoded > 50, bound > 20, moved > 2000) == (True, True, True)  # it was no idle exercise
    for card in list(guest.bus.functions.values()):
        card.reset()
    guest.bus.reset()
    assert [each.name for each in machine.mmio.ranges()] == ["pci ECAM"]
    assert machine.controller.bound == {}
    assert machine.faults == []


def test_every_byte_of_every_functions_configuration_space_takes_all_ones(guest: Guest, machine: FakeMachine) -> None:
    for slot in SLOTS:
        config = guest.bus.functions[slot].config
        for offset in range(4096 + 16):
            for size in (1, 2, 4, 8):
                config.write(offset, size, (1 << 8 * size) - 1)
    assert_sane(machine)


def test_states_saved_in_the_middle_are_restored_the_same(guest: Guest, machine: FakeMachine) -> None:
    for _ in range(3000):
        guest.step()
    saved = {slot: function.save() for slot, function in guest.bus.functions.items()}
    bus_state = guest.bus.save()
    other = FakeMachine()
    try:
        copy = Guest(other, 0)
        assert bus_state is not None
        copy.bus.restore(bus_state)
        for slot, state in saved.items():
            if slot not in (0, 31):
                assert state is not None
                copy.bus.functions[slot].restore(state)
        copy.bus.resume()
        assert {slot: function.save() for slot, function in copy.bus.functions.items()} == saved
        assert_sane(other)
    finally:
        other.close()
