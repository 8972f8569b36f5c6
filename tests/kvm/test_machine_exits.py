"""What a guest does reaches the right register of the right device, whatever its width; a hopeless guest ends alone."""

from __future__ import annotations

import pytest

from appliance.errors import GuestFault
from appliance.vmm.life import MachineState
from tests.kvm import guests
from tests.kvm.guests import Asm
from tests.kvm.panel import MMIO, PORT, case, ended

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("kvm")]

EVERY_VALUE = 0x1122_3344_5566_7788


@pytest.mark.parametrize("size", [1, 2, 4])
async def test_a_port_is_written_and_read_in_every_width(size: int) -> None:
    value = EVERY_VALUE & ((1 << 8 * size) - 1)
    async with case() as each:
        each.panel.ports.value = lambda offset: EVERY_VALUE
        code = Asm().out(PORT + 1, value, size).read_port(PORT + 2, size).out_acc(PORT + 3, size).halt()
        await each.run(code)
        assert await each.panel.ports.written(2) == [(1, size, value), (3, size, value)]
        assert each.panel.ports.reads == [(2, size)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
async def test_memory_of_a_device_is_written_and_read_in_every_width(size: int) -> None:
    value = EVERY_VALUE & ((1 << 8 * size) - 1)
    async with case() as each:
        memory = each.machine.board.memory
        memory.write(0x5000, EVERY_VALUE.to_bytes(8, "little"))
        each.panel.mmio.value = lambda offset: EVERY_VALUE
        # absolute addresses of 64-bit code are signed 32-bit: here through rbx
        code = Asm(64).set("bx", MMIO).load(0x5000, size)
        prefix = {1: "88", 2: "6689", 4: "89", 8: "4889"}[size]
        load = {1: "8a", 2: "668b", 4: "8b", 8: "488b"}[size]
        code.raw(f"{prefix}4310 {load}4320 {prefix}4330").halt()  # [rbx+0x10] = ax; ax = [rbx+0x20]; [rbx+0x30] = ax
        await each.run(code, prepare=lambda vcpu: guests.long_mode(vcpu, memory))
        assert await each.panel.mmio.written(2) == [(0x10, size, value), (0x30, size, value)]
        assert each.panel.mmio.reads == [(0x20, size)]


async def test_an_access_across_a_page_boundary_reaches_handlers_in_powers_of_two() -> None:
    async with case() as each:
        each.panel.mmio.value = lambda offset: 0x10 + offset % 16
        edge = MMIO + 0x1000
        code = Asm().store(edge - 1, 0x4433_2211).load(edge - 3).out_acc(PORT, 4).halt()
        await each.run(code)
        (answer,) = await each.panel.ports.written()
        written = bytearray(8)
        while not each.panel.mmio.writes.empty():
            offset, size, value = each.panel.mmio.writes.get_nowait()
            assert size in (1, 2, 4)
            written[offset - 0xFFC : offset - 0xFFC + size] = value.to_bytes(size, "little")
        assert written.hex() == "0000001122334400"
        assert answer == (0, 4, 0x10_1F1E1D)


async def test_string_input_and_output_move_every_item() -> None:
    async with case() as each:
        memory = each.machine.board.memory
        memory.write(0x6000, b"hello world!")
        numbers = iter(range(1, 100))
        each.panel.ports.value = lambda offset: next(numbers)
        code = Asm().raw("fc").set("dx", PORT).set("cx", 12).set("si", 0x6000).raw("f36e")  # cld; rep outsb
        code.set("cx", 5).set("di", 0x7000).raw("66f36d").out(PORT + 1, 0).halt()  # rep insw
        await each.run(code)
        sent = await each.panel.ports.written(13)
        assert bytes(value for offset, _, value in sent if offset == 0) == b"hello world!"
        assert memory.read(0x7000, 12).hex() == "010002000300040005000000"
        assert each.panel.ports.reads == [(0, 2)] * 5


async def test_what_nobody_claims_reads_as_ones_and_ignores_writes() -> None:
    async with case() as each:
        code = Asm().out(0x5555, 1, 4).store(0xD100_0000, 7).read_port(0x5555, 2).out_acc(PORT, 2)
        await each.run(code.load(0xD100_0000).out_acc(PORT, 4).halt())
        assert await each.panel.ports.written(2) == [(0, 2, 0xFFFF), (0, 4, 0xFFFF_FFFF)]


async def test_read_only_memory_is_read_and_keeps_its_content() -> None:
    async with case() as each:
        each.machine.board.add_rom(0xFFFF_F000, b"\xc3\x5a" * 100, name="firmware")
        code = Asm().store(0xFFFF_F000, 0x1234_5678).load(0xFFFF_F000).out_acc(PORT, 4).halt()
        await each.run(code)
        assert await each.panel.ports.written() == [(0, 4, 0x5AC3_5AC3)]
        assert each.machine.board.read_physical(0xFFFF_F000, 2) == b"\xc3\x5a"


async def test_an_instruction_kvm_cannot_emulate_ends_that_guest_with_its_registers_and_no_other() -> None:
    async with case() as good, case(label="vm 102") as bad:
        await good.run(Asm().inc(0x5000).jump(0))
        # pmaddwd mm0, [ebx] of a device's memory: the processor cannot, and KVM's emulator does not know it
        await bad.run(Asm().set("ax", 0xC0DE).set("bx", MMIO).raw("0ff503").halt())
        kind, detail = await ended(bad.machine)
        assert kind == "crashed"
        assert detail.startswith("vm 102: vcpu 0: KVM cannot emulate the instruction")
        dump = bad.logged[-1]
        assert "rax 000000000000c0de" in dump
        assert "cs  0008 base 0000000000000000" in dump
        assert "cr0 " in dump
        assert f"code at {guests.CODE + 10:#x}: 0f f5 03 f4 eb fd" in dump
        assert bad.machine.state is MachineState.STOPPED
        before = good.machine.board.memory.load_u32(0x5000)
        await good.machine.run_on(0, lambda vcpu: None)
        while good.machine.board.memory.load_u32(0x5000) == before:
            await good.machine.run_on(0, lambda vcpu: None)
        assert good.machine.state is MachineState.RUNNING


async def test_a_device_that_finds_fault_with_its_guest_ends_it() -> None:
    async with case() as each:

        def refuse(offset: int) -> int:
            raise GuestFault("vm 101: panel: the guest reads what it must not")

        each.panel.ports.value = refuse
        await each.run(Asm().read_port(PORT).halt())
        assert await ended(each.machine) == ("crashed", "vm 101: panel: the guest reads what it must not")
        assert each.panel.calls == ["pause", "close"]
        assert "vm 101: vcpu 0:" in each.logged[-1]


async def test_a_device_of_ours_that_fails_ends_only_its_machine(caplog: pytest.LogCaptureFixture) -> None:
    async with case() as good, case(label="vm 102") as bad:
        await good.run(Asm().halt())
        bad.panel.ports.value = lambda offset: 1 // 0
        await bad.run(Asm().read_port(PORT).halt())
        kind, detail = await ended(bad.machine)
        assert (kind, detail.split("(")[0]) == ("crashed", "a device of ours failed: ZeroDivisionError")
        assert "ZeroDivisionError" in caplog.text
        await good.machine.pause()
