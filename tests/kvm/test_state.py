"""Each state read from the real /dev/kvm goes back and comes out the same; errors name their object; nothing leaks."""

from __future__ import annotations

import os
import signal
import time

import msgspec
import pytest

from appliance.kernel.eventfd import EventFd
from appliance.kernel.kvm import KVM_API_VERSION, Kvm
from appliance.kernel.kvm_abi import (
    KVM_CLOCK_REALTIME,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KvmClockData,
    irqchip_route,
    msi_route,
)
from appliance.kernel.kvm_caps import Cap
from appliance.kernel.kvm_cpu_abi import KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_XSAVE_BYTES
from appliance.kernel.kvm_run_abi import ExitReason
from appliance.kernel.kvm_vm import Vm
from appliance.vmm.cpu_state import restore_vm, save_vm
from tests.kvm.machine import SmallMachine

pytestmark = pytest.mark.host

MSR_STAR, MSR_LSTAR, MSR_IA32_PAT = 0xC000_0081, 0xC000_0082, 0x277
MSR_THAT_NEVER_WAS = 0x4B4D_0000
NO_KVM_FDS = ("kvm-vm", "kvm-vcpu", "/dev/kvm")


def test_the_system_ioctls_answer(kvm: Kvm) -> None:
    assert kvm.get_api_version() == KVM_API_VERSION
    assert kvm.get_vcpu_mmap_size() >= 4096
    assert {entry.function for entry in kvm.get_supported_cpuid()} >= {0, 1, 0x8000_0000}
    assert MSR_STAR in kvm.get_msr_index_list()


def test_registers_go_in_and_come_out(machine: SmallMachine) -> None:
    vcpu = machine.vcpu
    regs = vcpu.get_regs()
    regs.rax, regs.r15, regs.rip = 0x1122_3344_5566_7788, 2**64 - 1, 0x1234
    vcpu.set_regs(regs)
    assert bytes(vcpu.get_regs()) == bytes(regs)
    sregs = vcpu.get_sregs()
    sregs.ds.base, sregs.ds.selector, sregs.gdt.base, sregs.gdt.limit = 0x5550, 0x555, 0x7000, 0x27
    vcpu.set_sregs(sregs)
    assert bytes(vcpu.get_sregs()) == bytes(sregs)
    fpu = vcpu.get_fpu()
    fpu.fcw, fpu.xmm[15][0] = 0x37F, 0xAB
    vcpu.set_fpu(fpu)
    assert (vcpu.get_fpu().fcw, vcpu.get_fpu().xmm[15][0]) == (0x37F, 0xAB)
    debugregs = vcpu.get_debugregs()
    debugregs.db[2] = 0xDEAD_BEE0
    vcpu.set_debugregs(debugregs)
    assert vcpu.get_debugregs().db[2] == 0xDEAD_BEE0


def test_model_specific_registers_go_in_and_come_out(machine: SmallMachine) -> None:
    wanted = {MSR_STAR: 0x0023_0010_0000_0000, MSR_LSTAR: 0xFFFF_8000_0000_1000, MSR_IA32_PAT: 0x0007_0406_0007_0406}
    machine.vcpu.set_msrs(wanted)
    assert machine.vcpu.get_msrs(list(wanted)) == wanted


def test_an_unknown_model_specific_register_is_named(machine: SmallMachine) -> None:
    with pytest.raises(OSError, match="KVM_GET_MSRS vm t: vcpu 0: MSR 0x4b4d0000: Invalid argument"):
        machine.vcpu.get_msrs([MSR_STAR, MSR_THAT_NEVER_WAS])
    with pytest.raises(OSError, match="KVM_SET_MSRS vm t: vcpu 0: MSR 0x4b4d0000: Invalid argument"):
        machine.vcpu.set_msrs({MSR_STAR: 1 << 40, MSR_THAT_NEVER_WAS: 1})
    assert machine.vcpu.get_msrs([MSR_STAR]) == {MSR_STAR: 1 << 40}


def test_cpuid_and_the_extended_state_go_in_and_come_out(kvm: Kvm, machine: SmallMachine) -> None:
    vcpu = machine.vcpu
    supported = kvm.get_supported_cpuid()
    vcpu.set_cpuid2(supported)
    shown = vcpu.get_cpuid2()
    assert {(each.function, each.index) for each in shown} <= {(each.function, each.index) for each in supported}
    assert bytes(shown[0]) == bytes(supported[0])  # the maker's name; KVM keeps others, such as XCR0's size, up to date
    xcrs = vcpu.get_xcrs()
    vcpu.set_xcrs(xcrs)
    assert bytes(vcpu.get_xcrs()) == bytes(xcrs)
    area = vcpu.get_xsave2()
    assert len(area) >= KVM_XSAVE_BYTES
    vcpu.set_xsave(area)
    assert vcpu.get_xsave2() == area
    assert vcpu.get_xsave() == area[:KVM_XSAVE_BYTES]
    with pytest.raises(ValueError, match="vcpu 0: an XSAVE area of"):
        vcpu.set_xsave(area + b"\0")


