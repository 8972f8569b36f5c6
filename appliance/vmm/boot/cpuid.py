"""What a vCPU says it is: CPUID leaves, from what KVM offers (api.rst KVM_GET_SUPPORTED_CPUID). Pure.

KVM's offer has this host's topology in it and lacks what only we can decide; `leaves` makes of it one vCPU's:
    1             APIC ID, processors in the package, hypervisor bit, TSC deadline timer (a capability, not in the offer)
    4, 0x8000001d how many processors share a cache
    0xb, 0x1f     topology by levels: one thread a core, cores, then the package
    0x80000008    cores in the package (AMD); 0x8000001e  core and node (AMD)
    0x40000000    KVM's signature
The models below "host" are the psABI's levels: a processor that guests can be moved between hosts with. What they may
have is listed in `cpu_models`.

Sources: SDM vol.2A CPUID, AMD APM vol.3 appendix E, Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from appliance.kernel.kvm_cpu_abi import KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KvmCpuidEntry2
from appliance.vmm.boot import cpu_models
from appliance.vmm.boot.cpu_models import Register

HYPERVISOR, OSXSAVE, X2APIC, TSC_DEADLINE = 1 << 31, 1 << 27, 1 << 21, 1 << 24  # leaf 1 ecx
HTT: Final = 1 << 28  # leaf 1 edx
CMP_LEGACY, TOPOEXT = 1 << 1, 1 << 22  # leaf 0x80000001 ecx
INVARIANT_TSC: Final = 1 << 8  # leaf 0x80000007 edx

SIGNATURE_LEAF: Final = 0x4000_0000
SIGNATURE: Final = (0x4B4D_564B, 0x564B_4D56, 0x4D)  # "KVMKVMKVM"
_LEVEL_SMT, _LEVEL_CORE = 1, 2
_BASIC, _EXTENDED = 0, 0x8000_0000
_CACHES_INTEL, _CACHES_AMD = 4, 0x8000_001D
_AMD_VENDORS: Final = (0x6874_7541, 0x6F67_7948)  # ebx of "AuthenticAMD", "HygonGenuine"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One answer of CPUID. `indexed`: it depends on ecx."""

    function: int
    index: int
    eax: int
    ebx: int
    ecx: int
    edx: int
    indexed: bool = False

    @staticmethod
    def from_kvm(entry: KvmCpuidEntry2) -> Leaf:
        indexed = bool(entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
        return Leaf(entry.function, entry.index, entry.eax, entry.ebx, entry.ecx, entry.edx, indexed)

    def to_kvm(self) -> KvmCpuidEntry2:
        flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX if self.indexed else 0
        return KvmCpuidEntry2(self.function, self.index, flags, self.eax, self.ebx, self.ecx, self.edx)


@dataclass(frozen=True, slots=True)
class Topology:
    """Sockets of equal cores, one thread each. APIC IDs are package number, then core: sparse where the number of cores
    is no power of two (SDM vol.3 §9.9.1)."""

    sockets: int = 1
    cores: int = 1

    @property
    def core_bits(self) -> int:
        return (self.cores - 1).bit_length()

    def apic_id(self, number: int) -> int:
        """Of the vCPU `number`, counted from 0."""
        package, core = divmod(number, self.cores)
        return package << self.core_bits | core

    def apic_ids(self, vcpus: int | None = None) -> tuple[int, ...]:
        """Of the first `vcpus`; of all of them by default."""
        return tuple(self.apic_id(number) for number in range(self.sockets * self.cores if vcpus is None else vcpus))


def physical_bits(offered: Sequence[Leaf]) -> int:
    """How wide guest-physical addresses are; 36 where the processor does not say (SDM vol.3 §4.1.4)."""
    return next((leaf.eax & 0xFF for leaf in offered if leaf.function == 0x8000_0008), 0) or 36


def leaves(
    offered: Sequence[Leaf], model: str, topology: Topology, apic_id: int, *, tsc_deadline: bool
) -> tuple[Leaf, ...]:
    """What `KVM_SET_CPUID2` is given for the vCPU `apic_id`. `tsc_deadline` is KVM_CAP_TSC_DEADLINE_TIMER.

    `model` is one of `cpu_models.MODELS`. Raises `Unsupported` naming what the host's processor lacks for it.
    """
    shown = cpu_models.masked(offered_registers(offered), model)
    vcpu = _Vcpu(topology, apic_id, tsc_deadline=tsc_deadline, amd=_is_amd(offered))
    made: list[Leaf] = []
    for leaf in offered:
        if leaf.function not in (0xB, 0x1F, SIGNATURE_LEAF) and shown.keeps(leaf.function, leaf.index):
            made.append(vcpu.adapt(_masked(leaf, shown)))
    made += vcpu.topology_levels(max((leaf.eax for leaf in made if leaf.function == _BASIC), default=0))
    features = max((leaf.function for leaf in offered if leaf.function >> 8 == SIGNATURE_LEAF >> 8), default=0)
    made.append(Leaf(SIGNATURE_LEAF, 0, max(features, SIGNATURE_LEAF + 1), *SIGNATURE))
    return tuple(sorted(made, key=lambda each: (each.function, each.index)))


def offered_registers(offered: Sequence[Leaf]) -> dict[Register, int]:
    """The same by register, for the models."""
    return {
        Register(leaf.function, leaf.index, name): getattr(leaf, name)
        for leaf in offered
        for name in ("eax", "ebx", "ecx", "edx")
    }


def _masked(leaf: Leaf, shown: cpu_models.Shown) -> Leaf:
    def value(name: str) -> int:
        return shown.value(Register(leaf.function, leaf.index, name), getattr(leaf, name))

    return replace(leaf, eax=value("eax"), ebx=value("ebx"), ecx=value("ecx"), edx=value("edx"))


def _is_amd(offered: Sequence[Leaf]) -> bool:
    return any(leaf.function == _BASIC and leaf.ebx in _AMD_VENDORS for leaf in offered)


@dataclass(frozen=True, slots=True)
class _Vcpu:
    """One vCPU's place, put into leaves."""

    topology: Topology
    apic_id: int
    tsc_deadline: bool
    amd: bool

    def adapt(self, leaf: Leaf) -> Leaf:
        cores, bits = self.topology.cores, self.topology.core_bits
        match leaf.function:
            case 1:
                return self._features(leaf)
            case function if function in (_CACHES_INTEL, _CACHES_AMD):
                return self._cache(leaf)
            case 0x8000_0001 if self.amd:
                return replace(leaf, ecx=leaf.ecx & ~CMP_LEGACY | (CMP_LEGACY if cores > 1 else 0))
            case 0x8000_0008 if self.amd:
                return replace(leaf, ecx=leaf.ecx & ~0xF0FF | bits << 12 | (cores - 1) & 0xFF)
            case 0x8000_001E:
                return replace(leaf, eax=self.apic_id, ebx=self.apic_id & (1 << bits) - 1, ecx=self.apic_id >> bits)
            case _:
                return leaf

    def _features(self, leaf: Leaf) -> Leaf:
        cores = self.topology.cores
        ebx = leaf.ebx & 0xFF00 | (self.apic_id & 0xFF) << 24 | min(cores, 0xFF) << 16
        ecx = leaf.ecx & ~(OSXSAVE | TSC_DEADLINE) | HYPERVISOR | (TSC_DEADLINE if self.tsc_deadline else 0)
        edx = leaf.edx & ~HTT | (HTT if cores > 1 else 0)
        return replace(leaf, ebx=ebx, ecx=ecx, edx=edx)

    def _cache(self, leaf: Leaf) -> Leaf:
        """The last level is shared by the package's cores, the others belong to one (eax 25:14; Intel's 31:26 as well)."""
        if not leaf.eax & 0x1F:
            return leaf
        addressable = (1 << self.topology.core_bits) - 1
        sharing = addressable if leaf.eax >> 5 & 7 >= 3 else 0
        eax = leaf.eax & 0x3FFF | sharing << 14
        return replace(leaf, eax=eax if self.amd else eax | min(addressable, 0x3F) << 26)

    def topology_levels(self, highest: int) -> Iterator[Leaf]:
        """Leaves 0xb and 0x1f as far as the processor has them: threads, cores, and the end."""
        cores, bits = self.topology.cores, self.topology.core_bits
        levels = ((0, 1, _LEVEL_SMT), (bits, cores, _LEVEL_CORE), (0, 0, 0))
        for function in (0xB, 0x1F):
            if function <= highest:
                for number, (shift, count, kind) in enumerate(levels):
                    yield Leaf(function, number, shift, count, kind << 8 | number, self.apic_id, indexed=True)


def check_model(offered: Sequence[Leaf], model: str) -> None:
    """Raises `Unsupported` as `leaves` would, for saying it before a machine is made."""
    cpu_models.masked(offered_registers(offered), model)
