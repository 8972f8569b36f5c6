"""Our nft tables as text, applied atomically. Pure. Nothing outside these two tables is ever touched.

    table inet appliance-TAG      NAT and forwarding of the managed bridge
    table bridge appliance-TAG    anti-spoofing of every guest port, on managed and on existing bridges

What a guest's port may send (bridge prerouting; stateless, as the bridge family has no conntrack everywhere):
- frames and ARP from its NIC's MAC only;
- IPv4, IPv6, ARP and neighbour advertisements of any address nobody else owns: an address known to belong to a port (static
  in its configuration, or reserved for DHCP) may be used by that port alone, and the gateway's by none. Addresses no port
  owns stay free, so that guests may float addresses between each other;
- on managed bridges DHCP requests for its own MAC only (never in fragments, which could hide it), no DHCP answers, no
  router advertisements, no VLAN tags.

Everything about a port is set elements, so that adding or removing one costs no new rules. nft 1.0.6 needs a newline
before each closing brace.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import IPv4Network, IPv6Address

from appliance.network.names import Port

CHADDR = "@th,288,48"
"""A DHCP message's hardware address: 8 bytes of UDP header and 28 of BOOTP before it (RFC 2131 §2)."""
_OF_A_PORT = frozenset({"claims6", "targets"})
TARGET = "@th,64,128"
"""The address a neighbour advertisement speaks of (RFC 4861 §4.4)."""

_GUARD_CHAINS = f"""
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname @ports jump guard
  }}
  chain guard {{
    iifname . ether saddr != @macs drop
    iifname @inside ether type {{ vlan, 0x88a8 }} drop
    iifname @inside udp sport 67 udp dport 68 drop
    iifname @inside udp sport 547 udp dport 546 drop
    iifname @inside udp dport 67 ip frag-off & 0x2000 != 0 drop
    iifname @inside icmpv6 type nd-router-advert drop
    ether type arp jump guard_arp
    ip saddr @claimed iifname . ip saddr != @claims drop
    ip6 saddr @claimed6 iifname . ip6 saddr != @claims6 drop
    icmpv6 type nd-neighbor-advert {TARGET} @targeted iifname . {TARGET} != @targets drop
    iifname @inside udp dport 67 iifname . {CHADDR} != @chaddrs drop
    limit name iifname map @rates drop
  }}
  chain guard_arp {{
    iifname . arp saddr ether != @macs drop
    arp saddr ip @claimed iifname . arp saddr ip != @claims drop
  }}
"""


def bridge_table(table: str, ports: Sequence[Port], *, managed: str, gateway: str) -> str:
    """(Re)make the whole bridge table with the rules for `ports`; `managed` names our bridge ("" for none)."""
    sets = {
        "ports": "type ifname",
        "inside": "type ifname",
        "macs": "type ifname . ether_addr",
        "chaddrs": f"typeof iifname . {CHADDR}",
        "claims": "type ifname . ipv4_addr",
        "claimed": "type ipv4_addr",
        "claims6": "type ifname . ipv6_addr",
        "claimed6": "type ipv6_addr",
        "targets": f"typeof iifname . {TARGET}",
        "targeted": f"typeof {TARGET}",
    }
    lines = [f"table bridge {table}", f"delete table bridge {table}", f"table bridge {table} {{"]
    for name, kind in sets.items():
        lines += [f"  set {name} {{", f"    {kind}", "  }"]
    lines += ["  map rates {", "    type ifname : limit", "  }", _GUARD_CHAINS, "}"]
    if gateway:
        lines.append(f"add element bridge {table} claimed {{ {gateway} }}")
    return "\n".join(lines) + "\n" + "".join(add_port(table, port, managed=managed) for port in ports)


def add_port(table: str, port: Port, *, managed: str) -> str:
    """Guard one more port; idempotent but for a changed rate (remove the port first)."""
    element = f'"{port.name}"'
    chaddr = "0x" + port.mac.replace(":", "")
    lines = [
        f"add element bridge {table} macs {{ {element} . {port.mac} }}",
        f"add element bridge {table} chaddrs {{ {element} . {chaddr} }}",
    ]
    if port.bridge == managed:
        lines.append(f"add element bridge {table} inside {{ {element} }}")
    if port.address:
        lines.append(f"add element bridge {table} claims {{ {element} . {port.address} }}")
        lines.append(f"add element bridge {table} claimed {{ {port.address} }}")
    if port.address6:
        lines += [f"add element bridge {table} {name} {{ {value} }}" for name, value in _claims6(port)]
    if port.rate_bytes_s:
        burst = burst_bytes(port.rate_bytes_s)
        lines.append(
            f"add limit bridge {table} {port.name} {{ rate over {port.rate_bytes_s} bytes/second burst {burst} bytes\n}}"
        )
        lines.append(f'add element bridge {table} rates {{ {element} : "{port.name}" }}')
    lines.append(f"add element bridge {table} ports {{ {element} }}")
    return "\n".join(lines) + "\n"


def remove_port(table: str, port: Port, *, managed: str, still_claimed: Collection[str]) -> str:
    """Forget a port guarded by `add_port` with the same values."""
    element = f'"{port.name}"'
    chaddr = "0x" + port.mac.replace(":", "")
    lines = [
        f"delete element bridge {table} ports {{ {element} }}",
        f"delete element bridge {table} macs {{ {element} . {port.mac} }}",
        f"delete element bridge {table} chaddrs {{ {element} . {chaddr} }}",
    ]
    if port.bridge == managed:
        lines.append(f"delete element bridge {table} inside {{ {element} }}")
    if port.address:
        lines.append(f"delete element bridge {table} claims {{ {element} . {port.address} }}")
        if port.address not in still_claimed:
            lines.append(f"delete element bridge {table} claimed {{ {port.address} }}")
    if port.address6:
        gone = [each for each in _claims6(port) if each[0] in _OF_A_PORT or port.address6 not in still_claimed]
        lines += [f"delete element bridge {table} {name} {{ {value} }}" for name, value in gone]
    if port.rate_bytes_s:
        lines.append(f"delete element bridge {table} rates {{ {element} }}")
        lines.append(f"delete limit bridge {table} {port.name}")
    return "\n".join(lines) + "\n"


def _claims6(port: Port) -> list[tuple[str, str]]:
    """(set, element) of a port's fixed IPv6 address."""
    element, target = f'"{port.name}"', f"0x{int(IPv6Address(port.address6)):032x}"
    return [
        ("claims6", f"{element} . {port.address6}"),
        ("claimed6", port.address6),
        ("targets", f"{element} . {target}"),
        ("targeted", target),
    ]


def nat_table(table: str, *, bridge: str, subnet: IPv4Network) -> str:
    """(Re)make the inet table: masquerade what leaves the subnet; let in only answers and forwarded ports."""
    return f"""table inet {table}
delete table inet {table}
table inet {table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} return
    ip saddr {subnet} ip daddr != {subnet} masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{bridge}" oifname "{bridge}" accept
    iifname "{bridge}" ip saddr != {subnet} drop
    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" ct status dnat accept
    oifname "{bridge}" drop
  }}
}}
"""


def delete_table(family: str, table: str) -> str:
    """Remove a table; not an error when there is none."""
    return f"table {family} {table}\ndelete table {family} {table}\n"


def burst_bytes(rate_bytes_s: int) -> int:
    """What a limited port may send at once: 50 ms at its rate, at least two of the largest packets (GSO, 64 KiB).

    nft lets a second at the full rate pass on top of it at first (nft_limit.c counts rate + burst as its bucket).
    """
    return max(rate_bytes_s // 20, 128 << 10)
