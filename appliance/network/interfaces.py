"""The host's interfaces as `HostInterface` values. Runs in the network thread."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.kernel import rtnetlink
from appliance.kernel.rtnetlink import Link
from appliance.model.network import HostInterface
from appliance.network import bridge
from appliance.network.home import Home

ARPHRD_LOOPBACK, ARPHRD_ETHER = 772, 1


def describe(home: Home, tag: str) -> Sequence[HostInterface]:
    """Every interface, by name."""
    links = rtnetlink.all_links(home.route)
    names = {link.index: link.name for link in links}
    addresses: dict[int, list[str]] = {}
    for index, address in rtnetlink.all_addresses(home.route):
        addresses.setdefault(index, []).append(str(address))
    gateways = {
        route.link_index: route.gateway
        for route in rtnetlink.all_routes(home.route)
        if route.destination.prefixlen == 0 and route.gateway
    }

    def one(link: Link) -> HostInterface:
        return HostInterface(
            name=link.name,
            kind=link.kind,
            address=link.address,
            mtu=link.mtu,
            up=link.up,
            carrier=link.carrier,
            owned=bridge.is_owned(link, tag),
            loopback=link.hardware_type == ARPHRD_LOOPBACK,
            hardware=link.kind == "" and link.hardware_type == ARPHRD_ETHER,
            master=names.get(link.master, ""),
            alias=link.alias,
            vlan_aware=bool(link.vlan_filtering),
            addresses=tuple(addresses.get(link.index, ())),
            gateway=gateways.get(link.index, ""),
            ports=tuple(sorted(each.name for each in links if each.master == link.index)),
        )

    return sorted((one(link) for link in links), key=lambda each: each.name)
