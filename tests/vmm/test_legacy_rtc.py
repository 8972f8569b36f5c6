"""The MC146818 and its CMOS memory as firmware and Linux use them."""

from __future__ import annotations

import calendar
from collections.abc import Iterator

import pytest

from appliance.errors import Unsupported
from appliance.vmm.layout import GIB, MIB
from appliance.vmm.legacy import rtc_time
from appliance.vmm.legacy.rtc import SHORTEST_TIMER_S, Rtc, RtcState
from appliance.vmm.legacy.rtc_nvram import BootDevice, pc_nvram
from tests.fakes.legacy_driver import Driver, hammer, pass_time, transplant
from tests.fakes.machine import FakeMachine

A, B, C, D = 0x0A, 0x0B, 0x0C, 0x0D


class Cmos:
    def __init__(self, machine: FakeMachine) -> None:
        self.driver = Driver(machine)

    def get(self, register: int) -> int:
        self.driver.outb(0x70, register | 0x80)
        return self.driver.inb(0x71)

    def set(self, register: int, value: int) -> None:
        self.driver.outb(0x70, register)
        self.driver.outb(0x71, value)

    def time(self) -> str:
        """As SeaBIOS and Linux read it: BCD, 24 hours."""
        year = f"{self.get(0x32):02x}{self.get(9):02x}"
        return f"{year}-{self.get(8):02x}-{self.get(7):02x} {self.get(4):02x}:{self.get(2):02x}:{self.get(0):02x}"


@pytest.fixture
def rtc(machine: FakeMachine) -> Iterator[Rtc]:
    made = Rtc("rtc", machine.context, nvram={0x3D: 0x21})
    yield made
    made.close()
    assert not [each for each in machine.bridge.timers if not each.cancelled]


@pytest.fixture
def cmos(machine: FakeMachine, rtc: Rtc) -> Cmos:
    return Cmos(machine)


def raised(machine: FakeMachine) -> bool:
    return machine.interrupts.asserted(8)


async def test_the_calendar_is_the_hosts_clock_in_utc(machine: FakeMachine, cmos: Cmos) -> None:
    assert cmos.time() == "2023-11-14 22:13:20"
    assert cmos.get(6) == 3  # Tuesday
    assert cmos.get(D) == 0x80
    await pass_time(machine, 40 + 46 * 60 + 3600)
    assert cmos.time() == "2023-11-15 00:00:00"


def test_local_time_is_the_hosts_zone(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    try:
        rtc = Rtc("rtc", machine.context, local_time=True, offset_s=60)
        assert Cmos(machine).time() == "2023-11-15 00:14:20"
        rtc.close()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_binary_and_twelve_hours_are_told_as_register_b_says(cmos: Cmos) -> None:
    cmos.set(B, 0x04)
    assert (cmos.get(4), cmos.get(2), cmos.get(9)) == (10 | 0x80, 13, 23)
    cmos.set(B, 0x00)
    assert cmos.get(4) == 0x90
    cmos.set(B, 0x02)
    assert cmos.time() == "2023-11-14 22:13:20"


async def test_update_in_progress_ends_by_itself(machine: FakeMachine, cmos: Cmos) -> None:
    assert not cmos.get(A) & 0x80
    await pass_time(machine, 0.9999)
    assert cmos.get(A) & 0x80
    await pass_time(machine, 0.0002)
    assert not cmos.get(A) & 0x80


async def test_linux_sets_the_time_with_set_and_divider_reset(machine: FakeMachine, cmos: Cmos) -> None:
    """drivers/rtc/rtc-mc146818-lib.c, mc146818_set_time."""
    control, select = cmos.get(B), cmos.get(A)
    cmos.set(B, control | 0x80)
    cmos.set(A, select | 0x70)
    for register, value in ((9, 0x31), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58), (0x32, 0x20)):
        cmos.set(register, value)
    await pass_time(machine, 5)
    assert cmos.time() == "2031-12-31 23:59:58"  # stands
    cmos.set(B, control)
    cmos.set(A, select)
    await pass_time(machine, 0.4)
    assert cmos.time() == "2031-12-31 23:59:58"
    await pass_time(machine, 0.2)
    assert cmos.time() == "2031-12-31 23:59:59"  # half a second after the divider was released
    await pass_time(machine, 1)
    assert cmos.time() == "2032-01-01 00:00:00"


async def test_the_update_interrupt_comes_each_second_once_acknowledged(machine: FakeMachine, cmos: Cmos) -> None:
    cmos.set(B, 0x12)
    assert not raised(machine)
    await pass_time(machine, 1)
    assert raised(machine)
    await pass_time(machine, 10)
    assert machine.controller.edges == [8]  # not read, so not raised again
    assert cmos.get(C) & ~0x40 == 0x90
    assert not raised(machine)
    await pass_time(machine, 1)
    assert cmos.get(C) & ~0x40 == 0x90
    assert machine.controller.edges == [8, 8]


async def test_the_alarm_rings_once_a_day_or_when_a_wildcard_matches(machine: FakeMachine, cmos: Cmos) -> None:
    cmos.set(5, 0x22)
    cmos.set(3, 0x14)
    cmos.set(1, 0x05)
    cmos.set(B, 0x22)
    await pass_time(machine, 44)
    assert not raised(machine)
    await pass_time(machine, 1)
    assert raised(machine)
    assert cmos.get(C) & ~0x40 == 0xB0  # alarm, update; the periodic flag is set anyhow
    cmos.set(5, 0xFF)
    cmos.set(3, 0xC0)
    await pass_time(machine, 59)
    assert not raised(machine)
    await pass_time(machine, 1)
    assert raised(machine)


