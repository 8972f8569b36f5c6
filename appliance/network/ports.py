"""Guest ports: made, guarded, limited, removed. Everything here runs in the network thread.

A port is made in an order that never leaves it open: interface (down, with our group) → firewall elements → alias
and bridge → VLAN → up. After an error the interface and its rules are gone again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path

from appliance.errors import ApplianceError, Conflict, HostError, InvalidParameter, NotFound, Unsupported
from appliance.kernel import netns, rtnetlink, tuntap
from appliance.kernel.rtnetlink import Link, LinkChange, VethPeer
from appliance.model.guest import GuestId, NicSpec
from appliance.model.network import BridgeState, check_interface_name
from appliance.network import addresses, bridge, dhcp_process, dnsmasq, names, rules
from appliance.network.addresses import Reservations
from appliance.network.dhcp_clients import needs_client
from appliance.network.home import Home
from appliance.network.names import Port

log = logging.getLogger(__name__)

INHERIT_MTU = 1
"""PVE's word for "the bridge's MTU"."""


@dataclass(slots=True)
class Ports:
    """The ports of this instance; `known` has each one's firewall elements, by interface name."""

    home: Home
    tag: str
    state: BridgeState
    reservations: Reservations | None
    hosts_file: Path
    known: dict[str, Port]
    space: str = ""
    """See `names.port_name`."""

    @property
    def managed(self) -> str:
        """Our bridge's name, "" when it is somebody else's."""
        return self.state.settings.name if self.state.managed else ""

    def adopt(self) -> None:
        """Read the ports that exist from their marks and make the firewall's table anew for them, atomically.

        A port that cannot be read was never finished (it is marked before it comes up), or cannot be guarded: removed.
        """
        self.known = {}
        for link in bridge.owned_links(self.home, self.tag):
            port = Port.parse(link.name, link.alias)
            if port is not None:
                self.known[port.name] = port
            elif link.kind != "bridge":
                log.warning("network interface %s: its mark %r is not complete, removed", link.name, link.alias)
                rtnetlink.delete_link(self.home.route, link.index, link.name)
        gateway = str(self.state.settings.gateway) if self.state.managed else ""
        table = names.table_of(self.tag)
        text = rules.bridge_table(table, list(self.known.values()), managed=self.managed, gateway=gateway)
        self.home.nft.run(text)

    # --- asking

    def bridge_of(self, nic: NicSpec) -> Link:
        """The NIC's bridge. Raises `NotFound`, `Unsupported`."""
        link = rtnetlink.find_link(self.home.route, check_interface_name(nic.bridge, "bridge"))
        if link is None:
            raise NotFound(f"bridge {nic.bridge}")
        if link.kind != "bridge":
            raise Unsupported(f"bridge {nic.bridge}: is a {link.kind or 'hardware'} interface, not a Linux bridge")
        return link

    def check(self, nic: NicSpec) -> Link:
        """Refuse what cannot be plugged; the bridge. Raises `NotFound`, `Unsupported`, `InvalidParameter`."""
        link = self.bridge_of(nic)
        if nic.vlan is not None and not link.vlan_filtering:
            text = "is not VLAN aware, or this kernel has no bridge VLAN filtering"
            raise Unsupported(f"{nic.slot}: VLAN tag {nic.vlan}: bridge {nic.bridge} {text}")
        self._check_dhcp(nic)
        if not addresses.is_unicast_mac(nic.mac):
            raise InvalidParameter({nic.slot: f"{nic.mac!r} is not a unicast MAC address"})
        if nic.mtu not in (None, INHERIT_MTU) and (nic.mtu or 0) > link.mtu:
            raise InvalidParameter({nic.slot: f"MTU {nic.mtu} is larger than the {link.mtu} of bridge {nic.bridge}"})
        return link

    def _check_dhcp(self, nic: NicSpec) -> None:
        """Whether somebody can answer, and ask, for the addresses the host is to set."""
        four, six = needs_client(nic, reserved=self.reserves(nic))
        if not (four or six):
            return
        if nic.bridge == self.managed:
            key, lack = ("ip", "DHCP is off there") if four else ("ip6", "it has no IPv6")
            raise Unsupported(
                f"{nic.slot}: {key}=dhcp on the managed bridge {nic.bridge}: {lack}; give a fixed address"
            )
        try:
            dhcp_process.program()
        except Unsupported as error:
            raise Unsupported(f"{nic.slot}: {'ip' if four else 'ip6'}=dhcp: {error}") from error

    def reserves(self, nic: NicSpec) -> bool:
        """Whether the IPv4 address of this NIC is one of our choosing, when it asks by DHCP."""
        return self.reservations is not None and nic.bridge == self.managed

    def of_guest(self, guest_id: GuestId) -> list[Port]:
        """The guest's ports, in order of name."""
        return sorted((port for port in self.known.values() if port.guest_id == guest_id), key=lambda port: port.name)

    # --- making

    def plug_vm(self, guest_id: GuestId, nic: NicSpec) -> bool:
        """Make or find the tap; True when the DHCP reservations changed."""
        master = self.check(nic)
        port, changed = self._port("tap", guest_id, nic)
        link = self._own_or_none(port.name)
        if link is not None and (link.kind != "tun" or not self._fits(link, port, nic)):
            self.remove(port.name)
            link = None
        if link is not None:
            self._finish(port, nic, link, master)
            return changed
        try:
            with tuntap.new_tap(port.name, multi_queue=nic.queues > 1) as tap:
                self._finish(port, nic, self._must_find(port.name), master)
                tap.persist()
        except (OSError, ApplianceError):
            self._forget(port.name)  # the tap itself has gone with its descriptor
            raise
        return changed

    def plug_ct(self, guest_id: GuestId, nic: NicSpec, namespace: Path) -> bool:
        """Make the veth pair with its far end in the network `namespace` (its file); True when the DHCP reservations changed."""
        master = self.check(nic)
        inside = check_interface_name(nic.name or nic.slot.replace("net", "eth"), nic.slot)
        port, changed = self._port("veth", guest_id, nic)
        namespace_fd = _open_namespace(namespace)
        try:
            if self._own_or_none(port.name) is not None:
                self.remove(port.name)
            group, mtu = names.group_of(self.tag), _mtu(nic, master)
            peer = VethPeer(name=inside, mac=port.mac, netns_fd=namespace_fd)
            rtnetlink.add_veth(self.home.route, port.name, group=group, mtu=mtu, peer=peer)
            try:
                self._finish(port, nic, self._must_find(port.name), master)
                addressing = self._addressing(port, nic) if nic.host_managed else None
                netns.call_inside(namespace_fd, lambda: _bring_up(inside, addressing))
            except (OSError, ApplianceError):
                self.remove(port.name)
                raise
        finally:
            os.close(namespace_fd)
        return changed

    def _addressing(self, port: Port, nic: NicSpec) -> Addressing:
        """What the host sets inside for a NIC that is host-managed; `check` has refused what it cannot."""
        subnet = self.state.settings.subnet
        if nic.ip == "dhcp" and self.reserves(nic) and subnet is not None:
            four = (f"{port.address}/{subnet.prefixlen}", str(self.state.settings.gateway))
        else:
            four = (nic.ip, nic.gateway)
        fixed = tuple((address, gateway) for address, gateway in (four, (nic.ip6, nic.gateway6)) if "/" in address)
        # what neither is fixed nor learned is left to the kernel's own habit
        advertised = True if nic.ip6 in ("auto", "dhcp") else False if "/" in nic.ip6 else None
        return Addressing(fixed=fixed, advertised=advertised)

    def reachable(self, guest_id: GuestId) -> tuple[Port, str]:
        """A port of a guest whose address is known here, and that with its network's prefix. Raises `Unsupported`."""
        for port in self.of_guest(guest_id):
            if port.address and port.bridge == self.managed and self.state.settings.subnet is not None:
                return port, f"{port.address}/{self.state.settings.subnet.prefixlen}"
        for port in self.of_guest(guest_id):
            if port.address:
                return port, f"{port.address}/32"
        raise Unsupported(
            f"guest {guest_id}: ports are published to an address that is known here: give it a NIC on the managed bridge, or "
            "a fixed address"
        )

    def _port(self, word: str, guest_id: GuestId, nic: NicSpec) -> tuple[Port, bool]:
        """The port as it shall be, its address known; True when an address was reserved for it."""
        try:
            name = names.port_name(word, guest_id, nic.slot, space=self.space)
        except ValueError as error:
            raise InvalidParameter({nic.slot: str(error)}) from error
        mac, changed = nic.mac.lower(), False
        others = {port.address: port for port in self.known.values() if port.name != name and port.address}
        address = _static_address(nic)
        if address in others and others[address].bridge == nic.bridge:
            raise Conflict(f"{nic.slot}: address {address} is in use by guest {others[address].guest_id}")
        if address and nic.bridge == self.managed and address == str(self.state.settings.gateway):
            raise Conflict(f"{nic.slot}: address {address} is the gateway of bridge {nic.bridge}")
        if not address and self.reservations is not None and self.reserves(nic):
            before = self.reservations.items()
            in_use = {port.mac for port in self.known.values()}
            address = str(self.reservations.reserve(mac, avoid=others.keys(), in_use=in_use))
            changed = self.reservations.items() != before
        address6 = _static_address6(nic)
        for other in self.known.values():
            if address6 and other.address6 == address6 and other.name != name and other.bridge == nic.bridge:
                raise Conflict(f"{nic.slot}: address {address6} is in use by guest {other.guest_id}")
        rate = int((nic.rate_mbyte_s or 0) * (1 << 20))
        port = Port(
            name=name,
            guest_id=guest_id,
            slot=nic.slot,
            mac=mac,
            bridge=nic.bridge,
            address=address,
            rate_bytes_s=rate,
            vlan=nic.vlan or 0,
            address6=address6,
        )
        if changed:
            self.write_hosts()
        return port, changed

    def write_hosts(self) -> None:
        """Write the reservations for dnsmasq."""
        assert self.reservations is not None
        temporary = self.hosts_file.with_suffix(".tmp")
        temporary.write_text(dnsmasq.hosts_text(self.reservations.items()))
        temporary.chmod(0o644)
        temporary.replace(self.hosts_file)

    def _fits(self, link: Link, port: Port, nic: NicSpec) -> bool:
        """Whether an existing tap can be used as it is: what is only ever added to a port must not differ (a port given
        a second VLAN would be in both)."""
        known = self.known.get(port.name)
        if known is None or link.multi_queue != (nic.queues > 1):
            return False
        return (known.rate_bytes_s, known.vlan, known.bridge) == (port.rate_bytes_s, port.vlan, port.bridge)

    def _finish(self, port: Port, nic: NicSpec, link: Link, master: Link) -> None:
        self._guard(port)
        if port.rate_bytes_s:
            burst = rules.burst_bytes(port.rate_bytes_s)
            rtnetlink.shape_egress(
                self.home.route, link.index, link.name, bytes_per_s=port.rate_bytes_s, burst_bytes=burst
            )
        joined = LinkChange(
            alias=port.alias(self.tag),
            group=names.group_of(self.tag),
            mtu=_mtu(nic, master),
            master=master.index,
            no_ipv6=True,
        )
        rtnetlink.set_link(self.home.route, link.index, link.name, joined)
        if nic.vlan is not None:
            rtnetlink.set_port_vlan(self.home.route, link.index, link.name, nic.vlan)
        # up at last, in a message of its own: until here it is in the bridge's default VLAN, and within one message the
        # kernel would bring it up before it gives up IPv6 (do_setlink)
        rtnetlink.set_link(self.home.route, link.index, link.name, LinkChange(up=not nic.link_down))

    def _guard(self, port: Port) -> None:
        if self.known.get(port.name) == port:
            return
        self._forget(port.name)
        self.home.nft.run(rules.add_port(names.table_of(self.tag), port, managed=self.managed))
        self.known[port.name] = port

    def _own_or_none(self, name: str) -> Link | None:
        link = rtnetlink.find_link(self.home.route, name)
        if link is not None and not bridge.is_owned(link, self.tag):
            raise Conflict(f"network interface {name} exists and does not belong to this appliance")
        return link

    def _must_find(self, name: str) -> Link:
        link = rtnetlink.find_link(self.home.route, name)
        if link is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
        return link

    # --- removing

    def unplug(self, guest_id: GuestId) -> None:
        """Remove every port of a guest."""
        for port in self.of_guest(guest_id):
            self.remove(port.name)

    def unplug_one(self, guest_id: GuestId, slot: str) -> None:
        """Remove one port of a guest; not an error when there is none."""
        for port in self.of_guest(guest_id):
            if port.slot == slot:
                self.remove(port.name)

    def remove(self, name: str) -> None:
        """Remove a port's interface, then its rules; not an error when either has gone."""
        link = rtnetlink.find_link(self.home.route, name)
        if link is not None and bridge.is_owned(link, self.tag):
            rtnetlink.delete_link(self.home.route, link.index, name)
        self._forget(name)

    def _forget(self, name: str) -> None:
        port = self.known.get(name)
        if port is None:
            return
        others = [other for other in self.known.values() if other.name != name]
        claimed = {address for other in others for address in (other.address, other.address6)}
        if self.state.managed:
            claimed.add(str(self.state.settings.gateway))
        text = rules.remove_port(names.table_of(self.tag), port, managed=self.managed, still_claimed=claimed)
        self.home.nft.run(text)
        del self.known[name]

    def reconcile(self, keep: Collection[tuple[GuestId, str]]) -> list[str]:
        """Remove every port but those of (guest, slot) in `keep`; the names removed."""
        wanted = {port.name for port in self.known.values() if (port.guest_id, port.slot) in keep}
        present = {link.name for link in bridge.owned_links(self.home, self.tag) if link.kind != "bridge"}
        removed = sorted((present | self.known.keys()) - wanted)
        for name in removed:
            self.remove(name)
        return removed

    # --- a port's life

    def set_link(self, guest_id: GuestId, slot: str, *, up: bool) -> None:
        """Plug or pull the cable. Raises `NotFound`."""
        for port in self.of_guest(guest_id):
            if port.slot == slot:
                link = self._must_find(port.name)
                rtnetlink.set_link(self.home.route, link.index, link.name, LinkChange(up=up))
                return
        raise NotFound(f"guest {guest_id}: port {slot}")

    def counters(self, guest_id: GuestId) -> tuple[int, int]:
        """Bytes (in, out) as the guest sees them."""
        received = sent = 0
        for port in self.of_guest(guest_id):
            link = rtnetlink.find_link(self.home.route, port.name)
            if link is not None:
                received, sent = received + link.tx_bytes, sent + link.rx_bytes
        return received, sent


