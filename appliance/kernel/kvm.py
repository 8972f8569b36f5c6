"""/dev/kvm: KVM's system ioctls, and the door to virtual machines (Documentation/virt/kvm/api.rst).

    Kvm (here)  ──create_vm──▶  Vm (kvm_vm)  ──create_vcpu──▶  Vcpu (kvm_vcpu)        ioctls: kvm_object, kvm_ioctls
                                                                                      structures: kvm_abi and its map
Each owns its descriptor, has one method for each ioctl, named after it, and raises `OSError` naming the ioctl and the
object. No policy, no asyncio and no threads: who runs what is the engine's business. What the host's KVM can do is
`kvm_capabilities.probe`'s.
"""

from __future__ import annotations

import os

from appliance.kernel import kvm_cpu_abi as abi
from appliance.kernel.kvm_abi import with_entries
from appliance.kernel.kvm_caps import Cap
from appliance.kernel.kvm_ioctls import Ioctl
from appliance.kernel.kvm_object import KvmObject
from appliance.kernel.kvm_vm import Vm
from appliance.kernel.libc import failure
from appliance.kernel.virtualization import KVM_DEVICE

KVM_API_VERSION = 12  # api.rst KVM_GET_API_VERSION: any other is to be refused
_MSR_LIST_ENTRIES = 1024  # Linux 6.18 lists a few hundred; E2BIG tells the true number


class Kvm(KvmObject):
    """The device, open. VMs outlive it. Raises `OSError` naming the device when it cannot be opened."""

    def __init__(self, device: str = KVM_DEVICE) -> None:
        try:
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise failure("open", device, error.errno) from error
        super().__init__(fd, device)

    def get_api_version(self) -> int:
        """KVM_GET_API_VERSION: `KVM_API_VERSION` on any Linux since 2.6.22."""
        return self._call(Ioctl.KVM_GET_API_VERSION)

    def check_extension(self, cap: Cap) -> int:
        """KVM_CHECK_EXTENSION: 0 is no; otherwise 1, a limit or flags."""
        return self._call(Ioctl.KVM_CHECK_EXTENSION, cap, about=f"{self.name}: {cap.name}")

    def get_vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes to map of a vCPU."""
        return self._call(Ioctl.KVM_GET_VCPU_MMAP_SIZE)

    def create_vm(self, name: str) -> Vm:
        """KVM_CREATE_VM. `name` ("vm 101") is what errors call it."""
        run_bytes = self.get_vcpu_mmap_size()
        return Vm(self._call(Ioctl.KVM_CREATE_VM, about=name), name, run_bytes=run_bytes)

    def get_supported_cpuid(self) -> list[abi.KvmCpuidEntry2]:
        """KVM_GET_SUPPORTED_CPUID: what a guest may be shown."""
        cpuid, entries = with_entries(abi.KvmCpuid2, abi.KvmCpuidEntry2, abi.KVM_MAX_CPUID_ENTRIES)
        cpuid.nent = abi.KVM_MAX_CPUID_ENTRIES
        self._pass(Ioctl.KVM_GET_SUPPORTED_CPUID, cpuid)
        return list(entries[: cpuid.nent])

    def get_msr_index_list(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: the registers that make up a vCPU's state."""
        known, entries = with_entries(abi.KvmMsrList, abi.KvmMsrIndex, _MSR_LIST_ENTRIES)
        known.nmsrs = _MSR_LIST_ENTRIES
        self._pass(Ioctl.KVM_GET_MSR_INDEX_LIST, known)
        return [entry.index for entry in entries[: known.nmsrs]]
