"""What a network device saves: what its driver has said through the control queue. Version 1."""

from __future__ import annotations

from typing import Final

from appliance.errors import Unsupported
from appliance.vmm.device import State
from appliance.vmm.netdev.filter import MAX_TABLE, MAX_VLANS, ReceiveFilter, RxCommand

VERSION: Final = 1


class NetState(State):
    """See `filter.ReceiveFilter` for the tables; `offloads` are feature bits (§5.1.6.5.6.1)."""

    version: int
    mac: bytes
    modes: list[int]
    unicast: list[bytes] | None
    multicast: list[bytes] | None
    vlans: list[int] | None
    pairs: int
    offloads: int
    announce: bool

    @staticmethod
    def of(known: ReceiveFilter, *, pairs: int, offloads: int, announce: bool) -> NetState:
        """To be saved."""
        return NetState(
            version=VERSION,
            mac=known.mac,
            modes=sorted(known.modes),
            unicast=None if known.unicast is None else sorted(known.unicast),
            multicast=None if known.multicast is None else sorted(known.multicast),
            vlans=None if known.vlans is None else sorted(known.vlans),
            pairs=pairs,
            offloads=offloads,
            announce=announce,
        )

    def filter(self, label: str) -> ReceiveFilter:
        """Raises `Unsupported` when this is none."""
        tables = [self.unicast or [], self.multicast or []]
        sound = self.version == VERSION and len(self.mac) == 6 and len(self.vlans or []) <= MAX_VLANS
        if not sound or any(len(table) > MAX_TABLE or any(len(each) != 6 for each in table) for table in tables):
            raise Unsupported(f"{label}: saved state: not a receive filter of version {VERSION}")
        return ReceiveFilter(
            mac=self.mac,
            modes=frozenset(RxCommand(mode) for mode in self.modes if mode in RxCommand.__members__.values()),
            unicast=None if self.unicast is None else frozenset(self.unicast),
            multicast=None if self.multicast is None else frozenset(self.multicast),
            vlans=None if self.vlans is None else frozenset(self.vlans),
        )
