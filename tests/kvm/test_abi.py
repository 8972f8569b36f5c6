"""Sizes, offsets and numbers against those a C compiler gives for <linux/kvm.h> of Linux 6.1, written down here."""

from __future__ import annotations

import ctypes

import pytest

from appliance.kernel import kvm_abi, kvm_cpu_abi
from appliance.kernel.kvm_abi import irqchip_route, layout, msi_route, with_entries
from appliance.kernel.kvm_ioctls import Ioctl
from appliance.kernel.kvm_run_abi import KvmRun

NUMBERS = {
    "KVM_GET_API_VERSION": 0xAE00, "KVM_CREATE_VM": 0xAE01, "KVM_GET_MSR_INDEX_LIST": 0xC004AE02,
    "KVM_CHECK_EXTENSION": 0xAE03, "KVM_GET_VCPU_MMAP_SIZE": 0xAE04, "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_CREATE_VCPU": 0xAE41, "KVM_GET_DIRTY_LOG": 0x4010AE42, "KVM_CLEAR_DIRTY_LOG": 0xC018AEC0,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46, "KVM_SET_TSS_ADDR": 0xAE47, "KVM_SET_IDENTITY_MAP_ADDR": 0x4008AE48,
    "KVM_CREATE_IRQCHIP": 0xAE60, "KVM_IRQ_LINE": 0x4008AE61, "KVM_GET_IRQCHIP": 0xC208AE62,
    "KVM_SET_IRQCHIP": 0x8208AE63, "KVM_CREATE_PIT2": 0x4040AE77, "KVM_GET_PIT2": 0x8070AE9F,
    "KVM_SET_PIT2": 0x4070AEA0, "KVM_REINJECT_CONTROL": 0xAE71, "KVM_SET_GSI_ROUTING": 0x4008AE6A,
    "KVM_IRQFD": 0x4020AE76, "KVM_IOEVENTFD": 0x4040AE79, "KVM_SIGNAL_MSI": 0x4020AEA5, "KVM_SET_BOOT_CPU_ID": 0xAE78,
    "KVM_GET_CLOCK": 0x8030AE7C, "KVM_SET_CLOCK": 0x4030AE7B, "KVM_ENABLE_CAP": 0x4068AEA3, "KVM_RUN": 0xAE80,
    "KVM_GET_REGS": 0x8090AE81, "KVM_SET_REGS": 0x4090AE82, "KVM_GET_SREGS": 0x8138AE83, "KVM_SET_SREGS": 0x4138AE84,
    "KVM_TRANSLATE": 0xC018AE85, "KVM_GET_MSRS": 0xC008AE88, "KVM_SET_MSRS": 0x4008AE89, "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_GET_CPUID2": 0xC008AE91, "KVM_SET_SIGNAL_MASK": 0x4004AE8B, "KVM_GET_FPU": 0x81A0AE8C,
    "KVM_SET_FPU": 0x41A0AE8D, "KVM_GET_LAPIC": 0x8400AE8E, "KVM_SET_LAPIC": 0x4400AE8F,
    "KVM_GET_MP_STATE": 0x8004AE98, "KVM_SET_MP_STATE": 0x4004AE99, "KVM_NMI": 0xAE9A,
    "KVM_GET_VCPU_EVENTS": 0x8040AE9F, "KVM_SET_VCPU_EVENTS": 0x4040AEA0, "KVM_GET_DEBUGREGS": 0x8080AEA1,
    "KVM_SET_DEBUGREGS": 0x4080AEA2, "KVM_GET_XSAVE": 0x9000AEA4, "KVM_SET_XSAVE": 0x5000AEA5,
    "KVM_GET_XSAVE2": 0x9000AECF, "KVM_GET_XCRS": 0x8188AEA6, "KVM_SET_XCRS": 0x4188AEA7, "KVM_SET_TSC_KHZ": 0xAEA2,
    "KVM_GET_TSC_KHZ": 0xAEA3, "KVM_KVMCLOCK_CTRL": 0xAEAD,
}  # fmt: skip

RUN_OFFSETS = {
    "fail_entry.cpu": 40, "io.data_offset": 40, "mmio.len": 48, "mmio.is_write": 52, "hypercall.ret": 88,
    "internal.data": 40, "emulation_failure.insn_bytes": 49, "system_event.data": 40, "msr.index": 44, "msr.data": 48,
    "kvm_valid_regs": 288, "s": 304,
}  # fmt: skip


def test_every_ioctl_has_the_number_the_kernels_header_gives_it() -> None:
    assert {each.name: each.value for each in Ioctl} == NUMBERS


@pytest.mark.parametrize(("path", "offset"), RUN_OFFSETS.items())
def test_the_exits_are_where_the_kernel_puts_them(path: str, offset: int) -> None:
    run = KvmRun()
    inside: object = run
    *outer, last = path.split(".")
    for name in outer:
        inside = getattr(inside, name)
    assert isinstance(inside, ctypes.Structure)
    start = ctypes.addressof(inside) - ctypes.addressof(run)
    assert start + getattr(type(inside), last).offset == offset


def test_a_structure_of_the_wrong_size_or_order_fails_the_import() -> None:
    with pytest.raises(AssertionError, match="KvmMsi is 32 bytes"):
        layout(31)(kvm_abi.KvmMsi)
    with pytest.raises(AssertionError, match=r"KvmMsi\.data is misplaced"):
        layout(32, data=4)(kvm_abi.KvmMsi)


def test_entries_follow_their_header_in_the_same_memory() -> None:
    header, entries = with_entries(kvm_cpu_abi.KvmMsrs, kvm_cpu_abi.KvmMsrEntry, 3)
    assert ctypes.addressof(entries) == ctypes.addressof(header) + 8
    entries[2].index = 0x10
    assert ctypes.string_at(ctypes.addressof(header), 8 + 3 * 16)[8 + 32] == 0x10


def test_routes_are_the_kernels_bytes() -> None:
    assert bytes(irqchip_route(4, 2, 20)) == bytes.fromhex("04000000 01000000 00000000 00000000 02000000 14000000") + (
        b"\0" * 24
    )
    assert bytes(msi_route(24, 0x1_FEE0_0000, 0x41)) == (
        bytes.fromhex("18000000 02000000 00000000 00000000 0000e0fe 01000000 41000000") + b"\0" * 20
    )
