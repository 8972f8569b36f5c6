"""ACPI hot-plug: what the DSDT's methods see, and functions that come and go under load."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.errors import Conflict, NotFound, Unsupported
from appliance.vmm.pci.bus import PciBus
from appliance.vmm.pci.function import PciFunction
from appliance.vmm.pci.hotplug import PciHotplug, PciHotplugState
from tests.fakes.machine import FakeMachine
from tests.vmm.pci_software import ONES, Card, Ecam, enable_msix_as_linux, place_bars

UP, DOWN, EJECT, REMOVABLE, BUS = (0xAE00 + 4 * number for number in range(5))


class Plant:
    """A bus with hot-plug; what was raised and what was ejected."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.events: list[int] = []
        self.ejected: list[PciFunction] = []
        self.bus = PciBus("pci", machine.context)
        self.hotplug = PciHotplug(
            "pci-hotplug", machine.context, self.bus, gpe=self.events.append, ejected=self.ejected.append
        )

    def read(self, port: int) -> int:
        return self.machine.ports.read(port, 4)

    def write(self, port: int, value: int) -> None:
        self.machine.ports.write(port, 4, value)


@pytest.fixture
def plant(machine: FakeMachine) -> Plant:
    return Plant(machine)


def test_a_new_function_is_told_once(plant: Plant) -> None:
    card = Card(plant.machine.context)
    assert plant.hotplug.plug(card) == 1
    assert plant.events == [1]
    plant.write(BUS, 0)
    assert plant.read(UP) == 1 << 1
    assert plant.read(UP) == 0
    assert Ecam(plant.machine.mmio).read(1, 0, 4) == 0x1042_1AF4


def test_a_function_leaves_when_the_guest_ejects_it(plant: Plant) -> None:
    card = Card(plant.machine.context)
    plant.bus.plug(card, 6)
    plant.hotplug.request_unplug(6)
    assert plant.events == [1]
    assert plant.hotplug.unplugging == {6}
    assert plant.read(DOWN) == plant.read(DOWN) == 1 << 6
    assert plant.bus.functions[6] is card  # until then it works
    plant.write(EJECT, 1 << 6)
    assert 6 not in plant.bus.functions
    assert plant.ejected == [card]
    assert plant.hotplug.unplugging == frozenset()
    assert plant.read(DOWN) == 0


def test_a_guest_may_eject_what_nobody_asked_for(plant: Plant) -> None:
    cards = [Card(plant.machine.context, f"card{slot}") for slot in (2, 3)]
    for card in cards:
        plant.bus.plug(card)
    plant.write(EJECT, 0xFFFF_FFFF)
    assert plant.ejected == cards
    assert sorted(plant.bus.functions) == [0, 31]  # the chipset cannot be
    plant.write(EJECT, 0xFFFF_FFFF)
    assert len(plant.ejected) == 2


def test_the_chipset_is_not_removable(plant: Plant) -> None:
    assert plant.read(REMOVABLE) == 0x7FFF_FFFE
    for slot in (0, 31):
        with pytest.raises(Conflict, match="the chipset"):
            plant.hotplug.request_unplug(slot)
    with pytest.raises(NotFound, match="slot 9 does not exist"):
        plant.hotplug.request_unplug(9)
    assert plant.events == []


def test_another_bus_has_nothing(plant: Plant) -> None:
    card = Card(plant.machine.context)
    plant.hotplug.plug(card, 2)
    plant.write(BUS, 1)
    assert [plant.read(port) for port in (UP, DOWN, EJECT, REMOVABLE, BUS)] == [0, 0, 0, 0, 1]
    plant.write(EJECT, 1 << 2)
    assert plant.ejected == []
    plant.write(BUS, 0)
    assert plant.read(UP) == 1 << 2


