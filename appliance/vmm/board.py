"""What KVM makes of a machine: the VM, its memory, interrupt controllers and timer, its vCPUs. No policy, no threads.

Making and closing one blocks for some milliseconds (more with preallocated memory): in a thread. The order of making is
KVM's: identity page and TSS before the first vCPU, the interrupt controllers before the timer and the vCPUs.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import ExitStack
from dataclasses import dataclass, field

from appliance.errors import HostError
from appliance.kernel.eventfd import EventFd
from appliance.kernel.kvm import Kvm
from appliance.kernel.kvm_abi import (
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY,
)
from appliance.kernel.kvm_vcpu import Vcpu as KvmVcpu
from appliance.vmm import layout
from appliance.vmm.cpu_state import MSR_TSC, VcpuState, put_back, save_vcpu
from appliance.vmm.irq import Interrupts
from appliance.vmm.memory import GuestMemory, MemoryOptions
from appliance.vmm.slots import Slots

_CHIPS = (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardOptions:
    """`label` ("vm 101") is what errors and logs call the machine."""

    label: str
    memory_bytes: int
    vcpus: int = 1
    apic_ids: tuple[int, ...] = ()  # one for each vCPU; empty: 0, 1, …
    memory: MemoryOptions = field(default_factory=MemoryOptions)


class Board:
    """One machine's hardware, owned: `close` it when no vCPU runs any more."""

    def __init__(self, options: BoardOptions) -> None:
        """Raises `HostError` naming what the host refused."""
        self.label = options.label
        self._roms: list[tuple[int, mmap.mmap]] = []
        with ExitStack() as undo:
            try:
                self.memory = GuestMemory(options.memory_bytes, name=options.label, options=options.memory)
                undo.callback(self.memory.close)
                with Kvm() as kvm:
                    self.vm = kvm.create_vm(options.label)
                    self.msr_indices = kvm.get_msr_index_list()
                undo.callback(self.vm.close)
                self._make_chips()
                self.slots = Slots(self.vm)
                self.slots.map_ram(self.memory)
                self.interrupts = Interrupts(self.vm, label=options.label)
                self.vcpus = tuple(self.vm.create_vcpu(index) for index in options.apic_ids or range(options.vcpus))
                self._chips = [self.vm.get_irqchip(chip) for chip in _CHIPS]
                self._pit = self.vm.get_pit2()
            except OSError as error:
                raise HostError.from_os_error(error, options.label) from error
            undo.pop_all()

    def _make_chips(self) -> None:
        self.vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP)
        self.vm.set_tss_addr(layout.KVM_TSS)
        self.vm.create_irqchip()
        self.vm.create_pit2(KVM_PIT_SPEAKER_DUMMY)
        self.vm.reinject_control(pit_reinject=False)  # no burst of ticks after a pause

    def close(self) -> None:
        """Give everything back, last made first; harmless when done twice. `BufferError`: a view of memory is held."""
        with ExitStack() as closing:
            closing.callback(self.memory.close)
            for _, content in self._roms:
                closing.callback(content.close)
            closing.callback(self.vm.close)
            if self.vm.fileno() >= 0:
                closing.callback(self.interrupts.close)

    def ioeventfd(
        self,
        event: EventFd,
        address: int,
        *,
        length: int,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        """`appliance.vmm.device.Doorbells`."""
        try:
            self.vm.ioeventfd(event, address, length=length, datamatch=datamatch, pio=pio, deassign=deassign)
        except OSError as error:
            raise HostError.from_os_error(error, self.label) from error

    def add_rom(self, base: int, content: bytes, *, name: str) -> None:
        """Read-only memory at `base`, whole pages; what the guest writes there goes nowhere. Raises `HostError`."""
        rom = mmap.mmap(-1, -(-len(content) // layout.PAGE) * layout.PAGE)
        rom[: len(content)] = content
        # SAFETY: only the number is kept; `close` unmaps after the VM and its vCPUs have gone.
        address = ctypes.addressof(ctypes.c_char.from_buffer(rom))
        self._roms.append((base, rom))
        self.slots.map(base, len(rom), address, name=name, read_only=True)

    def read_physical(self, address: int, length: int) -> bytes:
        """What the guest sees there, RAM or ROM. Raises `GuestFault` where neither is."""
        for base, rom in self._roms:
            if base <= address and address + length <= base + len(rom):
                return rom[address - base : address - base + length]
        return self.memory.read(address, length)

    # Reset

    def power_on_state(self, vcpu: KvmVcpu) -> VcpuState:
        """What a reset brings back: `vcpu` as it is now, but for its TSC, which goes on. In the vCPU's thread."""
        state = save_vcpu(vcpu, self.msr_indices)
        state.msrs.pop(MSR_TSC, None)
        return state

    def reset_vcpu(self, vcpu: KvmVcpu, state: VcpuState) -> None:
        """Registers, local APIC and pending events as they were. In the vCPU's thread. Raises `HostError`."""
        put_back(vcpu, state)

    def reset_chips(self) -> None:
        """Interrupt controllers and timer as at power-on; kvmclock goes on. No vCPU runs. Raises `HostError`."""
        try:
            for chip in self._chips:
                self.vm.set_irqchip(chip)
            self.vm.set_pit2(self._pit)
        except OSError as error:
            raise HostError.from_os_error(error, f"{self.label}: reset") from error
