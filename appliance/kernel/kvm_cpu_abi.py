"""The binary interface of <linux/kvm.h> for x86-64: a vCPU's registers and state. See `kvm_abi` for the map."""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

from appliance.kernel.kvm_abi import alike, layout

KVM_NR_INTERRUPTS = 256
KVM_APIC_REG_SIZE = 0x400
KVM_MAX_XCRS = 16
KVM_MAX_CPUID_ENTRIES = 256  # arch/x86/include/asm/kvm_host.h: no list is longer
KVM_XSAVE_BYTES = 4096  # struct kvm_xsave; KVM_CAP_XSAVE2 tells the size where it is larger (api.rst KVM_GET_XSAVE2)
SIGSET_BYTES = 8  # the kernel's sigset_t: 64 signals

KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED = 0, 1, 2
KVM_MP_STATE_HALTED, KVM_MP_STATE_SIPI_RECEIVED = 3, 4

KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_SHADOW = 1, 2, 4
KVM_VCPUEVENT_VALID_SMM, KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_TRIPLE_FAULT = 8, 16, 32

KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1  # spelled as in the kernel


@layout(144, rsp=48, r8=64, rip=128, rflags=136)
class KvmRegs(ctypes.Structure):
    """struct kvm_regs (api.rst KVM_GET_REGS)."""

    _fields_ = alike(c_uint64, "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags")


@layout(24, selector=12, present=15, unusable=22)
class KvmSegment(ctypes.Structure):
    """struct kvm_segment: a segment register and its hidden part (SDM vol.3 §3.4.3)."""

    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        *alike(c_uint8, "type present dpl db s l g avl unusable padding"),
    )


@layout(16, limit=8)
class KvmDtable(ctypes.Structure):
    """struct kvm_dtable: GDTR or IDTR."""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