async def test_the_periodic_interrupt_is_bounded_by_acknowledgement(machine: FakeMachine, cmos: Cmos) -> None:
    cmos.set(A, 0x2F)  # 2 Hz
    cmos.set(B, 0x42)
    await pass_time(machine, 0.51)
    assert raised(machine)
    assert cmos.get(C) & 0xC0 == 0xC0
    await pass_time(machine, 0.48)
    assert not raised(machine)
    await pass_time(machine, 0.02)
    assert raised(machine)
    cmos.get(C)
    cmos.set(A, 0x23)  # 8192 Hz: no more often than the shortest timer
    for _ in range(100):
        cmos.get(C)
    assert len([each for each in machine.bridge.timers if not each.cancelled]) == 1
    await pass_time(machine, SHORTEST_TIMER_S)
    assert raised(machine)


async def test_flags_can_be_polled_without_interrupts(machine: FakeMachine, cmos: Cmos) -> None:
    """SeaBIOS and old kernels poll UF."""
    cmos.get(C)
    await pass_time(machine, 1.5)
    assert machine.bridge.timers == []
    assert cmos.get(C) & 0x50 == 0x50
    assert cmos.get(C) == 0
    assert not raised(machine)


def test_hostile_dates_and_alarms_never_raise(cmos: Cmos) -> None:
    for byte in (0x00, 0x7F, 0x99, 0xFF, 0xAA):
        for register in (*range(10), 0x32):
            cmos.set(register, byte)
            for each in (*range(10), 0x32, C):
                cmos.get(each)


def test_the_calendar_arithmetic_agrees_with_the_standard_library() -> None:
    for text, mode in (("1970-01-01", 0x06), ("2000-02-29", 0x00), ("2100-03-01", 0x02), ("2399-12-31", 0x04)):
        year, month, day = (int(each) for each in text.split("-"))
        for hour in (0, 1, 11, 12, 13, 23):
            seconds = calendar.timegm((year, month, day, hour, 7, 9))
            registers = rtc_time.registers_at(seconds, mode)
            assert rtc_time.seconds_of(registers, mode) == seconds
            assert rtc_time.decode(registers[rtc_time.WEEKDAY], mode) == calendar.weekday(year, month, day) % 7 + 2 - (
                7 if calendar.weekday(year, month, day) == 6 else 0
            )


@pytest.mark.parametrize(("hour", "minute", "second"), [(0x30, 0, 0), (0, 0x60, 0), (0xFF, 0xFF, 0x75)])
def test_an_alarm_that_no_time_matches_is_none(hour: int, minute: int, second: int) -> None:
    assert rtc_time.next_alarm(0, {5: hour, 3: minute, 1: second}, 0x02) is None


def test_cmos_memory_tells_firmware_of_memory_and_boot_order() -> None:
    nvram = pc_nvram(6 * GIB, vcpus=4, boot_order=(BootDevice.CDROM, BootDevice.DISK, BootDevice.NETWORK))
    assert (nvram[0x3D], nvram[0x38], nvram[0x5F]) == (0x23, 0x41, 3)
    assert nvram[0x15] | nvram[0x16] << 8 == 640
    above_16m = (nvram[0x34] | nvram[0x35] << 8) * 65536
    above_4g = (nvram[0x5B] | nvram[0x5C] << 8 | nvram[0x5D] << 16) * 65536
    assert 16 * MIB + above_16m + above_4g == 6 * GIB
    assert pc_nvram(8 * MIB, vcpus=1)[0x34] == 0


def test_memory_is_kept_over_reset_and_settable_by_the_host(machine: FakeMachine, rtc: Rtc, cmos: Cmos) -> None:
    assert cmos.get(0x3D) == 0x21
    cmos.set(0x0F, 0x0A)
    cmos.set(B, 0x72)
    rtc.reset()
    assert (cmos.get(0x0F), cmos.get(B), rtc.nvram_byte(0x3D)) == (0x0A, 0x02, 0x21)
    with pytest.raises(ValueError, match="CMOS byte 0x32"):
        rtc.set_nvram(0x32, 0)


async def test_it_is_saved_while_the_guest_sets_the_clock(machine: FakeMachine, rtc: Rtc, cmos: Cmos) -> None:
    cmos.set(B, 0x82)
    cmos.set(4, 0x05)
    other = FakeMachine()
    try:
        new = Rtc("rtc", other.context)
        transplant(rtc, new)
        there = Cmos(other)
        there.set(B, 0x12)
        assert there.time() == "2023-11-14 05:13:20"
        assert there.get(0x3D) == 0x21
        await pass_time(other, 1)
        assert raised(other)
        with pytest.raises(Unsupported):
            new.restore(RtcState(cmos=b"short"))
        with pytest.raises(Unsupported, match="version 9"):
            new.restore(RtcState(version=9))
        new.close()
    finally:
        other.close()


async def test_while_paused_nothing_rings(machine: FakeMachine, rtc: Rtc, cmos: Cmos) -> None:
    cmos.set(B, 0x12)
    rtc.pause()
    await pass_time(machine, 3)
    assert not raised(machine)
    rtc.resume()
    assert raised(machine)


@pytest.mark.parametrize("seed", range(3))
def test_random_accesses_raise_nothing(rtc: Rtc, cmos: Cmos, seed: int) -> None:
    hammer(cmos.driver, [(0x70, 2)], seed=seed)
