"""A vCPU: its descriptor, the kvm_run area mapped from it, and its ioctls (Documentation/virt/kvm/api.rst).

One thread, the vCPU's own, calls `run` and every get and set while the guest lives: KVM serializes a vCPU's ioctls by a
lock which KVM_RUN holds, so another thread's get would wait until the guest exits. The one thing others may do at any
time is `immediate_exit = True` followed by a signal to that thread. `close` comes after the thread has left `run`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import signal
from collections.abc import Iterable, Mapping, Sequence

from appliance.kernel import kvm_cpu_abi as abi
from appliance.kernel.kvm_abi import KvmEnableCap, with_entries
from appliance.kernel.kvm_ioctls import Ioctl
from appliance.kernel.kvm_object import KvmObject, run_ioctl
from appliance.kernel.kvm_run_abi import ExitReason, KvmRun
from appliance.kernel.libc import failure

_RUN_AGAIN = frozenset({errno.EINTR, errno.EAGAIN})
_RUN_REQUEST = int(Ioctl.KVM_RUN)  # an enum member costs a conversion at each call
_INTR = int(ExitReason.INTR)


class Vcpu(KvmObject):
    """Made by `Vm.create_vcpu`, which also closes it.

    `kvm_run` is the area shared with the kernel: what KVM_RUN reported is read there, and answers are put there. It and
    its parts must not be kept beyond `close`.
    """

    def __init__(self, fd: int, name: str, *, index: int, run_bytes: int, xsave_bytes: int) -> None:
        """Takes over `fd`, also when this raises. `run_bytes` is KVM_GET_VCPU_MMAP_SIZE's answer."""
        super().__init__(fd, name)
        self.index = index
        self._xsave_bytes = xsave_bytes
        try:
            self._area = mmap.mmap(fd, run_bytes)
        except OSError as error:
            self.close()
            raise failure("mmap", f"{name}: kvm_run", error.errno) from error
        # SAFETY: the structure keeps the mapping alive, and KVM_GET_VCPU_MMAP_SIZE is never less than the structure:
        # from_buffer checks that. The kernel writes it only during this vCPU's own KVM_RUN.
        self.kvm_run = KvmRun.from_buffer(self._area)

    def close(self) -> None:
        """Unmap kvm_run and close. `BufferError` when parts of `kvm_run` are still held; the descriptor is closed."""
        super().close()
        if hasattr(self, "kvm_run"):
            del self.kvm_run
        if hasattr(self, "_area"):
            self._area.close()  # also closes the duplicate of the descriptor that mmap keeps

    # Running

    def run(self) -> int:
        """KVM_RUN until the guest needs something; returns its `ExitReason` as a plain int, for `match`.

        `ExitReason.INTR` means that nothing is there to handle: a signal or `immediate_exit` (EINTR), or a processor
        that has just been woken by INIT or SIPI (EAGAIN). kvm_run's exit_reason may then be an old one. Any other
        error, such as EFAULT for guest memory that cannot be reached, is an `OSError`.
        """
        try:
            run_ioctl(self._fd, _RUN_REQUEST)
        except OSError as error:
            if error.errno in _RUN_AGAIN:
                return _INTR
            raise failure("KVM_RUN", self.name, error.errno) from error
        except ValueError as error:
            raise failure("KVM_RUN", self.name, errno.EBADF) from error
        reason: int = self.kvm_run.exit_reason
        return reason

    @property
    def area(self) -> mmap.mmap:
        """All that is shared with the kernel, `kvm_run` at its start and the data of port I/O: for reading an exit at one
        stroke. Keep no view of it."""
        return self._area

    @property
    def immediate_exit(self) -> bool:
        """While set, `run` returns at once, once it has completed the exit reported before (api.rst immediate_exit)."""
        return bool(self.kvm_run.immediate_exit)

    @immediate_exit.setter
    def immediate_exit(self, wanted: bool) -> None:
        self.kvm_run.immediate_exit = wanted

    def io_data(self) -> bytes:
        """What the guest wrote: `io.count` items of `io.size` bytes. For an ExitReason.IO of direction out only."""
        start, length = self._io_extent()
        return self._area[start : start + length]

    def set_io_data(self, data: bytes) -> None:
        """What the guest reads, taken at the next `run`. `ValueError` unless `data` is `io.size * io.count` long."""
        start, length = self._io_extent()
        if len(data) != length:
            raise ValueError(f"{self.name}: the guest reads {length} bytes, not {len(data)}")
        self._area[start : start + length] = data

    def _io_extent(self) -> tuple[int, int]:
        io = self.kvm_run.io
        return io.data_offset, io.size * io.count

    def set_signal_mask(self, blocked: Iterable[signal.Signals] | None) -> None:
        """The signals blocked during KVM_RUN in place of the thread's own mask; None brings the thread's mask back."""
        if blocked is None:
            self._call(Ioctl.KVM_SET_SIGNAL_MASK)
            return
        bits = sum(1 << (number - 1) for number in set(blocked))
        self._pass(Ioctl.KVM_SET_SIGNAL_MASK, abi.KvmSignalMask64(abi.SIGSET_BYTES, bits))

    def nmi(self) -> None:
        """KVM_NMI: queue a non-maskable interrupt."""
        self._call(Ioctl.KVM_NMI)

    # Registers

    def get_regs(self) -> abi.KvmRegs:
        """KVM_GET_REGS."""
        return self._filled(Ioctl.KVM_GET_REGS, abi.KvmRegs())

    def set_regs(self, regs: abi.KvmRegs) -> None:
        """KVM_SET_REGS."""
        self._pass(Ioctl.KVM_SET_REGS, regs)

    def get_sregs(self) -> abi.KvmSregs:
        """KVM_GET_SREGS."""
        return self._filled(Ioctl.KVM_GET_SREGS, abi.KvmSregs())

    def set_sregs(self, sregs: abi.KvmSregs) -> None:
        """KVM_SET_SREGS."""
        self._pass(Ioctl.KVM_SET_SREGS, sregs)

    def get_fpu(self) -> abi.KvmFpu:
        """KVM_GET_FPU: x87 and XMM registers. `mxcsr` is no part of it: KVM leaves that field alone, both ways."""
        return self._filled(Ioctl.KVM_GET_FPU, abi.KvmFpu())

    def set_fpu(self, fpu: abi.KvmFpu) -> None:
        """KVM_SET_FPU, without `mxcsr` (use `set_xsave` for that)."""
        self._pass(Ioctl.KVM_SET_FPU, fpu)

    def get_debugregs(self) -> abi.KvmDebugregs:
        """KVM_GET_DEBUGREGS."""
        return self._filled(Ioctl.KVM_GET_DEBUGREGS, abi.KvmDebugregs())

    def set_debugregs(self, debugregs: abi.KvmDebugregs) -> None:
        """KVM_SET_DEBUGREGS."""
        self._pass(Ioctl.KVM_SET_DEBUGREGS, debugregs)

    def get_xsave(self) -> bytes:
        """KVM_GET_XSAVE: the first 4096 bytes of the XSAVE area."""
        return bytes(self._filled(Ioctl.KVM_GET_XSAVE, abi.KvmXsave()))

    def get_xsave2(self) -> bytes:
        """KVM_GET_XSAVE2: the whole XSAVE area, however large. Needs KVM_CAP_XSAVE2."""
        area, _ = with_entries(abi.KvmXsave, abi.KvmMsrIndex, (self._xsave_bytes - abi.KVM_XSAVE_BYTES) // 4)
        self._pass(Ioctl.KVM_GET_XSAVE2, area)
        return ctypes.string_at(ctypes.addressof(area), self._xsave_bytes)  # SAFETY: `area` was made that large

    def set_xsave(self, saved: bytes) -> None:
        """KVM_SET_XSAVE. `ValueError` when `saved` is larger than this VM's XSAVE area."""
        if len(saved) > self._xsave_bytes:
            raise ValueError(f"{self.name}: an XSAVE area of {len(saved)} bytes; {self._xsave_bytes} fit")
        area, _ = with_entries(abi.KvmXsave, abi.KvmMsrIndex, (self._xsave_bytes - abi.KVM_XSAVE_BYTES) // 4)
        # SAFETY: the kernel reads `_xsave_bytes` whatever we have: the area is that large, and the rest of it is zeros.
        ctypes.memmove(ctypes.addressof(area), saved, len(saved))
        self._pass(Ioctl.KVM_SET_XSAVE, area)

    def get_xcrs(self) -> abi.KvmXcrs:
        """KVM_GET_XCRS."""
        return self._filled(Ioctl.KVM_GET_XCRS, abi.KvmXcrs())

    def set_xcrs(self, xcrs: abi.KvmXcrs) -> None:
        """KVM_SET_XCRS."""
        self._pass(Ioctl.KVM_SET_XCRS, xcrs)

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """KVM_GET_MSRS: values by index. `OSError` (EINVAL) names the first register KVM does not know."""
        msrs, entries = self._msrs([(index, 0) for index in indices])
        self._all_msrs(Ioctl.KVM_GET_MSRS, msrs, indices)
        return {entry.index: entry.data for entry in entries}

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """KVM_SET_MSRS, in order. `OSError` (EINVAL) names the first one refused; those before it are set."""
        msrs, _ = self._msrs(list(values.items()))
        self._all_msrs(Ioctl.KVM_SET_MSRS, msrs, list(values))

    def _msrs(self, values: Sequence[tuple[int, int]]) -> tuple[abi.KvmMsrs, ctypes.Array[abi.KvmMsrEntry]]:
        msrs, entries = with_entries(abi.KvmMsrs, abi.KvmMsrEntry, len(values))
        msrs.nmsrs = len(values)
        for entry, (index, data) in zip(entries, values, strict=True):
            entry.index, entry.data = index, data
        return msrs, entries

    def _all_msrs(self, request: Ioctl, msrs: abi.KvmMsrs, indices: Sequence[int]) -> None:
        """Both ioctls return how many they did, and stop quietly at the first they cannot do (api.rst)."""
        done = self._pass(request, msrs)
        if done < len(indices):
            raise failure(request.name, f"{self.name}: MSR {indices[done]:#x}", errno.EINVAL)

    # Identity, interrupts and events

    def get_cpuid2(self) -> list[abi.KvmCpuidEntry2]:
        """KVM_GET_CPUID2: what `set_cpuid2` set."""
        cpuid, entries = with_entries(abi.KvmCpuid2, abi.KvmCpuidEntry2, abi.KVM_MAX_CPUID_ENTRIES)
        cpuid.nent = abi.KVM_MAX_CPUID_ENTRIES
        self._pass(Ioctl.KVM_GET_CPUID2, cpuid)
        return list(entries[: cpuid.nent])

    def set_cpuid2(self, wanted: Sequence[abi.KvmCpuidEntry2]) -> None:
        """KVM_SET_CPUID2: before the first `run`."""
        cpuid, entries = with_entries(abi.KvmCpuid2, abi.KvmCpuidEntry2, len(wanted))
        cpuid.nent = len(wanted)
        for number, entry in enumerate(wanted):
            entries[number] = entry
        self._pass(Ioctl.KVM_SET_CPUID2, cpuid)

    def get_lapic(self) -> abi.KvmLapicState:
        """KVM_GET_LAPIC."""
        return self._filled(Ioctl.KVM_GET_LAPIC, abi.KvmLapicState())

    def set_lapic(self, lapic: abi.KvmLapicState) -> None:
        """KVM_SET_LAPIC."""
        self._pass(Ioctl.KVM_SET_LAPIC, lapic)

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE: one of KVM_MP_STATE_*."""
        return int(self._filled(Ioctl.KVM_GET_MP_STATE, abi.KvmMpState()).mp_state)

    def set_mp_state(self, state: int) -> None:
        """KVM_SET_MP_STATE."""
        self._pass(Ioctl.KVM_SET_MP_STATE, abi.KvmMpState(state))

    def get_vcpu_events(self) -> abi.KvmVcpuEvents:
        """KVM_GET_VCPU_EVENTS."""
        return self._filled(Ioctl.KVM_GET_VCPU_EVENTS, abi.KvmVcpuEvents())

    def set_vcpu_events(self, events: abi.KvmVcpuEvents) -> None:
        """KVM_SET_VCPU_EVENTS: what `events.flags` marks as valid, and the always valid."""
        self._pass(Ioctl.KVM_SET_VCPU_EVENTS, events)

    # Time, and the rest

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ: the guest's TSC frequency."""
        return self._call(Ioctl.KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ."""
        self._call(Ioctl.KVM_SET_TSC_KHZ, khz)

    def kvmclock_ctrl(self) -> None:
        """KVM_KVMCLOCK_CTRL: tell the guest's watchdogs that it was paused. EINVAL when the guest has no kvmclock."""
        self._call(Ioctl.KVM_KVMCLOCK_CTRL)

    def translate(self, linear_address: int) -> abi.KvmTranslation:
        """KVM_TRANSLATE by the vCPU's page tables; `valid` is 0 where nothing is mapped."""
        return self._filled(Ioctl.KVM_TRANSLATE, abi.KvmTranslation(linear_address))

    def enable_cap(self, cap: int, *arguments: int) -> None:
        """KVM_ENABLE_CAP on the vCPU."""
        request = KvmEnableCap(cap, 0, arguments)
        self._pass(Ioctl.KVM_ENABLE_CAP, request, about=f"{self.name}: capability {int(cap)}")
