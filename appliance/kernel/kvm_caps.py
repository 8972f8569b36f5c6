"""The numbers of KVM's capabilities that matter here (include/uapi/linux/kvm.h, api.rst "Capabilities")."""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class Cap(IntEnum):
    """KVM_CAP_*. `KVM_CHECK_EXTENSION` answers 0 for "no", otherwise 1, a limit or a set of flags."""

    IRQCHIP = 0
    HLT = 1
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    CLOCKSOURCE = 8
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    SYNC_MMU = 16
    DESTROY_MEMORY_REGION_WORKS = 21
    USER_NMI = 22
    REINJECT_CONTROL = 24
    IRQ_ROUTING = 25
    JOIN_MEMORY_REGIONS_WORKS = 30
    IRQFD = 32
    PIT2 = 33
    SET_BOOT_CPU_ID = 34
    PIT_STATE2 = 35
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    ADJUST_CLOCK = 39
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    DEBUGREGS = 50
    XSAVE = 55
    XCRS = 56
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    TSC_DEADLINE_TIMER = 72
    SYNC_REGS = 74
    KVMCLOCK_CTRL = 76
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    IRQFD_RESAMPLE = 82
    ENABLE_CAP_VM = 98
    IOEVENTFD_NO_LENGTH = 100
    CHECK_EXTENSION_VM = 105
    IOEVENTFD_ANY_LENGTH = 122
    MAX_VCPU_ID = 128
    X2APIC_API = 129
    IMMEDIATE_EXIT = 136
    X86_DISABLE_EXITS = 143
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    HALT_POLL = 182
    STEAL_TIME = 187
    X86_USER_SPACE_MSR = 188
    EXIT_ON_EMULATION_FAILURE = 204
    XSAVE2 = 208
    SYSTEM_EVENT_DATA = 215