def test_interrupt_controllers_go_in_and_come_out(pc: SmallMachine) -> None:
    vm = pc.vm
    for chip_id, field, value in ((KVM_IRQCHIP_PIC_MASTER, "imr", 0xEF), (KVM_IRQCHIP_PIC_SLAVE, "irq_base", 0x28)):
        chip = vm.get_irqchip(chip_id)
        setattr(chip.chip.pic, field, value)
        vm.set_irqchip(chip)
        assert getattr(vm.get_irqchip(chip_id).chip.pic, field) == value
    ioapic = vm.get_irqchip(KVM_IRQCHIP_IOAPIC)
    ioapic.chip.ioapic.redirtbl[9] = 1 << 16 | 0x39
    vm.set_irqchip(ioapic)
    assert vm.get_irqchip(KVM_IRQCHIP_IOAPIC).chip.ioapic.redirtbl[9] == 1 << 16 | 0x39
    lapic = pc.vcpu.get_lapic()
    lapic.regs[0x80] = 0x20  # the task priority (SDM vol.3 §11.8.3.1)
    pc.vcpu.set_lapic(lapic)
    assert pc.vcpu.get_lapic().regs[0x80] == 0x20


def test_timer_and_clock_go_in_and_come_out(pc: SmallMachine) -> None:
    pit = pc.vm.get_pit2()
    pit.channels[2].count, pit.channels[2].mode = 0x1234, 3
    pc.vm.set_pit2(pit)
    assert (pc.vm.get_pit2().channels[2].count, pc.vm.get_pit2().channels[2].mode) == (0x1234, 3)
    pc.vm.reinject_control(pit_reinject=False)
    clock = pc.vm.get_clock()
    clock.clock, clock.flags = 10**15, 0
    pc.vm.set_clock(clock)
    assert 10**15 <= pc.vm.get_clock().clock < 10**15 + 60 * 10**9
    assert pc.vcpu.get_tsc_khz() > 0


@pytest.mark.parametrize("realtime", [True, False], ids=["kvm-knows-when", "kvm-does-not"])
def test_a_restored_clock_counts_the_time_between_if_asked(pc: SmallMachine, realtime: bool) -> None:
    state = save_vm(pc.vm)
    clock = KvmClockData.from_buffer_copy(state.clock)
    hour_ns = 3600 * 10**9
    clock.flags = KVM_CLOCK_REALTIME if realtime else 0
    clock.realtime = time.time_ns() - hour_ns
    state = msgspec.structs.replace(state, clock=bytes(clock), saved_at_ns=time.time_ns() - hour_ns)
    restore_vm(pc.vm, state, clock_goes_on=True)
    assert hour_ns <= pc.vm.get_clock().clock - clock.clock < hour_ns + 60 * 10**9
    restore_vm(pc.vm, state, clock_goes_on=False)
    assert 0 <= pc.vm.get_clock().clock - clock.clock < 60 * 10**9


def test_processor_states_and_events_go_in_and_come_out(pc: SmallMachine) -> None:
    vcpu = pc.vcpu
    assert vcpu.get_mp_state() == KVM_MP_STATE_RUNNABLE
    vcpu.set_mp_state(KVM_MP_STATE_HALTED)
    assert vcpu.get_mp_state() == KVM_MP_STATE_HALTED
    events = vcpu.get_vcpu_events()
    events.nmi.masked = 1
    vcpu.set_vcpu_events(events)
    assert vcpu.get_vcpu_events().nmi.masked == 1
    assert vcpu.translate(0x1234).physical_address == 0x1234  # no paging


def test_a_signal_mask_is_taken_and_given_back(machine: SmallMachine) -> None:
    machine.load("f4")
    machine.vcpu.set_signal_mask({signal.SIGUSR1, signal.SIGUSR2})
    assert machine.vcpu.run() == ExitReason.HLT
    machine.vcpu.set_signal_mask(None)


