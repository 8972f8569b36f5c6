"""The control queue's requests (virtio 1.2 §5.1.6.5). Pure: bytes in, a command out.

readable: | class 1 | command 1 | command-specific-data |        writable: | ack 1 |
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from appliance.vmm.virtio.queue import Chain

MAX_REQUEST: Final = 1 << 16  # a table of 10,000 addresses; beyond `filter.MAX_TABLE` they are not kept
OK, ERROR = 0, 1


class ControlClass(IntEnum):
    """VIRTIO_NET_CTRL_*."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5


MAC_TABLE_SET, MAC_ADDR_SET = 0, 1
VLAN_ADD, VLAN_DEL = 0, 1
ANNOUNCE_ACK = 0
MQ_VQ_PAIRS_SET = 0
GUEST_OFFLOADS_SET = 0


class ControlRequest(NamedTuple):
    """One command."""

    kind: int
    command: int
    data: bytes


def read_request(chain: Chain) -> ControlRequest | None:
    """What the driver asks; None for what is too short or too long to be a command."""
    if not 2 <= chain.readable_bytes <= MAX_REQUEST:
        return None
    request = chain.read(MAX_REQUEST)
    return ControlRequest(request[0], request[1], request[2:]) if len(request) >= 2 else None


def number(data: bytes, size_bytes: int) -> int | None:
    """Little-endian command-specific data of exactly this size."""
    return int.from_bytes(data, "little") if len(data) == size_bytes else None
