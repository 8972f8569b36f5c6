"""A small rtnetlink client: links, addresses, routes and one queueing discipline (rtnetlink(7), linux/if_link.h).

It is ours because a general library costs 0.32 s and 17 MiB to import (a third of the start-up goal) for the dozen
messages the product sends. A socket belongs to the network namespace of the thread that made it, and to that thread.

    nlmsghdr  u32 length | u16 type | u16 flags | u32 sequence | u32 port      then the family's header, then
    rtattr    u16 length | u16 type | payload, padded to 4 bytes               nested ones carry NLA_F_NESTED
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, ip_address, ip_interface

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE, RTM_NEWQDISC = 20, 21, 22, 24, 26, 36
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 1, 4, 0x300, 0x100, 0x200, 0x400
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED = 0x8000
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 11, 12

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 10, 18
IFLA_IFALIAS, IFLA_STATS64, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD = 20, 23, 26, 27, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_BR_FORWARD_DELAY, IFLA_BR_STP_STATE, IFLA_BR_VLAN_FILTERING = 1, 5, 7
IFLA_TUN_MULTI_QUEUE = 7
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFLA_BRIDGE_VLAN_INFO, BRIDGE_VLAN_INFO_PVID, BRIDGE_VLAN_INFO_UNTAGGED = 2, 2, 4
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_NODAD = 2
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST, RTNH_F_ONLINK = 254, 4, 1, 4
TCA_KIND, TCA_OPTIONS, TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 2, 1, 4, 6
TC_H_ROOT, TC_LINKLAYER_ETHERNET = 0xFFFF_FFFF, 1
IFF_UP, IFF_LOWER_UP = 0x1, 0x1_0000
AF_BRIDGE = 7

ANSWER_TIMEOUT_S = 10.0
_DUMP_ATTEMPTS = 20
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst length, src length, tos, table, protocol, scope, type, flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network interface as the kernel describes it. `kind` is "bridge", "veth", "tun" …, "" for hardware."""

    index: int
    name: str
    kind: str = ""
    address: str = ""
    master: int = 0
    mtu: int = 0
    alias: str = ""
    group: int = 0
    up: bool = False
    carrier: bool = False
    hardware_type: int = 1
    vlan_filtering: bool | None = None  # of a bridge; None when the kernel does not know the word
    multi_queue: bool = False  # of a tap
    rx_bytes: int = 0
    tx_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 route: `destination` 0.0.0.0/0 is the default route."""

    destination: IPv4Network
    gateway: str
    link_index: int


def attribute(kind: int, payload: bytes) -> bytes:
    """One rtattr, padded."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """A 32-bit number in the host's order."""
    return attribute(kind, struct.pack("=I", value))


def nested(kind: int, *attributes: bytes) -> bytes:
    """Attributes within an attribute."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def mac_bytes(mac: str) -> bytes:
    """The six bytes of `aa:bb:cc:dd:ee:ff`."""
    return bytes.fromhex(mac.replace(":", ""))


def attributes_of(data: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
    """The (type, payload) pairs in `data`; stops at a malformed one (the kernel sends none)."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & 0x3FFF, bytes(data[offset + 4 : offset + length])
        offset += (length + 3) & ~3


def parse_link(payload: bytes) -> Link:
    """Read an RTM_NEWLINK message's payload."""
    _, hardware_type, index, flags, _ = _LINK.unpack_from(payload)
    found = dict(attributes_of(payload[_LINK.size :]))
    info = dict(attributes_of(found.get(IFLA_LINKINFO, b"")))
    kind = _string(info.get(IFLA_INFO_KIND, b""))
    data = dict(attributes_of(info.get(IFLA_INFO_DATA, b"")))
    filtering = data.get(IFLA_BR_VLAN_FILTERING) if kind == "bridge" else None
    stats = struct.unpack_from("=4Q", found[IFLA_STATS64]) if IFLA_STATS64 in found else (0, 0, 0, 0)
    return Link(
        index=index,
        name=_string(found.get(IFLA_IFNAME, b"")),
        kind=kind,
        address=found.get(IFLA_ADDRESS, b"").hex(":"),
        master=_number(found, IFLA_MASTER),
        mtu=_number(found, IFLA_MTU),
        alias=_string(found.get(IFLA_IFALIAS, b"")),
        group=_number(found, IFLA_GROUP),
        up=bool(flags & IFF_UP),
        carrier=bool(flags & IFF_LOWER_UP),
        hardware_type=hardware_type,
        vlan_filtering=None if filtering is None else filtering[0] != 0,
        multi_queue=kind == "tun" and data.get(IFLA_TUN_MULTI_QUEUE, b"\0")[0] != 0,
        rx_bytes=stats[2],
        tx_bytes=stats[3],
    )


