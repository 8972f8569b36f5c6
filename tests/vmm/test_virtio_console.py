"""The console device (virtio 1.2 §5.3)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from appliance.vmm.virtio import consts
from appliance.vmm.virtio.console import (
    CONTROL_FROM_GUEST,
    CONTROL_TO_GUEST,
    INCOMING_BYTES,
    WRITE_BYTES,
    ConsolePort,
    Event,
    PortOptions,
    VirtioConsole,
)
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import DriverQueue, attach, settle, transport_of

AGENT = "org.qemu.guest_agent.0"
Message = tuple[int, Event, int, bytes]


class Guest:
    """A driver of a console with a terminal and an agent's channel, and what its host hears."""

    def __init__(self, machine: FakeMachine, *ports: PortOptions) -> None:
        self.machine = machine
        self.device = VirtioConsole(
            "console", machine.context, ports=ports or (PortOptions(console=True), PortOptions(AGENT))
        )
        self.heard: dict[int, bytes] = {}
        self.events: list[tuple[int, str]] = []
        for port in self.device.ports:
            self._listen(port)

    def _listen(self, port: ConsolePort) -> None:
        def hear(data: bytes) -> None:
            self.heard[port.number] = self.heard.get(port.number, b"") + data

        port.sink = hear
        port.on_room = lambda: self.events.append((port.number, "room"))
        port.on_open = lambda opened: self.events.append((port.number, "open" if opened else "closed"))

    def boot(self, features: int | None = None) -> None:
        self.queues = attach(self.device, features=features)
        for _ in range(16):
            self.queues[CONTROL_TO_GUEST].add(writable=[64])
        self.queues[CONTROL_TO_GUEST].kick()

    def tell(self, port: int, event: Event, value: int) -> None:
        self.queues[CONTROL_FROM_GUEST].request([struct.pack("<IHH", port, event, value)])

    def told(self) -> list[Message]:
        queue = self.queues[CONTROL_TO_GUEST]
        found = []
        for head, _ in queue.used():
            data = queue.read_back(head)
            port, event, value = struct.unpack_from("<IHH", data)
            found.append((port, Event(event), value, data[8:]))
            queue.add(writable=[64])
        queue.kick()
        return found

    def open(self) -> None:
        self.boot()
        self.tell(0xFFFF_FFFF, Event.DEVICE_READY, 1)
        for port in self.device.ports:
            self.tell(port.number, Event.PORT_READY, 1)
            self.tell(port.number, Event.PORT_OPEN, 1)
        self.told()
        del self.events[:]

    def rx(self, port: int) -> DriverQueue:
        return self.queues[self.device.ports[port].to_guest]

    def tx(self, port: int) -> DriverQueue:
        return self.queues[self.device.ports[port].from_guest]


@pytest.fixture
def guest(machine: FakeMachine) -> Iterator[Guest]:
    made = Guest(machine)
    yield made
    made.device.close()


def test_ports_are_added_named_sized_and_opened_in_the_order_the_driver_asks(guest: Guest) -> None:
    guest.boot()
    assert guest.told() == []
    guest.tell(0xFFFF_FFFF, Event.DEVICE_READY, 1)
    assert guest.told() == [(0, Event.DEVICE_ADD, 0, b""), (1, Event.DEVICE_ADD, 0, b"")]
    guest.tell(0, Event.PORT_READY, 1)
    assert guest.told() == [
        (0, Event.CONSOLE_PORT, 1, b""),
        (0, Event.RESIZE, 0, struct.pack("<HH", 80, 24)),
        (0, Event.PORT_OPEN, 1, b""),
    ]
    guest.tell(1, Event.PORT_READY, 1)
    assert guest.told() == [(1, Event.PORT_NAME, 1, AGENT.encode()), (1, Event.PORT_OPEN, 1, b"")]


