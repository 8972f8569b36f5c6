"""Which frames a guest wants: what its driver said through the control queue (virtio 1.2 §5.1.6.5.1 to 5.1.6.5.3). Pure.

    command-specific-data of VIRTIO_NET_CTRL_MAC_TABLE_SET:
    | entries 4 | unicast addresses, 6 each | entries 4 | multicast addresses, 6 each |

Filtering is best effort by the standard: a table that is too long lets all of its kind pass.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

MAX_TABLE: Final = 64  # addresses of a kind; QEMU's limit too
MAX_VLANS: Final = 4096
BROADCAST: Final = b"\xff" * 6
_COUNT = struct.Struct("<I")


class RxCommand(IntEnum):
    """VIRTIO_NET_CTRL_RX_*."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


@dataclass(frozen=True, slots=True)
class ReceiveFilter:
    """`vlans` None: tags are not filtered (VIRTIO_NET_F_CTRL_VLAN was not negotiated).

    A driver that never sets a mode gets everything, as from a switch's port: only Linux's and Windows' drivers that
    negotiate VIRTIO_NET_F_CTRL_RX say what they want, and they begin with promiscuous mode off.
    """

    mac: bytes
    modes: frozenset[RxCommand] = frozenset({RxCommand.PROMISC})
    unicast: frozenset[bytes] | None = frozenset()  # None: too many to list, all pass
    multicast: frozenset[bytes] | None = frozenset()
    vlans: frozenset[int] | None = None

    def accepts(self, frame: memoryview) -> bool:
        """Whether the guest wants the Ethernet `frame` (at least 14 bytes)."""
        vlans = self.vlans
        tagged = frame[12] == 0x81 and frame[13] == 0 and len(frame) >= 16  # IEEE 802.1Q
        if vlans is not None and tagged and (frame[14] << 8 | frame[15]) & 0xFFF not in vlans:
            return False
        modes = self.modes
        if RxCommand.PROMISC in modes:
            return True
        if not frame[0] & 1:
            destination = bytes(frame[:6])
            if RxCommand.NOUNI in modes:
                return False
            wanted = self.unicast
            return destination == self.mac or RxCommand.ALLUNI in modes or wanted is None or destination in wanted
        destination = bytes(frame[:6])
        if destination == BROADCAST:
            return RxCommand.NOBCAST not in modes
        if RxCommand.NOMULTI in modes:
            return False
        wanted = self.multicast
        return RxCommand.ALLMULTI in modes or wanted is None or destination in wanted

    def with_mode(self, command: int, data: bytes) -> ReceiveFilter | None:
        """After VIRTIO_NET_CTRL_RX; None for what is not understood."""
        if len(data) != 1 or data[0] > 1 or command not in RxCommand.__members__.values():
            return None
        mode = frozenset({RxCommand(command)})
        return replace(self, modes=self.modes | mode if data[0] else self.modes - mode)

    def with_table(self, data: bytes) -> ReceiveFilter | None:
        """After VIRTIO_NET_CTRL_MAC_TABLE_SET; None for a table whose lengths are wrong."""
        tables: list[frozenset[bytes] | None] = []
        for _ in range(2):
            if len(data) < _COUNT.size:
                return None
            (count,) = _COUNT.unpack_from(data)
            end = _COUNT.size + 6 * count
            if end > len(data):
                return None
            listed = frozenset(data[at : at + 6] for at in range(_COUNT.size, end, 6)) if count <= MAX_TABLE else None
            tables.append(listed)
            data = data[end:]
        return None if data else replace(self, unicast=tables[0], multicast=tables[1])

    def with_mac(self, data: bytes) -> ReceiveFilter | None:
        """After VIRTIO_NET_CTRL_MAC_ADDR_SET; None for what is no unicast address."""
        if len(data) != 6 or data[0] & 1 or not any(data):
            return None
        return replace(self, mac=data)

    def with_vlan(self, data: bytes, *, added: bool) -> ReceiveFilter | None:
        """After VIRTIO_NET_CTRL_VLAN_ADD or _DEL."""
        if len(data) != 2 or self.vlans is None:
            return None
        number = int.from_bytes(data, "little")
        if number >= MAX_VLANS:
            return None
        return replace(self, vlans=self.vlans | {number} if added else self.vlans - {number})
