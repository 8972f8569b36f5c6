"""The messages of vhost-user (QEMU docs/interop/vhost-user.rst), to bytes and back. Pure. Native byte order: little.

    request 4 | flags 4 | size 4 | payload, `size` bytes            and descriptors beside it

flags: version 1 in bits 0-1, reply in bit 2, "please reply" in bit 3 (REPLY_ACK).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from appliance.kernel.vhost_abi import VHOST_VRING_F_LOG


class Request(IntEnum):
    """What we ask ("front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32


class ProtocolFeature(IntEnum):
    """Bit numbers of what is negotiated by SET_PROTOCOL_FEATURES; those we use."""

    MQ = 0
    LOG_SHMFD = 1
    REPLY_ACK = 3
    CONFIG = 9
    INFLIGHT_SHMFD = 12


F_PROTOCOL_FEATURES: Final = 30  # a feature bit that no driver ever sees

VERSION, FLAG_REPLY, FLAG_NEED_REPLY = 1, 4, 8
VERSION_MASK: Final = 3
NO_DESCRIPTOR: Final = 1 << 8
MAX_PAYLOAD: Final = 4096
MAX_CONFIG: Final = 256
MAX_REGIONS: Final = 8

_HEADER = struct.Struct("<III")
_U64 = struct.Struct("<Q")
_STATE = struct.Struct("<II")
_ADDRESSES = struct.Struct("<IIQQQQ")
_COUNT = struct.Struct("<II")
_REGION = struct.Struct("<QQQQ")
_LOG = struct.Struct("<QQ")
_CONFIG = struct.Struct("<III")
_INFLIGHT = struct.Struct("<QQHH")
HEADER_BYTES: Final = _HEADER.size


class Malformed(ValueError):
    """The other end has sent what is no answer."""


class Header(NamedTuple):
    """Of a message."""

    request: int
    flags: int
    size: int


class Region(NamedTuple):
    """Guest memory: guest-physical base, size, where we have it, and where in its descriptor."""

    base: int
    size: int
    host_address: int
    offset: int


class RingPlace(NamedTuple):
    """Where we have the parts of a ring; `used_guest` is where the guest has the used part."""

    descriptors: int
    used: int
    available: int
    used_guest: int


class Inflight(NamedTuple):
    """The memory in which the back end keeps what it has not answered."""

    size: int
    offset: int
    queues: int
    queue_size: int


def message(request: Request, payload: bytes = b"", *, need_reply: bool = False) -> bytes:
    """One of ours."""
    flags = VERSION | (FLAG_NEED_REPLY if need_reply else 0)
    return _HEADER.pack(request, flags, len(payload)) + payload


def parse_header(data: bytes, request: Request) -> Header:
    """The answer to `request`. Raises `Malformed`."""
    header = Header(*_HEADER.unpack(data))
    if header.request != request or header.flags & (VERSION_MASK | FLAG_REPLY) != VERSION | FLAG_REPLY:
        raise Malformed(f"message {header.request} with flags {header.flags:#x} is no answer")
    if header.size > MAX_PAYLOAD:
        raise Malformed(f"an answer of {header.size} bytes")
    return header


def u64(value: int) -> bytes:
    return _U64.pack(value)


def parse_u64(payload: bytes) -> int:
    """Raises `Malformed`, as all of these."""
    return int(_unpack(_U64, payload)[0])


def ring_state(index: int, number: int) -> bytes:
    """A ring, and its size, base or whether it is enabled."""
    return _STATE.pack(index, number)


def parse_ring_state(payload: bytes, index: int) -> int:
    found, number = _unpack(_STATE, payload)
    if found != index:
        raise Malformed(f"ring {found} instead of {index}")
    return int(number)


def ring_addresses(index: int, place: RingPlace, *, log: bool) -> bytes:
    return _ADDRESSES.pack(index, 1 << VHOST_VRING_F_LOG if log else 0, *place)


def ring_descriptor(index: int, *, given: bool) -> bytes:
    """For kick, call and err: whether there is a descriptor beside it."""
    return _U64.pack(index | (0 if given else NO_DESCRIPTOR))


def memory_table(regions: Sequence[Region]) -> bytes:
    """As many descriptors go beside it."""
    if not 0 < len(regions) <= MAX_REGIONS:
        raise ValueError(f"{len(regions)} regions")
    return _COUNT.pack(len(regions), 0) + b"".join(_REGION.pack(*each) for each in regions)


def log_base(size: int) -> bytes:
    return _LOG.pack(size, 0)


def config(offset: int, data: bytes) -> bytes:
    """A part of the device's configuration; zeros of the wanted length to ask for it."""
    return _CONFIG.pack(offset, len(data), 0) + data


def parse_config(payload: bytes, length: int) -> bytes:
    """At least `length` bytes must have come: a back end that fails sends none."""
    if len(payload) < _CONFIG.size + length:
        raise Malformed(f"{len(payload)} bytes for a configuration of {length}")
    return payload[_CONFIG.size : _CONFIG.size + length]


def inflight(area: Inflight) -> bytes:
    return _INFLIGHT.pack(*area)


def parse_inflight(payload: bytes) -> Inflight:
    return Inflight(*_unpack(_INFLIGHT, payload))


def _unpack(packing: struct.Struct, payload: bytes) -> tuple[int, ...]:
    """Some back ends send the whole union or padding: what is longer is fine."""
    if len(payload) < packing.size:
        raise Malformed(f"{len(payload)} bytes instead of {packing.size}")
    return packing.unpack_from(payload)
