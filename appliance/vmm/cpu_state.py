"""A vCPU's and a VM's state in KVM, as bytes to keep and to put back. In the vCPU's own thread, or before it runs.

The order of putting back is given by dependencies inside KVM (arch/x86/kvm): CPUID first (it decides which registers exist);
sregs before the local APIC (they hold the APIC base); the local APIC before the MSRs (the deadline timer is armed by one);
events last, for everything before may clear them.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from appliance.errors import HostError, Unsupported
from appliance.kernel import kvm_abi, kvm_cpu_abi
from appliance.kernel.kvm_vcpu import Vcpu
from appliance.kernel.kvm_vm import Vm
from appliance.vmm.device import State

S = TypeVar("S", bound=ctypes.Structure)

_IRQCHIPS = (kvm_abi.KVM_IRQCHIP_PIC_MASTER, kvm_abi.KVM_IRQCHIP_PIC_SLAVE, kvm_abi.KVM_IRQCHIP_IOAPIC)
MSR_TSC, MSR_TSC_DEADLINE = 0x10, 0x6E0
_VCPU_VERSION, _VM_VERSION = 1, 2
_VM_VERSIONS = (1, _VM_VERSION)


class VcpuState(State):
    """Raw kernel structures (kvm_cpu_abi), byte for byte; MSRs by index. The TSC is one of them."""

    version: int
    cpuid: bytes
    mp_state: int
    regs: bytes
    sregs: bytes
    xsave: bytes
    xcrs: bytes
    debugregs: bytes
    lapic: bytes
    msrs: dict[int, int]
    events: bytes
    tsc_khz: int


class VmState(State):
    """The chips in the kernel, and kvmclock."""

    version: int
    irqchips: list[bytes]
    pit: bytes
    clock: bytes
    saved_at_ns: int = 0
    """The host's time of day at that reading of the clock; 0 in what was saved before version 2."""


def save_vcpu(vcpu: Vcpu, msr_indices: list[int]) -> VcpuState:
    """Everything, of a vCPU that is not running. Raises `HostError` naming what KVM refused.

    `msr_indices`: KVM_GET_MSR_INDEX_LIST; those this vCPU does not have are left out.
    """
    try:
        mp_state = vcpu.get_mp_state()  # first: it makes KVM take over pending INIT and SIPI
        return VcpuState(
            version=_VCPU_VERSION,
            cpuid=b"".join(bytes(entry) for entry in vcpu.get_cpuid2()),
            mp_state=mp_state,
            regs=bytes(vcpu.get_regs()),
            sregs=bytes(vcpu.get_sregs()),
            xsave=vcpu.get_xsave(),
            xcrs=bytes(vcpu.get_xcrs()),
            debugregs=bytes(vcpu.get_debugregs()),
            lapic=bytes(vcpu.get_lapic()),
            msrs=_readable_msrs(vcpu, msr_indices),
            events=bytes(vcpu.get_vcpu_events()),
            tsc_khz=_tsc_khz(vcpu),
        )
    except OSError as error:
        raise HostError.from_os_error(error, vcpu.name) from error


def restore_vcpu(vcpu: Vcpu, state: VcpuState) -> None:
    """Into a vCPU just made. Raises `Unsupported` for another version, `HostError` naming what KVM refused."""
    if state.version != _VCPU_VERSION:
        raise Unsupported(f"{vcpu.name}: state version {state.version} is not known here")
    try:
        vcpu.set_cpuid2(_entries(kvm_cpu_abi.KvmCpuidEntry2, state.cpuid))
        if state.tsc_khz and state.tsc_khz != _tsc_khz(vcpu):
            vcpu.set_tsc_khz(state.tsc_khz)
    except OSError as error:
        raise HostError.from_os_error(error, f"{vcpu.name}: restore") from error
    put_back(vcpu, state)


def put_back(vcpu: Vcpu, state: VcpuState) -> None:
    """What changes while it runs, into the vCPU that it was taken from. Its CPUID stays: KVM takes none once it has run
    (api.rst, KVM_SET_CPUID2). Raises `HostError`."""
    try:
        vcpu.set_mp_state(state.mp_state)
        vcpu.set_regs(_structure(kvm_cpu_abi.KvmRegs, state.regs))
        vcpu.set_sregs(_structure(kvm_cpu_abi.KvmSregs, state.sregs))
        vcpu.set_xsave(state.xsave)
        vcpu.set_xcrs(_structure(kvm_cpu_abi.KvmXcrs, state.xcrs))
        vcpu.set_debugregs(_structure(kvm_cpu_abi.KvmDebugregs, state.debugregs))
        vcpu.set_lapic(_structure(kvm_cpu_abi.KvmLapicState, state.lapic))
        vcpu.set_msrs(_ordered(state.msrs))
        vcpu.set_vcpu_events(_structure(kvm_cpu_abi.KvmVcpuEvents, state.events))
    except OSError as error:
        raise HostError.from_os_error(error, f"{vcpu.name}: restore") from error


