"""Small kernels on the real /dev/kvm tell in what state they were entered."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from appliance.errors import Unsupported
from appliance.kernel.kvm import Kvm
from appliance.kernel.kvm_caps import Cap
from appliance.kernel.kvm_run_abi import ExitReason
from appliance.kernel.kvm_vcpu import Vcpu
from appliance.vmm import layout
from appliance.vmm.boot import acpi, cpu_models, cpuid, linux, low_memory, pvh, regs, smbios
from appliance.vmm.boot.cpuid import Leaf, Topology
from appliance.vmm.boot.dsdt import Platform
from appliance.vmm.boot.e820 import Kind, direct_map
from appliance.vmm.memory import GuestMemory
from tests.fakes.kernels import NOTE_PVH, bzimage, elf_kernel, note

pytestmark = pytest.mark.host

RAM_BYTES = 16 << 20
REPORT = 0x60_0000
CMDLINE, INITRD = "console=hvc0 quiet", b"\x11\x22\x33\x44\x55\x66\x77\x88 and more"

# Each value goes to REPORT + 8 n: rsi, rsp, cs, ds, ss, cr0, cr3, cr4, rflags, efer, gdtr (2), RAM in the memory map,
# first bytes of the command line, of the initrd, of the RSDP. Then ss, ds and cs are loaded anew from the GDT.
LONG_MODE = bytes.fromhex(
    "bf00006000 488937 48896708"  # mov edi,REPORT; mov [rdi],rsi; mov [rdi+8],rsp
    "8cc8 48894710 8cd8 48894718 8cd0 48894720"  # cs, ds, ss
    "0f20c0 48894728 0f20d8 48894730 0f20e0 48894738"  # cr0, cr3, cr4
    "9c 58 48894740 b9800000c0 0f32 48894748 0f014750"  # pushf; pop rax; rdmsr EFER; sgdt [rdi+0x50]
    "0fb68ee8010000 488d9ed0020000 31c0"  # movzx ecx,[rsi+0x1e8]; lea rbx,[rsi+0x2d0]; xor eax,eax
    "837b1001 7504 48034308 4883c314 e2f0 48894760"  # 1: type 1? add rax,[rbx+8]; add rbx,20; loop 1b
    "8b9e28020000 488b03 48894768 8b9e18020000 488b03 48894770 488b5e70 488b03 48894778"
    "b818000000 8ed8 8ed0 488d0505000000 6a10 50 48cb"  # ds, ss = 0x18; lea rax,[rip+5]; push 0x10; push rax; retfq
    "b02a e680 f4"  # mov al,0x2a; out 0x80,al; hlt
)
# The same in 32-bit protected mode from PVH's start info, ebx first; cr3, EFER are left out
PROTECTED_MODE = bytes.fromhex(
    "bf00006000 891f 896708 8cc8 894710 8cd8 894718 8cd0 894720 0f20c0 894728 0f20e0 894738 9c 58 894740 0f014750"
    "8b7328 8b4b30 31c0 31d2 837e1001 7506 034608 13560c 83c618 e2ef 894760 895764"  # the map at [ebx+40], [ebx+48] long
    "8b7318 8b06 894768 8b7310 8b36 8b06 894770 8b7320 8b06 894778"
    "b818000000 8ed8 8ed0 6a10 e800000000 58 0508000000 50 cb b02b e680 f4"  # push 0x10; call +0; pop eax; add eax,8; retf
)
# mov eax,1; xor ecx,ecx; cpuid → REPORT; mov eax,0x40000000; cpuid → REPORT+16; out 0x80; hlt
TELL_CPUID = bytes.fromhex(
    "bf00006000 b801000000 31c9 0fa2 8907 895f04 894f08 89570c"
    "b800000040 31c9 0fa2 894710 895f14 894f18 89571c b02c e680 f4"
)


@contextmanager
def pc(kvm: Kvm) -> Iterator[tuple[GuestMemory, Vcpu]]:
    """RAM and the first vCPU of a machine with KVM's interrupt controllers."""
    memory = GuestMemory(RAM_BYTES, name="vm t")
    try:
        with kvm.create_vm("vm t") as vm:
            vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP)
            vm.set_tss_addr(layout.KVM_TSS)
            vm.create_irqchip()
            for slot, region in enumerate(memory.regions):
                vm.set_user_memory_region(
                    slot,
                    guest_phys_addr=region.base,
                    memory_size=region.size,
                    userspace_addr=memory.host_address(region.base, region.size),
                )
            yield memory, vm.create_vcpu(0)
    finally:
        memory.close()


def offered(kvm: Kvm) -> list[Leaf]:
    return [Leaf.from_kvm(entry) for entry in kvm.get_supported_cpuid()]


def tables(memory: GuestMemory) -> low_memory.DirectTables:
    identity = smbios.Identity(uuid="00112233-4455-6677-8899-aabbccddeeff", ram_bytes=memory.size)
    return low_memory.place_tables(memory, acpi.build(Platform(apic_ids=(0,), ram_bytes=memory.size)), identity)


def run_to_the_end(vcpu: Vcpu, expected: int) -> None:
    assert vcpu.run() == ExitReason.IO, vcpu.kvm_run.exit_reason
    assert (vcpu.kvm_run.io.port, vcpu.io_data()) == (0x80, bytes([expected]))


def report(memory: GuestMemory) -> tuple[int, ...]:
    return struct.unpack("<16Q", memory.read(REPORT, 128))


def ram_told() -> int:
    return sum(entry.size for entry in direct_map(RAM_BYTES) if entry.kind is Kind.RAM)


