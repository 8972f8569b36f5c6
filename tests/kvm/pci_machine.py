"""A machine for PCI's tests: buses and the loop as in the devices' tests, memory and interrupts of a real VM."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.clock import SystemClock
from appliance.kernel.kvm_run_abi import KVM_EXIT_IO_IN, ExitReason
from appliance.kernel.kvm_vcpu import Vcpu
from appliance.kernel.kvm_vm import Vm
from appliance.vmm import layout
from appliance.vmm.irq import Interrupts
from tests.fakes.machine import FakeMachine


@contextmanager
def pci_machine(vm: Vm, *, rom: bytes = b"") -> Iterator[FakeMachine]:
    """16 MiB of RAM, KVM's interrupt controllers and timer; `rom` ends at 4 GiB."""
    vm.set_tss_addr(layout.KVM_TSS)
    vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP)
    vm.create_irqchip()
    vm.create_pit2()
    made = FakeMachine()
    slots = [(each.base, each.size, made.memory.host_address(each.base, each.size)) for each in made.memory.regions]
    flash = mmap.mmap(-1, max(len(rom), mmap.PAGESIZE))
    view = ctypes.c_char.from_buffer(flash)
    if rom:
        flash[:] = rom
        slots.append((layout.FIRMWARE_END - len(rom), len(rom), ctypes.addressof(view)))
    for number, (base, size, address) in enumerate(slots):
        # SAFETY: both mappings live until the slots are deleted below
        vm.set_user_memory_region(number, guest_phys_addr=base, memory_size=size, userspace_addr=address)
    interrupts = Interrupts(vm, label="vm t")
    made.context = dataclasses.replace(made.context, interrupts=interrupts, clock=SystemClock())
    try:
        yield made
    finally:
        interrupts.close()
        for number in range(len(slots)):
            vm.set_user_memory_region(number, guest_phys_addr=0, memory_size=0, userspace_addr=0)
        del view
        flash.close()
        made.close()


def step(vcpu: Vcpu, machine: FakeMachine) -> int | None:
    """Run until the next access to the buses and serve it; returns the port that was written, if any."""
    match vcpu.run():
        case ExitReason.IO:
            return _serve_port(vcpu, machine)
        case ExitReason.MMIO:
            _serve_memory(vcpu, machine)
        case ExitReason.INTR:
            pass
        case reason:
            raise AssertionError(f"exit {reason} at {vcpu.get_regs().rip:#x}")
    return None


def _serve_port(vcpu: Vcpu, machine: FakeMachine) -> int | None:
    io = vcpu.kvm_run.io
    port, size, count, reads = int(io.port), int(io.size), int(io.count), io.direction == KVM_EXIT_IO_IN
    del io
    if reads:
        vcpu.set_io_data(b"".join(machine.ports.read(port, size).to_bytes(size, "little") for _ in range(count)))
        return None
    data = vcpu.io_data()
    for start in range(0, len(data), size):
        machine.ports.write(port, size, int.from_bytes(data[start : start + size], "little"))
    return port


def _serve_memory(vcpu: Vcpu, machine: FakeMachine) -> None:
    mmio = vcpu.kvm_run.mmio
    address, size = int(mmio.phys_addr), int(mmio.len)
    if mmio.is_write:
        machine.mmio.write(address, size, int.from_bytes(bytes(mmio.data)[:size], "little"))
    else:
        for number, byte in enumerate(machine.mmio.read(address, size).to_bytes(size, "little")):
            mmio.data[number] = byte
