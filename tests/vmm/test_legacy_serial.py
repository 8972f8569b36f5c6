"""The 16550A as drivers find and use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.errors import Unsupported
from appliance.vmm.legacy.rtc import RtcState
from appliance.vmm.legacy.serial import INCOMING_BYTES, OUTGOING_BYTES, SerialPort
from tests.fakes.legacy_driver import Driver, hammer, transplant
from tests.fakes.machine import FakeMachine

COM1, RX_TX, IER, IIR, LCR, MCR, LSR, MSR, SCR = 0x3F8, 0, 1, 2, 3, 4, 5, 6, 7
OUT2 = 0x08


class Uart:
    """Registers of COM1 by name."""

    def __init__(self, machine: FakeMachine) -> None:
        self.driver = Driver(machine)

    def get(self, register: int) -> int:
        return self.driver.inb(COM1 + register)

    def set(self, register: int, value: int) -> None:
        self.driver.outb(COM1 + register, value)


@pytest.fixture
def said() -> list[bytes]:
    return []


@pytest.fixture
def port(machine: FakeMachine, said: list[bytes]) -> Iterator[SerialPort]:
    made = SerialPort("serial0", machine.context, 0, sink=said.append)
    yield made
    made.close()
    assert machine.ports.ranges() == []


@pytest.fixture
def uart(machine: FakeMachine, port: SerialPort) -> Uart:
    return Uart(machine)


def raised(machine: FakeMachine) -> bool:
    return machine.interrupts.asserted(4)


def test_linux_8250_autoconfig_finds_a_16550a(uart: Uart) -> None:
    """drivers/tty/serial/8250/8250_port.c, autoconfig and autoconfig_16550a, in their order."""
    uart.set(IER, 0)
    assert uart.get(IER) & 0x0F == 0
    uart.set(IER, 0x0F)
    assert uart.get(IER) & 0x0F == 0x0F
    uart.set(IER, 0)
    uart.set(MCR, 0x10 | 0x0A)  # loop, OUT2, RTS
    assert uart.get(MSR) & 0xF0 == 0x90
    uart.set(MCR, 0)
    uart.set(LCR, 0xBF)
    uart.set(IIR, 0)
    uart.set(LCR, 0)
    uart.set(IIR, 0x01)
    assert uart.get(IIR) >> 6 == 3  # 16550A
    for mode in (0x80, 0xBF):  # not a 16650
        uart.set(LCR, mode)
        assert uart.get(IIR) != 0
    uart.set(LCR, 0)  # not a NS16550A of a super I/O chip: bank 2 is the same bank
    uart.set(MCR, uart.get(MCR) ^ 0x10)
    uart.set(LCR, 0xE0)
    assert uart.get(IIR) & 0x10 == 0
    uart.set(LCR, 0)
    uart.set(MCR, 0)
    uart.set(IIR, 0x21)  # not a 16750: no 64-byte FIFO
    assert uart.get(IIR) >> 5 == 6
    uart.set(LCR, 0x80)
    uart.set(IIR, 0x21)
    assert uart.get(IIR) >> 5 == 6
    uart.set(LCR, 0)
    uart.set(IER, 0x40)  # not an XScale
    assert uart.get(IER) == 0


def test_linux_8250_size_fifo_counts_sixteen(uart: Uart) -> None:
    uart.set(IIR, 0x01 | 0x02 | 0x04)
    uart.set(MCR, 0x10)
    uart.set(LCR, 0x80)
    uart.set(0, 1)
    uart.set(1, 0)
    uart.set(LCR, 3)
    for number in range(256):
        uart.set(RX_TX, number)
    count = 0
    while uart.get(LSR) & 1 and count < 256:
        assert uart.get(RX_TX) == count
        count += 1
    assert count == 16


def test_linux_8250_thre_test_sees_the_interrupt_again(machine: FakeMachine, uart: Uart) -> None:
    """serial8250_do_startup: enabling THRI with an empty transmitter interrupts, each time."""
    uart.set(MCR, OUT2)
    for _ in range(2):
        uart.set(IER, 0x02)
        assert raised(machine)
        assert uart.get(IIR) & 0x0F == 0x02
        assert uart.get(IIR) & 0x0F == 0x01  # reading it has acknowledged it
        uart.set(IER, 0)
    assert not raised(machine)


def test_each_burst_of_output_is_one_edge(machine: FakeMachine, uart: Uart, said: list[bytes]) -> None:
    uart.set(MCR, OUT2)
    uart.set(IIR, 0x01)
    uart.set(IER, 0x02)
    for _ in range(3):
        assert uart.get(IIR) & 0x0F == 0x02
        for byte in b"sixteen bytes...":
            assert uart.get(LSR) & 0x60 == 0x60
            uart.set(RX_TX, byte)
    assert machine.controller.edges == [4] * 4
    assert b"".join(said) == b"sixteen bytes..." * 3


def test_input_goes_through_the_fifo_and_raises_data_ready_or_timeout(
    machine: FakeMachine, port: SerialPort, uart: Uart
) -> None:
    uart.set(MCR, OUT2)
    uart.set(IIR, 0x81)  # trigger at 8
    uart.set(IER, 0x01)
    assert port.receive(b"abc") == 3
    assert raised(machine)
    assert uart.get(IIR) & 0x0F == 0x0C
    port.receive(b"defghijk")
    assert uart.get(IIR) & 0x0F == 0x04
    assert bytes(uart.get(RX_TX) for _ in range(11)) == b"abcdefghijk"
    assert uart.get(LSR) & 1 == 0
    assert not raised(machine)


def test_out2_keeps_the_interrupt_from_the_line(machine: FakeMachine, port: SerialPort, uart: Uart) -> None:
    uart.set(IER, 0x01)
    port.receive(b"x")
    assert not raised(machine)
    uart.set(MCR, OUT2)
    assert raised(machine)


def test_input_is_bounded_and_says_when_there_is_room(machine: FakeMachine, port: SerialPort, uart: Uart) -> None:
    told: list[int] = []
    port.on_room = lambda: told.append(1)
    uart.set(IIR, 0x01)
    data = bytes(range(256)) * 32
    taken = port.receive(data)
    assert taken == INCOMING_BYTES
    assert port.receive(b"more") == 4  # what the FIFO took has made room
    assert port.receive(data) == 12
    assert port.receive(b"no more") == 0
    got = bytearray()
    while uart.get(LSR) & 1:
        got.append(uart.get(RX_TX))
    assert told
    assert bytes(got) == data[:taken] + b"more" + data[:12]


def test_output_nobody_takes_is_dropped_not_waited_for(machine: FakeMachine, port: SerialPort, uart: Uart) -> None:
    posted: list[object] = []
    machine.bridge.post = posted.append  # type: ignore[method-assign,assignment] # a loop that is busy
    for _ in range(OUTGOING_BYTES + 100):
        port.write_register(0, 0x41)
    assert len(posted) == 1
    received: list[bytes] = []
    port.sink = received.append
    port.flush()
    assert len(received[0]) == OUTGOING_BYTES


def test_loopback_turns_outputs_into_inputs_and_keeps_the_line_quiet(
    machine: FakeMachine, port: SerialPort, uart: Uart, said: list[bytes]
) -> None:
    assert uart.get(MSR) & 0xF0 == 0xB0  # connected: DCD, DSR, CTS
    uart.set(MCR, 0x1F)
    assert uart.get(MSR) & 0xF0 == 0xF0
    uart.set(MCR, 0x10)
    assert uart.get(MSR) == 0x0F  # all four have fallen
    assert uart.get(MSR) == 0x00
    port.receive(b"from outside")
    uart.set(RX_TX, 0x55)
    assert uart.get(RX_TX) == 0x55
    assert said == []
    uart.set(MCR, 0)
    assert uart.get(RX_TX) == ord("f")


def test_modem_interrupt_is_acknowledged_by_reading_msr(machine: FakeMachine, uart: Uart) -> None:
    uart.set(MCR, OUT2 | 0x10)
    uart.get(MSR)
    uart.set(IER, 0x08)
    assert not raised(machine)
    uart.set(MCR, OUT2)
    assert uart.get(IIR) & 0x0F == 0
    assert raised(machine)
    uart.get(MSR)
    assert not raised(machine)


def test_a_break_and_an_overrun_are_line_status_interrupts(machine: FakeMachine, port: SerialPort, uart: Uart) -> None:
    uart.set(IIR, 0x41)  # trigger at 4
    uart.set(MCR, OUT2)
    uart.set(IER, 0x05)
    port.send_break()
    assert uart.get(IIR) & 0x0F == 0x06
    assert uart.get(LSR) & 0x91 == 0x91  # FIFO error, break, data ready
    assert uart.get(IIR) & 0x0F == 0x0C
    assert uart.get(RX_TX) == 0
    uart.set(MCR, 0x10 | OUT2)
    for _ in range(17):
        uart.set(RX_TX, 1)
    assert uart.get(IIR) & 0x0F == 0x06
    assert uart.get(LSR) & 0x02
    assert not uart.get(LSR) & 0x02


def test_divisor_latch_and_scratch_register_keep_what_is_written(uart: Uart) -> None:
    uart.set(LCR, 0x83)
    uart.set(0, 0x34)
    uart.set(1, 0x12)
    assert (uart.get(0), uart.get(1)) == (0x34, 0x12)
    uart.set(LCR, 0x03)
    uart.set(SCR, 0xA5)
    assert uart.get(SCR) == 0xA5
    assert uart.get(IER) == 0


def test_it_is_saved_in_the_middle_of_input(machine: FakeMachine, port: SerialPort, uart: Uart) -> None:
    uart.set(IIR, 0x01)
    uart.set(MCR, OUT2)
    uart.set(IER, 0x05)
    uart.set(SCR, 7)
    port.receive(bytes(range(100)))
    assert [uart.get(RX_TX) for _ in range(3)] == [0, 1, 2]
    other = FakeMachine()
    try:
        new = SerialPort("serial0", other.context, 0)
        transplant(port, new)
        there = Uart(other)
        assert raised(other)
        assert [there.get(RX_TX) for _ in range(97)] == list(range(3, 100))
        assert there.get(SCR) == 7
        assert not raised(other)
        with pytest.raises(Unsupported, match="vm 101: serial0: a saved RtcState"):
            new.restore(RtcState())
        new.close()
    finally:
        other.close()


def test_while_paused_it_takes_nothing_and_touches_no_line(machine: FakeMachine, port: SerialPort, uart: Uart) -> None:
    told: list[int] = []
    port.on_room = lambda: told.append(1)
    uart.set(MCR, OUT2)
    uart.set(IER, 0x01)
    port.pause()
    assert port.receive(b"x") == 0
    assert not raised(machine)
    port.resume()
    assert told == [1]
    assert port.receive(b"x") == 1
    assert raised(machine)


def test_reset_is_power_on(machine: FakeMachine, port: SerialPort, uart: Uart) -> None:
    fresh = port.save()
    port.receive(b"abc")
    hammer(uart.driver, [(COM1, 8)], seed=1)
    port.reset()
    assert port.save() == fresh
    assert not raised(machine)


@pytest.mark.parametrize("seed", range(3))
def test_random_accesses_raise_nothing(port: SerialPort, uart: Uart, seed: int) -> None:
    port.receive(b"something")
    hammer(uart.driver, [(COM1, 8)], seed=seed)