def _string(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def _number(found: dict[int, bytes], kind: int) -> int:
    return int(struct.unpack("=I", found[kind])[0]) if kind in found else 0


class RouteSocket:
    """A NETLINK_ROUTE socket. OSError's text has the kernel's own explanation where it gave one, and the object."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._socket.bind((0, 0))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes, name: str) -> bytes:
        """Send one message and wait for its answer or acknowledgement; the payload of the answer, b"" for none."""
        self._send(kind, flags, body)
        answer = b""
        for answer_kind, answer_flags, payload in self._messages():
            if answer_kind == NLMSG_ERROR:
                _raise_error(answer_flags, payload, name)
                return answer
            answer = payload
        raise OSError(errno.EPROTO, "netlink: no acknowledgement", name)

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The payloads of all objects of one kind. Asked again when they changed meanwhile (NLM_F_DUMP_INTR): one may be
        missing then. Raises `OSError` (EAGAIN) when they change all the time."""
        for _ in range(_DUMP_ATTEMPTS):
            payloads, torn = self._dump(kind, body)
            if not torn:
                return payloads
        raise OSError(errno.EAGAIN, "netlink: changes all the time", "dump")

    def _dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        self._send(kind, NLM_F_DUMP, body)
        payloads: list[bytes] = []
        torn = False
        for answer_kind, answer_flags, payload in self._messages():
            if answer_kind == NLMSG_ERROR:
                _raise_error(answer_flags, payload, "dump")
                break
            torn = torn or bool(answer_flags & NLM_F_DUMP_INTR)
            if answer_kind == NLMSG_DONE:
                break
            payloads.append(payload)
        return payloads, torn

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        acknowledge = 0 if flags & NLM_F_DUMP == NLM_F_DUMP else NLM_F_ACK
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST | acknowledge, self._sequence, 0)
        self._socket.send(header + body)

    def _messages(self) -> Iterator[tuple[int, int, bytes]]:
        while True:
            data = self._socket.recv(1 << 18)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
                if length < _HEADER.size:
                    raise OSError(errno.EPROTO, "netlink: malformed answer", "NETLINK_ROUTE")
                if sequence == self._sequence:  # else the late answer to a request that timed out
                    yield kind, flags, data[offset + _HEADER.size : offset + length]
                offset += (length + 3) & ~3


def _raise_error(flags: int, payload: bytes, name: str) -> None:
    number = -struct.unpack_from("=i", payload)[0]
    if number == 0:
        return
    explanation = ""
    if flags & NLM_F_ACK_TLVS:
        # NLM_F_CAPPED: after the errno only the request's header is repeated, then attributes (1: the text)
        start = 4 + (_HEADER.size if flags & NLM_F_CAPPED else struct.unpack_from("=I", payload, 4)[0])
        explanation = _string(dict(attributes_of(payload[start:])).get(1, b""))
    reason = os.strerror(number) + (f" ({explanation})" if explanation else "")
    raise OSError(number, reason, name)


# --- links ------------------------------------------------------------------------------------------------------


