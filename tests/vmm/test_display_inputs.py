"""Viewers' keys and pointers: keysyms of a US keyboard, several viewers, and a tablet that a virtio driver reads."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from appliance.errors import Unsupported
from appliance.vmm.display.inputs import Inputs
from appliance.vmm.display.keysyms import key_of
from appliance.vmm.display.rfb_messages import KeyEvent, PointerEvent
from appliance.vmm.display.virtio_input import (
    ABS_X,
    ABS_Y,
    AXIS_MAX,
    BTN_LEFT,
    BTN_RIGHT,
    EV_ABS,
    EV_KEY,
    EV_REL,
    EV_SYN,
    MOST_WAITING,
    REL_WHEEL,
    VirtioTablet,
)
from appliance.vmm.virtio.consts import STATUS_NEEDS_RESET
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import DriverQueue, attach, settle

SHIFT, CTRL, CAPS = 0xFFE1, 0xFFE3, 0xFFE5
SIZE = (1024, 768)


class FakeKeyboard:
    """What was typed, as (code, down), and moved."""

    def __init__(self) -> None:
        self.typed: list[tuple[int, bool]] = []
        self.moved: list[tuple[int, int, int, int]] = []
        self.released = 0
        self.leds = 0

    def key(self, code: int, *, down: bool) -> None:
        self.typed.append((code, down))

    def pointer(self, dx: int, dy: int, buttons: int, wheel: int = 0) -> None:
        self.moved.append((dx, dy, buttons, wheel))

    def release_all(self) -> None:
        self.released += 1

    def take(self) -> list[tuple[int, bool]]:
        taken, self.typed = self.typed, []
        return taken


class FakeTablet:
    def __init__(self) -> None:
        self.live = True
        self.at: list[tuple[float, float, int, int]] = []
        self.released: list[int] = []

    def pointer(self, x: float, y: float, buttons: int, wheel: int = 0) -> None:
        self.at.append((x, y, buttons, wheel))

    def release(self, buttons: int) -> None:
        self.released.append(buttons)


@pytest.fixture
def keyboard() -> FakeKeyboard:
    return FakeKeyboard()


@pytest.fixture
def inputs(keyboard: FakeKeyboard) -> Inputs:
    return Inputs(keyboard, None)


def press(inputs: Inputs, keysym: int, viewer: object = "a") -> None:
    inputs.key(viewer, KeyEvent(True, keysym))


def release(inputs: Inputs, keysym: int, viewer: object = "a") -> None:
    inputs.key(viewer, KeyEvent(False, keysym))


def test_every_printable_character_and_every_named_key_has_a_key() -> None:
    assert all(key_of(character) for character in range(0x20, 0x7F))
    assert len({(key.code, key.shift) for each in range(0x21, 0x7F) if (key := key_of(each))}) == 94
    f1, kp_9, delete = (key_of(each) for each in (0xFFBE, 0xFFB9, 0xFFFF))
    assert [each.code for each in (f1, kp_9, delete) if each] == [0x3B, 0x49, 0xD3]
    assert key_of(0xE4) is None


def test_scan_codes_are_believed_whatever_the_keysym(inputs: Inputs, keyboard: FakeKeyboard) -> None:
    inputs.key("a", KeyEvent(True, ord("y"), 0x2C))  # a German keyboard
    inputs.key("a", KeyEvent(False, ord("Y"), 0x2C))
    inputs.key("a", KeyEvent(True, 0, 0xE053))
    inputs.key("a", KeyEvent(True, 0, 0xD3))
    inputs.key("a", KeyEvent(True, ord("x"), 0x12345))  # no code: the keysym counts
    assert keyboard.take() == [(0x2C, True), (0x2C, False), (0xD3, True), (0xD3, True), (0x2D, True)]


def test_shift_is_pressed_for_a_viewer_that_does_not(inputs: Inputs, keyboard: FakeKeyboard) -> None:
    press(inputs, ord("A"))
    assert keyboard.take() == [(0x2A, True), (0x1E, True), (0x2A, False)]
    release(inputs, ord("A"))
    assert keyboard.take() == [(0x1E, False)]


def test_shift_that_is_held_is_used_and_let_go_where_it_is_too_much(inputs: Inputs, keyboard: FakeKeyboard) -> None:
    press(inputs, SHIFT)
    press(inputs, ord("!"))
    release(inputs, ord("!"))
    assert keyboard.take() == [(0x2A, True), (0x02, True), (0x02, False)]
    press(inputs, ord("1"))  # a French keyboard's shift is not ours
    assert keyboard.take() == [(0x2A, False), (0x02, True), (0x2A, True)]
    press(inputs, 0xFF0D)
    assert keyboard.take() == [(0x1C, True)]


def test_caps_lock_turns_letters_round_and_nothing_else(inputs: Inputs, keyboard: FakeKeyboard) -> None:
    keyboard.leds = 4
    press(inputs, ord("A"))
    press(inputs, ord("1"))
    assert keyboard.take() == [(0x1E, True), (0x02, True)]
    press(inputs, ord("b"))
    assert keyboard.take() == [(0x2A, True), (0x30, True), (0x2A, False)]


def test_what_a_viewer_held_is_let_go_when_it_leaves_unless_another_holds_it(
    inputs: Inputs, keyboard: FakeKeyboard
) -> None:
    for viewer in ("a", "b"):
        press(inputs, CTRL, viewer)
    press(inputs, ord("x"))
    keyboard.take()
    inputs.gone("a")
    assert keyboard.take() == [(0x2D, False)]
    assert keyboard.released == 0
    inputs.gone("b")
    assert keyboard.take() == [(0x1D, False)]
    assert keyboard.released == 1


def test_unknown_keys_and_releases_of_what_is_not_down_are_nothing(inputs: Inputs, keyboard: FakeKeyboard) -> None:
    press(inputs, 0x20AC)
    release(inputs, ord("q"))
    assert keyboard.take() == []


def test_no_viewer_holds_more_keys_than_there_are(inputs: Inputs, keyboard: FakeKeyboard) -> None:
    for code in range(1, 0x7F):
        inputs.key("a", KeyEvent(True, 0, code))
    assert len(keyboard.take()) == 64


def test_without_a_tablet_the_mouse_moves_as_the_pointer_does(inputs: Inputs, keyboard: FakeKeyboard) -> None:
    for event in (PointerEvent(0, 10, 10), PointerEvent(1, 15, 7), PointerEvent(4, 15, 7), PointerEvent(2, 15, 7)):
        inputs.pointer("a", event, SIZE)
    assert keyboard.moved == [(0, 0, 0, 0), (5, -3, 1, 0), (0, 0, 2, 0), (0, 0, 4, 0)]
    inputs.pointer("a", PointerEvent(16, 15, 7), SIZE)
    inputs.pointer("a", PointerEvent(0, 15, 7), SIZE)
    inputs.pointer("a", PointerEvent(8, 15, 7), SIZE)
    assert [wheel for *_, wheel in keyboard.moved[4:]] == [1, 0, -1]
    inputs.pointer("a", PointerEvent(1, 15, 7), SIZE)
    inputs.gone("a")
    assert keyboard.moved[-1] == (0, 0, 0, 0)


def test_with_a_tablet_the_pointer_is_where_the_viewer_has_it(keyboard: FakeKeyboard) -> None:
    tablet = FakeTablet()
    inputs = Inputs(keyboard, tablet)
    inputs.pointer("a", PointerEvent(0, 0, 767), SIZE)
    inputs.pointer("b", PointerEvent(1, 1023, 0), SIZE)
    inputs.pointer("a", PointerEvent(0, 0xFFFF, 0xFFFF), SIZE)  # b still has its button down
    inputs.pointer("a", PointerEvent(0, 5, 5), (0, 0))
    assert tablet.at == [(0, 1, 0, 0), (1, 0, 1, 0), (1, 1, 1, 0), (1, 1, 1, 0)]
    assert keyboard.moved == []
    inputs.gone("b")
    assert tablet.released == [0]


# --- the tablet itself: virtio 1.2 §5.8 ---------------------------------------------------------------------------------


@pytest.fixture
def tablet(machine: FakeMachine) -> Iterator[VirtioTablet]:
    made = VirtioTablet("tablet", machine.context)
    yield made
    made.close()


def give(queue: DriverQueue, count: int) -> None:
    for _ in range(count):
        queue.add(writable=[8])
    queue.kick()


def told(machine: FakeMachine, queue: DriverQueue) -> list[tuple[int, int, int]]:
    settle(machine.bridge)
    return [struct.unpack("<HHi", queue.read_back(head)) for head, _ in queue.used()]


def asked(device: VirtioTablet, select: int, subselect: int = 0) -> bytes:
    device.write_config(0, 1, select)
    device.write_config(1, 1, subselect)
    size = device.read_config(2, 1)
    return bytes(device.read_config(8 + at, 1) for at in range(size))


def test_it_says_that_it_is_an_absolute_pointer(tablet: VirtioTablet) -> None:
    assert asked(tablet, 0x01) == b"Appliance tablet"
    assert asked(tablet, 0x03) == struct.pack("<HHHH", 6, 0x627, 3, 2)
    assert asked(tablet, 0x11, EV_ABS) == b"\x03"
    assert asked(tablet, 0x11, EV_REL) == b"\x00\x01"
    assert asked(tablet, 0x11, EV_KEY)[BTN_LEFT // 8 :] == b"\x07"
    assert asked(tablet, 0x12, ABS_Y) == struct.pack("<IIIII", 0, AXIS_MAX, 0, 0, 0)
    assert asked(tablet, 0x12, 2) == asked(tablet, 0x00) == asked(tablet, 0x11, 0x14) == b""
    assert tablet.read_config(4000, 8) == 0


def test_a_movement_is_one_group_of_events_that_ends_with_a_report(machine: FakeMachine, tablet: VirtioTablet) -> None:
    events, _ = attach(tablet)
    give(events, 16)
    tablet.pointer(0.5, 1.0, 0)
    assert told(machine, events) == [(EV_ABS, ABS_X, 16384), (EV_ABS, ABS_Y, AXIS_MAX), (EV_SYN, 0, 0)]
    tablet.pointer(0.5, 1.0, 3, wheel=1)
    expected = [(EV_KEY, BTN_LEFT, 1), (EV_KEY, BTN_RIGHT, 1), (EV_REL, REL_WHEEL, -1), (EV_SYN, 0, 0)]
    assert told(machine, events) == expected
    tablet.release(1)
    assert told(machine, events) == [(EV_KEY, BTN_RIGHT, 0), (EV_SYN, 0, 0)]


def test_a_group_goes_whole_and_movements_that_wait_become_one(machine: FakeMachine, tablet: VirtioTablet) -> None:
    events, _ = attach(tablet)
    give(events, 2)
    tablet.pointer(0.1, 0.1, 0, wheel=-1)
    tablet.pointer(0.2, 0.0, 0, wheel=-2)
    assert told(machine, events) == []
    give(events, 2)
    assert told(machine, events) == [(EV_ABS, ABS_X, 6553), (EV_REL, REL_WHEEL, 3), (EV_SYN, 0, 0)]
    tablet.pointer(0.2, 1.0, 0)
    give(events, 1)
    assert told(machine, events) == [(EV_ABS, ABS_Y, AXIS_MAX), (EV_SYN, 0, 0)]


def test_clicks_wait_in_order_and_no_more_than_some(machine: FakeMachine, tablet: VirtioTablet) -> None:
    events, _ = attach(tablet)
    for number in range(10 * MOST_WAITING):
        tablet.pointer(0, 0, number & 1)
    tablet.pointer(0, 0, 0)
    give(events, 60)
    seen = told(machine, events)
    give(events, 60)
    seen += told(machine, events)
    clicks = [value for kind, _, value in seen if kind == EV_KEY]
    assert len(clicks) <= MOST_WAITING
    assert clicks == [index % 2 ^ 1 for index in range(len(clicks))]
    assert clicks[-1] == 0


def test_without_a_driver_nothing_waits_and_status_buffers_come_back(
    machine: FakeMachine, tablet: VirtioTablet
) -> None:
    tablet.pointer(1, 1, 7)
    events, status = attach(tablet)
    status.add(readable=[struct.pack("<HHi", 0x11, 0, 1)])
    status.kick()
    assert status.used() == [(0, 0)]
    give(events, 8)
    assert told(machine, events) == []
    tablet.reset_by_driver()
    assert not tablet.live


def test_a_broken_ring_stops_the_tablet_only(machine: FakeMachine, tablet: VirtioTablet) -> None:
    events, _ = attach(tablet)
    events.make_available(500)
    tablet.pointer(1, 1, 0)
    assert tablet.status & STATUS_NEEDS_RESET
    tablet.pointer(0, 0, 0)


def test_a_button_held_when_it_was_saved_is_up_when_it_goes_on(machine: FakeMachine, tablet: VirtioTablet) -> None:
    events, _ = attach(tablet)
    give(events, 20)
    tablet.pointer(0, 0, 1)
    assert told(machine, events)
    tablet.pause()
    state = tablet.save()
    assert state is not None
    other = VirtioTablet("tablet", machine.context)
    try:
        other.transport = tablet.transport
        other.restore(state)
        events.device = other
        other.resume()
        assert told(machine, events) == [(EV_KEY, BTN_LEFT, 0), (EV_SYN, 0, 0)]
        with pytest.raises(Unsupported):
            other.restore_device(state)
    finally:
        other.close()
