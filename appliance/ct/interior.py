"""What the appliance writes inside a container before each start: its name, its network, its resolver.

Pure renderers, and `write`, which chooses between them by what the distribution has: ifupdown's `/etc/network/interfaces`
(Debian's ifupdown, Alpine's busybox) or systemd-networkd. Containers of os_type "unmanaged" are left alone. Only marked
blocks and files of our own name are replaced, so that what people write around them stays.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from appliance.ct.host import Surroundings, zone_file
from appliance.ct.tree import RootTree
from appliance.errors import InvalidParameter
from appliance.model.guest import CtSpec, NicSpec

BEGIN, END = "# --- BEGIN PVE ---", "# --- END PVE ---"
INTERFACES = "/etc/network/interfaces"
_NETWORK_UNITS = "/etc/systemd/network"
_UNIT_PREFIX, _UNIT_SUFFIX = "10-appliance-", ".network"  # sorts before the distributions' own catch-all units
_RESOLVED = "/run/systemd/resolve/"
NETWORKD = ("/lib/systemd/system/systemd-networkd.service", "/usr/lib/systemd/system/systemd-networkd.service")
IFUP = ("/sbin/ifup", "/usr/sbin/ifup")
_DHCP_CLIENTS = ("/sbin/dhclient", "/sbin/udhcpc", "/sbin/dhcpcd", "/bin/busybox", "/usr/bin/busybox")
UNMANAGED = "unmanaged"
_ZONES = "/usr/share/zoneinfo"


def write(tree: RootTree, spec: CtSpec, surroundings: Surroundings) -> None:
    """Configure the root file system `tree` for `spec`, on a host like `surroundings`. Blocking."""
    if spec.os_type == UNMANAGED or not tree.exists("/etc"):
        return
    tree.write("/etc/hostname", f"{spec.hostname}\n".encode())
    hosts = _text(tree, "/etc/hosts") or "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
    tree.write("/etc/hosts", replace_block(hosts, hosts_lines(spec)).encode())
    resolver = resolv_conf(spec, surroundings.resolver)
    if resolver and not _resolves_by_itself(tree, spec):
        tree.write("/etc/resolv.conf", resolver.encode())
    if spec.time_zone:
        _set_time_zone(tree, spec.time_zone if spec.time_zone != "host" else surroundings.time_zone or "UTC")
    if spec.locale:  # locale.conf(5); Debian's PAM and init scripts read the other
        for path in ("/etc/locale.conf", "/etc/default/locale"):
            tree.write(path, f"LANG={spec.locale}\n".encode())
    nics = [nic for nic in spec.nics if nic.name and not nic.host_managed]
    ours = {f"{_UNIT_PREFIX}{nic.name}{_UNIT_SUFFIX}": nic for nic in nics}
    for name in tree.names(_NETWORK_UNITS):
        if name.startswith(_UNIT_PREFIX) and name not in ours:
            tree.remove(f"{_NETWORK_UNITS}/{name}")
    if not nics:
        return
    if _wants_ifupdown(tree, nics):
        managed = interfaces(_text(tree, INTERFACES), nics)
        tree.write(INTERFACES, managed.encode())
    elif any(tree.exists(path) for path in NETWORKD):
        for name, nic in ours.items():
            tree.write(f"{_NETWORK_UNITS}/{name}", network_unit(nic).encode())
        _enable_networkd(tree)


def _set_time_zone(tree: RootTree, name: str) -> None:
    """localtime(5): a link into the container's own database; without that a copy of the host's file."""
    if tree.exists(f"{_ZONES}/{name}"):
        tree.replace_link("/etc/localtime", f"..{_ZONES}/{name}")
    elif data := zone_file(name):
        tree.write("/etc/localtime", data)
    else:
        raise InvalidParameter({"timezone": f"neither the container nor the host knows the time zone {name}"})
    if tree.exists("/etc/timezone"):
        tree.write("/etc/timezone", f"{name}\n".encode())


def unit_path(name: str) -> str:
    """Where the network unit of an interface is."""
    return f"{_NETWORK_UNITS}/{_UNIT_PREFIX}{name}{_UNIT_SUFFIX}"


def hosts_lines(spec: CtSpec) -> list[str]:
    """The container's own name, on its first fixed address, IPv4 before IPv6, or 127.0.1.1 (Debian's convention)."""
    addresses = (*(nic.ip for nic in spec.nics), *(nic.ip6 for nic in spec.nics))
    fixed = [address.split("/")[0] for address in addresses if "/" in address]
    names = [f"{spec.hostname}.{spec.search_domain.split()[0]}"] if spec.search_domain.strip() else []
    return [f"{fixed[0] if fixed else '127.0.1.1'} {' '.join([*names, spec.hostname])}"]


def resolv_conf(spec: CtSpec, host_resolver: str) -> str:
    """The container's name servers, else the host's that are not its own loopback; empty: leave the file alone."""
    servers = re.split(r"[\s,;]+", spec.nameserver.strip()) if spec.nameserver.strip() else _host_servers(host_resolver)
    return resolver_text(servers, spec.search_domain) if servers else ""


def resolver_text(servers: Sequence[str], search_domain: str) -> str:
    """resolv.conf(5)."""
    search = [f"search {search_domain}"] if search_domain else []
    return "\n".join([BEGIN, *search, *(f"nameserver {server}" for server in servers), END, ""])


def replace_block(text: str, lines: Sequence[str]) -> str:
    """`text` with its marked block replaced by `lines`, or with the block added at its end."""
    block = [BEGIN, *lines, END]
    present = text.split("\n")
    if present[-1] == "":
        present.pop()
    # by lines, not by a pattern: the text is the container's, and one pass is all it can make us spend
    try:
        begin = present.index(BEGIN)
        end = present.index(END, begin)
    except ValueError:
        begin, end = len(present), len(present) - 1
    return "\n".join([*present[:begin], *block, *present[end + 1 :], ""])


def interfaces(present: str, nics: Sequence[NicSpec]) -> str:
    """interfaces(5): stanzas of our NICs replaced, those of other interfaces kept."""
    ours = {"lo", *(nic.name for nic in nics)}
    kept: list[str] = []
    skipping = False
    for line in present.splitlines():
        words = line.split()
        if (words and words[0] in ("auto", "allow-hotplug", "iface", "mapping")) or line.startswith("source"):
            skipping = len(words) > 1 and words[1] in ours
        if not skipping:
            kept.append(line)
    stanzas = ["auto lo", "iface lo inet loopback", ""]
    for nic in nics:
        stanzas += [f"auto {nic.name}", *_stanza(nic), ""]
    rest = "\n".join(kept).strip()
    return "\n".join(stanzas) + (f"\n{rest}\n" if rest else "")


def network_unit(nic: NicSpec) -> str:
    """systemd.network(5) for one NIC."""
    dhcp = {(True, True): "yes", (True, False): "ipv4", (False, True): "ipv6", (False, False): "no"}[
        (nic.ip == "dhcp", nic.ip6 == "dhcp")
    ]
    lines = ["[Match]", f"Name={nic.name}", "", "[Network]", f"DHCP={dhcp}"]
    lines.append(f"IPv6AcceptRA={'yes' if nic.ip6 in ('auto', 'dhcp') else 'no'}")
    lines += [f"Address={address}" for address in (nic.ip, nic.ip6) if _is_cidr(address)]
    for address, gateway in ((nic.ip, nic.gateway), (nic.ip6, nic.gateway6)):
        if gateway:
            on_link = ["GatewayOnLink=yes"] if not _reaches(address, gateway) else []
            lines += ["", "[Route]", f"Gateway={gateway}", *on_link]
    if dhcp in ("yes", "ipv4"):
        lines += ["", "[DHCPv4]", "ClientIdentifier=mac", "UseDNS=yes"]
    return "\n".join([*lines, ""])


def _stanza(nic: NicSpec) -> list[str]:
    methods = {"dhcp": "dhcp", "auto": "auto", "manual": "manual", "": "manual"}
    lines: list[str] = []
    for family, address, gateway in (("inet", nic.ip, nic.gateway), ("inet6", nic.ip6, nic.gateway6)):
        if family == "inet6" and not address:
            continue
        if _is_cidr(address):
            number, mask = _apart(address)
            lines += [f"iface {nic.name} {family} static", f"\taddress {number}", f"\tnetmask {mask}"]
            if gateway and _reaches(address, gateway):
                lines.append(f"\tgateway {gateway}")
            elif gateway:
                flag = " -6" if family == "inet6" else ""
                lines.append(f"\tpost-up ip{flag} route add {gateway} dev {nic.name}")
                lines.append(f"\tpost-up ip{flag} route add default via {gateway} dev {nic.name}")
        else:
            lines.append(f"iface {nic.name} {family} {methods.get(address, 'manual')}")
    return lines


def _resolves_by_itself(tree: RootTree, spec: CtSpec) -> bool:
    """Whether systemd-resolved learns the name servers from DHCP and nobody named others."""
    learns = any("dhcp" in (nic.ip, nic.ip6) for nic in spec.nics)
    return learns and not spec.nameserver and _RESOLVED in f"/{tree.link_target('/etc/resolv.conf').lstrip('./')}"


def _wants_ifupdown(tree: RootTree, nics: Sequence[NicSpec]) -> bool:
    if not any(tree.exists(path) for path in IFUP):
        return False
    if any("dhcp" in (nic.ip, nic.ip6) for nic in nics) and not any(tree.exists(path) for path in _DHCP_CLIENTS):
        return not any(tree.exists(path) for path in NETWORKD)
    return True


def _enable_networkd(tree: RootTree) -> None:
    unit = next(path for path in NETWORKD if tree.exists(path))
    wanted = "/etc/systemd/system/{target}.wants/{unit}"
    tree.link(wanted.format(target="multi-user.target", unit="systemd-networkd.service"), unit)
    tree.link("/etc/systemd/system/dbus-org.freedesktop.network1.service", unit)


def _host_servers(host_resolver: str) -> list[str]:
    found = []
    for line in host_resolver.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                address = ipaddress.ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            if not address.is_loopback:
                found.append(str(address))
    return found


def _apart(address: str) -> tuple[str, str]:
    """Address and netmask in the one way that ifupdown and busybox' ifup both read: no CIDR, and of IPv4 a dotted mask."""
    interface = ipaddress.ip_interface(address)
    return str(interface.ip), str(interface.netmask if interface.version == 4 else interface.network.prefixlen)


def _is_cidr(text: str) -> bool:
    return "/" in text


def _reaches(address: str, gateway: str) -> bool:
    """Whether `gateway` is inside the network of the CIDR `address`; also true where there is no address to tell by."""
    if not _is_cidr(address):
        return True
    return ipaddress.ip_address(gateway) in ipaddress.ip_interface(address).network


def _text(tree: RootTree, path: str) -> str:
    return (tree.read(path) or b"").decode(errors="replace")
