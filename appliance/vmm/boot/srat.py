"""NUMA: which processors and which RAM are near to each other, for the SRAT (ACPI 6.5 §5.2.16). Pure.

The nodes lie one after the other in RAM as the memfd has it (`memory`), so one may have a piece on either side of the hole
below 1 MiB and of that below 4 GiB. A processor that no node names is node 0's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from appliance.vmm.boot.dsdt import Platform
from appliance.vmm.memory import regions_of

_ENABLED = 1


def affinities(platform: Platform) -> bytes:
    """The table's structures: processors (§5.2.16.1), then memory (§5.2.16.2)."""
    return b"".join((*_processors(platform), *_memory(platform)))


def _processors(platform: Platform) -> Iterator[bytes]:
    node_of = {cpu: node for node, (cpus, _) in enumerate(platform.numa) for cpu in cpus}
    for cpu, apic_id in enumerate(platform.apic_ids):
        node = node_of.get(cpu, 0).to_bytes(4, "little")
        yield struct.pack("<BBBBIB3sI", 0, 16, node[0], apic_id, _ENABLED, 0, node[1:], 0)


def _memory(platform: Platform) -> Iterator[bytes]:
    begin = 0
    for node, (_, size) in enumerate(platform.numa):
        end = begin + size
        for region in regions_of(platform.ram_bytes):
            first, last = max(begin, region.offset), min(end, region.offset + region.size)
            if first < last:
                base = region.base + first - region.offset
                yield struct.pack("<BBIHQQIIQ", 1, 40, node, 0, base, last - first, 0, _ENABLED, 0)
        begin = end
