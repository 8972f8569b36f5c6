"""struct kvm_run: what KVM_RUN is told and why it returned (api.rst "The kvm_run structure"). See `kvm_abi` for the map.

Only the exits an x86 guest can cause are spelled out in the union; its 256 bytes are kept as `padding`.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum

from appliance.kernel.kvm_abi import layout
from appliance.kernel.kvm_cpu_abi import KvmRegs, KvmSregs, KvmVcpuEvents

KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT = 0, 1

KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX = 1, 2
KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 3, 4
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1

KVM_SYSTEM_EVENT_SHUTDOWN, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_CRASH = 1, 2, 3

KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, KVM_SYNC_X86_EVENTS = 1, 2, 4
SYNC_REGS_SIZE_BYTES = 2048


class ExitReason(IntEnum):
    """KVM_EXIT_*: the reasons an x86 vCPU returns with."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    WATCHDOG = 21
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    HYPERV = 27
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    AP_RESET_HOLD = 32
    X86_BUS_LOCK = 33
    XEN = 34
    NOTIFY = 37


class _Hw(ctypes.Structure):
    _fields_ = (("hardware_exit_reason", c_uint64),)


class _FailEntry(ctypes.Structure):
    _fields_ = (("hardware_entry_failure_reason", c_uint64), ("cpu", c_uint32))


class _Ex(ctypes.Structure):
    _fields_ = (("exception", c_uint32), ("error_code", c_uint32))


@layout(16, port=2, count=4, data_offset=8)
class _Io(ctypes.Structure):
    _fields_ = (
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    )


class _Debug(ctypes.Structure):
    _fields_ = (("exception", c_uint32), ("pad", c_uint32), ("pc", c_uint64), ("dr6", c_uint64), ("dr7", c_uint64))


@layout(24, data=8, len=16, is_write=20)
class _Mmio(ctypes.Structure):
    _fields_ = (("phys_addr", c_uint64), ("data", c_uint8 * 8), ("len", c_uint32), ("is_write", c_uint8))


@layout(72, args=8, ret=56, longmode=64)
class _Hypercall(ctypes.Structure):
    _fields_ = (
        ("nr", c_uint64),
        ("args", c_uint64 * 6),
        ("ret", c_uint64),
        ("longmode", c_uint32),
        ("pad", c_uint32),
    )


class _TprAccess(ctypes.Structure):
    _fields_ = (("rip", c_uint64), ("is_write", c_uint32), ("pad", c_uint32))


@layout(136, data=8)
class _Internal(ctypes.Structure):
    _fields_ = (("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16))


@layout(32, flags=8, insn_size=16, insn_bytes=17)
class _EmulationFailure(ctypes.Structure):
    _fields_ = (
        ("suberror", c_uint32),
        ("ndata", c_uint32),
        ("flags", c_uint64),
        ("insn_size", c_uint8),
        ("insn_bytes", c_uint8 * 15),
    )


@layout(136, data=8)
class _SystemEvent(ctypes.Structure):
    _fields_ = (("type", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16))


class _Eoi(ctypes.Structure):
    _fields_ = (("vector", c_uint8),)


@layout(24, reason=8, index=12, data=16)
class _Msr(ctypes.Structure):
    _fields_ = (
        ("error", c_uint8),
        ("pad", c_uint8 * 7),
        ("reason", c_uint32),
        ("index", c_uint32),
        ("data", c_uint64),
    )


class _Notify(ctypes.Structure):
    _fields_ = (("flags", c_uint32),)


class _Exit(ctypes.Union):
    _fields_ = (
        ("hw", _Hw),
        ("fail_entry", _FailEntry),
        ("ex", _Ex),
        ("io", _Io),
        ("debug", _Debug),
        ("mmio", _Mmio),
        ("hypercall", _Hypercall),
        ("tpr_access", _TprAccess),
        ("internal", _Internal),
        ("emulation_failure", _EmulationFailure),
        ("system_event", _SystemEvent),
        ("eoi", _Eoi),
        ("msr", _Msr),
        ("notify", _Notify),
        ("padding", c_uint8 * 256),
    )


@layout(520, sregs=144, events=456)
class KvmSyncRegs(ctypes.Structure):
    """struct kvm_sync_regs."""

    _fields_ = (("regs", KvmRegs), ("sregs", KvmSregs), ("events", KvmVcpuEvents))


class _Sync(ctypes.Union):
    _fields_ = (("regs", KvmSyncRegs), ("padding", c_uint8 * SYNC_REGS_SIZE_BYTES))


@layout(2352, immediate_exit=1, exit_reason=8, if_flag=13, flags=14, cr8=16, apic_base=24, io=32, mmio=32)
@layout(2352, system_event=32, internal=32, msr=32, hypercall=32, fail_entry=32, kvm_valid_regs=288, s=304)
class KvmRun(ctypes.Structure):
    """struct kvm_run: the start of the area mapped from a vCPU's descriptor; the exits are fields of their own."""

    _anonymous_ = ("exit",)
    _fields_ = (
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("exit", _Exit),
        ("kvm_valid_regs", c_uint64),
        ("kvm_dirty_regs", c_uint64),
        ("s", _Sync),
    )
