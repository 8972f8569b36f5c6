"""What a PC's firmware expects in the CMOS memory. Pure. Source: the IBM AT's map, and SeaBIOS src/hw/rtc.h."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from appliance.vmm.layout import KIB, MIB, split_ram


class BootDevice(IntEnum):
    """A nibble of the boot order (SeaBIOS src/boot.c)."""

    NONE = 0
    FLOPPY = 1
    DISK = 2
    CDROM = 3
    NETWORK = 4


EQUIPMENT, BASE_KIB, EXTENDED_KIB, EXTENDED_KIB_AGAIN, ABOVE_16M, ABOVE_4G = 0x14, 0x15, 0x17, 0x30, 0x34, 0x5B
BOOT_FLAG_1, BOOT_FLAG_2, CPUS_MORE = 0x38, 0x3D, 0x5F
EQUIPMENT_FPU, EQUIPMENT_MOUSE = 0x02, 0x04
NO_FLOPPY_SIGNATURE_CHECK = 0x01


def pc_nvram(
    ram_bytes: int, *, vcpus: int, boot_order: Sequence[BootDevice] = (BootDevice.DISK, BootDevice.CDROM)
) -> dict[int, int]:
    """Memory sizes, equipment, processors and the boot order (three devices at most)."""
    low, high = split_ram(ram_bytes)
    order = [*boot_order, BootDevice.NONE, BootDevice.NONE, BootDevice.NONE]
    extended_kib = min(max(0, low - MIB) // KIB, 0xFFFF)
    fields = (
        (BASE_KIB, 2, 640),
        (EXTENDED_KIB, 2, extended_kib),
        (EXTENDED_KIB_AGAIN, 2, extended_kib),
        (ABOVE_16M, 2, min(max(0, low - 16 * MIB) // (64 * KIB), 0xFFFF)),
        (ABOVE_4G, 3, min(high // (64 * KIB), 0xFF_FFFF)),
        (EQUIPMENT, 1, EQUIPMENT_FPU | EQUIPMENT_MOUSE),
        (BOOT_FLAG_1, 1, order[2] << 4 | NO_FLOPPY_SIGNATURE_CHECK),
        (BOOT_FLAG_2, 1, order[1] << 4 | order[0]),
        (CPUS_MORE, 1, vcpus - 1),
    )
    return {first + n: value >> (8 * n) & 0xFF for first, length, value in fields for n in range(length)}
