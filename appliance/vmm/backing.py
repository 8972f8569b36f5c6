"""From a specification's memory backing to how RAM is made: huge pages, placement on the host's nodes. Blocking."""

from __future__ import annotations

from appliance.errors import HostError
from appliance.kernel.huge_page_room import chosen_kib, make_room
from appliance.kernel.mempolicy import Policy, online_nodes
from appliance.model.guest import NumaNode, VmSpec
from appliance.vmm.layout import MIB
from appliance.vmm.memory import MemoryOptions, Placement

_POLICIES = {"preferred": Policy.PREFERRED, "bind": Policy.BIND, "interleave": Policy.INTERLEAVE}


def memory_options(spec: VmSpec) -> MemoryOptions:
    """How the memory of `spec` is made; room for its huge pages has been made. Raises `HostError`."""
    label, backing = f"vm {spec.guest_id}", spec.memory_backing
    placements = placed(backing.numa)
    _check_nodes(label, backing.numa)
    try:
        parts = [node.memory_mib for node in backing.numa] or [spec.memory_mib]
        pages_kib = chosen_kib(backing.hugepages, parts)
    except OSError as error:
        raise HostError.from_os_error(error, label) from error
    if pages_kib:
        make_room(pages_kib, spec.memory_mib, keep=backing.keep_hugepages, about=label)
    return MemoryOptions(hugepages_kib=pages_kib, prealloc=backing.prealloc, placements=placements)


def placed(nodes: tuple[NumaNode, ...]) -> tuple[Placement, ...]:
    """Pure. The guest's nodes lie one after the other in its RAM; those the host may put anywhere are left out."""
    found, offset = [], 0
    for node in nodes:
        size = node.memory_mib * MIB
        if node.policy:
            found.append(Placement(offset, size, _POLICIES[node.policy], node.host_nodes))
        offset += size
    return tuple(found)


def _check_nodes(label: str, nodes: tuple[NumaNode, ...]) -> None:
    online = online_nodes()
    for node in nodes:
        if absent := [each for each in node.host_nodes if each not in online]:
            raise HostError(f"{label}: numa{node.index}: this host has no NUMA node {absent[0]}")
