"""Application processors wait for INIT and SIPI (SDM vol.3 §9.4), and are stopped and started with the others."""

from __future__ import annotations

import pytest

from appliance.kernel.kvm_cpu_abi import KVM_MP_STATE_UNINITIALIZED
from appliance.vmm.machine import Machine
from tests.kvm import guests
from tests.kvm.guests import AP_CODE, ICR_INIT, ICR_SIPI, LAPIC_ICR_HIGH, LAPIC_ICR_LOW, LAPIC_SPURIOUS, Asm
from tests.kvm.panel import PORT, Case, case

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("kvm")]

ALIVE = 0x7000  # a counter of 16 bits


def wake(*processors: int) -> Asm:
    """INIT and SIPI for each, as the MultiProcessor Specification has it; then count and spin."""
    code = Asm().store(LAPIC_SPURIOUS, 0x1FF)
    for number in processors:
        for command in (ICR_INIT, ICR_SIPI | AP_CODE >> 12, ICR_SIPI | AP_CODE >> 12):
            code.store(LAPIC_ICR_HIGH, number << 24).store(LAPIC_ICR_LOW, command)
    return code.inc(ALIVE).halt()


async def start(each: Case, code: Asm) -> None:
    """Processors that are woken count themselves, tell the panel and halt."""
    ap = Asm(16).raw("31c08ed8").inc(ALIVE).out(PORT, 1).halt()  # xor ax,ax; mov ds,ax
    each.machine.board.memory.write(AP_CODE, ap.bytes())
    await each.run(code)


@pytest.mark.parametrize("vcpus", [2, 4])
async def test_processors_start_by_init_and_sipi(vcpus: int) -> None:
    async with case(vcpus=vcpus) as each:
        await start(each, wake(*range(1, vcpus)))
        assert await each.panel.ports.written(vcpus - 1) == [(0, 1, 1)] * (vcpus - 1)
        assert await counted(each.machine, vcpus) == vcpus


async def test_a_processor_that_nobody_wakes_waits_and_can_be_paused() -> None:
    async with case(vcpus=3) as each:
        await start(each, wake(2))
        await each.panel.ports.written()
        assert await each.machine.run_on(1, lambda vcpu: vcpu.get_mp_state()) == KVM_MP_STATE_UNINITIALIZED
        await each.machine.pause()
        await each.machine.resume()
        assert await each.machine.run_on(1, lambda vcpu: vcpu.get_mp_state()) == KVM_MP_STATE_UNINITIALIZED


async def test_a_reset_makes_application_processors_wait_again() -> None:
    async with case(vcpus=2) as each:
        await start(each, wake(1))
        await each.panel.ports.written()
        await each.machine.pause()
        await each.machine.reset()
        assert await each.machine.run_on(1, lambda vcpu: vcpu.get_mp_state()) == KVM_MP_STATE_UNINITIALIZED
        regs = await each.machine.run_on(0, lambda vcpu: vcpu.get_regs())
        assert regs.rip == guests.CODE
        await each.machine.resume()
        await each.panel.ports.written()  # woken anew by the boot processor, which began again


async def counted(machine: Machine, wanted: int) -> int:
    """The counter, once it has got there: the boot processor counts itself last."""
    while (count := machine.board.memory.load_u16(ALIVE)) < wanted:
        await machine.run_on(0, lambda vcpu: None)
    return count