def test_without_a_terminal_ports_begin_with_one(machine: FakeMachine) -> None:
    guest = Guest(machine, PortOptions(AGENT))
    try:
        guest.open()
        assert guest.device.ports[0].number == 1
        assert guest.device.read_config(4, 4) == 2
        guest.tx(0).request([b"hello"])
        assert guest.heard == {1: b"hello"}
    finally:
        guest.device.close()


def test_what_the_guest_says_is_heard_at_once_and_whole(guest: Guest) -> None:
    guest.open()
    guest.tx(0).request([b"login", b": "])
    guest.tx(1).request([b"{}"])
    assert guest.heard == {0: b"login: ", 1: b"{}"}


def test_nobody_listening_does_not_stall_the_guest(guest: Guest) -> None:
    guest.open()
    guest.device.ports[0].sink = None
    for _ in range(200):
        assert guest.tx(0).request([b"x" * 1000]) == b""


def test_a_buffer_larger_than_any_driver_sends_breaks_the_device(guest: Guest) -> None:
    guest.open()
    queue = guest.tx(1)
    for number in range(9):
        queue.describe(number, 0x10_0000, WRITE_BYTES // 8, consts.DESC_F_NEXT if number < 8 else 0, number + 1)
    queue.make_available(0)
    queue.kick()
    assert guest.device.read_status() & consts.STATUS_NEEDS_RESET
    assert guest.heard == {}


def test_much_output_is_taken_in_turns(machine: FakeMachine, guest: Guest) -> None:
    guest.open()
    queue = guest.tx(1)
    for _ in range(8):  # 3 MiB in all: the buffers may lie over each other
        number = queue._free.pop(0)
        queue.describe(number, 0x10_0000, 384 << 10)
        queue.make_available(number)
    guest.device.doorbell(queue.index).signal()
    machine.bridge.ready(guest.device.doorbell(queue.index).fileno())
    assert len(guest.heard[1]) == 3 * (384 << 10)
    settle(machine.bridge)
    assert len(guest.heard[1]) == 3 << 20


def test_typing_fills_the_guests_buffers_as_it_gives_them(guest: Guest) -> None:
    guest.open()
    port, queue = guest.device.ports[0], guest.rx(0)
    first = queue.add(writable=[4])
    queue.kick()
    assert port.receive(b"hello world") == 11
    settle(guest.machine.bridge)
    assert queue.used() == [(first, 4)]
    assert queue.read_back(first) == b"hell"
    second = queue.add(writable=[64])
    queue.kick()
    assert queue.used() == [(second, 7)]
    assert queue.read_back(second) == b"o world"


def test_a_guest_that_does_not_read_bounds_what_is_taken_and_says_when_there_is_room(guest: Guest) -> None:
    guest.open()
    port, queue = guest.device.ports[0], guest.rx(0)
    assert port.receive(b"x" * (INCOMING_BYTES + 5)) == INCOMING_BYTES
    assert port.receive(b"more") == 0
    assert guest.events == []
    queue.add(writable=[1000])
    queue.kick()
    assert guest.events == [(0, "room")]
    assert port.receive(b"x" * 2000) == 1000


def test_a_port_the_guest_has_not_opened_takes_nothing_until_it_has(guest: Guest) -> None:
    guest.open()
    port = guest.device.ports[1]
    port.receive(b"lost")
    guest.tell(1, Event.PORT_OPEN, 0)
    assert guest.events == [(1, "closed")]
    assert port.receive(b"hello") == 0
    guest.tell(1, Event.PORT_OPEN, 1)
    assert guest.events == [(1, "closed"), (1, "open"), (1, "room")]
    assert port.receive(b"hello") == 5
    head = guest.rx(1).add(writable=[64])
    guest.rx(1).kick()
    assert guest.rx(1).used() == [(head, 5)]


def test_a_driver_without_multiport_has_its_terminal_open_from_the_start(guest: Guest) -> None:
    guest.boot(features=consts.bits(consts.F_VERSION_1, 0))
    assert guest.events == [(0, "open")]
    assert guest.device.ports[0].receive(b"x") == 1
    guest.device.ports[0].resize(132, 50)
    assert (guest.device.read_config(0, 2), guest.device.read_config(2, 2)) == (132, 50)
    assert transport_of(guest.device).config_interrupts == 1


def test_a_terminals_size_is_told_newest_only_however_slowly_the_guest_reads(guest: Guest) -> None:
    guest.open()
    queue = guest.queues[CONTROL_TO_GUEST]
    while guest.device.queues[CONTROL_TO_GUEST].has_available():
        guest.device.ports[0].resize(100, 30)
        settle(guest.machine.bridge)
    queue.used()
    for columns in range(81, 200):
        guest.device.ports[0].resize(columns, 30)
        guest.tell(0xFFFF_FFFF, Event.DEVICE_READY, 1)
    for _ in range(8):
        queue.add(writable=[64])
    queue.kick()
    assert guest.told() == [
        (0, Event.RESIZE, 0, struct.pack("<HH", 199, 30)),
        (0, Event.DEVICE_ADD, 0, b""),
        (1, Event.DEVICE_ADD, 0, b""),
    ]


def test_the_guest_is_told_when_the_host_closes_and_opens(guest: Guest) -> None:
    guest.open()
    for wanted in (False, False, True):
        guest.device.ports[1].set_open(wanted)
        settle(guest.machine.bridge)
    assert guest.told() == [(1, Event.PORT_OPEN, 0, b""), (1, Event.PORT_OPEN, 1, b"")]


@pytest.mark.parametrize("message", [b"", b"short", struct.pack("<IHH", 99, 3, 1), struct.pack("<IHH", 0, 77, 1)])
def test_control_messages_that_make_no_sense_are_passed_over(guest: Guest, message: bytes) -> None:
    guest.open()
    queue = guest.queues[CONTROL_FROM_GUEST]
    assert queue.request([message] if message else [], [] if message else [8]) == b""
    assert guest.told() == []
    assert guest.device.live


def test_a_reset_closes_all_ports_and_forgets_what_was_typed(guest: Guest) -> None:
    guest.open()
    guest.device.ports[0].receive(b"old")
    guest.device.write_status(0)
    assert guest.events == [(0, "closed"), (1, "closed")]
    assert guest.device.ports[0].receive(b"x") == 0
    guest.open()
    head = guest.rx(0).add(writable=[8])
    guest.rx(0).kick()
    assert guest.rx(0).used() == []
    guest.device.ports[0].receive(b"new")
    settle(guest.machine.bridge)
    assert guest.rx(0).used() == [(head, 3)]


def test_an_emergency_character_is_heard_without_any_driver(guest: Guest) -> None:
    guest.device.write_config(8, 4, ord("!"))
    guest.device.write_config(0, 2, 7)
    assert guest.heard == {0: b"!"}


def test_a_saved_console_goes_on_with_what_was_typed_and_not_yet_said(machine: FakeMachine, guest: Guest) -> None:
    guest.open()
    guest.device.ports[0].receive(b"typed")
    guest.device.pause()
    assert guest.device.ports[0].receive(b"lost") == 0
    guest.device.ports[0].resize(90, 40)
    state = guest.device.save()
    assert state is not None
    other = Guest(machine)
    try:
        other.device.transport = transport_of(guest.device)
        other.device.restore(state)
        assert other.device.save() == state
        other.queues = guest.queues
        for queue in other.queues:
            queue.device = other.device
        other.device.resume()
        settle(machine.bridge)
        assert other.told() == [(0, Event.RESIZE, 0, struct.pack("<HH", 90, 40))]
        head = other.rx(0).add(writable=[8])
        other.rx(0).kick()
        assert other.rx(0).used() == [(head, 5)]
    finally:
        other.device.close()


def test_what_was_not_taken_while_paused_may_be_typed_again_after_it(guest: Guest) -> None:
    guest.open()
    guest.device.pause()
    assert guest.device.ports[0].receive(b"early") == 0
    guest.device.resume()
    settle(guest.machine.bridge)
    assert guest.events == [(0, "room")]
    assert guest.device.ports[0].receive(b"again") == 5