def _link_body(index: int = 0, *attributes: bytes, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    return _LINK.pack(family, 0, index, flags, change) + b"".join(attributes)


def find_link(route: RouteSocket, name: str) -> Link | None:
    """The interface of that name with its counters, or None."""
    try:
        return parse_link(route.request(RTM_GETLINK, 0, _link_body(0, text(IFLA_IFNAME, name)), name))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def all_links(route: RouteSocket) -> list[Link]:
    """Every interface of the namespace."""
    return [parse_link(payload) for payload in route.dump(RTM_GETLINK, _link_body())]


def add_bridge(route: RouteSocket, name: str, *, mac: str, group: int, vlan_filtering: bool) -> None:
    """A new bridge without spanning tree, down. EOPNOTSUPP when the kernel has no bridges, or no VLAN filtering."""
    data = [
        u32(IFLA_BR_FORWARD_DELAY, 0),
        u32(IFLA_BR_STP_STATE, 0),
        *([attribute(IFLA_BR_VLAN_FILTERING, b"\1")] if vlan_filtering else []),
    ]
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge"), nested(IFLA_INFO_DATA, *data))
    body = _link_body(0, text(IFLA_IFNAME, name), attribute(IFLA_ADDRESS, mac_bytes(mac)), u32(IFLA_GROUP, group), info)
    route.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class VethPeer:
    """The far end of a new veth pair: made under its final name inside the namespace behind `netns_fd`."""

    name: str
    mac: str
    netns_fd: int


def add_veth(route: RouteSocket, name: str, *, group: int, mtu: int, peer: VethPeer) -> None:
    """A veth pair in one message: `name` here, its peer in the other namespace, both down (veth_open: ENOTCONN)."""
    far = _link_body(
        0,
        text(IFLA_IFNAME, peer.name),
        attribute(IFLA_ADDRESS, mac_bytes(peer.mac)),
        u32(IFLA_MTU, mtu),
        u32(IFLA_NET_NS_FD, peer.netns_fd),
    )
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "veth"), nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, far)))
    body = _link_body(0, text(IFLA_IFNAME, name), u32(IFLA_MTU, mtu), u32(IFLA_GROUP, group), info)
    route.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkChange:
    """What `set_link` changes; None leaves a property as it is. `no_ipv6` keeps the kernel from giving it addresses."""

    alias: str | None = None
    group: int | None = None
    master: int | None = None
    mtu: int | None = None
    up: bool | None = None
    no_ipv6: bool = False


def set_link(route: RouteSocket, index: int, name: str, change: LinkChange) -> None:
    """Change an interface, all in one message."""
    parts: list[bytes] = []
    if change.alias is not None:
        parts.append(attribute(IFLA_IFALIAS, change.alias.encode()))
    for kind, value in ((IFLA_GROUP, change.group), (IFLA_MASTER, change.master), (IFLA_MTU, change.mtu)):
        if value is not None:
            parts.append(u32(kind, value))
    if change.no_ipv6:
        mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
        parts.append(nested(IFLA_AF_SPEC, nested(socket.AF_INET6, mode)))
    flags = IFF_UP if change.up else 0
    mask = 0 if change.up is None else IFF_UP
    route.request(RTM_SETLINK, 0, _link_body(index, *parts, flags=flags, change=mask), name)


def delete_link(route: RouteSocket, index: int, name: str) -> None:
    """Remove an interface; not an error when it has gone."""
    try:
        route.request(RTM_DELLINK, 0, _link_body(index), name)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def set_port_vlan(route: RouteSocket, index: int, name: str, vlan: int) -> None:
    """Make `vlan` the port's only VLAN, untagged towards the guest (bridge vlan add vid N pvid untagged)."""
    flags = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED
    for kind, vid, vid_flags in ((RTM_DELLINK, 1, 0), (RTM_SETLINK, vlan, flags)):
        info = attribute(IFLA_BRIDGE_VLAN_INFO, struct.pack("=HH", vid_flags, vid))
        body = _link_body(index, nested(IFLA_AF_SPEC, info), family=AF_BRIDGE)
        if kind == RTM_SETLINK or vlan != 1:
            route.request(kind, 0, body, name)


# --- addresses, routes, rate ------------------------------------------------------------------------------------


