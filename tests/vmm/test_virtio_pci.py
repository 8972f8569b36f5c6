"""virtio over PCI (virtio 1.2 §4.1): what a driver finds by capabilities, and what the registers do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from appliance.errors import HostError, Unsupported
from appliance.kernel.eventfd import EventFd
from appliance.vmm.virtio import consts
from appliance.vmm.virtio.consts import NO_VECTOR
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.pci_transport import VirtioPci, VirtioPciState
from appliance.vmm.virtio.queue import Chain
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import settle
from tests.fakes.virtio_pci_driver import COMMON, DEVICE, ISR, NOTIFY, WINDOW, PciDriver

GSI = 19  # of slot 3


class Clockwork(VirtioDevice):
    """Echoes; its configuration is eight bytes."""

    device_id = consts.DeviceId.CONSOLE

    def __init__(self, machine: FakeMachine, doorbells: FakeDoorbells | None = None) -> None:
        context = replace(machine.context, doorbells=doorbells)
        super().__init__("clockwork", context, queue_sizes=[64, 16, 16])
        self.settings = bytearray(range(1, 9))
        self.calls_changed: list[int] = []

    def read_config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.settings[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.settings[offset : offset + size] = value.to_bytes(size, "little")

    def on_kick(self, index: int) -> None:
        self.serve(index, self._echo)

    def _echo(self, chain: Chain) -> int:
        return chain.write(chain.read(1 << 16))

    def call_changed(self, index: int) -> None:
        self.calls_changed.append(index)


class FakeDoorbells:
    """Which eventfd KVM would signal for which address, and for which length; a kernel of `limit` of them."""

    def __init__(self, *, limit: int = 100, any_length: bool = True) -> None:
        self.rung: dict[int, tuple[EventFd, int]] = {}
        self._limit, self._any_length = limit, any_length

    def ioeventfd(
        self,
        event: EventFd,
        address: int,
        *,
        length: int,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        if deassign:
            assert self.rung.pop(address) == (event, length)
        elif not length and not self._any_length:
            raise HostError("KVM_IOEVENTFD: Invalid argument")
        elif len(self.rung) >= self._limit:
            raise OSError(28, "No space left on device")
        else:
            assert address not in self.rung
            self.rung[address] = (event, length)


class Bench:
    def __init__(self, machine: FakeMachine, *, doorbells: FakeDoorbells | None = None) -> None:
        self.machine = machine
        self.device = Clockwork(machine, doorbells)
        self.function = VirtioPci(self.device)
        self.function.plugged(3)
        self.driver = PciDriver(machine, self.function)
        self.driver.map()


@pytest.fixture
def bench(machine: FakeMachine) -> Iterator[Bench]:
    made = Bench(machine)
    yield made
    made.function.close()


def test_the_function_is_a_modern_virtio_device_with_every_structure(bench: Bench) -> None:
    config = bench.function.config
    assert (config.read(0, 2), config.read(2, 2), config.read(8, 1)) == (0x1AF4, 0x1043, 1)
    assert config.read(0x2E, 2) >= 0x40
    assert set(bench.driver.structures) == {COMMON, NOTIFY, ISR, DEVICE, WINDOW}
    notify = bench.driver.structures[NOTIFY]
    multiplier = config.read(notify.at + 16, 4)
    assert notify.length >= 2 * multiplier + 2
    assert config.read(bench.driver.structures[WINDOW].at + 2, 1) == 20


def test_a_driver_sets_up_and_is_served_through_the_registers_alone(bench: Bench) -> None:
    queues = bench.driver.set_up(bench.device)
    head = queues[1].add([b"hello"], [16])
    bench.driver.kick(1)
    assert queues[1].used() == [(head, 5)]
    assert bench.driver.status == 0xF


def test_each_queue_has_a_doorbell_of_its_own_that_follows_the_bar(machine: FakeMachine) -> None:
    doorbells = FakeDoorbells()
    bench = Bench(machine, doorbells=doorbells)
    try:
        notify = bench.driver.address(NOTIFY)
        assert doorbells.rung == {notify + 4 * index: (bench.device.doorbell(index), 0) for index in range(3)}
        bench.function.config.write(0x10, 4, 0xC100_0000)
        assert min(doorbells.rung) == notify + 0x100_0000
        bench.function.config.write(0x04, 2, 0)
        assert doorbells.rung == {}
        bench.function.config.write(0x04, 2, 2)
        assert len(doorbells.rung) == 3
    finally:
        bench.function.close()
    assert doorbells.rung == {}


def test_a_doorbell_kvm_has_no_room_for_is_an_exit_and_heard(machine: FakeMachine) -> None:
    bench = Bench(machine, doorbells=FakeDoorbells(limit=1))
    try:
        assert len([note for note in machine.notes if "each kick is an exit" in note]) == 2
        queues = bench.driver.set_up(bench.device)
        head = queues[2].add([b"x"], [1])
        bench.driver.kick(2)
        assert queues[2].used() == [(head, 1)]
    finally:
        bench.function.close()


def test_a_kernel_that_wants_a_length_gets_doorbells_of_the_width_a_kick_has(machine: FakeMachine) -> None:
    doorbells = FakeDoorbells(any_length=False)
    bench = Bench(machine, doorbells=doorbells)
    try:
        assert [length for _, length in doorbells.rung.values()] == [2, 2, 2]
    finally:
        bench.function.close()
    assert (doorbells.rung, machine.notes) == ({}, [])


def test_without_msix_the_line_is_asserted_until_the_isr_is_read(bench: Bench) -> None:
    queues = bench.driver.set_up(bench.device)
    levels = bench.machine.controller.levels
    queues[0].add([b"x"], [1])
    bench.driver.kick(0)
    assert levels[GSI] == 1
    assert bench.function.config.read(6, 2) & 8
    bench.device.config_changed()
    assert bench.driver.read(ISR, 0, 1) == 3
    assert levels[GSI] == 0
    assert not bench.function.config.read(6, 2) & 8
    assert bench.driver.read(ISR, 0, 1) == 0


def test_with_msix_each_queue_signals_its_own_vector_and_never_the_line(bench: Bench) -> None:
    queues = bench.driver.set_up(bench.device)
    bench.driver.enable_msix()
    msix, controller = bench.function.msix, bench.machine.controller
    assert msix is not None
    vectors = [msix.vector(number) for number in range(4)]
    assert [vector and controller.messages()[vector.gsi][1] for vector in vectors] == [0x40, 0x41, 0x42, 0x43]
    queues[2].add([b"x"], [1])
    bench.driver.kick(2)
    bench.device.config_changed()
    assert [vector and vector.event.drain() for vector in vectors] == [1, 0, 0, 1]
    assert controller.levels.get(GSI, 0) == 0
    assert bench.device.call(2) is vectors[3]


def test_an_event_without_a_vector_interrupts_nobody_while_msix_is_on(bench: Bench) -> None:
    queues = bench.driver.set_up(bench.device)
    bench.driver.enable_msix()
    bench.driver.write(COMMON, 0x16, 2, 0)
    bench.driver.write(COMMON, 0x1A, 2, NO_VECTOR)
    queues[0].add([b"x"], [1])
    bench.driver.kick(0)
    assert bench.device.call(0) is None
    assert bench.machine.controller.levels.get(GSI, 0) == 0


def test_a_vector_that_is_not_in_the_table_reads_back_as_none(bench: Bench) -> None:
    for register in (0x10, 0x1A):
        bench.driver.write(COMMON, register, 2, 3)
        assert bench.driver.read(COMMON, register, 2) == 3
        bench.driver.write(COMMON, register, 2, 4)
        assert bench.driver.read(COMMON, register, 2) == NO_VECTOR


def test_the_device_hears_of_each_change_of_its_calls(bench: Bench) -> None:
    bench.driver.enable_msix()
    assert bench.device.calls_changed == [0, 1, 2, 0, 1, 2]  # switched on, then mapped one by one
    assert bench.driver.msix_at is not None
    bench.function.config.write(bench.driver.msix_at + 2, 2, 0)
    assert bench.device.calls_changed[6:] == [0, 1, 2]
    assert bench.device.call(0) is None


def test_features_are_read_back_as_the_driver_wrote_them_and_refused_if_not_offered(bench: Bench) -> None:
    driver = bench.driver
    assert driver.offered() == bench.device.features
    driver.write(COMMON, 0x00, 4, 2)
    assert driver.read(COMMON, 0x04, 4) == 0
    driver.accept(1 << 32 | 1 << 7)
    driver.write(COMMON, 0x08, 4, 0)
    assert driver.read(COMMON, 0x0C, 4) == 1 << 7
    driver.write(COMMON, 0x08, 4, 0x8000_0000)
    driver.write(COMMON, 0x0C, 4, 1)
    assert driver.read(COMMON, 0x0C, 4) == 0
    driver.status = 11
    assert driver.status == 3


def test_registers_take_accesses_of_any_width(bench: Bench) -> None:
    driver = bench.driver
    driver.write(COMMON, 0x20, 8, 0x1234_5678_9ABC_DEF0)
    assert [driver.read(COMMON, 0x20 + place, 1) for place in (0, 7)] == [0xF0, 0x12]
    for place in range(8):
        driver.write(COMMON, 0x28 + place, 1, place + 1)
    assert driver.read(COMMON, 0x28, 8) == 0x0807_0605_0403_0201
    driver.write(COMMON, 0x16, 8, 0x0002_0010_0001)  # select queue 1, size 16, vector 2
    assert (driver.read(COMMON, 0x16, 2), driver.read(COMMON, 0x18, 2), driver.read(COMMON, 0x1A, 2)) == (1, 16, 2)
    assert driver.read(COMMON, 0x16, 4) == 0x10_0001
    assert driver.read(COMMON, 0x38, 4) == 0  # beyond


def test_a_queue_that_is_not_there_has_size_zero_and_ignores_writes(bench: Bench) -> None:
    driver = bench.driver
    driver.write(COMMON, 0x16, 2, 3)
    for register, size in ((0x18, 2), (0x1C, 2), (0x1E, 2), (0x20, 8)):
        driver.write(COMMON, register, size, 1)
        assert driver.read(COMMON, register, size) == 0
    driver.write(COMMON, 0x1A, 2, 1)
    assert driver.read(COMMON, 0x1A, 2) == NO_VECTOR


def test_an_enabled_queue_does_not_move_and_cannot_be_disabled_but_by_reset(bench: Bench) -> None:
    queues = bench.driver.set_up(bench.device)
    driver = bench.driver
    driver.write(COMMON, 0x16, 2, 0)
    driver.write(COMMON, 0x18, 2, 4)
    driver.write(COMMON, 0x20, 8, 0)
    driver.write(COMMON, 0x1C, 2, 0)
    assert driver.read(COMMON, 0x18, 2) == 64
    assert driver.read(COMMON, 0x20, 8) == queues[0].desc
    assert driver.read(COMMON, 0x1C, 2) == 1
    driver.status = 0
    assert (driver.status, driver.read(COMMON, 0x1C, 2), driver.read(COMMON, 0x20, 8)) == (0, 0, 0)


def test_a_reset_unmaps_all_vectors_and_withdraws_the_line(bench: Bench) -> None:
    bench.driver.set_up(bench.device)
    bench.device.config_changed()
    assert bench.machine.controller.levels[GSI] == 1
    bench.driver.write(COMMON, 0x10, 2, 0)
    bench.driver.status = 0
    assert bench.machine.controller.levels[GSI] == 0
    assert bench.driver.read(COMMON, 0x10, 2) == NO_VECTOR
    assert bench.driver.read(ISR, 0, 1) == 0


def test_the_device_configuration_is_read_and_written_and_has_a_generation(bench: Bench) -> None:
    driver = bench.driver
    assert driver.read(DEVICE, 0, 8) == 0x0807_0605_0403_0201
    before = driver.read(COMMON, 0x15, 1)
    driver.write(DEVICE, 2, 2, 0xBEEF)
    bench.device.config_changed()
    assert driver.read(DEVICE, 0, 4) == 0xBEEF_0201
    assert driver.read(COMMON, 0x15, 1) == before + 1
    assert driver.read(DEVICE, 0xFF8, 8) == 0


def test_everything_is_reached_through_configuration_space_too(bench: Bench) -> None:
    config, at = bench.function.config, bench.driver.structures[WINDOW].at

    def aim(structure: int, offset: int, length: int) -> None:
        config.write(at + 4, 1, 0)
        config.write(at + 8, 4, bench.driver.structures[structure].offset + offset)
        config.write(at + 12, 4, length)

    aim(DEVICE, 4, 4)
    assert config.read(at + 16, 4) == 0x0807_0605
    config.write(at + 16, 4, 0x1122_3344)
    assert bench.driver.read(DEVICE, 4, 4) == 0x1122_3344
    aim(COMMON, 0x14, 1)
    config.write(at + 16, 4, 0xFFFF_FF01)
    assert bench.driver.status == 1
    assert config.read(at + 16, 1) == 1
    config.write(0x04, 2, 0)  # works while the BAR is not decoded
    assert config.read(at + 16, 1) == 1


@pytest.mark.parametrize(("bar", "offset", "length"), [(1, 0, 4), (0, 2, 4), (0, 0, 3), (0, 0, 8), (0, 0x8000, 4)])
def test_the_window_opens_on_aligned_accesses_within_the_bar_only(
    bench: Bench, bar: int, offset: int, length: int
) -> None:
    config, at = bench.function.config, bench.driver.structures[WINDOW].at
    config.write(at + 4, 1, bar)
    config.write(at + 8, 4, offset)
    config.write(at + 12, 4, length)
    config.write(at + 16, 4, 0xFFFF_FFFF)
    assert config.read(at + 16, 4) == 0xFFFF_FFFF
    assert (bench.driver.status, bench.driver.read(COMMON, 0, 4)) == (0, 0)


def test_the_machines_reset_brings_all_to_power_on(bench: Bench) -> None:
    bench.driver.set_up(bench.device)
    bench.driver.enable_msix()
    bench.function.reset()
    assert (bench.device.status, bench.function.common.config_vector) == (0, NO_VECTOR)
    bench.driver.map()
    assert bench.driver.set_up(bench.device)[0].request([b"again"], [5]) == b"again"


def test_a_function_that_is_pulled_out_serves_nothing(bench: Bench) -> None:
    bench.driver.set_up(bench.device)
    bench.function.unplugged()
    assert (bench.device.status, bench.machine.bridge.watched) == (0, {})


def test_a_saved_function_goes_on_in_another_with_registers_vectors_and_doorbells(machine: FakeMachine) -> None:
    bench = Bench(machine)
    queues = bench.driver.set_up(bench.device)
    bench.driver.enable_msix()
    bench.driver.write(COMMON, 0x16, 2, 2)
    bench.function.pause()
    head = queues[0].add([b"x"], [1])
    state = bench.function.save()
    assert isinstance(state, VirtioPciState)
    bench.function.close()
    doorbells = FakeDoorbells()
    device = Clockwork(machine, doorbells)
    other = VirtioPci(device)
    try:
        other.plugged(3)
        other.restore(state)
        assert other.save() == state
        assert len(doorbells.rung) == 3
        other.resume()
        settle(machine.bridge)
        assert queues[0].used() == [(head, 1)]
        assert bench.driver.read(COMMON, 0x16, 2) == 2
        call = device.call(0)
        assert call is not None
        assert call.event.drain() == 1
    finally:
        other.close()


@pytest.mark.parametrize(("field", "value"), [("queue_vectors", [0]), ("config_vector", 4), ("version", 2)])
def test_state_of_another_function_is_refused(bench: Bench, field: str, value: object) -> None:
    state = bench.function.save()
    assert state is not None
    setattr(state, field, value)
    with pytest.raises(Unsupported, match="vm 101: clockwork: saved state"):
        bench.function.restore(state)
