"""CPUID: one vCPU's place in the topology, and models that are the same on every host that has them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from appliance.errors import Unsupported
from appliance.vmm.boot import cpu_models, cpuid
from appliance.vmm.boot.cpu_models import BITS
from appliance.vmm.boot.cpuid import Leaf, Topology

INTEL, AMD = (0x756E_6547, 0x6C65_746E, 0x4965_6E69), (0x6874_7541, 0x444D_4163, 0x6974_6E65)
ONES = 0xFFFF_FFFF
ONE = Topology()


def host(vendor: tuple[int, int, int], *, lacking: Iterable[str] = (), highest: int = 0x1F) -> list[Leaf]:
    """An offer with every feature, but for some."""
    amd = vendor == AMD
    caches = [Leaf(0x8000_001D if amd else 4, n, eax, 0, 0, 0, indexed=True) for n, eax in enumerate(_CACHES)]
    offer = [
        Leaf(0, 0, highest, vendor[0], vendor[1], vendor[2]),
        Leaf(1, 0, 0x306A9, 0x0902_0800, ONES, ONES),
        *caches,
        Leaf(6, 0, 0x77, 9, 9, 0),
        Leaf(7, 0, 2, ONES, ONES, ONES, indexed=True),
        Leaf(7, 1, ONES, 0, 0, 0, indexed=True),
        Leaf(0xA, 0, 7, 0, 0, 0x603),
        Leaf(0xB, 0, 1, 2, 0x100, 77, indexed=True),
        Leaf(0xD, 0, 0xE7, 0x340, 0xA88, 0, indexed=True),
        Leaf(0xD, 1, 0xF, 0, 0x100, 0, indexed=True),
        Leaf(0xD, 2, 0x100, 0x240, 0, 0, indexed=True),
        Leaf(0xD, 5, 0x40, 0x440, 0, 0, indexed=True),
        Leaf(0x4000_0000, 0, 0x4000_0001, 0, 0, 0),
        Leaf(0x4000_0001, 0, 0x0100_7EFB, 0, 0, 0),
        Leaf(0x8000_0000, 0, 0x8000_0021, 0, 0, 0),
        Leaf(0x8000_0001, 0, 0x306A9, 0, ONES, ONES),
        *(Leaf(0x8000_0002 + n, 0, 1, 2, 3, 4) for n in range(3)),
        Leaf(0x8000_0007, 0, 0, 0, 0, cpuid.INVARIANT_TSC),
        Leaf(0x8000_0008, 0, 0x3028, ONES, 0x7001, 0),
        Leaf(0x8000_001E, 0, 9, 9, 9, 0),
    ]
    for name in lacking:
        register, bit = BITS[name]
        offer = [
            replace(leaf, **{register.name: getattr(leaf, register.name) & ~(1 << bit)})
            if (leaf.function, leaf.index) == (register.function, register.subleaf)
            else leaf
            for leaf in offer
        ]
    return offer


_CACHES = (0x1C00_4121, 0x1C00_4122, 0x1C00_4143, 0x1C03_C163, 0)  # L1d, L1i, L2, L3, the end


def made(
    vendor: tuple[int, int, int] = INTEL,
    model: str = "host",
    topology: Topology = ONE,
    apic_id: int = 0,
    *,
    deadline: bool = True,
    lacking: Iterable[str] = (),
) -> dict[tuple[int, int], Leaf]:
    offer = host(vendor, lacking=lacking)
    leaves = cpuid.leaves(offer, model, topology, apic_id, tsc_deadline=deadline)
    found = {(leaf.function, leaf.index): leaf for leaf in leaves}
    assert len(found) == len(leaves)
    return found


# Topology


@pytest.mark.parametrize(
    ("topology", "ids"),
    [
        (Topology(1, 1), (0,)),
        (Topology(2, 2), (0, 1, 2, 3)),
        (Topology(2, 3), (0, 1, 2, 4, 5, 6)),
        (Topology(4, 1), (0, 1, 2, 3)),
    ],
)
def test_apic_ids_have_a_field_for_the_core_and_one_for_the_package(topology: Topology, ids: tuple[int, ...]) -> None:
    assert topology.apic_ids() == ids
    assert topology.apic_ids(1) == ids[:1]


def test_no_shape_of_64_processors_needs_an_apic_id_above_254() -> None:
    for cores in range(1, 65):
        assert max(Topology(64 // cores, cores).apic_ids()) <= 254


def test_leaf_1_has_the_apic_id_and_the_number_of_processors_in_the_package() -> None:
    leaf = made(topology=Topology(2, 3), apic_id=5)[1, 0]
    assert (leaf.ebx >> 24, leaf.ebx >> 16 & 0xFF, leaf.ebx >> 8 & 0xFF, leaf.ebx & 0xFF) == (5, 3, 8, 0)
    assert leaf.edx & cpuid.HTT
    assert not made()[1, 0].edx & cpuid.HTT


@pytest.mark.parametrize("function", [0xB, 0x1F])
def test_the_topology_leaves_name_threads_then_cores_then_end(function: int) -> None:
    found = made(topology=Topology(2, 3), apic_id=6)
    rows = [found[function, number] for number in range(3)]
    assert [(leaf.eax, leaf.ebx, leaf.ecx) for leaf in rows] == [(0, 1, 0x100), (2, 3, 0x201), (0, 0, 2)]
    assert all(leaf.edx == 6 and leaf.indexed for leaf in rows)


def test_topology_leaves_above_the_highest_leaf_are_not_made() -> None:
    leaves = cpuid.leaves(host(INTEL, highest=0xD), "host", Topology(), 0, tsc_deadline=False)
    assert {leaf.function for leaf in leaves} & {0xB, 0x1F} == {0xB}


def test_intels_caches_are_shared_by_the_package_at_the_last_level_only() -> None:
    found = made(topology=Topology(1, 6))
    assert [found[4, n].eax >> 14 & 0xFFF for n in range(4)] == [0, 0, 0, 7]
    assert [found[4, n].eax >> 26 for n in range(4)] == [7, 7, 7, 7]
    assert [found[4, n].eax & 0x3FFF for n in range(4)] == [each & 0x3FFF for each in _CACHES[:4]]
    assert found[4, 4].eax == 0


def test_amds_leaves_have_cores_caches_and_extended_id() -> None:
    found = made(AMD, topology=Topology(2, 6), apic_id=0xA)
    assert [found[0x8000_001D, n].eax >> 14 & 0xFFF for n in range(4)] == [0, 0, 0, 7]
    assert found[0x8000_0008, 0].ecx & 0xF0FF == 3 << 12 | 5
    extended = found[0x8000_001E, 0]
    assert (extended.eax, extended.ebx, extended.ecx) == (0xA, 2, 1)
    assert found[0x8000_0001, 0].ecx & cpuid.CMP_LEGACY
    assert not made(AMD)[0x8000_0001, 0].ecx & cpuid.CMP_LEGACY


def test_intels_extended_leaves_do_not_speak_of_cores() -> None:
    assert made(INTEL, topology=Topology(1, 6))[0x8000_0008, 0].ecx == 0x7001


# What any guest sees


@pytest.mark.parametrize("model", sorted(cpu_models.MODELS))
@pytest.mark.parametrize("vendor", [INTEL, AMD])
def test_every_model_is_a_kvm_guest_of_its_vendor(vendor: tuple[int, int, int], model: str) -> None:
    found = made(vendor, model)
    assert found[1, 0].ecx & cpuid.HYPERVISOR
    assert found[1, 0].ecx & cpuid.X2APIC
    assert not found[1, 0].ecx & cpuid.OSXSAVE
    signature = found[0x4000_0000, 0]
    text = b"".join(each.to_bytes(4, "little") for each in (signature.ebx, signature.ecx, signature.edx))
    assert text == b"KVMKVMKVM\0\0\0"
    assert signature.eax == 0x4000_0001
    assert found[0x4000_0001, 0].eax == 0x0100_7EFB
    assert (found[0, 0].ebx, found[0, 0].ecx, found[0, 0].edx) == vendor
    assert cpuid.physical_bits(tuple(found.values())) == 0x28


@pytest.mark.parametrize("deadline", [True, False])
def test_the_deadline_timer_is_kvms_capability_not_its_offer(deadline: bool) -> None:
    assert bool(made(deadline=deadline)[1, 0].ecx & cpuid.TSC_DEADLINE) is deadline


def test_x2apic_is_dropped_only_where_kvm_lacks_it() -> None:
    assert not made(lacking=["x2apic"])[1, 0].ecx & cpuid.X2APIC


def test_host_keeps_every_feature_it_is_offered() -> None:
    found = made(AMD)
    assert (found[7, 0].ebx, found[7, 0].ecx, found[7, 0].edx) == (ONES, ONES, ONES)
    assert found[0xD, 0].eax == 0xE7
    assert (0xD, 5) in found
    assert found[0x8000_0007, 0].edx == cpuid.INVARIANT_TSC


# Levels


def features(found: dict[tuple[int, int], Leaf]) -> set[str]:
    def has(name: str) -> bool:
        register, bit = BITS[name]
        leaf = found.get((register.function, register.subleaf))
        return bool(leaf and getattr(leaf, register.name) >> bit & 1)

    return {name for name in BITS if has(name)}


def test_each_level_has_its_features_and_no_higher_levels() -> None:
    shown = {model: features(made(INTEL, model)) for model in ("kvm64", "x86-64-v2", "x86-64-v2-AES", "x86-64-v3")}
    assert {"sse4_2", "popcnt", "ssse3", "lahf_lm"} <= shown["x86-64-v2"] - shown["kvm64"]
    assert shown["x86-64-v2-AES"] - shown["x86-64-v2"] == {"aes", "pclmulqdq", "rdrand"}
    assert {"avx2", "bmi2", "fma", "xsave", "movbe"} <= shown["x86-64-v3"] - shown["x86-64-v2-AES"]


@pytest.mark.parametrize("model", ["kvm64", "x86-64-v2-AES", "x86-64-v3"])
def test_a_level_looks_the_same_on_a_richer_host(model: str) -> None:
    """Two Intel hosts, one with every feature, one with just what the models know of."""
    rich = made(INTEL, model)
    offer = []
    for leaf in host(INTEL):
        masks = dict.fromkeys(("ebx", "ecx", "edx"), 0)
        for register, bit in BITS.values():
            if (register.function, register.subleaf) == (leaf.function, leaf.index) and register.name in masks:
                masks[register.name] |= 1 << bit
        if leaf.function in (1, 7, 0x8000_0001):
            keep = masks["ebx"] if leaf.function == 7 else ONES
            leaf = replace(leaf, ebx=leaf.ebx & keep, ecx=leaf.ecx & masks["ecx"], edx=leaf.edx & masks["edx"])
        offer.append(leaf)
    plain = cpuid.leaves(offer, model, Topology(), 0, tsc_deadline=True)
    assert {(leaf.function, leaf.index): leaf for leaf in plain} == rich


def test_a_level_hides_family_brand_sub_leaves_and_what_binds_to_a_host() -> None:
    found = made(INTEL, cpu_models.PORTABLE)
    assert found[1, 0].eax == found[0x8000_0001, 0].eax == 0xF61
    brand = b"".join(
        value.to_bytes(4, "little")
        for n in range(3)
        for value in (lambda each: (each.eax, each.ebx, each.ecx, each.edx))(found[0x8000_0002 + n, 0])
    )
    assert brand.rstrip(b"\0") == b"Common KVM processor"
    assert found[0x8000_0007, 0].edx == 0
    assert not {(7, 1), (0xA, 0), (0xD, 5), (0x8000_001E, 0)} & set(found)
    assert (found[0, 0].eax, found[0x8000_0000, 0].eax) == (0xD, 0x8000_0008)


def test_xsave_state_is_that_of_the_level() -> None:
    v2, v3 = made(INTEL, "x86-64-v2"), made(INTEL, "x86-64-v3")
    assert v2[0xD, 0] == Leaf(0xD, 0, 0, 0, 0, 0, indexed=True)
    assert (v3[0xD, 0].eax, v3[0xD, 0].ecx, v3[0xD, 0].edx) == (7, 0x340, 0)
    assert v3[0xD, 1] == Leaf(0xD, 1, 0, 0, 0, 0, indexed=True)


@pytest.mark.parametrize("lacking", [["aes"], ["sse4_2", "popcnt"], ["lm"]])
def test_a_host_without_a_levels_features_is_told_which(lacking: list[str]) -> None:
    with pytest.raises(Unsupported, match=f"'x86-64-v2-AES': this host lacks .*{'.*'.join(sorted(lacking))}"):
        made(INTEL, "x86-64-v2-AES", lacking=lacking)


def test_avx_without_its_state_is_no_v3() -> None:
    offer = [replace(leaf, eax=3) if (leaf.function, leaf.index) == (0xD, 0) else leaf for leaf in host(INTEL)]
    with pytest.raises(Unsupported, match="lacks AVX state"):
        cpuid.check_model(offer, "x86-64-v3")


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(Unsupported, match="processor 'EPYC' is not one of host, kvm64"):
        cpuid.check_model(host(AMD), "EPYC")
    with pytest.raises(Unsupported, match="'EPYC'"):
        made(AMD, "EPYC")


def test_a_processor_that_does_not_say_its_address_width_has_36_bits() -> None:
    assert cpuid.physical_bits([]) == 36
