"""virtio 1.2's numbers that more than one device needs. Features are bit numbers; `bits` makes a set of them."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class DeviceId(IntEnum):
    """virtio 1.2 §5: which device it is."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    ENTROPY = 4
    BALLOON = 5
    SCSI = 8
    GPU = 16
    INPUT = 18
    VSOCK = 19
    FS = 26


# Device status, §2.1
STATUS_ACKNOWLEDGE: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8
STATUS_NEEDS_RESET: Final = 64
STATUS_FAILED: Final = 128

# Features that are not one device's, §6
F_INDIRECT_DESC: Final = 28
F_EVENT_IDX: Final = 29
F_VERSION_1: Final = 32

# Split rings, §2.7
MAX_QUEUE_SIZE: Final = 32768
DESC_BYTES: Final = 16
DESC_F_NEXT: Final = 1
DESC_F_WRITE: Final = 2
DESC_F_INDIRECT: Final = 4
AVAIL_F_NO_INTERRUPT: Final = 1
USED_F_NO_NOTIFY: Final = 1

# PCI, §4.1
PCI_VENDOR: Final = 0x1AF4
PCI_DEVICE_BASE: Final = 0x1040
NO_VECTOR: Final = 0xFFFF


def bits(*numbers: int) -> int:
    """The set of these feature bits."""
    return sum(1 << number for number in set(numbers))
