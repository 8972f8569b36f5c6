"""The host's network: the ports that guests are plugged into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from appliance.model.application import PublishedPort
from appliance.model.guest import GuestId, NicSpec


class NetworkBackend(Protocol):
    """Bridges and guest ports of this host. What it makes carries its mark and is found again after a restart."""

    async def check(self, nic: NicSpec) -> None:
        """Raises `NotFound` for a missing bridge, `Unsupported` for what this kernel cannot (VLAN tag …)."""

    async def plug_vm(self, guest_id: GuestId, nic: NicSpec) -> str:
        """Make (or find) the tap device of this NIC, joined to its bridge with anti-spoofing; returns its name."""

    async def plug_ct(self, guest_id: GuestId, nic: NicSpec, namespace: Path) -> None:
        """Make the veth pair, one end joined to the bridge, the other in the network `namespace` (a file) as `nic.name`."""

    def resolver(self, bridge: str) -> str:
        """The name server for guests on this bridge that do not ask by DHCP; "" where we know none."""

    def learned_resolvers(self, guest_id: GuestId) -> Sequence[str]:
        """The name servers that DHCP servers told the host for this guest; none where it asks itself, or not yet."""

    def on_learned(self, heard: Callable[[GuestId], None]) -> None:
        """Have `heard` called on the loop whenever `learned_resolvers` of a guest has changed. For one listener."""

    async def publish(self, guest_id: GuestId, wanted: Sequence[PublishedPort]) -> None:
        """Let ports of the host lead to this guest, which is plugged, until it is unplugged. Raises `Conflict` for a port that
        is taken, `Unsupported` when its address is not known here, `InvalidParameter`."""

    async def unplug(self, guest_id: GuestId) -> None:
        """Remove every port of this guest, and what it publishes; not an error when there is none."""

    async def unplug_one(self, guest_id: GuestId, slot: str) -> None:
        """Remove one port of this guest; not an error when there is none."""

    async def set_link(self, guest_id: GuestId, slot: str, *, up: bool) -> None: ...

    async def leases(self) -> Mapping[str, str]:
        """MAC (upper case) to IPv4 address of the DHCP leases on managed bridges."""

    async def counters(self, guest_id: GuestId) -> tuple[int, int]:
        """Bytes (in, out) as the guest sees them, summed over its ports; zeros when it has none."""
