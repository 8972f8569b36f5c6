"""The dirty log of RAM names what the guest wrote and what our devices wrote, and nothing else."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator

import pytest

from appliance.errors import Conflict
from appliance.vmm.layout import PAGE, VGA_HOLE, VGA_HOLE_END
from tests.kvm.dirty import assert_logged
from tests.kvm.guests import CODE, Asm
from tests.kvm.panel import PORT, Case, case

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("kvm")]


def pages(bitmap: bytes) -> set[int]:
    number = int.from_bytes(bitmap, "little")
    return {page for page in range(len(bitmap) * 8) if number >> page & 1}


@pytest.fixture
def frame_buffer() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, 4 * PAGE) as memory:
        yield memory


async def started(each: Case, code: Asm) -> None:
    """Run `code`, which ends by writing to the panel's port."""
    await each.run(code)
    await each.panel.ports.written()


async def test_the_log_has_the_guests_pages_and_the_devices_pages() -> None:
    guest_page, device_page = VGA_HOLE_END + 0x1_0000, 0x9_0000
    async with case() as each:
        await started(each, Asm().store(guest_page + 8, 1).store(0x5000, 1).out(PORT, 1).halt())
        await each.machine.pause()
        await each.machine.reset()
        slots, memory = each.machine.board.slots, each.machine.board.memory
        slots.start_dirty_log()
        memory.write(device_page, b"from a device")  # fails without GuestMemory's part: KVM does not see it
        await each.machine.resume()
        await each.panel.ports.written()
        assert_logged(pages(slots.take_dirty()), {guest_page // PAGE, 0x5, device_page // PAGE})
        assert pages(slots.take_dirty()) == set()
        slots.stop_dirty_log()


async def test_nothing_is_logged_once_logging_has_stopped() -> None:
    async with case() as each:
        slots = each.machine.board.slots
        slots.start_dirty_log()
        slots.stop_dirty_log()
        await started(each, Asm().store(0x5000, 1).out(PORT, 1).halt())
        each.machine.board.memory.write(0x6000, b"x")
        assert pages(slots.take_dirty()) == set()


async def test_a_devices_own_memory_is_written_without_exits_and_has_its_own_log(frame_buffer: mmap.mmap) -> None:
    async with case() as each:
        assert each.machine.context.slots is not None
        # SAFETY: the fixture unmaps it after the machine has gone
        address = ctypes.addressof(ctypes.c_char.from_buffer(frame_buffer))
        slot = each.machine.context.slots.map(0xE000_0000, 4 * PAGE, address, name="vga", log_dirty=True)
        await started(each, Asm().store(0xE000_0000 + 2 * PAGE + 4, 0x1234_5678).out(PORT, 1).halt())
        assert frame_buffer[2 * PAGE + 4 : 2 * PAGE + 8].hex() == "78563412"
        assert pages(slot.take_dirty()) == {2}
        assert pages(slot.take_dirty()) == set()
        slot.unmap()
        slot.unmap()


async def test_slots_do_not_overlap_and_their_numbers_come_back(frame_buffer: mmap.mmap) -> None:
    async with case() as each:
        slots = each.machine.board.slots
        address = ctypes.addressof(ctypes.c_char.from_buffer(frame_buffer))  # SAFETY: as above
        with pytest.raises(Conflict, match="vm 101: vga at 0x10000 would overlap slot 0"):
            slots.map(CODE, PAGE, address, name="vga")
        first = slots.map(VGA_HOLE, PAGE, address, name="vga")
        first.unmap()
        second = slots.map(VGA_HOLE, PAGE, address, name="vga")
        assert second.number == first.number
        first.unmap()  # its number is another's by now
        with pytest.raises(Conflict, match="would overlap"):
            slots.map(VGA_HOLE, PAGE, address, name="again")
        second.unmap()
