"""Networks: the settings of the managed bridge and what the host's interfaces look like from above."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from appliance.errors import InvalidParameter

DEFAULT_BRIDGE = "vmbr0"
SUBNET_PREFIX_MIN, SUBNET_PREFIX_MAX = 16, 29
_INTERFACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")


def check_interface_name(name: str, parameter: str) -> str:
    """`name` if the kernel takes it as an interface's name (15 characters). Raises `InvalidParameter`."""
    if _INTERFACE_NAME.fullmatch(name) is None:
        raise InvalidParameter({parameter: f"{name!r} is not a name of a network interface"})
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeSettings:
    """The managed bridge. `subnet` None lets the host choose one that meets none of its routes."""

    name: str = DEFAULT_BRIDGE
    subnet: IPv4Network | None = None
    dhcp: bool = True
    dns: bool = True
    mtu: int = 1500
    comment: str = ""

    def __post_init__(self) -> None:
        check_interface_name(self.name, "iface")
        if self.subnet is not None and not SUBNET_PREFIX_MIN <= self.subnet.prefixlen <= SUBNET_PREFIX_MAX:
            text = f"{self.subnet}: a prefix of {SUBNET_PREFIX_MIN} to {SUBNET_PREFIX_MAX} bits is needed"
            raise InvalidParameter({"cidr": text})
        if not 1280 <= self.mtu <= 65520:
            raise InvalidParameter({"mtu": "value must be between 1280 and 65520"})

    def with_subnet(self, subnet: IPv4Network) -> BridgeSettings:
        """The same with a subnet."""
        return replace(self, subnet=subnet)

    @property
    def gateway(self) -> IPv4Address | None:
        """The bridge's own address: the first of the subnet."""
        return None if self.subnet is None else self.subnet[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeState:
    """What became of the settings: `managed` False means the bridge existed and belongs to somebody else."""

    settings: BridgeSettings
    managed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInterface:
    """An interface of the host. `kind` is the kernel's word ("bridge", "bond", "vlan", "" for hardware)."""

    name: str
    kind: str
    address: str
    mtu: int
    up: bool
    carrier: bool
    owned: bool
    loopback: bool = False
    hardware: bool = True
    master: str = ""
    alias: str = ""
    vlan_aware: bool = False
    addresses: tuple[str, ...] = ()
    gateway: str = ""
    ports: tuple[str, ...] = ()
