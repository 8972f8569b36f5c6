"""RAM of huge pages, taken at once, and placed on the host's nodes: on the real kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from appliance.errors import HostError
from appliance.kernel import hugepages, mempolicy
from appliance.kernel.huge_page_room import chosen_kib, make_room
from appliance.kernel.mempolicy import Policy
from appliance.model.guest import GuestId, MemoryBacking, NumaNode, VmSpec
from appliance.vmm.backing import memory_options
from appliance.vmm.memory import GuestMemory, MemoryOptions, Placement

pytestmark = pytest.mark.host

MIB = 1 << 20
SPEC = VmSpec(guest_id=GuestId(100), name="a", uuid="3f2504e0-4f89-41d3-9a0c-0305e82c3301", memory_mib=16)


@pytest.fixture
def limit() -> Iterator[None]:
    """The host's limit of pages is as before afterwards."""
    if 2048 not in hugepages.sizes_kib():
        pytest.skip("the kernel has no huge pages of 2 MiB")
    before = hugepages.pool(2048).overcommit
    try:
        hugepages.set_overcommit(2048, before)
    except OSError as error:
        pytest.skip(str(error))
    yield
    hugepages.set_overcommit(2048, before)


@pytest.mark.usefixtures("limit")
def test_huge_pages_are_made_for_the_guest_and_go_with_it() -> None:
    before = hugepages.pool(2048)
    spec = replace(SPEC, memory_backing=MemoryBacking(hugepages="2"))
    memory = GuestMemory(16 * MIB, name="vm 100", options=memory_options(spec))
    try:
        assert memory.resident_bytes() == 16 * MIB
        memory.write(0x10_0000, b"here")
        memory.discard(0x10_0000, 4096)
        assert memory.read(0x10_0000, 4) == bytes(4)
        used = hugepages.pool(2048)
        assert used.pages - used.free == before.pages - before.free + 8
    finally:
        memory.close()
    assert hugepages.pool(2048).pages == before.pages


@pytest.mark.usefixtures("limit")
def test_pages_that_shall_stay_are_the_pools() -> None:
    before = hugepages.pool(2048)
    try:
        make_room(2048, 8, keep=True, about="vm 100")
        assert hugepages.pool(2048).available >= 4
    finally:
        hugepages.set_pages(2048, before.pages)


def test_pages_the_host_has_not_are_an_error_with_the_numbers() -> None:
    if 1 << 20 not in hugepages.sizes_kib():
        pytest.skip("the kernel has no huge pages of 1 GiB")
    with pytest.raises(HostError, match=r"vm 100: 4096 huge pages of 1 GiB are needed, \d+ are free"):
        make_room(1 << 20, 4 << 20, keep=False, about="vm 100")
    assert chosen_kib("any", [4 << 20]) == 2048, "any takes what there is"


def test_all_memory_can_be_taken_at_the_start() -> None:
    memory = GuestMemory(8 * MIB, name="vm 100", options=MemoryOptions(prealloc=True))
    assert memory.resident_bytes() == 8 * MIB
    memory.close()


@pytest.mark.parametrize("policy", list(Policy))
def test_memory_is_placed_on_nodes_of_the_host(policy: Policy) -> None:
    node = min(mempolicy.online_nodes())
    options = MemoryOptions(placements=(Placement(4 * MIB, 4 * MIB, policy, (node,)),))
    memory = GuestMemory(8 * MIB, name="vm 100", options=options)
    memory.write(5 * MIB, b"here")
    memory.close()


def test_a_node_the_host_has_not_is_refused_by_name() -> None:
    node = NumaNode(index=0, cpus=(0,), memory_mib=16, host_nodes=(1000,), policy="bind")
    with pytest.raises(HostError, match="numa0: this host has no NUMA node 1000"):
        memory_options(replace(SPEC, memory_backing=MemoryBacking(numa=(node,))))
    with pytest.raises(HostError, match="vm 100"):
        GuestMemory(MIB, name="vm 100", options=MemoryOptions(placements=(Placement(0, MIB, Policy.BIND, (1000,)),)))
