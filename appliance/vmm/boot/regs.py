"""A vCPU's registers where a kernel is entered without firmware.

Power-on and reset state is what KVM gives a vCPU just made (SDM vol.3 §10.1.1: real mode, first instruction at 0xffff_fff0,
where the firmware is); `board` keeps it and gives it back. An `Entry` is laid over it.

Linux by its 64-bit protocol: long mode, identity page tables, rsi at the zero page. PVH: 32-bit protected mode, ebx at the
start info. Both: flat segments, interrupts off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from appliance.errors import HostError
from appliance.kernel import kvm_cpu_abi as abi
from appliance.kernel.kvm_vcpu import Vcpu
from appliance.vmm.boot.low_memory import (
    CODE_32,
    CODE_64,
    DATA,
    GDT,
    GDT_ENTRIES,
    PAGE_TABLES,
    SELECTOR_CODE,
    SELECTOR_DATA,
    SELECTOR_TASK,
    STACK_TOP,
    TASK,
)

CR0_PE, CR0_ET, CR0_PG = 1 << 0, 1 << 4, 1 << 31
CR4_PAE: Final = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
RFLAGS_RESERVED: Final = 1 << 1

MSR_MTRR_DEF_TYPE: Final = 0x2FF
MTRR_WRITE_BACK: Final = 1 << 11 | 6  # enabled, everything write-back (SDM vol.3 §12.11.2.1): what firmware would set


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where the first vCPU begins, and what it finds in its registers. Made by `long_mode` and `protected_mode`."""

    ip: int
    code: int  # flags of CS, as in low_memory
    rsi: int = 0
    rbx: int = 0
    cr0: int
    cr3: int = 0
    cr4: int = 0
    efer: int = 0


def long_mode(*, ip: int, boot_params: int) -> Entry:
    """boot.rst, "64-bit BOOT PROTOCOL": paging on, rsi at the zero page."""
    cr0 = CR0_PE | CR0_ET | CR0_PG
    return Entry(ip=ip, code=CODE_64, rsi=boot_params, cr0=cr0, cr3=PAGE_TABLES, cr4=CR4_PAE, efer=EFER_LME | EFER_LMA)


def protected_mode(*, ip: int, start_info: int) -> Entry:
    """PVH: paging off, ebx at the start info."""
    return Entry(ip=ip, code=CODE_32, rbx=start_info, cr0=CR0_PE | CR0_ET)


def segment(selector: int, flags: int, *, limit: int = 0xFFFF_FFFF) -> abi.KvmSegment:
    """A flat segment. `flags` as in low_memory: descriptor bits 40-47 in 0-7, 52-55 in 12-15."""
    return abi.KvmSegment(
        base=0,
        limit=limit,
        selector=selector,
        type=flags & 0xF,
        s=flags >> 4 & 1,
        dpl=flags >> 5 & 3,
        present=flags >> 7 & 1,
        avl=flags >> 12 & 1,
        l=flags >> 13 & 1,
        db=flags >> 14 & 1,
        g=flags >> 15 & 1,
    )


def apply_entry(regs: abi.KvmRegs, sregs: abi.KvmSregs, entry: Entry) -> None:
    """Change power-on registers to `entry`'s."""
    regs.rip, regs.rsi, regs.rbx = entry.ip, entry.rsi, entry.rbx
    regs.rsp = regs.rbp = STACK_TOP
    regs.rflags = RFLAGS_RESERVED
    sregs.cs = segment(SELECTOR_CODE, entry.code)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, segment(SELECTOR_DATA, DATA))
    sregs.tr = segment(SELECTOR_TASK, TASK, limit=0x67)
    sregs.gdt.base, sregs.gdt.limit = GDT, 8 * GDT_ENTRIES - 1
    sregs.idt.base, sregs.idt.limit = 0, 0
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = entry.cr0, entry.cr3, entry.cr4, entry.efer


def enter(vcpu: Vcpu, entry: Entry) -> None:
    """Over power-on state, in the vCPU's thread: the first vCPU begins at `entry`; each gets the MTRRs that firmware would
    have set. The others wait for INIT and SIPI as they are. Raises `HostError`."""
    try:
        vcpu.set_msrs({MSR_MTRR_DEF_TYPE: MTRR_WRITE_BACK})
        if vcpu.index == 0:
            regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
            apply_entry(regs, sregs, entry)
            vcpu.set_sregs(sregs)
            vcpu.set_regs(regs)
    except OSError as error:
        raise HostError.from_os_error(error, f"{vcpu.name}: the kernel's entry state") from error