def save_vm(vm: Vm) -> VmState:
    """The interrupt controllers, the PIT and the clock; no vCPU runs."""
    try:
        return VmState(
            version=_VM_VERSION,
            irqchips=[bytes(vm.get_irqchip(chip)) for chip in _IRQCHIPS],
            pit=bytes(vm.get_pit2()),
            clock=bytes(vm.get_clock()),
            saved_at_ns=time.time_ns(),
        )
    except OSError as error:
        raise HostError.from_os_error(error, vm.name) from error


def restore_vm(vm: Vm, state: VmState, *, clock_goes_on: bool) -> None:
    """`clock_goes_on`: kvmclock counts the time since the save."""
    if state.version not in _VM_VERSIONS or len(state.irqchips) != len(_IRQCHIPS):
        raise Unsupported(f"{vm.name}: state version {state.version} is not known here")
    try:
        for chip in state.irqchips:
            vm.set_irqchip(_structure(kvm_abi.KvmIrqchip, chip))
        vm.set_pit2(_structure(kvm_abi.KvmPitState2, state.pit))
        clock = _structure(kvm_abi.KvmClockData, state.clock)
        vm.set_clock(_later(clock, state.saved_at_ns) if clock_goes_on else _same(clock))
    except OSError as error:
        raise HostError.from_os_error(error, f"{vm.name}: restore") from error


def _same(clock: kvm_abi.KvmClockData) -> kvm_abi.KvmClockData:
    clock.flags = 0
    return clock


def _later(clock: kvm_abi.KvmClockData, saved_at_ns: int) -> kvm_abi.KvmClockData:
    """KVM adds the time since then where it noted when that was, which it does only while the host's own clock is the TSC
    (x86.c, get_kvmclock); elsewhere we do."""
    clock.flags &= kvm_abi.KVM_CLOCK_REALTIME
    if not clock.flags and saved_at_ns:
        clock.clock += max(0, time.time_ns() - saved_at_ns)
    return clock


def _readable_msrs(vcpu: Vcpu, indices: list[int]) -> dict[int, int]:
    """KVM stops at the first register this vCPU lacks: go on after it."""
    values: dict[int, int] = {}
    rest = list(indices)
    while rest:
        try:
            values |= vcpu.get_msrs(rest)
            break
        except OSError:
            good, rest = _split_at_refused(vcpu, rest)
            values |= good
    return values


def _split_at_refused(vcpu: Vcpu, indices: list[int]) -> tuple[dict[int, int], list[int]]:
    """(values before the refused register, indices after it), by halving."""
    low, high = 0, len(indices)  # indices[:low] are readable, the first refused one is in indices[low:high]
    values: dict[int, int] = {}
    while high - low > 1:
        middle = (low + high) // 2
        try:
            values |= vcpu.get_msrs(indices[low:middle])
            low = middle
        except OSError:
            high = middle
    return values, indices[low + 1 :]


def _ordered(msrs: Mapping[int, int]) -> dict[int, int]:
    """The TSC first, the deadline that is compared with it last (Linux: kvm_set_lapic_tscdeadline_msr)."""
    rank = {MSR_TSC: 0, MSR_TSC_DEADLINE: 2}
    return dict(sorted(msrs.items(), key=lambda item: rank.get(item[0], 1)))


def _tsc_khz(vcpu: Vcpu) -> int:
    try:
        return vcpu.get_tsc_khz()
    except OSError:
        return 0


def _structure(kind: type[S], saved: bytes) -> S:
    if len(saved) != ctypes.sizeof(kind):
        raise Unsupported(f"saved {kind.__name__} of {len(saved)} bytes, not {ctypes.sizeof(kind)}")
    return kind.from_buffer_copy(saved)


def _entries(kind: type[S], saved: bytes) -> list[S]:
    size = ctypes.sizeof(kind)
    if len(saved) % size:
        raise Unsupported(f"saved {kind.__name__} entries of {len(saved)} bytes")
    return [kind.from_buffer_copy(saved[start : start + size]) for start in range(0, len(saved), size)]


def encode(state: State) -> bytes:
    """For the file."""
    return msgspec.msgpack.encode(state)


def decode(kind: type[State], saved: bytes, *, about: str) -> State:
    """Raises `Unsupported` for what does not fit `kind`: another version of the appliance wrote it, or it is damaged."""
    try:
        return msgspec.msgpack.decode(saved, type=kind)
    except msgspec.MsgspecError as error:
        raise Unsupported(f"{about}: saved state not understood: {error}") from error
