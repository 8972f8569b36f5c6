"""struct virtio_net_hdr (virtio 1.2 §5.1.6), which precedes every packet in a ring and in a tap. Pure.

    0        1         2          4           6             8              10
    +--------+---------+----------+-----------+-------------+--------------+--------------+
    | flags  | gso_type| hdr_len  | gso_size  | csum_start  | csum_offset  | num_buffers  |
    +--------+---------+----------+-----------+-------------+--------------+--------------+

What a guest writes there goes to the kernel's network stack, and from it to other guests and hosts: it is checked, and
rebuilt from what was understood.
"""

from __future__ import annotations

import struct
from typing import Final

from appliance.vmm.netdev import features as f

HEADER_BYTES: Final = 12
ETHERNET_BYTES: Final = 14
VLAN_BYTES: Final = 4
MAX_FRAME: Final = 65589 + VLAN_BYTES  # §5.1.6.3: Ethernet, IPv6, 65535 bytes of payload

NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80

_HEADER = struct.Struct("<BBHHHHH")
_PLAIN = bytes(HEADER_BYTES)
_NEEDED = {GSO_TCPV4: f.F_HOST_TSO4, GSO_TCPV6: f.F_HOST_TSO6, GSO_UDP: f.F_HOST_UFO, GSO_UDP_L4: f.F_HOST_USO}


class SegmentTypes:
    """Which values of gso_type a driver with `features` may use."""

    def __init__(self, features: int) -> None:
        self.checksum = bool(features >> f.F_CSUM & 1)
        self.allowed = {kind for kind, bit in _NEEDED.items() if features >> bit & 1}
        if features >> f.F_HOST_ECN & 1:
            self.allowed |= {kind | GSO_ECN for kind in (GSO_TCPV4, GSO_TCPV6) if kind in self.allowed}


def checked(header: bytes, frame_bytes: int, types: SegmentTypes) -> bytes | None:
    """The header to send a frame of `frame_bytes` with, or None for what must not be sent (§5.1.6.2)."""
    if not ETHERNET_BYTES <= frame_bytes <= MAX_FRAME or len(header) != HEADER_BYTES:
        return None
    if header == _PLAIN:
        return header
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, _ = _HEADER.unpack(header)
    flags &= NEEDS_CSUM  # others are the device's to set, or unknown: ignored
    if flags:
        if not types.checksum or csum_start + csum_offset + 2 > frame_bytes:
            return None
    else:
        csum_start = csum_offset = 0
    if gso_type == GSO_NONE:
        return _HEADER.pack(flags, GSO_NONE, 0, 0, csum_start, csum_offset, 0)
    if gso_type not in types.allowed or not flags or not gso_size:
        return None
    # a hint that is often wrong (§5.1.6.2.2); the kernel refuses one that is longer than the frame
    return _HEADER.pack(flags, gso_type, min(hdr_len, frame_bytes), gso_size, csum_start, csum_offset, 0)


def segmented(header: bytes | bytearray | memoryview) -> bool:
    """Whether the frame behind it is to be cut up, and so may exceed the MTU."""
    return header[1] & ~GSO_ECN != GSO_NONE
