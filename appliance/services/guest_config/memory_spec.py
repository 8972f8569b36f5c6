"""What a VM's memory is made of on the host, and its NUMA nodes: `hugepages`, `keephugepages`, `prealloc`, `numa`, `numaN`.

With `numa=1` the machine has the nodes that `numaN` describe, or without any such key one for each socket, as in PVE. A
vCPU that no node names belongs to node 0. Without `numa=1` the keys `numaN` are kept and have no effect, as in PVE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from appliance.errors import InvalidParameter
from appliance.model.guest import GuestKind, MemoryBacking, NumaNode
from appliance.services.guest_config.parsing import parse_one
from appliance.services.guest_config.values import is_true

HIGHEST_NUMBER = 8191
_PAGE_MIB = {"": 1, "2": 2, "any": 2, "1024": 1024}


def memory_backing(config: Mapping[str, str], *, memory_mib: int, sockets: int, cores: int) -> MemoryBacking:
    """Raises `InvalidParameter` for what does not fit together."""
    hugepages = config.get("hugepages", "")
    page_mib = _PAGE_MIB[hugepages]
    if memory_mib % page_mib:
        raise InvalidParameter({"hugepages": f"{memory_mib} MiB of memory are not whole pages of {page_mib} MiB"})
    nodes = _nodes(config, memory_mib, sockets, cores) if is_true(config.get("numa", "0")) else ()
    for node in nodes:
        if node.memory_mib % page_mib:
            raise InvalidParameter(
                {f"numa{node.index}": f"{node.memory_mib} MiB are not whole pages of {page_mib} MiB"}
            )
    return MemoryBacking(
        hugepages=hugepages,
        keep_hugepages=is_true(config.get("keephugepages", "0")),
        prealloc=is_true(config.get("prealloc", "0")),
        numa=nodes,
    )


def _nodes(config: Mapping[str, str], memory_mib: int, sockets: int, cores: int) -> tuple[NumaNode, ...]:
    indexes = [index for index in range(8) if config.get(f"numa{index}")]
    if not indexes:
        return _by_sockets(memory_mib, sockets, cores)
    if indexes != list(range(len(indexes))):
        raise InvalidParameter({f"numa{indexes[-1]}": "nodes are numbered from 0, without gaps"})
    nodes = tuple(_node(index, config[f"numa{index}"]) for index in indexes)
    if (total := sum(node.memory_mib for node in nodes)) != memory_mib:
        raise InvalidParameter(
            {"numa0": f"total memory for NUMA nodes must be equal to vm static memory ({total} and {memory_mib} MiB)"}
        )
    _check_processors(nodes, sockets * cores)
    return nodes


def _by_sockets(memory_mib: int, sockets: int, cores: int) -> tuple[NumaNode, ...]:
    if memory_mib % sockets:
        raise InvalidParameter({"numa": f"{memory_mib} MiB of memory do not divide into {sockets} sockets"})
    return tuple(
        NumaNode(index=index, cpus=tuple(range(index * cores, (index + 1) * cores)), memory_mib=memory_mib // sockets)
        for index in range(sockets)
    )


def _node(index: int, text: str) -> NumaNode:
    values, slot = parse_one(GuestKind.QEMU, f"numa{index}", text), f"numa{index}"
    if "memory" not in values:
        raise InvalidParameter({slot: f"missing NUMA node{index} memory value"})
    memory = float(values["memory"])
    if memory < 1 or memory != int(memory):
        raise InvalidParameter({slot: f"memory {values['memory']} is not a whole number of MiB"})
    host_nodes, policy = _numbers(slot, values.get("hostnodes", "")), values.get("policy", "")
    if host_nodes and not policy:
        raise InvalidParameter({slot: f"you need to define a policy for hostnode {values['hostnodes']}"})
    if policy == "preferred" and len(host_nodes) != 1:
        raise InvalidParameter({slot: "policy 'preferred' is of exactly one hostnode"})
    if policy and not host_nodes:
        raise InvalidParameter({slot: f"policy '{policy}' needs hostnodes"})
    return NumaNode(
        index=index,
        cpus=_numbers(slot, values["cpus"]),
        memory_mib=int(memory),
        host_nodes=host_nodes,
        policy=policy,
    )


def _numbers(slot: str, text: str) -> tuple[int, ...]:
    """`0-1;4`, in order, each once."""
    found: set[int] = set()
    for part in text.split(";") if text else ():
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not low <= high <= HIGHEST_NUMBER:
            raise InvalidParameter({slot: f"'{part}' is not a range of numbers up to {HIGHEST_NUMBER}"})
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def _check_processors(nodes: Sequence[NumaNode], most: int) -> None:
    seen: set[int] = set()
    for node in nodes:
        slot = f"numa{node.index}"
        if beyond := [cpu for cpu in node.cpus if cpu >= most]:
            raise InvalidParameter({slot: f"vCPU {beyond[0]}: there are {most} (sockets * cores)"})
        if twice := seen.intersection(node.cpus):
            raise InvalidParameter({slot: f"vCPU {min(twice)} is in another node as well"})
        seen.update(node.cpus)
