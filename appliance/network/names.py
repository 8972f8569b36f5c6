"""Names and marks of what the appliance makes in the kernel. Pure.

Ports are named as Proxmox VE names them: `tap100i0`, `veth101i1`. An interface's name has at most 15 characters, so the
longest guest ids shorten the word: `ve999999999i31`. An appliance beside the host's own one (another data directory)
has names of its own, which never meet: `veth3f0a9c27d41`.

Two marks make a thing ours. The *group* (a number from the instance's tag) is set in the same message that creates an
interface, so that a process killed at any moment leaves nothing unmarked. The *alias* says the rest, so that everything
the firewall needs is found again after a restart:

    appliance:TAG                                        a bridge
    appliance:TAG GUEST SLOT MAC ADDRESS|- RATE|- VLAN|- BRIDGE [IPV6]    a port
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from appliance.model.guest import GuestId

NAME_LIMIT = 15
ALIAS_PREFIX = "appliance:"
_SHORTER = {"tap": "ta", "veth": "ve"}
_SLOT = re.compile(r"net(\d{1,2})")


def tag_of(instance: str) -> str:
    """A short tag of an instance's name (its data directory, say): letters and digits, at most 12."""
    if re.fullmatch(r"[a-z0-9]{1,12}", instance):
        return instance
    return hashlib.sha256(instance.encode()).hexdigest()[:8]


def group_of(tag: str) -> int:
    """The interface group of an instance: a number no administrator chooses (bit 30 is set)."""
    digest = hashlib.sha256(f"appliance-network:{tag}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x3FFF_FFFF | 0x4000_0000


def bridge_mac(tag: str) -> str:
    """A stable, locally administered address for a bridge, so that it does not change with its ports."""
    digest = hashlib.sha256(f"appliance-bridge:{tag}".encode()).digest()
    return "02:" + digest[:5].hex(":")


def table_of(tag: str) -> str:
    """The name of our nft tables."""
    return f"appliance-{tag}"


def port_name(word: str, guest_id: int, slot: str, *, space: str = "") -> str:
    """The interface of a guest's NIC; `word` is "tap" or "veth", `slot` "net0" to "net31".

    `space` keeps several appliances of one host apart, whose guests have the same ids: with one, the name is a hash.
    """
    match = _SLOT.fullmatch(slot)
    if match is None:
        raise ValueError(f"{slot!r} is not the slot of a NIC")
    if space:
        return word + hashlib.sha256(f"{space} {guest_id} {slot}".encode()).hexdigest()[: NAME_LIMIT - len(word)]
    name = f"{word}{guest_id}i{match[1]}"
    if len(name) > NAME_LIMIT:
        name = f"{_SHORTER[word]}{guest_id}i{match[1]}"
    assert len(name) <= NAME_LIMIT
    return name


def bridge_alias(tag: str) -> str:
    """The mark of a bridge."""
    return f"{ALIAS_PREFIX}{tag}"


def tag_in(alias: str) -> str | None:
    """The tag in an alias of ours or of another appliance; None when it is nobody's of that kind."""
    if not alias.startswith(ALIAS_PREFIX):
        return None
    return alias[len(ALIAS_PREFIX) :].split(" ", 1)[0] or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A guest's port: all that its firewall rules are made of."""

    name: str
    guest_id: GuestId
    slot: str
    mac: str  # lower case
    bridge: str
    address: str = ""
    rate_bytes_s: int = 0
    vlan: int = 0
    address6: str = ""
    """Its fixed IPv6 address, in the form that has no other."""

    def alias(self, tag: str) -> str:
        """The mark of this port."""
        numbers = (self.rate_bytes_s or "-", self.vlan or "-")
        last = (self.address6,) if self.address6 else ()
        fields = (self.guest_id, self.slot, self.mac, self.address or "-", *numbers, self.bridge, *last)
        return f"{ALIAS_PREFIX}{tag} " + " ".join(map(str, fields))

    @staticmethod
    def parse(name: str, alias: str) -> Port | None:
        """The port an alias describes; None when it does not."""
        match alias.split(" "):
            case [_, guest_id, slot, mac, address, rate, vlan, bridge, *last] if guest_id.isdecimal() and len(last) < 2:
                return Port(
                    name=name,
                    guest_id=GuestId(int(guest_id)),
                    slot=slot,
                    mac=mac,
                    bridge=bridge,
                    address="" if address == "-" else address,
                    rate_bytes_s=int(rate) if rate.isdecimal() else 0,
                    vlan=int(vlan) if vlan.isdecimal() else 0,
                    address6="".join(last),
                )
        return None
