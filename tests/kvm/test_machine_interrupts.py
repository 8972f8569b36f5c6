"""Interrupts reach a guest by line, by irqfd and by message; doorbells leave it without an exit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from appliance.kernel.eventfd import EventFd
from tests.kvm import guests
from tests.kvm.guests import LAPIC_EOI, LAPIC_SPURIOUS, Asm
from tests.kvm.panel import MMIO, PORT, Case, case

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("kvm")]

READY, HANDLED, SPURIOUS = 0x11, 0x22, 0x33
LINE, VECTOR = 4, 0x41


def waiting() -> Asm:
    """Tell that it is ready, then halt with interrupts on, for ever; each wake-up that an interrupt makes is handled."""
    return guests.mask_pic_but(LINE).store(LAPIC_SPURIOUS, 0x1FF).out(PORT, READY).raw("fb").halt()


def handler(code: Asm) -> bytes:
    """Drop the frame, and wait for the next: KVM's emulator has no IRET in protected mode."""
    return code.raw("83c40c fb").halt().bytes()  # add esp, 12; sti


HANDLERS = {
    0x20 + LINE: handler(Asm().out(PORT, HANDLED)),
    VECTOR: handler(Asm().out(PORT, HANDLED + 1).store(LAPIC_EOI, 0)),
}


async def ready(each: Case) -> None:
    await each.run(waiting(), handlers=HANDLERS)
    assert await each.panel.ports.written() == [(0, 1, READY)]


async def handled(each: Case) -> int:
    return (await each.panel.ports.written())[0][2]


async def test_a_line_wakes_a_halted_guest() -> None:
    async with case() as each:
        await ready(each)
        line = each.machine.context.interrupts.line(LINE)
        for _ in range(3):
            line.pulse()
            assert await handled(each) == HANDLED


async def test_an_irqfd_of_a_line_wakes_a_halted_guest() -> None:
    async with case() as each:
        await ready(each)
        with EventFd() as event:
            each.machine.board.vm.irqfd(event, LINE)
            event.signal()
            assert await handled(each) == HANDLED
            each.machine.board.vm.irqfd(event, LINE, deassign=True)


async def test_a_message_wakes_a_halted_guest() -> None:
    async with case() as each:
        await ready(each)
        vector = each.machine.context.interrupts.message()
        vector.set(address=0xFEE0_0000, data=VECTOR, masked=False)
        for _ in range(3):
            vector.signal()
            assert await handled(each) == HANDLED + 1


async def test_a_masked_message_is_pending_and_comes_once_when_unmasked() -> None:
    async with case() as each:
        await ready(each)
        vector = each.machine.context.interrupts.message()
        vector.set(address=0xFEE0_0000, data=VECTOR, masked=True)
        vector.signal()
        pending = [vector.pending]
        vector.set(address=0xFEE0_0000, data=VECTOR, masked=False)
        assert await handled(each) == HANDLED + 1
        vector.set(address=0xFEE0_0000, data=VECTOR, masked=True)
        pending.append(vector.pending)  # taking the irqfd away has read the counter
        assert pending == [True, False]
        vector.set(address=0xFEE0_0000, data=VECTOR, masked=False)
        each.machine.context.interrupts.line(LINE).pulse()  # comes after whatever the vector would have brought
        assert await handled(each) == HANDLED


async def test_a_message_that_moves_to_another_vector_arrives_there() -> None:
    async with case() as each:
        await ready(each)
        vector = each.machine.context.interrupts.message()
        vector.set(address=0xFEE0_0000, data=0x20 + LINE, masked=False)
        vector.signal()
        assert await handled(each) == HANDLED
        # an ISA handler sends no EOI to the local APIC: the higher vector is still taken
        vector.set(address=0xFEE0_0000, data=VECTOR, masked=False)
        vector.signal()
        assert await handled(each) == HANDLED + 1


@pytest.mark.parametrize("pio", [True, False])
async def test_a_doorbell_counts_writes_and_causes_no_exit(*, pio: bool) -> None:
    ring: Callable[[Asm], Asm] = (lambda code: code.out(PORT + 8, 1)) if pio else (lambda code: code.store(MMIO + 8, 1))
    async with case() as each:
        assert each.machine.context.doorbells is not None
        with EventFd() as bell:
            address, length = (PORT + 8, 1) if pio else (MMIO + 8, 4)
            each.machine.context.doorbells.ioeventfd(bell, address, length=length, pio=pio)
            code = Asm()
            for _ in range(5):
                ring(code)
            await each.run(code.out(PORT, READY).halt())
            assert await each.panel.ports.written() == [(0, 1, READY)]
            assert bell.drain() == 5
            assert each.panel.mmio.writes.empty()
            each.machine.context.doorbells.ioeventfd(bell, address, length=length, pio=pio, deassign=True)


async def test_the_timer_of_the_board_ticks() -> None:
    async with case() as each:
        code = guests.mask_pic_but(0).out(0x43, 0x34).out(0x40, 0x00).out(0x40, 0x10)  # mode 2, 4096 clocks: 3.4 ms
        tick = {0x20: handler(Asm().out(PORT, HANDLED))}
        await each.run(code.raw("fb").halt(), handlers=tick)
        assert await each.panel.ports.written(5) == [(0, 1, HANDLED)] * 5
