"""The numbers of KVM's ioctls, computed from their structures' sizes as <linux/kvm.h> does. See `kvm_abi` for the map."""

from __future__ import annotations

import ctypes
from enum import IntEnum, unique

from appliance.kernel import kvm_abi as vm
from appliance.kernel import kvm_cpu_abi as cpu

KVMIO = 0xAE

# asm-generic/ioctl.h: number in bits 0-7, type in 8-15, size in 16-29, direction in 30-31
_WRITE, _READ = 1, 2

_Argument = type[ctypes.Structure] | type[ctypes.c_uint64]


def _number(direction: int, number: int, size_bytes: int) -> int:
    assert size_bytes < 1 << 14
    return direction << 30 | size_bytes << 16 | KVMIO << 8 | number


def _io(number: int) -> int:
    return _number(0, number, 0)


def _iow(number: int, argument: _Argument) -> int:
    """The kernel reads the argument."""
    return _number(_WRITE, number, ctypes.sizeof(argument))


def _ior(number: int, argument: _Argument) -> int:
    """The kernel writes the argument."""
    return _number(_READ, number, ctypes.sizeof(argument))


def _iowr(number: int, argument: _Argument) -> int:
    return _number(_READ | _WRITE, number, ctypes.sizeof(argument))


@unique
class Ioctl(IntEnum):
    """Every ioctl used, named as in api.rst; grouped by the descriptor that takes it."""

    # system
    KVM_GET_API_VERSION = _io(0x00)
    KVM_CREATE_VM = _io(0x01)
    KVM_GET_MSR_INDEX_LIST = _iowr(0x02, cpu.KvmMsrList)
    KVM_CHECK_EXTENSION = _io(0x03)  # also a VM's
    KVM_GET_VCPU_MMAP_SIZE = _io(0x04)
    KVM_GET_SUPPORTED_CPUID = _iowr(0x05, cpu.KvmCpuid2)
    # VM
    KVM_CREATE_VCPU = _io(0x41)
    KVM_GET_DIRTY_LOG = _iow(0x42, vm.KvmDirtyLog)
    KVM_SET_USER_MEMORY_REGION = _iow(0x46, vm.KvmUserspaceMemoryRegion)
    KVM_SET_TSS_ADDR = _io(0x47)
    KVM_SET_IDENTITY_MAP_ADDR = _iow(0x48, ctypes.c_uint64)
    KVM_CREATE_IRQCHIP = _io(0x60)
    KVM_IRQ_LINE = _iow(0x61, vm.KvmIrqLevel)
    KVM_GET_IRQCHIP = _iowr(0x62, vm.KvmIrqchip)
    KVM_SET_IRQCHIP = _ior(0x63, vm.KvmIrqchip)  # the kernel's header says _IOR, and so the number does
    KVM_SET_GSI_ROUTING = _iow(0x6A, vm.KvmIrqRouting)
    KVM_REINJECT_CONTROL = _io(0x71)
    KVM_IRQFD = _iow(0x76, vm.KvmIrqfd)
    KVM_CREATE_PIT2 = _iow(0x77, vm.KvmPitConfig)
    KVM_SET_BOOT_CPU_ID = _io(0x78)
    KVM_IOEVENTFD = _iow(0x79, vm.KvmIoeventfd)
    KVM_SET_CLOCK = _iow(0x7B, vm.KvmClockData)
    KVM_GET_CLOCK = _ior(0x7C, vm.KvmClockData)
    KVM_GET_PIT2 = _ior(0x9F, vm.KvmPitState2)
    KVM_SET_PIT2 = _iow(0xA0, vm.KvmPitState2)
    KVM_ENABLE_CAP = _iow(0xA3, vm.KvmEnableCap)  # also a vCPU's
    KVM_SIGNAL_MSI = _iow(0xA5, vm.KvmMsi)
    KVM_CLEAR_DIRTY_LOG = _iowr(0xC0, vm.KvmClearDirtyLog)
    # vCPU
    KVM_RUN = _io(0x80)
    KVM_GET_REGS = _ior(0x81, cpu.KvmRegs)
    KVM_SET_REGS = _iow(0x82, cpu.KvmRegs)
    KVM_GET_SREGS = _ior(0x83, cpu.KvmSregs)
    KVM_SET_SREGS = _iow(0x84, cpu.KvmSregs)
    KVM_TRANSLATE = _iowr(0x85, cpu.KvmTranslation)
    KVM_GET_MSRS = _iowr(0x88, cpu.KvmMsrs)
    KVM_SET_MSRS = _iow(0x89, cpu.KvmMsrs)
    KVM_SET_SIGNAL_MASK = _iow(0x8B, cpu.KvmSignalMask)
    KVM_GET_FPU = _ior(0x8C, cpu.KvmFpu)
    KVM_SET_FPU = _iow(0x8D, cpu.KvmFpu)
    KVM_GET_LAPIC = _ior(0x8E, cpu.KvmLapicState)
    KVM_SET_LAPIC = _iow(0x8F, cpu.KvmLapicState)
    KVM_SET_CPUID2 = _iow(0x90, cpu.KvmCpuid2)
    KVM_GET_CPUID2 = _iowr(0x91, cpu.KvmCpuid2)
    KVM_GET_MP_STATE = _ior(0x98, cpu.KvmMpState)
    KVM_SET_MP_STATE = _iow(0x99, cpu.KvmMpState)
    KVM_NMI = _io(0x9A)
    KVM_GET_VCPU_EVENTS = _ior(0x9F, cpu.KvmVcpuEvents)
    KVM_SET_VCPU_EVENTS = _iow(0xA0, cpu.KvmVcpuEvents)
    KVM_GET_DEBUGREGS = _ior(0xA1, cpu.KvmDebugregs)
    KVM_SET_DEBUGREGS = _iow(0xA2, cpu.KvmDebugregs)
    KVM_SET_TSC_KHZ = _io(0xA2)
    KVM_GET_TSC_KHZ = _io(0xA3)
    KVM_GET_XSAVE = _ior(0xA4, cpu.KvmXsave)
    KVM_SET_XSAVE = _iow(0xA5, cpu.KvmXsave)
    KVM_GET_XCRS = _ior(0xA6, cpu.KvmXcrs)
    KVM_SET_XCRS = _iow(0xA7, cpu.KvmXcrs)
    KVM_KVMCLOCK_CTRL = _io(0xAD)
    KVM_GET_XSAVE2 = _ior(0xCF, cpu.KvmXsave)
