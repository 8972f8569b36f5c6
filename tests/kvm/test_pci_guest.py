"""PCI as a processor sees it: configuration space both ways, a BAR, and MSI-X through KVM's irqfd, on the real /dev/kvm."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from appliance.kernel.kvm_vcpu import Vcpu
from appliance.kernel.kvm_vm import Vm
from appliance.vmm import layout
from appliance.vmm.pci.bus import PciBus
from tests.fakes.machine import FakeMachine
from tests.kvm.pci_machine import pci_machine, step
from tests.vmm.pci_software import Card

pytestmark = pytest.mark.host

CODE, STACK, GDT, IDT, HANDLER, RESULTS = 0x1000, 0x5000, 0x6000, 0x7000, 0x3000, 0x8000
VENDOR_BY_PORT, VENDOR_BY_ECAM, REGISTER, COUNT, PENDING = (RESULTS + 4 * number for number in range(5))
SLOT, VECTOR, BAR1 = 3, 0x41, 0xC000_0000
OURS = layout.ECAM + (SLOT << 15)
TABLE, PBA = BAR1 + 0x800, BAR1 + 0xC00
READY, MASKED, DONE, GAVE_UP = 0x80, 0x81, 0x82, 0x83
TRIES = 50_000


# A few instructions of 32-bit code (SDM vol.2)


def store(address: int, value: int) -> bytes:
    """mov dword [address], value"""
    return b"\xc7\x05" + struct.pack("<II", address, value)


def load(address: int, to: int) -> bytes:
    """mov eax, [address]; mov [to], eax"""
    return b"\xa1" + struct.pack("<I", address) + b"\xa3" + struct.pack("<I", to)


def outl(port: int, value: int) -> bytes:
    """mov edx, port; mov eax, value; out dx, eax"""
    return b"\xba" + struct.pack("<I", port) + b"\xb8" + struct.pack("<I", value) + b"\xef"


def inl(port: int, to: int) -> bytes:
    """mov edx, port; in eax, dx; mov [to], eax"""
    return b"\xba" + struct.pack("<I", port) + b"\xed" + b"\xa3" + struct.pack("<I", to)


def tell(port: int) -> bytes:
    """out port, al"""
    return bytes((0xE6, port))


def wait_for_count(count: int) -> bytes:
    """mov ecx, TRIES; again: cmp dword [COUNT], count; je +10; dec ecx; jne again; out GAVE_UP, al; hlt"""
    compare = b"\x83\x3d" + struct.pack("<I", COUNT) + bytes((count,))
    loop = compare + b"\x74\x06" + b"\x49" + b"\x75" + bytes((256 - len(compare) - 5,))
    return b"\xb9" + struct.pack("<I", TRIES) + loop + tell(GAVE_UP) + b"\xf4"


PROGRAM = b"".join(
    (
        outl(0xCF8, 1 << 31 | SLOT << 11),
        inl(0xCFC, VENDOR_BY_PORT),
        load(OURS, VENDOR_BY_ECAM),
        store(OURS + 0x14, BAR1),
        store(OURS + 4, 6),  # memory, bus master
        store(BAR1 + 0x10, 0x1234_5678),
        load(BAR1 + 0x20, REGISTER),
        store(0xFEE0_00F0, 0x1FF),  # the local APIC: on
        store(TABLE, 0xFEE0_0000),
        store(TABLE + 4, 0),
        store(TABLE + 8, VECTOR),
        store(TABLE + 12, 0),
        store(OURS + 0x40, 1 << 31),  # MSI-X: on
        tell(READY),
        b"\xfb",  # sti
        wait_for_count(1),
        store(TABLE + 12, 1),
        tell(MASKED),
        load(PBA, PENDING),
        store(TABLE + 12, 0),
        wait_for_count(2),
        tell(DONE),
        b"\xf4",
    )
)
# inc dword [COUNT]; mov dword [EOI], 0; pop ebx; lea esp, [esp + 4]; popf; jmp ebx
# The last four are IRET within one privilege level, which a KVM that emulates protected mode may lack.
INTERRUPT = b"\xff\x05" + struct.pack("<I", COUNT) + store(0xFEE0_00B0, 0) + bytes.fromhex("5b 8d642404 9d ffe3")


@pytest.fixture
def machine(vm: Vm) -> Iterator[FakeMachine]:
    with pci_machine(vm) as made:
        yield made


def protected_mode(vm: Vm, machine: FakeMachine) -> Vcpu:
    """A vCPU at CODE in flat 32-bit protected mode, with an interrupt gate for VECTOR."""
    memory = machine.memory
    memory.write(CODE, PROGRAM)
    memory.write(HANDLER, INTERRUPT)
    memory.write(GDT, struct.pack("<QQQ", 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF))
    memory.write(IDT + 8 * VECTOR, struct.pack("<HHHH", HANDLER, 8, 0x8E00, 0))
    vcpu = vm.create_vcpu(0)
    sregs = vcpu.get_sregs()
    sregs.gdt.base, sregs.gdt.limit = GDT, 23
    sregs.idt.base, sregs.idt.limit = IDT, 0x7FF
    sregs.cr0 |= 1
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        segment.base, segment.limit, segment.selector = 0, 0xFFFF_FFFF, 16
        segment.type, segment.present, segment.s, segment.db, segment.g = 3, 1, 1, 1, 1
    sregs.cs.selector, sregs.cs.type = 8, 11
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rip, regs.rsp, regs.rflags = CODE, STACK, 2
    vcpu.set_regs(regs)
    return vcpu


def run_until_it_tells(vcpu: Vcpu, machine: FakeMachine) -> int:
    """The port of the next `tell`."""
    for _ in range(200):
        port = step(vcpu, machine)
        if port in (READY, MASKED, DONE, GAVE_UP):
            return port
    raise AssertionError("the guest does not come to an end")


def test_a_guest_finds_programs_and_is_interrupted_by_a_function(vm: Vm, machine: FakeMachine) -> None:
    bus = PciBus("pci", machine.context)
    card = Card(machine.context).with_bars()
    bus.plug(card, SLOT)
    vcpu = protected_mode(vm, machine)
    try:
        assert run_until_it_tells(vcpu, machine) == READY
        assert machine.memory.load_u32(VENDOR_BY_PORT) == 0x1042_1AF4
        assert machine.memory.load_u32(VENDOR_BY_ECAM) == 0x1042_1AF4
        assert card.moves == [(1, BAR1)]
        assert card.registers.writes == [(0x10, 4, 0x1234_5678)]
        assert machine.memory.load_u32(REGISTER) == 0x20
        assert card.msix is not None
        assert machine.memory.load_u32(COUNT) == 0
        card.msix.signal(0)  # the way of every device and of vhost: its eventfd, no exit
        assert run_until_it_tells(vcpu, machine) == MASKED
        assert machine.memory.load_u32(COUNT) == 1
        card.msix.signal(0)
        assert run_until_it_tells(vcpu, machine) == DONE
        assert machine.memory.load_u32(PENDING) == 1  # masked: it waited, and came when unmasked
        assert machine.memory.load_u32(COUNT) == 2
    finally:
        card.close()
        bus.close()
