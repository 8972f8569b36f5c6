"""`bootorder`, the fw_cfg file: devices in the order in which the firmware shall try them (SeaBIOS src/boot.c). Pure.

A line each, as an Open Firmware path; SeaBIOS compares them by patterns such as "/pci@i0cf8/*@4". Functions are on bus 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from appliance.errors import InvalidParameter

FILE = "bootorder"


class BootKind(StrEnum):
    """What the function is, in the paths' words."""

    BLOCK = "block"
    NETWORK = "network"
    SCSI = "scsi"


def device_path(kind: BootKind, slot: int, *, target: int = 0, lun: int = 0) -> str:
    """Of function 0 in `slot`; `target` and `lun` choose the disk of a SCSI controller."""
    if not 0 <= slot < 32:
        raise InvalidParameter({"slot": f"{slot} is no PCI device number"})
    match kind:
        case BootKind.BLOCK:
            return f"/pci@i0cf8/scsi@{slot:x}/disk@0,0"
        case BootKind.NETWORK:
            return f"/pci@i0cf8/ethernet@{slot:x}/ethernet-phy@0"
        case BootKind.SCSI:
            return f"/pci@i0cf8/scsi@{slot:x}/channel@0/disk@{target:x},{lun:x}"


def content(paths: Sequence[str], *, strict: bool = True) -> bytes:
    """The file. `strict`: nothing that is not named is tried (the "HALT" line)."""
    lines = [*paths, *(["HALT"] if strict else [])]
    return b"".join(line.encode() + b"\n" for line in lines).removesuffix(b"\n") + b"\0"
