"""A machine starts, pauses, goes on, resets and ends as asked, whatever its guest does meanwhile, and leaves nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import AsyncExitStack

import pytest

from appliance.errors import Conflict, GuestFault, HostError, TimedOut
from appliance.kernel.kvm_cpu_abi import KvmRegs
from appliance.kernel.kvm_vcpu import Vcpu as KvmVcpu
from appliance.vmm import machine as machine_module
from appliance.vmm.cpu_state import restore_vcpu, save_vcpu
from appliance.vmm.device import MachineRequest
from appliance.vmm.life import Boot, MachineState
from tests.kvm import guests
from tests.kvm.guests import Asm
from tests.kvm.panel import MMIO, PORT, Case, case, ended

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("kvm")]

COUNTER = 0x5000
MSR_LSTAR, MSR_KVM_SYSTEM_TIME_NEW = 0xC000_0082, 0x4B56_4D01


def counting() -> Asm:
    """Count for ever, with a register access now and then."""
    return Asm().inc(COUNTER).store(MMIO, 1).load(MMIO + 4).out(PORT + 8, 1).jump(0)


async def goes_on(each: Case) -> None:
    """Return once the counter has moved."""
    memory = each.machine.board.memory
    before = memory.load_u32(COUNTER)
    async with asyncio.timeout(10):
        while memory.load_u32(COUNTER) == before:
            await each.machine.run_on(0, lambda vcpu: None)


async def test_states_follow_one_another_and_devices_are_told() -> None:
    async with case() as each:
        seen = [each.machine.state]
        with pytest.raises(Conflict, match="vm 101: is built, not running or paused"):
            await each.machine.pause()
        await each.run(counting())
        seen.append(each.machine.state)
        with pytest.raises(Conflict, match="vm 101: is running, not built"):
            await each.machine.start()
        await each.machine.pause()
        await each.machine.pause()
        seen.append(each.machine.state)
        await each.machine.resume()
        await each.machine.resume()
        await each.machine.stop()
        await each.machine.stop()
        seen.append(each.machine.state)
        assert seen == [MachineState.BUILT, MachineState.RUNNING, MachineState.PAUSED, MachineState.STOPPED]
        assert each.panel.calls == ["pause", "resume", "pause", "close"]
        assert await ended(each.machine) == ("stopped", "stopped")
        with pytest.raises(Conflict, match="vm 101: is stopped"):
            await each.machine.resume()
        with pytest.raises(Conflict, match="vm 101: is stopped"):
            await each.machine.run_on(0, lambda vcpu: None)


async def test_a_machine_that_never_started_is_stopped_all_the_same() -> None:
    async with case(vcpus=4) as each:
        await each.machine.stop()
        assert await ended(each.machine) == ("stopped", "stopped")


async def test_a_paused_guest_does_nothing_and_then_goes_on() -> None:
    async with case() as each:
        await each.run(counting())
        await goes_on(each)
        await each.machine.pause()
        memory = each.machine.board.memory
        before = memory.load_u32(COUNTER)
        registers = bytes(await each.machine.run_on(0, KvmVcpu.get_regs))
        assert memory.load_u32(COUNTER) == before
        assert bytes(await each.machine.run_on(0, KvmVcpu.get_regs)) == registers
        await each.machine.resume()
        await goes_on(each)


async def test_no_kick_is_lost_among_many_under_load() -> None:
    async with case(vcpus=2) as each:
        await each.run(counting())
        for _ in range(200):
            await each.machine.pause()
            await each.machine.resume()
        await goes_on(each)


async def test_four_busy_processors_are_paused_soon() -> None:
    async with case(vcpus=4) as each:
        spinning = Asm().inc(COUNTER).jump(0).bytes()

        def everywhere(vcpu: KvmVcpu) -> None:
            guests.flat(vcpu)
            vcpu.set_mp_state(0)

        each.machine.boot = Boot(
            load=lambda: each.machine.board.memory.write(guests.CODE, spinning), prepare_vcpu=everywhere
        )
        await each.machine.start()
        took = []
        for _ in range(10):
            await goes_on(each)
            began = time.monotonic()
            await each.machine.pause()
            took.append(time.monotonic() - began)
            await each.machine.resume()
        assert min(took) < 0.05, took  # the figure is ./dev bench's; here four threads share what the tests leave


async def test_a_pause_that_is_cancelled_is_whole() -> None:
    async with case() as each:
        await each.run(counting())
        pausing = asyncio.create_task(each.machine.pause())
        await asyncio.sleep(0)
        pausing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pausing
        assert each.machine.state is MachineState.PAUSED
        await each.machine.resume()
        await goes_on(each)


async def test_a_processor_that_hangs_in_a_device_is_named_and_everything_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine_module, "PARK_TIMEOUT_S", 0.05)
    released = threading.Event()
    async with case() as each:
        each.panel.ports.value = lambda offset: int(released.wait(20))
        await each.run(Asm().read_port(PORT).inc(COUNTER).jump(0))
        async with asyncio.timeout(10):
            while not each.panel.ports.reads:
                await asyncio.sleep(0.001)
        with pytest.raises(TimedOut, match="vm 101: vcpu 0: leaving the guest: nothing within"):
            await each.machine.pause()
        assert each.machine.state is MachineState.RUNNING
        released.set()
        await goes_on(each)


async def test_a_pause_waits_for_the_io_in_flight() -> None:
    finish, finished = threading.Event(), list[bool]()
    async with case() as each:
        await each.run(counting())
        each.machine.context.bridge.submit(lambda: finished.append(finish.wait(20)))
        pausing = asyncio.create_task(each.machine.pause())
        await goes_on_or(each, pausing)
        assert not pausing.done()
        finish.set()
        await pausing
        assert finished == [True]


async def goes_on_or(each: Case, task: asyncio.Task[None]) -> None:
    """Until the devices have been told to pause: the vCPUs are parked then, and only the pool is waited for."""
    async with asyncio.timeout(10):
        while "pause" not in each.panel.calls and not task.done():
            await asyncio.sleep(0.001)


async def test_work_on_a_processor_is_done_in_its_thread_and_its_errors_come_back() -> None:
    async with case() as each:
        await each.run(counting())
        name = await each.machine.run_on(0, lambda vcpu: threading.current_thread().name)
        assert name == "vcpu-101-0"
        with pytest.raises(HostError, match="vm 101: vcpu 0: KVM_GET_MSRS vm 101: vcpu 0: MSR 0x4b4d0000"):
            await each.machine.run_on(0, lambda vcpu: vcpu.get_msrs([0x4B4D_0000]))
        await goes_on(each)


async def test_a_triple_fault_resets_the_machine() -> None:
    async with case() as each:
        # the code overwrites itself: only memory loaded anew makes it run again
        code = Asm().out(PORT, 7).store(guests.CODE, 0xFFFF_FFFF).raw("0f0b")  # ud2, and no handler for anything
        await each.run(code)
        assert await each.panel.ports.written(3) == [(0, 1, 7)] * 3
        assert "vcpu 0: triple fault" in each.logged[0]
        assert each.panel.calls[:6] == ["pause", "reset", "resume"] * 2


async def test_a_machine_whose_resets_end_it_says_that_a_restart_was_asked_for() -> None:
    async with case(resets=False) as each:
        await each.run(Asm().raw("0f0b"))
        assert await ended(each.machine) == ("reset", "the guest asked for a restart")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (MachineRequest.POWER_OFF, ("shutdown", "the guest powered off")),
        (MachineRequest.PANIC, ("crashed", "the guest's kernel panicked")),
    ],
)
async def test_what_a_device_asks_for_ends_the_machine(request_: MachineRequest, reason: tuple[str, str]) -> None:
    async with case() as each:

        def ask(offset: int) -> int:
            each.machine.context.request(request_, "the test wants it")
            return 0

        each.panel.ports.value = ask
        await each.run(Asm().read_port(PORT).inc(COUNTER).halt())
        assert await ended(each.machine) == reason
        assert each.logged == [f"{request_}: the test wants it"]


async def test_after_a_request_the_guest_does_not_run_on() -> None:
    async with case() as each:
        seen = list[int]()

        def ask(offset: int) -> int:
            seen.append(each.machine.board.memory.load_u32(COUNTER))
            each.machine.context.request(MachineRequest.RESET, "port")
            return 0

        each.panel.ports.value = ask
        await each.run(Asm().read_port(PORT).inc(COUNTER).jump(0))
        async with asyncio.timeout(10):
            while len(seen) < 5:
                await asyncio.sleep(0.001)
        assert set(seen) == {0}


async def test_a_guest_that_asks_for_a_reset_which_fails_is_to_be_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with case() as each:

        def refuse() -> None:
            raise HostError("vm 101: reset: no")

        monkeypatch.setattr(each.machine.board, "reset_chips", refuse)
        await each.run(counting())
        each.machine.request(MachineRequest.RESET, "port 0xcf9")
        kind, detail = await ended(each.machine)
        assert kind == "reset"
        assert "asked for a restart; the machine could not be reset in place: vm 101: reset: no" in detail
        assert "cannot be reset in place" in caplog.text


async def test_a_reset_by_the_host_that_fails_ends_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async with case() as each:

        def refuse() -> None:
            raise HostError("vm 101: reset: no")

        monkeypatch.setattr(each.machine.board, "reset_chips", refuse)
        await each.run(counting())
        with pytest.raises(HostError, match="reset: no"):
            await each.machine.reset()
        assert await ended(each.machine) == ("crashed", "vm 101: reset: no")


async def test_a_reset_puts_back_what_the_guest_changed_in_kvm() -> None:
    async with case() as each:
        code = guests.mask_pic_but(3).store(guests.LAPIC_SPURIOUS, 0x1FF).out(PORT, 1).halt()
        await each.run(code)
        await each.panel.ports.written()
        changed = {MSR_LSTAR: 0x1234_5000, MSR_KVM_SYSTEM_TIME_NEW: 0x6001}
        await each.machine.run_on(0, lambda vcpu: vcpu.set_msrs(changed))
        vm = each.machine.board.vm
        assert vm.get_irqchip(0).chip.pic.imr == 0xF7
        await each.machine.pause()
        await each.machine.reset()
        assert each.machine.state is MachineState.PAUSED
        assert await each.machine.run_on(0, lambda vcpu: vcpu.get_msrs(list(changed))) == dict.fromkeys(changed, 0)
        assert vm.get_irqchip(0).chip.pic.imr == 0
        lapic = await each.machine.run_on(0, KvmVcpu.get_lapic)
        assert lapic.regs[0xF1] == 0  # off, as at power-on (SDM vol.3 §11.4.3)


async def test_a_fault_of_a_device_on_the_loop_ends_the_machine_with_its_registers() -> None:
    async with case() as each:
        await each.run(counting())
        await goes_on(each)

        def broken() -> None:
            raise GuestFault("vm 101: disk0: its ring is broken")

        each.machine.context.bridge.post(broken)
        assert await ended(each.machine) == ("crashed", "vm 101: disk0: its ring is broken")
        assert each.logged[0] == "vm 101: disk0: its ring is broken"
        assert "vm 101: vcpu 0:\n  rip 00000000000100" in each.logged[1]


async def test_a_start_that_fails_tells_why_and_leaves_nothing_behind() -> None:
    async with case(vcpus=2) as each:

        def no_firmware() -> None:
            raise HostError("vm 101: no firmware")

        each.machine.boot = Boot(load=no_firmware)
        with pytest.raises(HostError, match="vm 101: no firmware"):
            await each.machine.start()


async def test_a_device_that_does_not_close_in_order_keeps_nothing_else_open(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with case() as each:
        await each.run(Asm().halt())
        monkeypatch.setattr(each.panel, "close", lambda: 1 // 0)
        await each.machine.stop()
        assert "vm 101: panel: could not be closed in order" in caplog.text
        assert each.machine.board.vm.fileno() == -1


async def test_a_guest_goes_on_in_another_machine_from_saved_registers_and_memory() -> None:
    async with case() as first, case(label="vm 102") as second:
        await first.run(counting())
        await goes_on(first)
        await first.machine.pause()
        indices = first.machine.board.msr_indices
        state = await first.machine.run_on(0, lambda vcpu: save_vcpu(vcpu, indices))
        await second.machine.start(incoming=True)
        assert second.machine.state is MachineState.PAUSED
        for address in range(0, 0xA0000, 0x1000):
            second.machine.board.memory.write(address, first.machine.board.memory.read(address, 0x1000))
        await second.machine.run_on(0, lambda vcpu: restore_vcpu(vcpu, state))
        count = second.machine.board.memory.load_u32(COUNTER)
        assert count == first.machine.board.memory.load_u32(COUNTER)
        await second.machine.resume()
        await goes_on(second)
        assert second.machine.board.memory.load_u32(COUNTER) > count


async def test_a_second_device_of_one_name_is_refused_and_an_unplugged_one_is_closed() -> None:
    async with case() as each:
        with pytest.raises(Conflict, match="panel cannot be added"):
            each.machine.add(each.panel)
        await each.run(counting())
        each.machine.remove(each.panel)
        each.machine.remove(each.panel)
        assert each.panel.calls == ["close"]
        await goes_on(each)


async def test_processor_time_is_counted_while_the_guest_runs() -> None:
    async with case() as each:
        assert each.machine.cpu_seconds() == 0
        await each.run(counting())
        await goes_on(each)
        assert 0 < each.machine.cpu_seconds() < 60
        await each.machine.stop()
        assert each.machine.cpu_seconds() == 0


async def test_fifty_idle_machines_start_and_stop_in_one_process() -> None:
    """That they leave no descriptor and no thread is the fixture's to see."""
    async with AsyncExitStack() as stack:
        machines = [
            await stack.enter_async_context(case(label=f"vm {number}", memory_mib=1)) for number in range(200, 250)
        ]
        for each in machines:
            await each.run(Asm().out(PORT, 1).halt())
        for each in machines:
            assert await each.panel.ports.written() == [(0, 1, 1)]
        registers: list[KvmRegs] = [await each.machine.run_on(0, KvmVcpu.get_regs) for each in machines]
        assert len({regs.rip for regs in registers}) == 1
