"""Memory slots: which of the host's memory the guest reaches without an exit (api.rst KVM_SET_USER_MEMORY_REGION).

RAM has a slot for each of its regions, made first; devices map their own (a frame buffer), firmware is mapped read-only.
Any thread may enter. Who maps memory keeps it until `unmap`.
"""

from __future__ import annotations

import threading

from appliance.errors import Conflict, HostError
from appliance.kernel.kvm_abi import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from appliance.kernel.kvm_caps import Cap
from appliance.kernel.kvm_vm import Vm
from appliance.vmm.layout import PAGE
from appliance.vmm.memory import GuestMemory, RamRegion, union_of


class Slot:
    """One of them: `appliance.vmm.device.MappedMemory`."""

    def __init__(self, owner: Slots, number: int, base: int, length: int, host_address: int, flags: int) -> None:
        self.number, self.base, self.length = number, base, length
        self._owner, self._host_address, self._flags = owner, host_address, flags

    @property
    def end(self) -> int:
        return self.base + self.length

    def take_dirty(self) -> bytes:
        """What the guest has written since the last time; all zeros without a log. Raises `HostError`."""
        if not self._flags & KVM_MEM_LOG_DIRTY_PAGES:
            return bytes(-(-self.length // PAGE // 8))
        try:
            return self._owner.vm.get_dirty_log(self.number)[: -(-self.length // PAGE // 8)]
        except OSError as error:
            raise HostError.from_os_error(error, self._owner.vm.name) from error

    def log_dirty(self, *, wanted: bool) -> None:
        """Begin or end logging. Raises `HostError`."""
        flags = self._flags & ~KVM_MEM_LOG_DIRTY_PAGES | (KVM_MEM_LOG_DIRTY_PAGES if wanted else 0)
        if flags != self._flags:
            self._flags = flags
            self.tell(self.length)

    def unmap(self) -> None:
        """The guest sees it no more; harmless when done twice."""
        self._owner._forget(self)

    def tell(self, length: int) -> None:
        """KVM of its present form; 0 deletes it."""
        try:
            self._owner.vm.set_user_memory_region(
                self.number,
                guest_phys_addr=self.base,
                memory_size=length,
                userspace_addr=self._host_address,
                flags=self._flags if length else 0,
            )
        except OSError as error:
            raise HostError.from_os_error(error, self._owner.vm.name) from error


class Slots:
    """All slots of one VM: `appliance.vmm.device.MemorySlots`."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self._lock = threading.Lock()
        self._slots: dict[int, Slot] = {}
        self._limit = vm.check_extension(Cap.NR_MEMSLOTS) or 32
        self._ram: list[tuple[RamRegion, Slot]] = []
        self._memory: GuestMemory | None = None

    def map(
        self, base: int, length: int, host_address: int, *, name: str, read_only: bool = False, log_dirty: bool = False
    ) -> Slot:
        """As `MemorySlots.map`."""
        flags = (KVM_MEM_READONLY if read_only else 0) | (KVM_MEM_LOG_DIRTY_PAGES if log_dirty else 0)
        with self._lock:
            for other in self._slots.values():
                if other.base < base + length and base < other.end:
                    raise Conflict(f"{self.vm.name}: {name} at {base:#x} would overlap slot {other.number}")
            number = next((each for each in range(self._limit) if each not in self._slots), None)
            if number is None:
                raise HostError(f"{self.vm.name}: {name}: all {self._limit} memory slots are in use")
            slot = Slot(self, number, base, length, host_address, flags)
            slot.tell(length)
            self._slots[number] = slot
            return slot

    def map_ram(self, memory: GuestMemory) -> None:
        """Each of its regions. `memory` outlives the VM."""
        self._memory = memory
        for region in memory.regions:
            address = memory.host_address(region.base, region.size)
            self._ram.append((region, self.map(region.base, region.size, address, name="RAM")))

    def close(self) -> None:
        """Take all away: the guest has no memory any more. The VM's vCPUs do not run."""
        for slot in list(self._slots.values()):
            slot.unmap()

    # The dirty log of RAM: what the guest writes is KVM's to tell, what our devices write `GuestMemory` notes

    def start_dirty_log(self) -> None:
        """From now on every page written is noted, by whomever. Raises `HostError`, and then nothing is logged."""
        assert self._memory is not None
        try:
            self._memory.start_dirty_log()
            for _, slot in self._ram:
                slot.log_dirty(wanted=True)
        except HostError:
            self.stop_dirty_log()
            raise

    def take_dirty(self) -> bytes:
        """The pages written since the last time: bit n of byte n // 8 for page n of the memfd. Raises `HostError`.

        KVM's part is taken first: a page that we write in between is in ours, or in the next.
        """
        assert self._memory is not None
        bitmap = bytearray(-(-self._memory.size // PAGE // 8))
        for region, slot in self._ram:
            first = region.offset // PAGE // 8  # regions begin at multiples of 8 pages (vmm/layout)
            taken = slot.take_dirty()
            bitmap[first : first + len(taken)] = taken
        return union_of(bitmap, self._memory.take_dirty())

    def stop_dirty_log(self) -> None:
        """Nothing is noted any more."""
        assert self._memory is not None
        for _, slot in self._ram:
            slot.log_dirty(wanted=False)
        self._memory.stop_dirty_log()

    def _forget(self, slot: Slot) -> None:
        with self._lock:
            if self._slots.get(slot.number) is slot:
                slot.tell(0)
                del self._slots[slot.number]
