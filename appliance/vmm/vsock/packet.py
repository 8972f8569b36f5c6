"""struct virtio_vsock_hdr (virtio 1.2 §5.10.6), little-endian, in front of each packet's payload. Pure.

0          8          16         20         24    28     30   32      36          40        44
+----------+----------+----------+----------+-----+------+----+-------+-----------+---------+
| src_cid  | dst_cid  | src_port | dst_port | len | type | op | flags | buf_alloc | fwd_cnt |
+----------+----------+----------+----------+-----+------+----+-------+-----------+---------+
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

HEADER_BYTES: Final = 44
HOST_CID: Final = 2
FIRST_GUEST_CID, LAST_GUEST_CID = 3, 0xFFFF_FFFE  # the others are reserved (§5.10.4)
TYPE_STREAM: Final = 1
SHUTDOWN_RECEIVE, SHUTDOWN_SEND = 1, 2  # §5.10.6.5: the sender will not receive, will not send any more
SHUTDOWN_BOTH: Final = SHUTDOWN_RECEIVE | SHUTDOWN_SEND
EVENT_TRANSPORT_RESET: Final = 0
MASK_32: Final = 0xFFFF_FFFF

_HEADER = struct.Struct("<QQIIIHHIII")
assert _HEADER.size == HEADER_BYTES


class Op(IntEnum):
    """VIRTIO_VSOCK_OP_*."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Header(NamedTuple):
    """Field names are the standard's; `op` may be none of `Op`."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int

    @staticmethod
    def unpack(data: bytes) -> Header:
        """From 44 bytes."""
        return Header(*_HEADER.unpack(data))

    def pack(self) -> bytes:
        """To 44 bytes."""
        return _HEADER.pack(*self)

    def refusal(self) -> Header:
        """The RST that answers this packet."""
        return Header(
            self.dst_cid, self.src_cid, self.dst_port, self.src_port, 0, self.type or TYPE_STREAM, Op.RST, 0, 0, 0
        )
