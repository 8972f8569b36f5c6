"""The managed bridge: made, found again, taken down. Everything here runs in the network thread.

absent                                  made, with a group, an alias, an address and a MAC that stays
carries our mark                        ours of an earlier run: settings applied anew
carries another appliance's mark        that one lives: refused. It does not, and no port is left: replaced
anything else                           somebody else's: joined, never changed
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from appliance.errors import Conflict, Unsupported
from appliance.kernel import rtnetlink
from appliance.kernel.rtnetlink import Link, LinkChange
from appliance.model.network import BridgeSettings, BridgeState
from appliance.network import addresses, dnsmasq, names, rules
from appliance.network.home import Home

log = logging.getLogger(__name__)

IP_FORWARD = "ipv4/ip_forward"


def establish(home: Home, tag: str, settings: BridgeSettings, note: Path) -> BridgeState:
    """Bring the bridge to what `settings` say; the state tells whether it is ours and which subnet it has.

    Raises `Conflict` when another living appliance has it, `Unsupported` when it is no bridge or the kernel has none.
    After an error nothing new is left.
    """
    link = rtnetlink.find_link(home.route, settings.name)
    if link is not None and not is_owned(link, tag):
        if link.kind != "bridge":
            raise Unsupported(f"bridge {settings.name}: an interface of that name exists and is no Linux bridge")
        if not _take_over(home, tag, link):
            return BridgeState(settings=settings, managed=False)
        link = None
    settings = settings if settings.subnet is not None else settings.with_subnet(_free_subnet(home, link))
    made = link is None
    if made:
        _make(home, tag, settings)
    try:
        _apply(home, tag, settings, note)
    except OSError:
        if made:
            remove(home, tag, note)
        raise
    return BridgeState(settings=settings, managed=True)


def is_owned(link: Link, tag: str) -> bool:
    """Whether this instance made the interface. The alias alone marks taps between their creation and their group."""
    return link.group == names.group_of(tag) or names.tag_in(link.alias) == tag


def owned_links(home: Home, tag: str) -> list[Link]:
    """Every interface this instance made."""
    return [link for link in rtnetlink.all_links(home.route) if is_owned(link, tag)]


def _take_over(home: Home, tag: str, link: Link) -> bool:
    """Whether the name is free for us after removing what a dead appliance left. False: it is nobody's of ours."""
    other = names.tag_in(link.alias)
    if other is None:
        return False
    if Home.is_alive(other):
        raise Conflict(f"bridge {link.name}: belongs to another appliance that runs here (instance {other})")
    if any(port.master == link.index for port in rtnetlink.all_links(home.route)):
        text = f"bridge {link.name}: belongs to another appliance (instance {other}) whose guests may still run"
        raise Conflict(f"{text}; start that one, or remove the bridge")
    log.warning("bridge %s: left by an appliance that no longer runs (instance %s), replaced", link.name, other)
    dnsmasq.end_running(other, link.name)
    remove(home, other, None)
    return True


def _free_subnet(home: Home, own: Link | None) -> IPv4Network:
    """The subnet the bridge has already, else one that meets no route and no address of the host."""
    known = rtnetlink.all_addresses(home.route)
    if own is not None:
        for index, address in known:
            if index == own.index and isinstance(address, IPv4Interface) and address.network.prefixlen < 30:
                return address.network
    taken = [address.network for _, address in known if isinstance(address, IPv4Interface)]
    taken += [route.destination for route in rtnetlink.all_routes(home.route)]
    return addresses.choose_subnet(taken)


def _make(home: Home, tag: str, settings: BridgeSettings) -> None:
    mac, group = names.bridge_mac(tag), names.group_of(tag)
    try:
        rtnetlink.add_bridge(home.route, settings.name, mac=mac, group=group, vlan_filtering=True)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        # this kernel has no VLAN filtering: `check` will refuse VLAN tags
        rtnetlink.add_bridge(home.route, settings.name, mac=mac, group=group, vlan_filtering=False)


def _apply(home: Home, tag: str, settings: BridgeSettings, note: Path) -> None:
    """Give the bridge its mark, address and rules; idempotent."""
    assert settings.subnet is not None
    link = rtnetlink.find_link(home.route, settings.name)
    if link is None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), settings.name)
    alias = names.bridge_alias(tag)
    # a guest must not be able to configure the host by router advertisements
    home.write_sysctl(f"ipv6/conf/{settings.name}/accept_ra", "0")
    change = LinkChange(alias=alias, group=names.group_of(tag), mtu=settings.mtu, up=True)
    rtnetlink.set_link(home.route, link.index, link.name, change)
    _set_address(home, link, settings)
    home.nft.run(rules.nat_table(names.table_of(tag), bridge=settings.name, subnet=settings.subnet))
    _enable_forwarding(home, note)


def _set_address(home: Home, link: Link, settings: BridgeSettings) -> None:
    wanted = IPv4Interface(f"{settings.gateway}/{settings.subnet.prefixlen if settings.subnet else 0}")
    for index, address in rtnetlink.all_addresses(home.route):
        if index == link.index and isinstance(address, IPv4Interface) and address != wanted:
            rtnetlink.delete_address(home.route, link.index, link.name, address)
    rtnetlink.add_address(home.route, link.index, link.name, wanted)


def _enable_forwarding(home: Home, note: Path) -> None:
    """Turn IPv4 forwarding on where it is off, noting what it was before. The note is written first: a crash between
    the two restores what already is."""
    if home.read_sysctl(IP_FORWARD) == "0":
        note.write_text(json.dumps({"ip_forward": "0"}))
        home.write_sysctl(IP_FORWARD, "1")


def remove(home: Home, tag: str, note: Path | None) -> Sequence[str]:
    """Remove every interface and table of an instance, and restore forwarding as noted; what was removed, by name.

    Goes on after an error and raises the first at the end, so that as little as possible stays.
    """
    removed: list[str] = []
    failures: list[OSError] = []
    for link in sorted(owned_links(home, tag), key=lambda each: each.kind == "bridge"):
        try:
            rtnetlink.delete_link(home.route, link.index, link.name)
            removed.append(link.name)
        except OSError as error:
            failures.append(error)
    for family in ("inet", "bridge"):
        try:
            home.nft.run(rules.delete_table(family, names.table_of(tag)))
        except OSError as error:
            failures.append(error)
    if note is not None:
        _restore_forwarding(home, note)
    if failures:
        raise failures[0]
    return removed


def _restore_forwarding(home: Home, note: Path) -> None:
    try:
        noted = json.loads(note.read_text())
    except (FileNotFoundError, ValueError):
        return
    if isinstance(noted, dict) and noted.get("ip_forward") == "0":
        home.write_sysctl(IP_FORWARD, "0")
    note.unlink(missing_ok=True)
