"""The status machine, features, doorbells, reset and state of a virtio device (virtio 1.2 §2, §3)."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from appliance.errors import GuestFault, Unsupported
from appliance.vmm.device import State
from appliance.vmm.virtio import consts
from appliance.vmm.virtio.device import BATCH, BATCH_PIECES, VirtioDevice, VirtioState
from appliance.vmm.virtio.queue import Chain
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import FakeTransport, attach, go, negotiate, settle, transport_of

ACKNOWLEDGED = consts.STATUS_ACKNOWLEDGE | consts.STATUS_DRIVER
AGREED = ACKNOWLEDGED | consts.STATUS_FEATURES_OK
LIVE = AGREED | consts.STATUS_DRIVER_OK
F_LEFT, F_RIGHT = 0, 1


class EchoState(State):
    version: int
    words: str


class Echo(VirtioDevice):
    """Sends back what it reads. Its two features exclude each other."""

    device_id = consts.DeviceId.ENTROPY
    device_state_type = EchoState

    def __init__(self, machine: FakeMachine) -> None:
        super().__init__("echo", machine.context, queue_sizes=[256, 64], features=consts.bits(F_LEFT, F_RIGHT))
        self.life: list[str] = []
        self.words = ""
        self.at_work = False

    def accepts(self, features: int) -> bool:
        return features & consts.bits(F_LEFT, F_RIGHT) != consts.bits(F_LEFT, F_RIGHT)

    def activate(self) -> None:
        self.life.append(f"activate {self.negotiated & 3}")

    def deactivate(self) -> None:
        self.life.append("deactivate")

    def busy(self) -> bool:
        return self.at_work

    def on_kick(self, index: int) -> None:
        self.life.append(f"kick {index}")
        self.serve(index, self._echo)

    def _echo(self, chain: Chain) -> int:
        data = chain.read(1 << 16)
        if data == b"fault":
            raise GuestFault("vm 101: echo: a word that must not be said")
        return chain.write(data)

    def save_device(self) -> State | None:
        return EchoState(1, self.words)

    def restore_device(self, state: State) -> None:
        assert isinstance(state, EchoState)
        self.words = state.words


MODERN = consts.bits(consts.F_VERSION_1)


@pytest.fixture
def echo(machine: FakeMachine) -> Iterator[Echo]:
    device = Echo(machine)
    device.transport = FakeTransport()
    yield device
    device.close()


def test_a_driver_that_does_all_right_is_served(echo: Echo) -> None:
    queues = attach(echo, features=MODERN | 1)
    assert echo.status == LIVE
    assert echo.life == ["activate 1", "kick 0", "kick 1"]
    assert queues[0].request([b"hello"], [10]) == b"hello"
    assert queues[1].request([b"there"], [10]) == b"there"
    assert transport_of(echo).interrupts == [0, 1]


@pytest.mark.parametrize(
    "features",
    [0, MODERN | 1 << 5, MODERN | 1 << 63, MODERN | 3, consts.bits(consts.F_EVENT_IDX)],
    ids=["legacy", "not offered", "far away", "exclusive", "no version 1"],
)
def test_features_that_cannot_be_had_are_refused_until_others_are_tried(echo: Echo, features: int) -> None:
    assert negotiate(echo, features) == ACKNOWLEDGED
    assert echo.negotiated == 0
    echo.write_driver_features(MODERN | 2)
    echo.write_status(AGREED)
    assert (echo.read_status(), echo.negotiated) == (AGREED, MODERN | 2)
    echo.write_driver_features(MODERN)
    assert echo.negotiated == MODERN | 2  # too late


def test_a_driver_that_goes_on_without_consent_gets_no_device(echo: Echo) -> None:
    negotiate(echo, 0)
    echo.write_status(ACKNOWLEDGED | consts.STATUS_DRIVER_OK)
    assert not echo.live
    assert echo.life == []


def test_status_bits_are_never_cleared_but_by_reset_and_needs_reset_is_not_the_drivers(echo: Echo) -> None:
    attach(echo, features=MODERN)
    echo.write_status(consts.STATUS_FAILED | consts.STATUS_NEEDS_RESET)
    assert echo.read_status() == LIVE | consts.STATUS_FAILED
    echo.write_status(0)
    assert echo.read_status() == 0
    assert echo.life[-1] == "deactivate"
    assert not any(queue.enabled for queue in echo.queues)


def test_nothing_is_served_before_driver_ok_and_what_waits_is_served_then(echo: Echo) -> None:
    queues = attach(echo, features=MODERN, start=False)
    head = queues[0].add([b"early"], [5])
    queues[0].kick()
    assert queues[0].used() == []
    go(echo)
    assert queues[0].used() == [(head, 5)]


def test_a_fault_makes_the_device_need_a_reset_and_a_reset_repairs_it(machine: FakeMachine, echo: Echo) -> None:
    queues = attach(echo, features=MODERN)
    queues[0].add([b"fault"], [5])
    queues[0].kick()
    assert echo.read_status() == LIVE | consts.STATUS_NEEDS_RESET
    assert transport_of(echo).config_interrupts == 1
    assert machine.notes == ["vm 101: echo: a word that must not be said; echo stands until its driver resets it"]
    assert machine.bridge.watched == {}
    queues[1].add([b"hello"], [5])
    queues[1].kick()
    assert queues[1].used() == []
    assert machine.faults == []
    assert attach(echo, features=MODERN)[0].request([b"again"], [5]) == b"again"


def test_a_batch_yields_to_the_loop_and_comes_back(machine: FakeMachine, echo: Echo) -> None:
    queues = attach(echo, features=MODERN, indirect=False)
    for _ in range(100):
        queues[0].add([b"x"])
    del echo.life[:]
    echo.doorbell(0).signal(1000)
    machine.bridge.ready(echo.doorbell(0).fileno())
    assert len(queues[0].used()) == BATCH
    settle(machine.bridge)
    assert len(queues[0].used()) == 100 - BATCH
    assert echo.life == ["kick 0", "kick 0"]


def test_a_batch_of_long_chains_is_shorter(machine: FakeMachine, echo: Echo) -> None:
    """Walking descriptors is work as well: a guest does not hold the loop by cutting its buffers up."""
    queue = attach(echo, features=MODERN | consts.bits(consts.F_INDIRECT_DESC), indirect=True)[0]
    for _ in range(20):
        queue.add([b"x"] * 200)
    echo.doorbell(0).signal()
    machine.bridge.ready(echo.doorbell(0).fileno())
    assert len(queue.used()) == -(-BATCH_PIECES // 200)
    settle(machine.bridge)
    assert len(queue.used()) == 20 - -(-BATCH_PIECES // 200)


def test_reset_is_not_complete_while_somebody_is_busy_with_the_drivers_memory(echo: Echo) -> None:
    attach(echo, features=MODERN)
    echo.at_work = True
    echo.write_status(0)
    assert echo.read_status() == LIVE
    echo.write_status(0)
    assert echo.read_status() == LIVE
    echo.at_work = False
    assert echo.read_status() == 0
    echo.at_work = True
    assert echo.read_status() == 0  # what begins later is not the reset's


def test_a_reset_during_on_kick_waits_for_it_and_its_chains_are_stale(machine: FakeMachine, echo: Echo) -> None:
    queues = attach(echo, features=MODERN)
    head = queues[0].add([b"hello"], [5])
    seen: list[object] = []

    def reset_meanwhile() -> None:
        chain = echo.queues[0].pop()
        assert chain is not None

        def by_driver() -> None:
            with echo.lock:
                echo.write_status(0)
                seen.append(echo.read_status())

        vcpu = threading.Thread(target=by_driver)
        vcpu.start()
        vcpu.join()
        seen.append(chain.write(b"hello"))
        echo.queues[0].push(chain, 5)

    echo.guard(reset_meanwhile)
    assert seen == [LIVE, 0]
    assert echo.read_status() == 0
    assert queues[0].used() == []
    assert queues[0].read_back(head) == bytes(5)


def test_a_queue_taken_over_is_left_to_the_other_until_it_is_handed_back(machine: FakeMachine, echo: Echo) -> None:
    queues = attach(echo, features=MODERN)
    echo.take_over(0)
    assert echo.doorbell(0).fileno() not in machine.bridge.watched
    head = queues[0].add([b"x"], [1])
    queues[0].kick()
    assert (queues[0].used(), echo.doorbell(0).drain()) == ([], 1)
    echo.hand_back(0)
    settle(machine.bridge)
    assert queues[0].used() == [(head, 1)]


def test_configuration_changes_are_a_new_generation_once_read_and_an_interrupt_once_the_driver_is_there(
    echo: Echo,
) -> None:
    for _ in range(256):
        echo.config_changed()
    echo.config_as_read(0, 4)
    echo.config_as_read(4, 4)
    assert (echo.config_generation, transport_of(echo).config_interrupts) == (1, 0)
    attach(echo, features=MODERN)
    echo.config_changed()
    echo.config_as_read(0, 4)
    assert (echo.config_generation, transport_of(echo).config_interrupts) == (2, 1)


def test_a_late_doorbell_of_a_queue_no_longer_watched_is_not_heard_and_not_polled_for_ever(
    machine: FakeMachine, echo: Echo
) -> None:
    attach(echo, features=MODERN)
    callback = machine.bridge.watched[echo.doorbell(0).fileno()]
    echo.pause()
    echo.doorbell(0).signal()
    machine.bridge.watch(echo.doorbell(0).fileno(), callback)
    del echo.life[:]
    assert settle(machine.bridge) == 0 or machine.bridge.watched == {}
    assert machine.bridge.watched == {}
    assert echo.life == []


def test_a_guest_in_the_midst_of_negotiating_can_be_restored(machine: FakeMachine, echo: Echo) -> None:
    """Features are anything until they are agreed on: a guest could keep its machine from ever being restored."""
    with echo.lock:
        echo.write_status(ACKNOWLEDGED)
        echo.write_driver_features((1 << 64) - 1)
    echo.pause()
    state = echo.save()
    other = Echo(machine)
    try:
        assert state is not None
        other.restore(state)
        assert other.save() == state
        with other.lock:
            other.write_status(AGREED)
        assert not other.negotiated
    finally:
        other.close()


def test_a_saved_device_goes_on_in_another_one(machine: FakeMachine, echo: Echo) -> None:
    queues = attach(echo, features=MODERN | 2)
    queues[0].request([b"1"], [1])
    echo.words = "kept"
    echo.pause()
    head = queues[0].add([b"2"], [1])
    queues[0].kick()
    state = echo.save()
    assert isinstance(state, VirtioState)
    other = Echo(machine)
    try:
        other.transport = FakeTransport()
        other.restore(state)
        assert other.save() == state
        assert (other.words, other.negotiated, other.life) == ("kept", MODERN | 2, [])
        queues[0].device = other
        other.resume()
        settle(machine.bridge)
        assert queues[0].used() == [(head, 1)]
        assert queues[0].request([b"3"], [1]) == b"3"
    finally:
        other.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", 2), ("queues", []), ("driver_features", 1 << 20), ("device", b"\xc1")],
)
def test_state_of_another_device_is_refused_by_name(echo: Echo, field: str, value: object) -> None:
    negotiate(echo, MODERN)
    state = echo.save()
    assert state is not None
    setattr(state, field, value)
    with pytest.raises(Unsupported, match="vm 101: echo: saved state"):
        echo.restore(state)


def test_closing_twice_is_harmless_and_a_kick_afterwards_is_lost(echo: Echo) -> None:
    attach(echo, features=MODERN)
    echo.close()
    echo.close()
    echo.kick(0)
    assert echo.life[-1] == "deactivate"
