"""Where each device sits on the PCI bus: fixed by slot, so that a guest's names for its devices survive a change elsewhere.

The root bus holds the common devices; three bridges, made only when something sits on them, hold the rest. Slot 0 of a
bridge is left free (a standard hot-plug controller would be there). `net0` at 0x12 is what Linux calls ens18.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOT = 0
BRIDGE_NET, BRIDGE_BLOCK, BRIDGE_SCSI = 1, 2, 3

_FIXED = {
    "vga": 0x02,
    "balloon0": 0x03,
    "scsihw0": 0x05,
    "scsihw1": 0x06,
    "ahci0": 0x07,
    "agent": 0x08,
    "rng0": 0x09,
    "usb": 0x18,
    "panic": 0x19,
    "serial1": 0x1A,
    "serial2": 0x1B,
    "serial3": 0x04,
}
_BRIDGE_ADDRESS = {BRIDGE_NET: 0x1E, BRIDGE_BLOCK: 0x1D, BRIDGE_SCSI: 0x1C}

_VIRTIO_ROOT, _VIRTIO_FIRST = 8, 0x0A  # virtio0-7 at 0x0a-0x11
_NET_ROOT, _NET_FIRST = 6, 0x12  # net0-5 at 0x12-0x17


@dataclass(frozen=True, slots=True)
class PciAddress:
    """`bus` is ROOT or a bridge's number; `device` the slot on it, 1 to 31."""

    bus: int
    device: int


def address_of(name: str) -> PciAddress:
    """The place of a device. Raises `KeyError` for a name that has none."""
    if name in _FIXED:
        return PciAddress(ROOT, _FIXED[name])
    kind = name.rstrip("0123456789")
    index = int(name[len(kind) :] or 0)
    match kind:
        case "virtio":
            return _split(index, _VIRTIO_ROOT, _VIRTIO_FIRST, BRIDGE_BLOCK)
        case "net":
            return _split(index, _NET_ROOT, _NET_FIRST, BRIDGE_NET)
        case "scsihw":
            return _checked(name, PciAddress(BRIDGE_BLOCK, 0x10 + index))
        case "watchdog":
            return PciAddress(BRIDGE_NET, 0x1F)  # slot 31 of the root is the chipset's on q35
        case "virtiofs":
            return _checked(name, PciAddress(BRIDGE_BLOCK, 0x15 + index))
        case "virtioscsi":
            return _checked(name, PciAddress(BRIDGE_SCSI, 1 + index))
        case _:
            raise KeyError(name)


def bridge_address(bridge: int) -> PciAddress:
    """Where bridge number `bridge` sits on the root bus."""
    return PciAddress(ROOT, _BRIDGE_ADDRESS[bridge])


def _split(index: int, on_root: int, first: int, bridge: int) -> PciAddress:
    if index < on_root:
        return PciAddress(ROOT, first + index)
    return _checked(f"slot {index}", PciAddress(bridge, 1 + index - on_root))


def _checked(name: str, address: PciAddress) -> PciAddress:
    if not 1 <= address.device <= 31:
        raise KeyError(name)
    return address