def _mtu(nic: NicSpec, master: Link) -> int:
    return master.mtu if nic.mtu in (None, INHERIT_MTU) else nic.mtu or master.mtu


def _static_address(nic: NicSpec) -> str:
    """The IPv4 address the configuration gives the NIC, "" when DHCP or the guest decides."""
    if "/" not in nic.ip:
        return ""
    try:
        return str(IPv4Interface(nic.ip).ip)
    except ValueError as error:
        raise InvalidParameter({nic.slot: f"{nic.ip!r} is not an IPv4 address with a prefix"}) from error


def _static_address6(nic: NicSpec) -> str:
    """Likewise of IPv6."""
    if "/" not in nic.ip6:
        return ""
    try:
        return str(IPv6Interface(nic.ip6).ip)
    except ValueError as error:
        raise InvalidParameter({nic.slot: f"{nic.ip6!r} is not an IPv6 address with a prefix"}) from error


def _open_namespace(path: Path) -> int:
    """The network namespace behind a file. Raises `HostError` when its process has gone, or when it is ours (we would
    give away and rename interfaces of the host)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise HostError(f"{path}: it ended before its network was connected") from error
    if netns.is_own(fd):
        os.close(fd)
        raise HostError(f"{path}: not a network namespace of its own")
    return fd


@dataclass(frozen=True, slots=True, kw_only=True)
class Addressing:
    """What is set inside: addresses with their prefixes, each with the way out ("" for none), and whether the kernel there
    takes IPv6 addresses and routes from router advertisements (None: as it likes)."""

    fixed: tuple[tuple[str, str], ...] = ()
    advertised: bool | None = None


def _take_advertisements(name: str, *, taken: bool) -> None:
    """Set it before the interface comes up. 2: also where the container forwards (ip-sysctl.rst). The calling thread is in
    the container's network namespace, and sees the sysctls of that. A kernel without IPv6 has none: there is nothing to learn
    then, and an address to set is an error of its own."""
    directory = Path("/proc/sys/net/ipv6/conf") / name
    for key, value in (
        ("disable_ipv6", "0"),
        ("autoconf", "1" if taken else "0"),
        ("accept_ra", "2" if taken else "0"),
    ):
        with contextlib.suppress(FileNotFoundError):
            (directory / key).write_text(value)


def _bring_up(name: str, addressing: Addressing | None = None) -> None:
    """Within a container's namespace: the loopback and the new interface up, and its address set where it is given."""
    route = rtnetlink.RouteSocket()
    try:
        if addressing is not None and addressing.advertised is not None:
            _take_advertisements(name, taken=addressing.advertised)
        for each in ("lo", name):
            link = rtnetlink.find_link(route, each)
            if link is not None and not link.up:
                rtnetlink.set_link(route, link.index, each, LinkChange(up=True))
            if link is None or each != name or addressing is None:
                continue
            for address, gateway in addressing.fixed:
                rtnetlink.add_address(route, link.index, name, ip_interface(address))
                if gateway:
                    rtnetlink.add_default_route(route, link.index, name, gateway)
    finally:
        route.close()
