"""What the firmware is told through fw_cfg: items by key and files by name (QEMU docs/specs/fw_cfg). Pure.

The generation ID's files are not here: its device adds them itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from appliance.vmm import layout
from appliance.vmm.boot import acpi, bootorder, e820, smbios, table_loader
from appliance.vmm.boot.dsdt import Platform
from appliance.vmm.legacy import fw_cfg

FILE_E820, FILE_BOOT_WAIT, FILE_SERIAL_CONSOLE = "etc/e820", "etc/boot-fail-wait", "etc/sercon-port"
FILE_RESERVED_END: Final = "etc/reserved-memory-end"
FOREVER_MS: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareOptions:
    """`boot_paths` are `bootorder.device_path`s. `boot_fail_wait_ms`: how long until it tries anew when nothing boots;
    `FOREVER_MS` never. `serial_console`: SeaBIOS shows its text screen on COM1 as well."""

    boot_paths: Sequence[str] = ()
    boot_menu: bool = False
    boot_fail_wait_ms: int = 1000
    serial_console: bool = False


def items(platform: Platform, identity: smbios.Identity, options: FirmwareOptions) -> dict[int, bytes]:
    """By key."""
    numbers = {
        fw_cfg.KEY_RAM_SIZE: (platform.ram_bytes, 8),
        fw_cfg.KEY_NOGRAPHIC: (0, 2),
        fw_cfg.KEY_NB_CPUS: (len(platform.apic_ids), 2),
        fw_cfg.KEY_MAX_CPUS: (max(platform.apic_ids) + 1, 2),  # the limit of APIC IDs
        fw_cfg.KEY_BOOT_MENU: (int(options.boot_menu), 2),
        fw_cfg.KEY_NUMA: (0, 8),
        fw_cfg.KEY_IRQ0_OVERRIDE: (1, 1),
    }
    coded = {key: value.to_bytes(size, "little") for key, (value, size) in numbers.items()}
    return {fw_cfg.KEY_UUID: UUID(identity.uuid).bytes, **coded}


def files(platform: Platform, identity: smbios.Identity, options: FirmwareOptions) -> dict[str, bytes]:
    """By name."""
    structures = smbios.structures(identity)
    made = {
        **table_loader.files(acpi.build(platform)),
        smbios.FILE_ANCHOR: smbios.anchor_21(structures, 0),
        smbios.FILE_TABLES: structures,
        FILE_E820: e820.encode(e820.firmware_map(platform.ram_bytes)),
        FILE_BOOT_WAIT: struct.pack("<I", options.boot_fail_wait_ms),
        FILE_RESERVED_END: struct.pack("<Q", layout.pci_memory_64(platform.ram_bytes)),
    }
    if options.boot_paths:
        made[bootorder.FILE] = bootorder.content(options.boot_paths)
    if options.serial_console:
        made[FILE_SERIAL_CONSOLE] = struct.pack("<H", layout.PORT_COM[0])
    return made
