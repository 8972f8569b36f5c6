"""A machine of one slot of memory and one vCPU in real mode, for guests of a few bytes."""

from __future__ import annotations

import ctypes
import mmap
from types import TracebackType

from appliance.kernel.kvm_abi import KVM_MEM_LOG_DIRTY_PAGES
from appliance.kernel.kvm_vm import Vm

MEMORY_BYTES = 64 << 10
CODE = 0x1000


class SmallMachine:
    """Guests start at 0000:1000 with all segments at 0 and their stack below."""

    def __init__(self, vm: Vm, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self.vm = vm
        self.memory = mmap.mmap(-1, memory_bytes)
        self._view = ctypes.c_char.from_buffer(self.memory)
        vm.set_user_memory_region(
            0,
            guest_phys_addr=0,
            memory_size=memory_bytes,
            # SAFETY: the mapping outlives the vCPU: `__exit__` deletes the slot before it unmaps
            userspace_addr=ctypes.addressof(self._view),
            flags=KVM_MEM_LOG_DIRTY_PAGES,
        )
        self.vcpu = vm.create_vcpu(0)

    def load(self, code: str, *, at: int = CODE) -> None:
        """Put hexadecimal `code` into memory and point the vCPU at the start of the main program."""
        program = bytes.fromhex(code)
        self.memory[at : at + len(program)] = program
        sregs = self.vcpu.get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        self.vcpu.set_sregs(sregs)
        regs = self.vcpu.get_regs()
        regs.rip, regs.rsp, regs.rflags = CODE, CODE, 2
        self.vcpu.set_regs(regs)

    def __enter__(self) -> SmallMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0, userspace_addr=0)
        del self._view
        self.memory.close()
