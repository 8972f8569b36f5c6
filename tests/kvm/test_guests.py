"""Guests of a few bytes on the real /dev/kvm: each way out of KVM_RUN, and each way in."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from appliance.kernel import kvm_object
from appliance.kernel.eventfd import EventFd
from appliance.kernel.kvm_ioctls import Ioctl
from appliance.kernel.kvm_run_abi import KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, ExitReason
from appliance.kernel.kvm_vcpu import Vcpu
from appliance.kernel.kvm_vm import Vm
from tests.kvm.dirty import assert_logged
from tests.kvm.machine import SmallMachine

pytestmark = pytest.mark.host

DEADLINE_S = 20.0


def test_out_in_and_hlt_are_exits(machine: SmallMachine) -> None:
    # mov dx,0x3f8; mov al,'A'; out dx,al; in al,dx; out 0x80,al; hlt
    machine.load("baf803 b041 ee ec e680 f4")
    vcpu = machine.vcpu
    assert vcpu.run() == ExitReason.IO
    io = vcpu.kvm_run.io
    assert (io.direction, io.port, io.size, io.count) == (KVM_EXIT_IO_OUT, 0x3F8, 1, 1)
    assert vcpu.io_data() == b"A"
    assert vcpu.run() == ExitReason.IO
    assert (io.direction, io.port) == (KVM_EXIT_IO_IN, 0x3F8)
    with pytest.raises(ValueError, match="vm t: vcpu 0: the guest reads 1 bytes, not 2"):
        vcpu.set_io_data(b"ab")
    vcpu.set_io_data(b"\x5a")
    assert vcpu.run() == ExitReason.IO
    assert (io.port, vcpu.io_data()) == (0x80, b"\x5a")
    assert vcpu.run() == ExitReason.HLT
    del io


def test_an_access_where_no_memory_is_is_an_mmio_exit(machine: SmallMachine) -> None:
    # mov ax,0xa000; mov ds,ax; mov byte [0x10],0x77; mov al,[0x20]; out 0x80,al; hlt
    machine.load("b800a0 8ed8 c606100077 a02000 e680 f4")
    vcpu = machine.vcpu
    assert vcpu.run() == ExitReason.MMIO
    written = vcpu.kvm_run.mmio
    assert (written.phys_addr, written.len, written.is_write, written.data[0]) == (0xA0010, 1, 1, 0x77)
    assert vcpu.run() == ExitReason.MMIO
    read = vcpu.kvm_run.mmio
    assert (read.phys_addr, read.len, read.is_write) == (0xA0020, 1, 0)
    read.data[0] = 0x99
    assert vcpu.run() == ExitReason.IO
    assert vcpu.io_data() == b"\x99"
    del written, read


def test_an_ioeventfd_on_a_port_counts_and_causes_no_exit(machine: SmallMachine) -> None:
    three_times_and_hlt = "e650 e650 e650 f4"
    with EventFd() as doorbell:
        machine.vm.ioeventfd(doorbell, 0x50, length=1, pio=True)
        machine.load(three_times_and_hlt)
        assert machine.vcpu.run() == ExitReason.HLT
        assert doorbell.drain() == 3
        machine.vm.ioeventfd(doorbell, 0x50, length=1, pio=True, deassign=True)
        machine.load(three_times_and_hlt)
        assert machine.vcpu.run() == ExitReason.IO


def test_an_ioeventfd_with_a_datamatch_lets_other_values_exit(machine: SmallMachine) -> None:
    with EventFd() as doorbell:
        machine.vm.ioeventfd(doorbell, 0x50, length=1, datamatch=7, pio=True)
        machine.load("b007 e650 b008 e650 f4")  # mov al,7; out 0x50,al; mov al,8; out 0x50,al; hlt
        assert machine.vcpu.run() == ExitReason.IO
        assert (machine.vcpu.io_data(), doorbell.drain()) == (b"\x08", 1)


def test_an_irqfd_wakes_a_halted_guest_through_the_pic(pc: SmallMachine) -> None:
    _load_irq4_guest(pc)
    assert pc.vcpu.run() == ExitReason.IO
    assert pc.vcpu.kvm_run.io.port == 0x80  # "about to halt"
    with EventFd() as interrupt, _running(pc) as reasons:
        pc.vm.irqfd(interrupt, 4)
        interrupt.signal()
        _wait_until(lambda: bool(reasons))
        pc.vm.irqfd(interrupt, 4, deassign=True)
    assert reasons == [ExitReason.IO]
    assert pc.vcpu.kvm_run.io.port == 0x81  # the handler's


def test_irq_line_raises_the_same_interrupt(pc: SmallMachine) -> None:
    _load_irq4_guest(pc)
    assert pc.vcpu.run() == ExitReason.IO
    pc.vm.irq_line(4, 1)
    pc.vm.irq_line(4, 0)
    assert pc.vcpu.run() == ExitReason.IO
    assert pc.vcpu.kvm_run.io.port == 0x81


def test_the_dirty_log_names_exactly_the_pages_the_guest_wrote(machine: SmallMachine) -> None:
    # mov byte [0x5000],1; mov byte [0x9abc],1; mov al,[0x7000]; hlt
    machine.load("c606005001 c606bc9a01 a00070 f4")
    machine.vm.get_dirty_log(0)
    machine.memory[0x3000] = 1  # our own write: KVM does not see it
    assert machine.vcpu.run() == ExitReason.HLT
    bitmap = machine.vm.get_dirty_log(0)
    assert len(bitmap) == 8
    number = int.from_bytes(bitmap, "little")
    assert_logged([page for page in range(64) if number >> page & 1], {5, 9})
    assert machine.vm.get_dirty_log(0) == bytes(8)


def test_a_busy_guest_is_kicked_by_immediate_exit_and_a_signal(machine: SmallMachine) -> None:
    machine.load("ff060050 ebfa")  # again: inc word [0x5000]; jmp again
    with _running(machine) as reasons, _handled(signal.SIGUSR1):
        _wait_until(lambda: machine.memory[0x5000:0x5002] != b"\0\0")  # runs, and this thread too: no lock is held
        assert reasons == []
        machine.vcpu.immediate_exit = True
        _kick_runner()
        _wait_until(lambda: bool(reasons))
    assert reasons == [ExitReason.INTR]


def test_immediate_exit_set_before_run_loses_no_kick(machine: SmallMachine) -> None:
    machine.load("f4")
    machine.vcpu.immediate_exit = True
    assert machine.vcpu.run() == ExitReason.INTR
    machine.vcpu.immediate_exit = False
    assert not machine.vcpu.immediate_exit
    assert machine.vcpu.run() == ExitReason.HLT


def test_both_ways_of_calling_kvm_run_end_when_interrupted(machine: SmallMachine) -> None:
    machine.load("f4")
    machine.vcpu.immediate_exit = True
    for call in (kvm_object.run_ioctl, kvm_object._run_by_ctypes):
        with pytest.raises(InterruptedError):
            call(machine.vcpu.fileno(), Ioctl.KVM_RUN)
    machine.vcpu.immediate_exit = False
    assert kvm_object._run_by_ctypes(machine.vcpu.fileno(), Ioctl.KVM_RUN) == 0
    assert machine.vcpu.kvm_run.exit_reason == ExitReason.HLT


def test_a_guest_whose_memory_cannot_be_reached_does_not_run(vm: Vm) -> None:
    unmapped = 0x1000  # below vm.mmap_min_addr: nothing is ever mapped there
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=4096, userspace_addr=unmapped)
    vcpu = vm.create_vcpu(3)
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rip = 0
    vcpu.set_regs(regs)
    # EFAULT from the processor's own walk, an emulation failure where KVM itself fetches the instruction
    assert _outcome(vcpu) in {"KVM_RUN vm t: vcpu 3: Bad address", str(int(ExitReason.INTERNAL_ERROR))}


def _load_irq4_guest(pc: SmallMachine) -> None:
    """PIC at vector 0x20, only IRQ 4 open; its handler at 0x2000 writes port 0x81."""
    icw = "b011 e620 b020 e621 b004 e621 b001 e621"  # ICW1..4 of the master (8259A data sheet)
    mask = "b0ef e621"
    pc.load("fa" + icw + mask + "e680 fb f4 f4")  # cli; ...; out 0x80,al; sti; hlt; hlt
    pc.load("e681 cf", at=0x2000)  # out 0x81,al; iret
    pc.memory[0x24 * 4 : 0x24 * 4 + 4] = bytes.fromhex("00200000")


def _outcome(vcpu: Vcpu) -> str:
    """The exit reason's number, or the error's text without its errno."""
    try:
        return str(int(vcpu.run()))
    except OSError as error:
        return str(error.strerror)


_RUNNER = "test-vcpu"


@contextmanager
def _running(machine: SmallMachine) -> Iterator[list[int]]:
    """One `run` in a thread of its own; the list holds its result once it has returned."""
    reasons: list[int] = []
    thread = threading.Thread(target=lambda: reasons.append(machine.vcpu.run()), name=_RUNNER)
    thread.start()
    try:
        yield reasons
    finally:
        if thread.is_alive() and not reasons:
            machine.vcpu.immediate_exit = True
            with _handled(signal.SIGUSR1):
                _kick_runner()
                thread.join(DEADLINE_S)
        thread.join(DEADLINE_S)
        machine.vcpu.immediate_exit = False


@contextmanager
def _handled(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, lambda _number, _frame: None)
    try:
        yield
    finally:
        signal.signal(number, before)


def _kick_runner() -> None:
    for thread in threading.enumerate():
        if thread.name == _RUNNER and thread.ident is not None:
            signal.pthread_kill(thread.ident, signal.SIGUSR1)


def _wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the guest did not get there"
        time.sleep(0.001)