def test_routes_and_messages_are_accepted(pc: SmallMachine) -> None:
    pc.vm.set_gsi_routing([irqchip_route(4, KVM_IRQCHIP_PIC_MASTER, 4), msi_route(24, 0xFEE0_0000, 0x41)])
    with EventFd() as interrupt:
        pc.vm.irqfd(interrupt, 24)
        pc.vm.irqfd(interrupt, 24, deassign=True)
    assert pc.vm.signal_msi(0xFEE0_0000, 0x41) in (True, False)  # the guest's local APIC is off: either is right


def test_errors_name_the_ioctl_and_the_object(kvm: Kvm, pc: SmallMachine) -> None:
    vm = pc.vm
    with pytest.raises(OSError, match="KVM_CREATE_VCPU vm t: vcpu 0: File exists"):
        vm.create_vcpu(0)
    with pytest.raises(OSError, match="KVM_CREATE_IRQCHIP vm t: File exists"):
        vm.create_irqchip()
    with pytest.raises(OSError, match="KVM_SET_USER_MEMORY_REGION vm t: slot 7: Invalid argument"):
        vm.set_user_memory_region(7, guest_phys_addr=0x123, memory_size=4096, userspace_addr=0)
    with pytest.raises(OSError, match="KVM_GET_DIRTY_LOG vm t: slot 7: No such file"):
        vm.get_dirty_log(7)
    with pytest.raises(OSError, match="KVM_GET_IRQCHIP vm t: irqchip 9: Invalid argument"):
        vm.get_irqchip(9)
    with pytest.raises(OSError, match="KVM_ENABLE_CAP vm t: capability 9999: Invalid argument"):
        vm.enable_cap(9999)
    with EventFd() as event, pytest.raises(OSError, match="KVM_IOEVENTFD vm t: port 0x50: Invalid argument"):
        vm.ioeventfd(event, 0x50, length=3, pio=True)
    with EventFd() as event:
        vm.irqfd(event, 4)
        with pytest.raises(OSError, match="KVM_IRQFD vm t: gsi 4: Device or resource busy"):
            vm.irqfd(event, 4)
    with pytest.raises(OSError, match="open /dev/no-such: No such file"):
        Kvm("/dev/no-such")
    assert kvm.check_extension(Cap.IRQCHIP) == 1


def test_a_slots_log_is_cleared_by_parts_when_asked_for(vm: Vm) -> None:
    vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 1)
    with SmallMachine(vm) as machine:
        machine.load("c606005001 f4")  # mov byte [0x5000],1; hlt
        assert machine.vcpu.run() == ExitReason.HLT
        bitmap = vm.get_dirty_log(0)
        assert int.from_bytes(bitmap, "little") & 1 << 5
        assert vm.get_dirty_log(0) == bitmap
        with pytest.raises(ValueError, match="slot 0: 1 bytes of bitmap for 16 pages"):
            vm.clear_dirty_log(0, first_page=0, num_pages=16, bitmap=b"\xff")
        vm.clear_dirty_log(0, first_page=0, num_pages=16, bitmap=bitmap)
        assert vm.get_dirty_log(0) == bytes(8)


def test_closing_leaves_no_descriptor_and_use_afterwards_is_an_error(kvm: Kvm) -> None:
    before = _kvm_descriptors()
    vm = kvm.create_vm("vm u")
    vcpus = [vm.create_vcpu(index) for index in range(3)]
    with pytest.raises(OSError, match="File exists"):
        vm.create_vcpu(1)
    vcpus[1].close()
    vm.close()
    vm.close()
    assert _kvm_descriptors() == before
    with pytest.raises(OSError, match="KVM_GET_REGS vm u: vcpu 2: Bad file descriptor"):
        vcpus[2].get_regs()
    with pytest.raises(OSError, match="KVM_RUN vm u: vcpu 2: Bad file descriptor"):
        vcpus[2].run()
    with pytest.raises(OSError, match="KVM_CHECK_EXTENSION vm u: XSAVE2: Bad file descriptor"):
        vm.create_vcpu(5)


def test_a_part_of_kvm_run_still_held_is_an_error_and_can_be_closed_later(kvm: Kvm) -> None:
    before = _kvm_descriptors()
    vm = kvm.create_vm("vm u")
    vcpus = [vm.create_vcpu(index) for index in range(2)]
    held = vcpus[0].kvm_run.io
    with pytest.raises(BufferError):
        vm.close()
    assert vm.fileno() == vcpus[0].fileno() == vcpus[1].fileno() == -1
    del held
    vcpus[0].close()
    assert _kvm_descriptors() == before


def _kvm_descriptors() -> list[str]:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # listdir's own
    return sorted(link for link in links if any(name in link for name in NO_KVM_FDS))
