"""Keyboard controller, keyboard and mouse as Linux, SeaBIOS and GRUB use them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.errors import Unsupported
from appliance.vmm.device import MachineRequest
from appliance.vmm.legacy.i8042 import I8042, I8042State
from appliance.vmm.legacy.port92 import A20Gate, Port92
from tests.fakes.legacy_driver import Driver, hammer, pass_time, transplant
from tests.fakes.machine import FakeMachine

ESC, KEY_A, KEY_F7, CURSOR_UP, PAUSE = 0x01, 0x1E, 0x41, 0xE048, 0xC6


@pytest.fixture
def kbc(machine: FakeMachine) -> Iterator[I8042]:
    made = I8042("i8042", machine.context)
    yield made
    made.close()


@pytest.fixture
def driver(machine: FakeMachine, kbc: I8042) -> Driver:
    return Driver(machine)


def seabios_setup(driver: Driver) -> None:
    """ps2port.c, ps2_keyboard_setup."""
    driver.i8042_flush()
    assert driver.i8042_command(0xAA, answers=1) == [0x55]
    assert driver.i8042_command(0xAB, answers=1) == [0x00]

    def command(byte: int, *parameters: int, answers: tuple[int, ...] = ()) -> None:
        driver.i8042_command(0x60, 0x30)
        driver.i8042_command(0x60, 0x20)
        driver.ps2(byte)
        for each in parameters:
            driver.ps2(each)
        assert tuple(driver.i8042_byte()[0] for _ in answers) == answers

    command(0xFF, answers=(0xAA,))
    command(0xF5)
    command(0xF0, 0x02)
    command(0xF4)
    driver.i8042_command(0x60, 0x61)


def test_seabios_initialises_the_keyboard_and_reads_a_key(machine: FakeMachine, kbc: I8042, driver: Driver) -> None:
    seabios_setup(driver)
    kbc.key(KEY_A, down=True)
    kbc.key(KEY_A, down=False)
    assert machine.interrupts.asserted(1)
    assert driver.i8042_flush() == [(0x1E, False), (0x9E, False)]
    assert machine.controller.edges.count(1) >= 2  # an edge for each byte
    assert not machine.interrupts.asserted(1)


def test_linux_i8042_probe_is_short(machine: FakeMachine, kbc: I8042, driver: Driver) -> None:
    """i8042.c: i8042_controller_check, i8042_controller_init, i8042_check_mux, i8042_check_aux."""
    driver.i8042_flush()
    mode = driver.i8042_command(0x20, answers=1)[0]
    assert mode & 0x40  # translated
    driver.i8042_command(0x60, (mode | 0x10) & ~0x01)
    driver.i8042_flush()
    for byte in (0xF0, 0x56, 0xA4):  # no active multiplexer: 0xa4 comes back as it was
        driver.i8042_command(0xD3, byte)
        assert driver.i8042_byte() == (byte, True)
    driver.i8042_command(0xD3, 0x5A)
    assert driver.i8042_byte() == (0x5A, True)
    driver.i8042_command(0xA7)
    assert driver.i8042_command(0x20, answers=1)[0] & 0x20
    driver.i8042_command(0xA8)
    assert not driver.i8042_command(0x20, answers=1)[0] & 0x20
    driver.i8042_command(0x60, (mode & ~0x30) | 0x02)
    before = machine.controller.edges.count(12)
    driver.i8042_command(0xD3, 0xA5)  # the test of interrupt 12
    assert machine.controller.edges.count(12) == before + 1
    assert driver.i8042_byte() == (0xA5, True)
    assert driver.exits < 100


def test_linux_atkbd_probe_finds_a_translated_keyboard(kbc: I8042, driver: Driver) -> None:
    """atkbd.c, atkbd_probe and atkbd_activate: GETID, SETLEDS, SETREP, ENABLE."""
    driver.ps2(0xF2)
    assert [driver.i8042_byte()[0] for _ in range(2)] == [0xAB, 0x41]  # 0x83, translated
    for command, parameter in ((0xED, 0x02), (0xF3, 0x00)):
        driver.ps2(command)
        driver.ps2(parameter)
    driver.ps2(0xF4)
    assert kbc.leds == 2


def test_linux_psmouse_finds_a_five_button_wheel_mouse(kbc: I8042, driver: Driver) -> None:
    """psmouse-base.c: psmouse_probe, intellimouse_detect, im_explorer_detect."""
    driver.ps2(0xFF, aux=True)
    assert [driver.i8042_byte() for _ in range(2)] == [(0xAA, True), (0x00, True)]
    driver.ps2(0xF2, aux=True)
    assert driver.i8042_byte() == (0, True)
    for rates, identity in (((200, 100, 80), 3), ((200, 200, 80), 4)):
        for rate in rates:
            driver.ps2(0xF3, aux=True)
            driver.ps2(rate, aux=True)
        driver.ps2(0xF2, aux=True)
        assert driver.i8042_byte() == (identity, True)
    driver.ps2(0xF4, aux=True)
    kbc.pointer(5, 3, 0x01 | 0x10, wheel=-1)
    assert [byte for byte, _ in driver.i8042_flush()] == [0x29, 5, 0xFD, 0x2F]
    driver.ps2(0xE9, aux=True)
    assert [driver.i8042_byte()[0] for _ in range(3)] == [0x24, 2, 80]
    driver.i8042_command(0xD4, 0xE1)  # a trackpoint's command: refused at once, not by a time-out
    assert driver.i8042_byte() == (0xFE, True)


def test_grub_at_keyboard_reads_the_scan_code_set_and_polls(kbc: I8042, driver: Driver) -> None:
    """grub-core/term/at_keyboard.c: query_mode, then keys by polling with interrupts off."""
    driver.i8042_command(0x60, 0x00)  # neither interrupts nor translation
    driver.ps2(0xF0)
    driver.ps2(0x00)
    assert driver.i8042_byte() == (2, False)
    for code_set in (1, 2):
        driver.ps2(0xF0)
        driver.ps2(code_set)
        driver.ps2(0xF4)
        kbc.key(CURSOR_UP, down=True)
        kbc.key(CURSOR_UP, down=False)
        expected = {1: "e048e0c8", 2: "e075e0f075"}[code_set]
        assert bytes(byte for byte, _ in driver.i8042_flush()).hex() == expected
    driver.ps2(0xF0)
    driver.outb(0x60, 3)
    assert driver.i8042_byte() == (0xFE, False)


@pytest.mark.parametrize(
    ("key", "pressed", "released"),
    [
        (ESC, "01", "81"),
        (KEY_F7, "41", "c1"),
        (CURSOR_UP, "e048", "e0c8"),
        (PAUSE, "e11d45e19dc5", ""),
        (0xB7, "e037", "e0b7"),
    ],
)
def test_keys_arrive_translated(kbc: I8042, driver: Driver, key: int, pressed: str, released: str) -> None:
    kbc.key(key, down=True)
    assert bytes(byte for byte, _ in driver.i8042_flush()).hex() == pressed
    kbc.key(key, down=False)
    assert bytes(byte for byte, _ in driver.i8042_flush()).hex() == released


async def test_a_pasted_text_arrives_whole_and_a_flush_ends(machine: FakeMachine, kbc: I8042, driver: Driver) -> None:
    for _ in range(60):
        kbc.key(KEY_A, down=True)
        kbc.key(KEY_A, down=False)
    got = []
    for _ in range(60):
        got += [byte for byte, _ in driver.i8042_flush()]  # asserts that 16 bytes end it
        await pass_time(machine, 0.002)
    assert got == [0x1E, 0x9E] * 60


def test_typing_at_a_guest_that_does_not_read_is_bounded_and_no_key_stays_down(kbc: I8042) -> None:
    for _ in range(5000):
        kbc.key(KEY_A, down=True)
    for key in range(1, 0x60):
        kbc.key(key, down=True)
    kbc.key(KEY_A, down=False)
    kbc.release_all()
    state = kbc.save()
    assert state.keyboard is not None
    assert sum(map(len, state.keyboard.typed)) <= 1024
    assert bytes.fromhex("f01c") in state.keyboard.typed
    assert state.keyboard.held == []


def test_movement_waits_for_the_guest_and_is_summed_up(kbc: I8042, driver: Driver) -> None:
    driver.ps2(0xF4, aux=True)
    for _ in range(1000):
        kbc.pointer(1, 0, 0)
    kbc.pointer(0, 0, 1)
    kbc.pointer(0, 0, 0)
    got: list[int] = []
    while found := driver.inb(0x64) & 1:
        assert found
        got.append(driver.inb(0x60))
    packets = [got[at : at + 3] for at in range(0, len(got), 3)]
    assert sum(x for _, x, _ in packets) == 1000
    assert [first & 1 for first, _, _ in packets][-2:] == [1, 0]


def test_a_disabled_port_holds_its_bytes_back(machine: FakeMachine, kbc: I8042, driver: Driver) -> None:
    driver.i8042_command(0xAD)
    kbc.key(KEY_A, down=True)
    assert driver.i8042_flush() == []
    driver.i8042_command(0xAE)
    assert driver.i8042_flush() == [(0x1E, False)]


@pytest.mark.parametrize(("port", "value"), [(0x64, 0xFE), (0x64, 0xF0)])
def test_the_reset_command_asks_for_a_reset(
    machine: FakeMachine, kbc: I8042, driver: Driver, port: int, value: int
) -> None:
    driver.outb(port, 0xFF)
    assert machine.requests == []
    driver.outb(port, value)
    assert [request for request, _ in machine.requests] == [MachineRequest.RESET]


def test_both_doors_move_one_a20_gate_and_reset(machine: FakeMachine) -> None:
    gate = A20Gate()
    kbc, port92 = I8042("i8042", machine.context, a20=gate), Port92("port92", machine.context, a20=gate)
    driver = Driver(machine)
    assert driver.inb(0x92) == 2
    driver.i8042_command(0xD1, 0xDD)
    assert driver.inb(0x92) == 0
    driver.outb(0x92, 0x02)
    assert driver.i8042_command(0xD0, answers=1)[0] & 0x02
    driver.i8042_command(0xDD)
    assert not gate.enabled
    driver.outb(0x92, 0x01)
    driver.outb(0x92, 0x01)  # only as it rises
    assert len(machine.requests) == 1
    driver.i8042_command(0xD1, 0x02)  # output port, bit 0 low
    assert len(machine.requests) == 2
    other = FakeMachine()
    there = Port92("port92", other.context, a20=A20Gate())
    transplant(port92, there)
    assert Driver(other).inb(0x92) == 0x03
    other.close()
    kbc.close()
    port92.close()
    assert machine.ports.ranges() == []


def test_it_is_saved_in_the_middle_of_a_command_and_a_packet(machine: FakeMachine, kbc: I8042, driver: Driver) -> None:
    driver.ps2(0xF4, aux=True)
    kbc.pointer(7, 0, 0)
    assert driver.i8042_byte() == (0x08, True)
    kbc.pointer(100, 1000, 0)
    kbc.key(KEY_A, down=True)
    driver.outb(0x64, 0x60)  # its parameter comes after the move
    other = FakeMachine()
    new = I8042("i8042", other.context)
    transplant(kbc, new)
    there = Driver(other)
    there.outb(0x60, 0x47)
    assert new.save().ram[0] == 0x47
    assert [there.i8042_byte()[0] for _ in range(3)] == [7, 0x1E, 0]
    assert [there.i8042_byte()[0] for _ in range(3)] == [0x28, 100, 1]
    with pytest.raises(Unsupported):
        new.restore(I8042State(source=9))
    new.close()
    other.close()


@pytest.mark.parametrize("seed", range(4))
def test_random_accesses_raise_nothing(machine: FakeMachine, kbc: I8042, driver: Driver, seed: int) -> None:
    for round_ in range(20):
        kbc.key(round_ + 1, down=True)
        kbc.pointer(round_, -round_, round_, round_)
        hammer(driver, [(0x60, 1), (0x64, 1)], seed=seed * 20 + round_, times=200)
        machine.bridge.advance(0.01)
    kbc.restore(kbc.save())
    kbc.reset()
