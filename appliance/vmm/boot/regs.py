"""A vCPU's registers: at power-on and reset, and where a kernel is entered without firmware.

Power-on state is what KVM gives a vCPU just made (SDM vol.3 §10.1.1: real mode, first instruction at 0xffff_fff0); it is
kept by `PowerOn.capture` and given back at every reset, so it has what KVM knows of and we do not. Time goes on over a
reset: the TSC is not set back. An `Entry` is laid over it on the first vCPU; the others wait for INIT and SIPI.

Called in each vCPU's own thread, or while none runs (`kvm_vcpu`).
"""

from __future__ import annotations

from collections.abc import Collection
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

# What a reset clears (SDM vol.4; kvm_para.h for KVM's own): all but the TSC, and what describes the processor.
_KVM_CLOCKS = (0x11, 0x12, 0x4B56_4D00, 0x4B56_4D01)
RESET_MSRS: Final = (
    *(0x174, 0x175, 0x176),  # SYSENTER
    *(0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0102, 0xC000_0103),  # SYSCALL, swapgs, TSC_AUX
    *(
        0x277,
        0x1A0,
        0x3A,
        0x3B,
        0x48,
        0x122,
        0xDA0,
        0x1D9,
    ),  # PAT, MISC_ENABLE, features, TSC_ADJUST, speculation, DEBUGCTL
    *(0x17A, 0x17B, 0x6E0),  # machine check status and control, the deadline timer
    *_KVM_CLOCKS,
    *(
        0x4B56_4D02,
        0x4B56_4D03,
        0x4B56_4D04,
        0x4B56_4D05,
        0x4B56_4D06,
        0x4B56_4D07,
    ),  # async PF, steal time, EOI, polling
)
MTRR_MSRS: Final = (
    *(0x250, 0x258, 0x259, *range(0x268, 0x270)),  # fixed ranges
    *range(0x200, 0x210),  # eight variable ones
    MSR_MTRR_DEF_TYPE,
)


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


@dataclass(frozen=True, slots=True)
class PowerOn:
    """One vCPU's power-on state."""

    regs: abi.KvmRegs
    sregs: abi.KvmSregs
    xsave: bytes
    xcrs: abi.KvmXcrs
    debugregs: abi.KvmDebugregs
    events: abi.KvmVcpuEvents
    lapic: abi.KvmLapicState
    msrs: dict[int, int]

    @staticmethod
    def capture(vcpu: Vcpu, known_msrs: Collection[int]) -> PowerOn:
        """Of a vCPU just made, its CPUID set, that has not run. `known_msrs` is KVM_GET_MSR_INDEX_LIST; the MTRRs, which
        it does not list, are asked for one by one. Raises `HostError`."""
        try:
            msrs = vcpu.get_msrs([index for index in RESET_MSRS if index in known_msrs])
            msrs |= _answered(vcpu, MTRR_MSRS)
            return PowerOn(
                regs=vcpu.get_regs(),
                sregs=vcpu.get_sregs(),
                xsave=vcpu.get_xsave(),
                xcrs=vcpu.get_xcrs(),
                debugregs=vcpu.get_debugregs(),
                events=vcpu.get_vcpu_events(),
                lapic=vcpu.get_lapic(),
                msrs=msrs,
            )
        except OSError as error:
            raise HostError.from_os_error(error, f"{vcpu.name}: its power-on state") from error

    def restore(self, vcpu: Vcpu, *, first: bool, entry: Entry | None = None) -> None:
        """Power-on state again. `first` is the vCPU that runs; with an `entry` it begins there. Raises `HostError`."""
        regs = abi.KvmRegs.from_buffer_copy(self.regs)
        sregs = abi.KvmSregs.from_buffer_copy(self.sregs)
        msrs = dict(self.msrs)
        if entry is not None and first:
            apply_entry(regs, sregs, entry)
        if entry is not None and MSR_MTRR_DEF_TYPE in msrs:
            msrs[MSR_MTRR_DEF_TYPE] = MTRR_WRITE_BACK
        try:
            vcpu.set_sregs(sregs)
            vcpu.set_regs(regs)
            vcpu.set_xcrs(self.xcrs)
            vcpu.set_xsave(self.xsave)
            vcpu.set_debugregs(self.debugregs)
            vcpu.set_msrs(msrs)
            vcpu.set_lapic(self.lapic)
            vcpu.set_vcpu_events(self.events)
            vcpu.set_mp_state(abi.KVM_MP_STATE_RUNNABLE if first else abi.KVM_MP_STATE_UNINITIALIZED)
        except OSError as error:
            raise HostError.from_os_error(error, f"{vcpu.name}: setting its power-on state") from error


def _answered(vcpu: Vcpu, indices: Collection[int]) -> dict[int, int]:
    """Those of `indices` that this vCPU has."""
    answered: dict[int, int] = {}
    for index in indices:
        try:
            answered |= vcpu.get_msrs([index])
        except OSError:
            continue
    return answered
