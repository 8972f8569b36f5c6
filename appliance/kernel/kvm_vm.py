"""A virtual machine: its descriptor and ioctls (Documentation/virt/kvm/api.rst), and the vCPUs it made.

Any thread may enter. What `userspace_addr` names is the caller's, who keeps it mapped until the slot is deleted or the
VM and its vCPUs are closed: the guest reaches whatever is mapped there.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence
from contextlib import ExitStack
from threading import Lock

from appliance.kernel import kvm_abi as abi
from appliance.kernel.eventfd import EventFd
from appliance.kernel.kvm_caps import Cap
from appliance.kernel.kvm_cpu_abi import KVM_XSAVE_BYTES
from appliance.kernel.kvm_ioctls import Ioctl
from appliance.kernel.kvm_object import KvmObject
from appliance.kernel.kvm_vcpu import Vcpu
from appliance.kernel.libc import failure


class Vm(KvmObject):
    """Made by `Kvm.create_vm`; `close` it, or use it as a context manager."""

    def __init__(self, fd: int, name: str, *, run_bytes: int) -> None:
        """Takes over `fd`. `run_bytes` is KVM_GET_VCPU_MMAP_SIZE's answer."""
        super().__init__(fd, name)
        self._run_bytes = run_bytes
        self._vcpus: list[Vcpu] = []
        self._slot_pages: dict[int, int] = {}
        self._slots_lock = Lock()

    def close(self) -> None:
        """Close the vCPUs, last made first, then the VM. Each vCPU's thread has left `run` before."""
        with ExitStack() as closing:
            closing.callback(super().close)
            for vcpu in self._vcpus:
                closing.callback(vcpu.close)
            self._vcpus = []

    def check_extension(self, cap: Cap) -> int:
        """KVM_CHECK_EXTENSION for this VM: 0 is no; otherwise 1, a limit or flags."""
        return self._call(Ioctl.KVM_CHECK_EXTENSION, cap, about=f"{self.name}: {cap.name}")

    def enable_cap(self, cap: int, *arguments: int) -> None:
        """KVM_ENABLE_CAP on the VM (KVM_CAP_ENABLE_CAP_VM)."""
        request = abi.KvmEnableCap(cap, 0, arguments)
        self._pass(Ioctl.KVM_ENABLE_CAP, request, about=f"{self.name}: capability {int(cap)}")

    def create_vcpu(self, index: int) -> Vcpu:
        """KVM_CREATE_VCPU: `index` is its APIC ID. After KVM_CREATE_IRQCHIP where that is used."""
        name = f"{self.name}: vcpu {index}"
        xsave_bytes = max(self.check_extension(Cap.XSAVE2), KVM_XSAVE_BYTES)
        fd = self._call(Ioctl.KVM_CREATE_VCPU, index, about=name)
        vcpu = Vcpu(fd, name, index=index, run_bytes=self._run_bytes, xsave_bytes=xsave_bytes)
        self._vcpus.append(vcpu)
        return vcpu

    def set_boot_cpu_id(self, index: int) -> None:
        """KVM_SET_BOOT_CPU_ID: before the first vCPU."""
        self._call(Ioctl.KVM_SET_BOOT_CPU_ID, index)

    # Memory

    def set_user_memory_region(
        self, slot: int, *, guest_phys_addr: int, memory_size: int, userspace_addr: int, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION; a `memory_size` of 0 deletes the slot. Sizes and addresses in whole pages."""
        region = abi.KvmUserspaceMemoryRegion(slot, flags, guest_phys_addr, memory_size, userspace_addr)
        with self._slots_lock:
            self._pass(Ioctl.KVM_SET_USER_MEMORY_REGION, region, about=f"{self.name}: slot {slot}")
            if memory_size:
                self._slot_pages[slot] = memory_size // abi.PAGE_BYTES
            else:
                self._slot_pages.pop(slot, None)

    def get_dirty_log(self, slot: int) -> bytes:
        """KVM_GET_DIRTY_LOG: bit n of byte n // 8 is page n of the slot, written since the last time; and clear it.

        Whole 64-bit words. What the process itself writes is not in it. ENOENT when the slot does not exist or does not
        log. With KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 enabled nothing is cleared: see `clear_dirty_log`.
        """
        with self._slots_lock:
            bitmap = bytearray(_bitmap_bytes(self._pages(Ioctl.KVM_GET_DIRTY_LOG, slot)))
            view = (ctypes.c_uint8 * len(bitmap)).from_buffer(bitmap)
            # SAFETY: the kernel writes the slot's page count rounded up to whole words, which is `bitmap`'s size, as
            # the lock keeps the slot from being made anew; `view` keeps `bitmap` alive and in place.
            log = abi.KvmDirtyLog(slot, 0, ctypes.addressof(view))
            self._pass(Ioctl.KVM_GET_DIRTY_LOG, log, about=f"{self.name}: slot {slot}")
            return bytes(bitmap)

    def clear_dirty_log(self, slot: int, *, first_page: int, num_pages: int, bitmap: bytes) -> None:
        """KVM_CLEAR_DIRTY_LOG: bit n of `bitmap` is page `first_page` + n, to be logged afresh.

        `first_page` and `num_pages` are multiples of 64, the latter except at the slot's end. `ValueError` when
        `bitmap` is too short.
        """
        if len(bitmap) < _bitmap_bytes(num_pages):
            raise ValueError(f"{self.name}: slot {slot}: {len(bitmap)} bytes of bitmap for {num_pages} pages")
        held = ctypes.create_string_buffer(bitmap, len(bitmap))
        # SAFETY: the kernel reads `num_pages` bits rounded up to whole words, which `held` has.
        request = abi.KvmClearDirtyLog(slot, num_pages, first_page, ctypes.addressof(held))
        self._pass(Ioctl.KVM_CLEAR_DIRTY_LOG, request, about=f"{self.name}: slot {slot}")

    def _pages(self, request: Ioctl, slot: int) -> int:
        if slot not in self._slot_pages:
            raise failure(request.name, f"{self.name}: slot {slot}", errno.ENOENT)
        return self._slot_pages[slot]

    def set_tss_addr(self, address: int) -> None:
        """KVM_SET_TSS_ADDR: three pages below 4 GiB that nothing else uses; Intel's real mode needs them."""
        self._call(Ioctl.KVM_SET_TSS_ADDR, address)

    def set_identity_map_addr(self, address: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one such page, before the first vCPU."""
        held = ctypes.c_uint64(address)
        # SAFETY: the kernel reads the eight bytes of `held`, which lives until the call has returned.
        self._call(Ioctl.KVM_SET_IDENTITY_MAP_ADDR, ctypes.addressof(held))

    # Interrupts and doorbells

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: two PICs, an IOAPIC, and a local APIC for each vCPU made from now on."""
        self._call(Ioctl.KVM_CREATE_IRQCHIP)

    def get_irqchip(self, chip_id: int) -> abi.KvmIrqchip:
        """KVM_GET_IRQCHIP: KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC."""
        return self._filled(Ioctl.KVM_GET_IRQCHIP, abi.KvmIrqchip(chip_id), about=f"{self.name}: irqchip {chip_id}")

    def set_irqchip(self, chip: abi.KvmIrqchip) -> None:
        """KVM_SET_IRQCHIP, the one that `chip.chip_id` says."""
        self._pass(Ioctl.KVM_SET_IRQCHIP, chip, about=f"{self.name}: irqchip {chip.chip_id}")

    def irq_line(self, gsi: int, level: int) -> None:
        """KVM_IRQ_LINE: the line's new level, 1 or 0. An edge is both, one after the other."""
        self._pass(Ioctl.KVM_IRQ_LINE, abi.KvmIrqLevel(gsi, level), about=f"{self.name}: gsi {gsi}")

    def irqfd(self, event: EventFd, gsi: int, *, resample: EventFd | None = None, deassign: bool = False) -> None:
        """KVM_IRQFD: `event` raises `gsi`. With `resample` the line stays up until the guest's EOI, which signals it."""
        flags = abi.KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        if resample is not None:
            flags |= abi.KVM_IRQFD_FLAG_RESAMPLE
        request = abi.KvmIrqfd(event.fileno(), gsi, flags, resample.fileno() if resample else 0)
        self._pass(Ioctl.KVM_IRQFD, request, about=f"{self.name}: gsi {gsi}")

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
        """KVM_IOEVENTFD: a guest's write of `length` bytes (0: any) to `address`, of `datamatch` where that is given,
        signals `event` and causes no exit. `pio`: a port, not memory. To undo it repeat it with `deassign`."""
        flags = abi.KVM_IOEVENTFD_FLAG_PIO if pio else 0
        flags |= abi.KVM_IOEVENTFD_FLAG_DEASSIGN if deassign else 0
        flags |= 0 if datamatch is None else abi.KVM_IOEVENTFD_FLAG_DATAMATCH
        request = abi.KvmIoeventfd(datamatch or 0, address, length, event.fileno(), flags)
        self._pass(Ioctl.KVM_IOEVENTFD, request, about=f"{self.name}: {'port' if pio else 'address'} {address:#x}")

    def set_gsi_routing(self, routes: Sequence[abi.KvmIrqRoutingEntry]) -> None:
        """KVM_SET_GSI_ROUTING: replaces the whole table, KVM's default for the irqchip included."""
        table, entries = abi.with_entries(abi.KvmIrqRouting, abi.KvmIrqRoutingEntry, len(routes))
        table.nr = len(routes)
        for number, route in enumerate(routes):
            entries[number] = route
        self._pass(Ioctl.KVM_SET_GSI_ROUTING, table)

    def signal_msi(self, address: int, data: int) -> bool:
        """KVM_SIGNAL_MSI: send the message. False when the guest has blocked it."""
        message = abi.KvmMsi(address & 0xFFFF_FFFF, address >> 32, data)
        return self._pass(Ioctl.KVM_SIGNAL_MSI, message, about=f"{self.name}: MSI {address:#x}") > 0

    # Timers and clock

    def create_pit2(self, flags: int = 0) -> None:
        """KVM_CREATE_PIT2: an 8254, after the irqchip; KVM_PIT_SPEAKER_DUMMY also answers port 0x61."""
        self._pass(Ioctl.KVM_CREATE_PIT2, abi.KvmPitConfig(flags))

    def get_pit2(self) -> abi.KvmPitState2:
        """KVM_GET_PIT2."""
        return self._filled(Ioctl.KVM_GET_PIT2, abi.KvmPitState2())

    def set_pit2(self, state: abi.KvmPitState2) -> None:
        """KVM_SET_PIT2."""
        self._pass(Ioctl.KVM_SET_PIT2, state)

    def reinject_control(self, *, pit_reinject: bool) -> None:
        """KVM_REINJECT_CONTROL: whether ticks the guest missed are made up for."""
        self._pass(Ioctl.KVM_REINJECT_CONTROL, abi.KvmReinjectControl(pit_reinject))

    def get_clock(self) -> abi.KvmClockData:
        """KVM_GET_CLOCK: kvmclock's nanoseconds."""
        return self._filled(Ioctl.KVM_GET_CLOCK, abi.KvmClockData())

    def set_clock(self, clock: abi.KvmClockData) -> None:
        """KVM_SET_CLOCK; with KVM_CLOCK_REALTIME in `flags` the time passed since `realtime` is added."""
        self._pass(Ioctl.KVM_SET_CLOCK, clock)


def _bitmap_bytes(pages: int) -> int:
    words = -(-pages // abi.DIRTY_BITMAP_WORD_PAGES)
    return words * 8
