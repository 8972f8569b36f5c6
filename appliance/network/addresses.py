"""Choosing addresses: MACs, the managed subnet, and one IPv4 address for each MAC on it. Pure.

A guest gets the address reserved for its MAC and no other, so a guest cannot use up the pool by asking under many
names. A reservation is made when the NIC is plugged and kept, so that a guest finds its address again; it starts at
a place the MAC determines, so that even a lost table gives most guests their old address back.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv4Address, IPv4Network

from appliance.errors import Conflict

MAC_PREFIX = "BC:24:11"
SUBNET_PREFIX = 22
_MAC = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")


def is_unicast_mac(text: str) -> bool:
    """Whether `text` is a MAC address a guest may use: well formed, unicast, not zero."""
    return _MAC.fullmatch(text) is not None and int(text[:2], 16) & 1 == 0 and text != "00:00:00:00:00:00"


def new_mac(used: Collection[str], *, prefix: str = MAC_PREFIX, random: Callable[[int], int] | None = None) -> str:
    """A MAC below `prefix` that is not among `used` (any case), in upper case. Raises `Conflict` when none is left."""
    draw = random or secrets.randbelow
    taken = {mac.upper() for mac in used}
    free_bits = 48 - 8 * len(prefix.split(":"))
    for _ in range(1000):
        tail = draw(1 << free_bits).to_bytes(free_bits // 8, "big")
        mac = f"{prefix.upper()}:{tail.hex(':').upper()}"
        if mac not in taken:
            return mac
    raise Conflict(f"no free MAC address was found below {prefix}")


def choose_subnet(taken: Iterable[IPv4Network]) -> IPv4Network:
    """The first /22 below 10.64.0.0/10 that meets none of the host's networks. Raises `Conflict` when all do."""
    busy = [network for network in taken if network.prefixlen > 0]
    for candidate in IPv4Network("10.64.0.0/10").subnets(new_prefix=SUBNET_PREFIX):
        if not any(candidate.overlaps(network) for network in busy):
            return candidate
    raise Conflict("no free subnet: every part of 10.64.0.0/10 is routed on this host already")


def pool_of(subnet: IPv4Network) -> range:
    """The addresses for DHCP, as numbers: the upper three quarters; the rest is for static use (the first: ours)."""
    first, last = int(subnet.network_address), int(subnet.broadcast_address)
    return range(first + max(2, subnet.num_addresses // 4), last)


class Reservations:
    """MAC (lower case) to address, within one subnet's pool."""

    def __init__(self, subnet: IPv4Network, known: Iterable[tuple[str, IPv4Address]] = ()) -> None:
        self._pool = pool_of(subnet)
        self._by_mac: dict[str, IPv4Address] = {}
        taken: set[IPv4Address] = set()
        for mac, address in known:
            if int(address) in self._pool and address not in taken:
                self._by_mac[mac.lower()] = address
                taken.add(address)

    def __len__(self) -> int:
        return len(self._by_mac)

    def items(self) -> list[tuple[str, IPv4Address]]:
        """All of them, in order of address."""
        return sorted(self._by_mac.items(), key=lambda item: item[1])

    def reserve(self, mac: str, *, avoid: Collection[str] = (), in_use: Collection[str] = ()) -> IPv4Address:
        """The address of `mac`, made when it has none; never one of `avoid` (claimed by others).

        When the pool is exhausted, the reservation of a MAC not `in_use` is given up. Raises `Conflict` when all are.
        """
        mac = mac.lower()
        have = self._by_mac.get(mac)
        if have is not None and str(have) not in avoid:
            return have
        self._by_mac.pop(mac, None)
        address = self._free(mac, avoid) or self._evict(in_use, avoid)
        if address is None:
            raise Conflict(f"no free address for {mac}: all {len(self._pool)} of the pool are in use")
        self._by_mac[mac] = address
        return address

    def _free(self, mac: str, avoid: Collection[str]) -> IPv4Address | None:
        taken = {int(address) for address in self._by_mac.values()}
        start = int.from_bytes(hashlib.sha256(mac.encode()).digest()[:4], "big") % len(self._pool)
        for offset in range(len(self._pool)):
            number = self._pool[(start + offset) % len(self._pool)]
            if number not in taken and str(IPv4Address(number)) not in avoid:
                return IPv4Address(number)
        return None

    def _evict(self, in_use: Collection[str], avoid: Collection[str]) -> IPv4Address | None:
        for mac, address in self._by_mac.items():
            if mac not in in_use and str(address) not in avoid:
                del self._by_mac[mac]
                return address
        return None