def _address_body(index: int, address: IPv4Interface | IPv6Interface) -> bytes:
    packed, prefix = address.ip.packed, address.network.prefixlen
    parts = attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    if isinstance(address, IPv6Interface):
        return _ADDRESS.pack(socket.AF_INET6, prefix, 0, 0, index) + parts + u32(IFA_FLAGS, IFA_F_NODAD)
    broadcast = attribute(IFA_BROADCAST, address.network.broadcast_address.packed)
    return _ADDRESS.pack(socket.AF_INET, prefix, 0, 0, index) + parts + broadcast


def add_address(route: RouteSocket, index: int, name: str, address: IPv4Interface | IPv6Interface) -> None:
    """Give an interface an address, of IPv4 with its broadcast; not an error when it has it.

    IPv6 can be used at once: nobody waits a second to see whether another has it (`IFA_F_NODAD`).
    """
    route.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, _address_body(index, address), name)


def add_default_route(route: RouteSocket, index: int, name: str, gateway: str) -> None:
    """The way out, for IPv4 or IPv6 as the gateway is; it may lie outside the interface's network."""
    address = ip_address(gateway)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    head = _ROUTE.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, RTNH_F_ONLINK)
    body = head + attribute(RTA_GATEWAY, address.packed) + u32(RTA_OIF, index)
    route.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, name)


def delete_address(route: RouteSocket, index: int, name: str, address: IPv4Interface) -> None:
    """Take an IPv4 address from an interface."""
    route.request(RTM_DELADDR, 0, _address_body(index, address), name)


def all_addresses(route: RouteSocket) -> list[tuple[int, IPv4Interface | IPv6Interface]]:
    """(interface index, address) of every address of the namespace."""
    found: list[tuple[int, IPv4Interface | IPv6Interface]] = []
    for payload in route.dump(RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
        family, prefix, _, _, index = _ADDRESS.unpack_from(payload)
        parts = dict(attributes_of(payload[_ADDRESS.size :]))
        packed = parts.get(IFA_LOCAL) or parts.get(IFA_ADDRESS)
        if packed and family in (socket.AF_INET, socket.AF_INET6):
            found.append((index, ip_interface(f"{socket.inet_ntop(family, packed)}/{prefix}")))
    return found


def all_routes(route: RouteSocket) -> list[Route]:
    """The IPv4 unicast routes of all tables."""
    found: list[Route] = []
    unicast = 1
    for payload in route.dump(RTM_GETROUTE, _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
        header = _ROUTE.unpack_from(payload)
        parts = dict(attributes_of(payload[_ROUTE.size :]))
        if header[7] != unicast:
            continue
        destination = IPv4Network((parts.get(RTA_DST, b"\0\0\0\0"), header[1]), strict=False)
        gateway = socket.inet_ntoa(parts[RTA_GATEWAY]) if RTA_GATEWAY in parts else ""
        found.append(Route(destination, gateway, _number(parts, RTA_OIF)))
    return found


def shape_egress(route: RouteSocket, index: int, name: str, *, bytes_per_s: int, burst_bytes: int) -> None:
    """Replace the root queue by a token bucket (tc-tbf(8)). ENOENT when the kernel has no tbf."""
    rate32 = min(bytes_per_s, 0xFFFF_FFFF)
    rate = struct.pack("=BBHhHI", 0, TC_LINKLAYER_ETHERNET, 0, -1, 0, rate32)
    limit = burst_bytes * 4  # bytes that may wait, beyond which the sender loses packets
    parameters = rate + b"\0" * 12 + struct.pack("=III", limit, 0, 0)
    options = [attribute(TCA_TBF_PARMS, parameters), u32(TCA_TBF_BURST, burst_bytes)]
    if bytes_per_s > rate32:
        options.append(attribute(TCA_TBF_RATE64, struct.pack("=Q", bytes_per_s)))
    body = struct.pack("=BxxxiIII", 0, index, 0, TC_H_ROOT, 0) + text(TCA_KIND, "tbf") + nested(TCA_OPTIONS, *options)
    route.request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, body, name)
