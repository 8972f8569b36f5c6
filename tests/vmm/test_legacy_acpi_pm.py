"""ACPI's fixed hardware as Linux' ACPICA and SeaBIOS use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.vmm.device import MachineRequest
from appliance.vmm.legacy.acpi_pm import ACPI_DISABLE, ACPI_ENABLE, TIMER_HZ, AcpiPm
from tests.fakes.legacy_driver import Driver, hammer, pass_time, transplant
from tests.fakes.machine import FakeMachine

STS, EN, CNT, TMR, GPE_STS, GPE_EN, SMI_EN = 0x600, 0x602, 0x604, 0x608, 0x620, 0x628, 0x630
POWER, SLEEP, TIMER = 1 << 8, 1 << 9, 1 << 0


@pytest.fixture
def pm(machine: FakeMachine) -> Iterator[AcpiPm]:
    made = AcpiPm("acpi", machine.context)
    yield made
    made.close()
    assert machine.ports.ranges() == []
    assert not [each for each in machine.bridge.timers if not each.cancelled]


@pytest.fixture
def driver(machine: FakeMachine, pm: AcpiPm) -> Driver:
    return Driver(machine)


def raised(machine: FakeMachine) -> bool:
    return machine.interrupts.asserted(9)


def test_acpi_mode_is_on_from_the_start_and_the_smi_command_port_switches_it(driver: Driver) -> None:
    assert driver.read(CNT, 2) & 1
    driver.outb(0xB2, ACPI_DISABLE)
    assert not driver.read(CNT, 2) & 1
    driver.outb(0xB2, ACPI_ENABLE)
    assert driver.read(CNT, 2) & 1


def test_seabios_finds_system_management_mode_done_already(driver: Driver) -> None:
    """src/fw/smm.c, ich9_lpc_apmc_smm_setup: else it waits for ever for a handler."""
    assert driver.read(SMI_EN, 4) & 0x20


def test_the_power_button_is_an_sci_until_cleared(machine: FakeMachine, pm: AcpiPm, driver: Driver) -> None:
    pm.press_power_button()
    assert not raised(machine)
    driver.write(STS, 2, 0xFFFF)  # ACPICA clears before it enables
    driver.write(EN, 2, POWER | 1 << 5)
    pm.press_power_button()
    assert raised(machine)
    assert driver.read(STS, 4) == POWER | (POWER | 1 << 5) << 16
    driver.write(STS, 2, SLEEP)
    assert raised(machine)
    driver.write(STS, 2, POWER)
    assert not raised(machine)
    driver.write(EN, 2, SLEEP)
    pm.press_sleep_button()
    assert raised(machine)


def test_a_general_purpose_event_is_an_sci_once_enabled(machine: FakeMachine, pm: AcpiPm, driver: Driver) -> None:
    pm.raise_gpe(1)
    pm.raise_gpe(63)
    assert not raised(machine)
    driver.outb(GPE_EN, 0x02)
    assert raised(machine)
    assert (driver.inb(GPE_STS), driver.inb(GPE_STS + 7)) == (0x02, 0x80)
    driver.outb(GPE_STS, 0x02)
    assert not raised(machine)
    assert driver.inb(GPE_STS + 7) == 0x80
    with pytest.raises(ValueError, match="GPE 64"):
        pm.raise_gpe(64)


@pytest.mark.parametrize("width", [1, 2])
def test_s5_powers_off_and_other_sleeps_do_not(machine: FakeMachine, driver: Driver, width: int) -> None:
    def sleep(kind: int) -> None:
        value = kind << 10 | 0x2000
        driver.write(CNT, 2, kind << 10)  # ACPICA writes the type first, then type and enable
        if width == 2:
            driver.write(CNT, 2, value)
        else:
            driver.outb(CNT + 1, value >> 8)

    sleep(1)
    assert machine.requests == []
    assert machine.notes
    sleep(0)
    assert [request for request, _ in machine.requests] == [MachineRequest.POWER_OFF]
    assert driver.read(CNT, 2) & 0x2000 == 0


async def test_the_timer_counts_and_wraps_at_24_bits(machine: FakeMachine, driver: Driver) -> None:
    first = driver.read(TMR, 4)
    await pass_time(machine, 1)
    assert driver.read(TMR, 4) - first == TIMER_HZ
    await pass_time(machine, 4)
    assert driver.read(TMR, 4) == (first + 5 * TIMER_HZ) & 0xFFFFFF


async def test_the_timers_overflow_is_an_event(machine: FakeMachine, driver: Driver) -> None:
    driver.write(EN, 2, TIMER)
    await pass_time(machine, 2.3)
    assert not raised(machine)
    await pass_time(machine, 0.1)
    assert raised(machine)
    driver.write(STS, 2, TIMER)
    assert not raised(machine)
    await pass_time(machine, 2.4)
    assert raised(machine)


async def test_it_is_saved_with_an_event_pending_and_the_timer_goes_on(
    machine: FakeMachine, pm: AcpiPm, driver: Driver
) -> None:
    driver.write(EN, 2, POWER)
    driver.outb(GPE_EN, 0x20)
    pm.raise_gpe(5)
    await pass_time(machine, 1)
    pm.pause()
    await pass_time(machine, 100)
    pm.press_power_button()
    state = pm.save()
    other = FakeMachine()
    new = AcpiPm("acpi", other.context)
    transplant(pm, new)
    there = Driver(other)
    assert raised(other)
    assert there.read(TMR, 4) == TIMER_HZ
    assert there.read(STS, 2) & POWER
    assert new.hears_power_button
    assert state.gpe_status == 0x20
    pm.resume()
    assert abs(driver.read(TMR, 4) - TIMER_HZ) <= 1
    new.close()
    other.close()


def test_reset_is_power_on(machine: FakeMachine, pm: AcpiPm, driver: Driver) -> None:
    fresh = pm.save()
    driver.write(EN, 2, POWER)
    pm.press_power_button()
    pm.reset()
    assert pm.save() == fresh
    assert not raised(machine)


@pytest.mark.parametrize("seed", range(3))
def test_random_accesses_raise_nothing(machine: FakeMachine, pm: AcpiPm, driver: Driver, seed: int) -> None:
    hammer(driver, [(0x600, 0x40), (0xB2, 2)], seed=seed)
    pm.raise_gpe(3)
    machine.bridge.advance(3)
    assert {request for request, _ in machine.requests} <= {MachineRequest.POWER_OFF}