def configured(kvm: Kvm, vcpu: Vcpu) -> None:
    made = cpuid.leaves(offered(kvm), "host", Topology(), 0, tsc_deadline=True)
    vcpu.set_cpuid2([leaf.to_kvm() for leaf in made])


def check_common(memory: GuestMemory, found: tuple[int, ...], width: int) -> None:
    mask = (1 << 8 * width) - 1
    assert found[1] == low_memory.STACK_TOP
    assert found[2:5] == (0x10, 0x18, 0x18)
    assert found[8] & ~0x2 == 0  # interrupts off, no flags
    gdtr = memory.read(REPORT + 0x50, 6)
    assert struct.unpack("<HI", gdtr) == (39, low_memory.GDT)
    assert found[12] == ram_told()
    assert found[13] & mask == int.from_bytes(CMDLINE.encode()[:width], "little")
    assert found[14] & mask == int.from_bytes(INITRD[:width], "little")
    assert found[15] & mask == int.from_bytes(b"RSD PTR "[:width], "little")


@pytest.mark.parametrize("kind", ["bzImage", "ELF without a note"])
def test_linux_is_entered_in_long_mode_with_its_zero_page(kvm: Kvm, kind: str) -> None:
    with pc(kvm) as (memory, vcpu):
        configured(kvm, vcpu)
        arguments = {"tables": tables(memory), "name": "vm t: kernel"}
        if kind == "bzImage":
            entry = linux.load_linux(memory, bzimage(LONG_MODE), INITRD, CMDLINE, **arguments)  # type: ignore[arg-type]
        else:
            entry = pvh.load_pvh(memory, elf_kernel(LONG_MODE), INITRD, CMDLINE, **arguments)  # type: ignore[arg-type]
        regs.enter(vcpu, entry)
        run_to_the_end(vcpu, 0x2A)
        found = report(memory)
        check_common(memory, found, 8)
        assert found[0] == low_memory.ZERO_PAGE
        assert found[5] & 0x8000_0001 == 0x8000_0001
        assert found[6:8] == (low_memory.PAGE_TABLES, 0x20)
        assert found[9] & 0x500 == 0x500


def test_a_pvh_kernel_is_entered_in_protected_mode_with_its_start_info(kvm: Kvm) -> None:
    with pc(kvm) as (memory, vcpu):
        configured(kvm, vcpu)
        kernel = elf_kernel(PROTECTED_MODE, entry=7, notes=note(b"Xen", NOTE_PVH, 2 << 20))
        entry = pvh.load_pvh(memory, kernel, INITRD, CMDLINE, tables=tables(memory), name="vm t: kernel")
        regs.enter(vcpu, entry)
        run_to_the_end(vcpu, 0x2B)
        found = report(memory)
        check_common(memory, found, 4)
        assert found[0] == low_memory.START_INFO
        assert found[5] & 0x8000_0001 == 1
        assert found[7] == 0


def test_each_vcpu_gets_write_back_memory_types_and_only_the_first_begins_at_the_kernel(kvm: Kvm) -> None:
    with kvm.create_vm("vm t") as vm:
        vm.create_irqchip()
        first, second = vm.create_vcpu(0), vm.create_vcpu(1)
        entry = regs.long_mode(ip=0x123456, boot_params=0x7000)
        for vcpu in (first, second):
            regs.enter(vcpu, entry)
            assert vcpu.get_msrs([regs.MSR_MTRR_DEF_TYPE]) == {regs.MSR_MTRR_DEF_TYPE: 0x806}
        assert (first.get_regs().rip, second.get_regs().rip) == (0x123456, 0xFFF0)
        assert second.get_sregs().cs.base == 0xFFFF_0000


def test_a_guest_sees_the_cpuid_it_was_given(kvm: Kvm) -> None:
    with pc(kvm) as (memory, vcpu):
        deadline = bool(kvm.check_extension(Cap.TSC_DEADLINE_TIMER))
        made = cpuid.leaves(offered(kvm), "host", Topology(2, 3), 0, tsc_deadline=deadline)
        vcpu.set_cpuid2([leaf.to_kvm() for leaf in made])
        entry = linux.load_linux(memory, bzimage(TELL_CPUID), b"", "", tables=tables(memory), name="vm t: kernel")
        regs.enter(vcpu, entry)
        run_to_the_end(vcpu, 0x2C)
        _, ebx, ecx, edx, highest, *signature = struct.unpack("<8I", memory.read(REPORT, 32))
        assert (ebx >> 24, ebx >> 16 & 0xFF) == (0, 3)
        assert ecx & cpuid.HYPERVISOR
        assert edx & cpuid.HTT
        assert highest >= 0x4000_0001
        assert tuple(signature) == cpuid.SIGNATURE


def test_kvm_takes_every_model_this_host_can_have(kvm: Kvm) -> None:
    taken = set()
    for model in sorted(cpu_models.MODELS):
        try:
            made = cpuid.leaves(offered(kvm), model, Topology(1, 2), 1, tsc_deadline=True)
        except Unsupported:
            continue
        with kvm.create_vm("vm t") as vm:
            vm.create_irqchip()
            vcpu = vm.create_vcpu(1)
            vcpu.set_cpuid2([leaf.to_kvm() for leaf in made])
            told = {(entry.function, entry.index): entry for entry in vcpu.get_cpuid2()}
            assert told[1, 0].ebx >> 24 == 1
        taken.add(model)
    assert {"", "host", "max"} <= taken
