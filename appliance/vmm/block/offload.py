"""What the storage daemon cannot do for a disk, in words: `refusal` says them without loading the daemon's code."""

from __future__ import annotations

from typing import Final

SERIAL_PROBLEM: Final = (
    "a serial number needs the data plane in Python, which reads raw images: qemu-storage-daemon cannot show one"
)
