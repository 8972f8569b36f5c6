"""virtio 1.2 §5.1.3: the network device's feature bits, and what they mean to a tap. Pure."""

from __future__ import annotations

from typing import Final

from appliance.kernel.tuntap import TapOffload
from appliance.vmm.virtio.consts import bits

F_CSUM: Final = 0
F_GUEST_CSUM: Final = 1
F_CTRL_GUEST_OFFLOADS: Final = 2
F_MTU: Final = 3
F_MAC: Final = 5
F_GUEST_TSO4: Final = 7
F_GUEST_TSO6: Final = 8
F_GUEST_ECN: Final = 9
F_GUEST_UFO: Final = 10
F_HOST_TSO4: Final = 11
F_HOST_TSO6: Final = 12
F_HOST_ECN: Final = 13
F_HOST_UFO: Final = 14
F_MRG_RXBUF: Final = 15
F_STATUS: Final = 16
F_CTRL_VQ: Final = 17
F_CTRL_RX: Final = 18
F_CTRL_VLAN: Final = 19
F_CTRL_RX_EXTRA: Final = 20
F_GUEST_ANNOUNCE: Final = 21
F_MQ: Final = 22
F_CTRL_MAC_ADDR: Final = 23
F_GUEST_USO4: Final = 54
F_GUEST_USO6: Final = 55
F_HOST_USO: Final = 56

CONTROL: Final = bits(
    F_CTRL_VQ, F_CTRL_RX, F_CTRL_VLAN, F_CTRL_RX_EXTRA, F_GUEST_ANNOUNCE, F_CTRL_MAC_ADDR, F_CTRL_GUEST_OFFLOADS
)
GUEST_OFFLOADS: Final = {
    F_GUEST_CSUM: TapOffload.CSUM,
    F_GUEST_TSO4: TapOffload.TSO4,
    F_GUEST_TSO6: TapOffload.TSO6,
    F_GUEST_ECN: TapOffload.TSO_ECN,
    F_GUEST_UFO: TapOffload.UFO,
    F_GUEST_USO4: TapOffload.USO4,
    F_GUEST_USO6: TapOffload.USO6,
}
_HOST_OFFLOADS: Final = {
    F_CSUM: TapOffload.CSUM,
    F_HOST_TSO4: TapOffload.TSO4,
    F_HOST_TSO6: TapOffload.TSO6,
    F_HOST_ECN: TapOffload.TSO_ECN,
    F_HOST_UFO: TapOffload.UFO,
    F_HOST_USO: TapOffload.USO4 | TapOffload.USO6,
}
# §5.1.3.1: each needs one of these
_REQUIRES: Final = {
    F_GUEST_TSO4: bits(F_GUEST_CSUM),
    F_GUEST_TSO6: bits(F_GUEST_CSUM),
    F_GUEST_ECN: bits(F_GUEST_TSO4, F_GUEST_TSO6),
    F_GUEST_UFO: bits(F_GUEST_CSUM),
    F_GUEST_USO4: bits(F_GUEST_CSUM),
    F_GUEST_USO6: bits(F_GUEST_CSUM),
    F_HOST_TSO4: bits(F_CSUM),
    F_HOST_TSO6: bits(F_CSUM),
    F_HOST_ECN: bits(F_HOST_TSO4, F_HOST_TSO6),
    F_HOST_UFO: bits(F_CSUM),
    F_HOST_USO: bits(F_CSUM),
    F_CTRL_RX: bits(F_CTRL_VQ),
    F_CTRL_VLAN: bits(F_CTRL_VQ),
    F_GUEST_ANNOUNCE: bits(F_CTRL_VQ),
    F_MQ: bits(F_CTRL_VQ),
    F_CTRL_MAC_ADDR: bits(F_CTRL_VQ),
}


def offered(offloads: TapOffload, *, pairs: int, mtu: int | None) -> int:
    """What a device on a cable with these `offloads` and this many queue pairs offers."""
    features = bits(F_MAC, F_MRG_RXBUF, F_STATUS) | CONTROL
    for table in (GUEST_OFFLOADS, _HOST_OFFLOADS):
        features |= bits(*(bit for bit, needed in table.items() if needed & ~offloads == 0))
    return features | (bits(F_MQ) if pairs > 1 else 0) | (bits(F_MTU) if mtu else 0)


def consistent(features: int) -> bool:
    """Whether a driver's choice has what each of its features requires (§5.1.3.1)."""
    return all(features & needed for bit, needed in _REQUIRES.items() if features >> bit & 1)


def guest_offloads(features: int) -> int:
    """The bits of `features` that VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET can change (§5.1.6.5.6.1)."""
    return features & bits(*GUEST_OFFLOADS)


def tap_offload(features: int) -> TapOffload:
    """What the kernel may leave to a guest with these features. It takes USO for both families or for none."""
    offload = TapOffload(0)
    if not features >> F_GUEST_CSUM & 1:
        return offload
    for bit, flag in GUEST_OFFLOADS.items():
        if features >> bit & 1:
            offload |= flag
    both = TapOffload.USO4 | TapOffload.USO6
    return offload if offload & both == both else offload & ~both