@layout(312, gdt=192, cr0=224, efer=264, interrupt_bitmap=280)
class KvmSregs(ctypes.Structure):
    """struct kvm_sregs (api.rst KVM_GET_SREGS)."""

    _fields_ = (
        *alike(KvmSegment, "cs ds es fs gs ss tr ldt"),
        ("gdt", KvmDtable),
        ("idt", KvmDtable),
        *alike(c_uint64, "cr0 cr2 cr3 cr4 cr8 efer apic_base"),
        ("interrupt_bitmap", c_uint64 * (KVM_NR_INTERRUPTS // 64)),
    )


@layout(416, fcw=128, last_ip=136, xmm=152, mxcsr=408)
class KvmFpu(ctypes.Structure):
    """struct kvm_fpu (api.rst KVM_GET_FPU)."""

    _fields_ = (
        ("fpr", c_uint8 * 16 * 8),
        ("fcw", c_uint16),
        ("fsw", c_uint16),
        ("ftwx", c_uint8),
        ("pad1", c_uint8),
        ("last_opcode", c_uint16),
        ("last_ip", c_uint64),
        ("last_dp", c_uint64),
        ("xmm", c_uint8 * 16 * 16),
        ("mxcsr", c_uint32),
        ("pad2", c_uint32),
    )


@layout(KVM_APIC_REG_SIZE)
class KvmLapicState(ctypes.Structure):
    """struct kvm_lapic_state: the local APIC's register page (SDM vol.3 §11.4.1; api.rst KVM_GET_LAPIC)."""

    _fields_ = (("regs", c_uint8 * KVM_APIC_REG_SIZE),)


@layout(4)
class KvmMpState(ctypes.Structure):
    """struct kvm_mp_state (api.rst KVM_GET_MP_STATE)."""

    _fields_ = (("mp_state", c_uint32),)


class _Exception(ctypes.Structure):
    _fields_ = (
        *alike(c_uint8, "injected nr has_error_code pending"),
        ("error_code", c_uint32),
    )


class _Interrupt(ctypes.Structure):
    _fields_ = alike(c_uint8, "injected nr soft shadow")


class _Nmi(ctypes.Structure):
    _fields_ = alike(c_uint8, "injected pending masked pad")


class _Smi(ctypes.Structure):
    _fields_ = alike(c_uint8, "smm pending smm_inside_nmi latched_init")


@layout(64, interrupt=8, nmi=12, sipi_vector=16, flags=20, smi=24, triple_fault=28, exception_payload=56)
class KvmVcpuEvents(ctypes.Structure):
    """struct kvm_vcpu_events (api.rst KVM_GET_VCPU_EVENTS)."""

    _fields_ = (
        ("exception", _Exception),
        ("interrupt", _Interrupt),
        ("nmi", _Nmi),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi", _Smi),
        ("triple_fault", c_uint8),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    )


@layout(128, dr6=32, flags=48)
class KvmDebugregs(ctypes.Structure):
    """struct kvm_debugregs (api.rst KVM_GET_DEBUGREGS)."""

    _fields_ = (
        ("db", c_uint64 * 4),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
        ("flags", c_uint64),
        ("reserved", c_uint64 * 9),
    )


@layout(KVM_XSAVE_BYTES)
class KvmXsave(ctypes.Structure):
    """struct kvm_xsave, without its `extra` part: an XSAVE area (SDM vol.1 §13.4; api.rst KVM_GET_XSAVE)."""

    _fields_ = (("region", c_uint32 * (KVM_XSAVE_BYTES // 4)),)


@layout(16, value=8)
class KvmXcr(ctypes.Structure):
    """struct kvm_xcr."""

    _fields_ = (("xcr", c_uint32), ("reserved", c_uint32), ("value", c_uint64))


@layout(392, xcrs=8, padding=264)
class KvmXcrs(ctypes.Structure):
    """struct kvm_xcrs (api.rst KVM_GET_XCRS)."""

    _fields_ = (
        ("nr_xcrs", c_uint32),
        ("flags", c_uint32),
        ("xcrs", KvmXcr * KVM_MAX_XCRS),
        ("padding", c_uint64 * 16),
    )


@layout(16, data=8)
class KvmMsrEntry(ctypes.Structure):
    """struct kvm_msr_entry."""

    _fields_ = (("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64))


@layout(8)
class KvmMsrs(ctypes.Structure):
    """struct kvm_msrs, without its entries (api.rst KVM_GET_MSRS)."""

    _fields_ = (("nmsrs", c_uint32), ("pad", c_uint32))


@layout(4)
class KvmMsrIndex(ctypes.Structure):
    """One entry of struct kvm_msr_list."""

    _fields_ = (("index", c_uint32),)


@layout(4)
class KvmMsrList(ctypes.Structure):
    """struct kvm_msr_list, without its indices (api.rst KVM_GET_MSR_INDEX_LIST)."""

    _fields_ = (("nmsrs", c_uint32),)


@layout(40, flags=8, eax=12, edx=24)
class KvmCpuidEntry2(ctypes.Structure):
    """struct kvm_cpuid_entry2 (api.rst KVM_SET_CPUID2)."""

    _fields_ = (
        *alike(c_uint32, "function index flags eax ebx ecx edx"),
        ("padding", c_uint32 * 3),
    )


@layout(8)
class KvmCpuid2(ctypes.Structure):
    """struct kvm_cpuid2, without its entries."""

    _fields_ = (("nent", c_uint32), ("padding", c_uint32))


@layout(4)
class KvmSignalMask(ctypes.Structure):
    """struct kvm_signal_mask, without its set (api.rst KVM_SET_SIGNAL_MASK)."""

    _fields_ = (("len", c_uint32),)


@layout(12, sigset=4)
class KvmSignalMask64(ctypes.Structure):
    """struct kvm_signal_mask with the kernel's set of 64 signals; packed, as the set follows `len` directly."""

    _pack_ = 4
    _fields_ = (("len", c_uint32), ("sigset", c_uint64))


@layout(24, physical_address=8, valid=16)
class KvmTranslation(ctypes.Structure):
    """struct kvm_translation (api.rst KVM_TRANSLATE)."""

    _fields_ = (
        ("linear_address", c_uint64),
        ("physical_address", c_uint64),
        ("valid", c_uint8),
        ("writeable", c_uint8),
        ("usermode", c_uint8),
        ("pad", c_uint8 * 5),
    )
