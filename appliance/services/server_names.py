"""The names and addresses under which clients reach this host: what its certificate has to say. Blocking where it reads.

An appliance that listens on every address is reached by any of them, and a client that trusts the appliance's authority
still compares the name it used. Addresses of bridges an appliance made are left out: they come and go with guests.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_address
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.kernel.rtnetlink import Link, RouteSocket, all_addresses, all_links
from appliance.network.names import tag_in

log = logging.getLogger(__name__)

ADDRESS_LIMIT = 32
IF_INET6 = Path("/proc/net/if_inet6")
_SCOPE_GLOBAL = 0
_PASSING = 0x01 | 0x20 | 0x40
"""IFA_F_TEMPORARY, IFA_F_DEPRECATED, IFA_F_TENTATIVE (linux/if_addr.h): gone before the certificate is."""


def of_this_host(node_name: str, listen_host: str) -> list[str]:
    """Names and addresses, most stable first. What cannot be read is left out, and said in the log."""
    names = [node_name, socket.gethostname(), listen_host]
    try:
        everywhere = ip_address(listen_host).is_unspecified
    except ValueError:
        everywhere = False
    if not everywhere:
        return names
    try:
        route = RouteSocket()
        try:
            found = [*lasting_ipv4(all_links(route), all_addresses(route))]
        finally:
            route.close()
        found += lasting_ipv6(IF_INET6.read_text() if IF_INET6.exists() else "")
    except (ApplianceError, OSError) as error:
        log.warning("certificate: the host's addresses are not in it: %s", error)
        return names
    return [*names, *dict.fromkeys(found)][: len(names) + ADDRESS_LIMIT]


def lasting_ipv4(
    links: Iterable[Link], addresses: Sequence[tuple[int, IPv4Interface | IPv6Interface]]
) -> Iterator[str]:
    """IPv4 addresses of the host's own interfaces, in the kernel's order. Pure."""
    made_by_us = {link.index for link in links if tag_in(link.alias) is not None}
    for index, interface in addresses:
        address = interface.ip
        ours = index in made_by_us or address.is_loopback or address.is_link_local
        if isinstance(interface, IPv4Interface) and not ours:
            yield str(address)


def lasting_ipv6(table: str) -> Iterator[str]:
    """Global IPv6 addresses of /proc/net/if_inet6's text that will stay: no temporary ones (RFC 8981). Pure."""
    for line in table.splitlines():
        packed, _, _, scope, flags, _ = line.split()
        if int(scope, 16) == _SCOPE_GLOBAL and not int(flags, 16) & _PASSING:
            yield str(IPv6Address(bytes.fromhex(packed)))