def test_only_doublewords_are_registers(plant: Plant) -> None:
    plant.hotplug.plug(Card(plant.machine.context), 2)
    ports = plant.machine.ports
    ports.write(EJECT, 1, 4)
    ports.write(EJECT + 1, 4, 1)
    ports.write(BUS, 2, 7)
    assert [ports.read(UP, size) for size in (1, 2)] == [0, 0]
    assert ports.read(UP + 2, 4) == 0
    assert plant.read(UP) == 4
    assert plant.ejected == []


def test_reset_ejects_what_was_asked_for_and_forgets_the_rest(plant: Plant) -> None:
    cards = [Card(plant.machine.context, f"card{number}") for number in range(2)]
    for card in cards:
        plant.hotplug.plug(card)
    plant.hotplug.request_unplug(1)
    plant.write(BUS, 3)
    plant.hotplug.reset()
    assert plant.ejected == cards[:1]
    assert [plant.read(port) for port in (UP, DOWN, BUS)] == [0, 0, 0]
    assert plant.bus.functions[2] is cards[1]


def test_saved_bits_come_back(plant: Plant) -> None:
    for slot in (2, 3):
        plant.hotplug.plug(Card(plant.machine.context, f"card{slot}"), slot)
    plant.hotplug.request_unplug(3)
    state = plant.hotplug.save()
    assert state == PciHotplugState(up=0b1100, down=0b1000)
    other = FakeMachine()
    try:
        made = Plant(other)
        made.hotplug.restore(PciHotplugState(up=0b1100, down=ONES))
        assert (made.read(UP), made.read(DOWN)) == (0b1100, 0x7FFF_FFFE)
        with pytest.raises(Unsupported, match="pci-hotplug: state version 9"):
            made.hotplug.restore(PciHotplugState(version=9))
    finally:
        other.close()
    plant.hotplug.close()
    plant.hotplug.close()
    assert plant.read(UP) == ONES


def test_functions_come_and_go_while_vcpus_use_them(plant: Plant) -> None:
    """Three threads touch registers, vectors and configuration space of a slot whose function is exchanged sixty
    times: nothing fails, nothing is left, and no two ranges overlap (the bus would say so)."""
    machine, stop = plant.machine, threading.Event()
    current: list[Card] = []

    def again(body: Callable[[int], None]) -> None:
        number = 0
        while not stop.is_set():
            body(number)
            number += 1

    def touch(number: int) -> None:
        machine.mmio.write(0xC000_0800 + number % 64, 4, number & 1)
        machine.mmio.read(0xC000_0C00, 8)
        machine.mmio.read(0xC000_0000, 4)

    def interrupt(number: int) -> None:
        for card in current[-1:]:
            assert card.msix is not None
            card.msix.signal(number % 4)
            card.set_intx(bool(number & 1))

    def configure(number: int) -> None:
        Ecam(machine.mmio).write(1, 0x14, 4, 0xC000_0000 + (number % 3 << 12))
        Ecam(machine.mmio).write(1, 4, 2, 7)

    def exchange(number: int) -> None:
        card = Card(machine.context, f"card{number}").with_bars()
        plant.hotplug.plug(card, 1)
        current.append(card)
        place_bars(Ecam(machine.mmio), 1, {0x10: 0xC000, 0x14: 0xC000_0000, 0x20: 0x8_0000_0000})
        enable_msix_as_linux(Ecam(machine.mmio), machine.mmio, 1, 0xC000_0800, [(0xFEE0_0000, 0x41)] * 4)
        plant.hotplug.request_unplug(1)
        plant.write(EJECT, 1 << 1)
        plant.ejected[-1].close()

    with ThreadPoolExecutor(3) as vcpus:
        running = [vcpus.submit(again, body) for body in (touch, interrupt, configure)]
        try:
            for number in range(60):
                exchange(number)
        finally:
            stop.set()
        for each in running:
            each.result()
    assert len(plant.ejected) == 60
    assert machine.controller.bound == {}
    assert all(level == 0 for level in machine.controller.levels.values())
    assert [each.name for each in machine.mmio.ranges()] == ["pci ECAM"]
