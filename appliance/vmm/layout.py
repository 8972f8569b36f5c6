"""Every address, port and interrupt number of the native machine, in one place. A Q35-like PC.

Guest-physical memory                                                   source
    0x0000_0000  RAM                                                    e820
    0x000a_0000  hole: VGA window (a device may claim it)               SDM vol.3 §9.10
    0x000c_0000  RAM: option ROMs, firmware shadow at 0xe0000           SeaBIOS
    0x0010_0000  RAM, up to LOW_RAM_END at most
    0xb000_0000  ECAM, 256 MiB, one MiB for each bus                    PCIe 5.0 §7.2.2; where SeaBIOS puts PCIEXBAR
    0xc000_0000  PCI memory below 4 GiB
    0xfec0_0000  IOAPIC                                                 SDM, KVM's in-kernel irqchip
    0xfed0_0000  (HPET, none)
    0xfee0_0000  local APIC
    0xfeff_c000  identity page and TSS of KVM (Intel)                   api.rst KVM_SET_TSS_ADDR
    0xfff0_0000  firmware, up to 4 GiB
 0x1_0000_0000   RAM that did not fit below
    above it     PCI memory above 4 GiB, 64-bit BARs
"""

from __future__ import annotations

from typing import Final

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE: Final = 4096

# Memory
VGA_HOLE: Final = 0x000A_0000
VGA_HOLE_END: Final = 0x000C_0000
LOW_RAM_END: Final = 0xB000_0000  # RAM below 4 GiB ends here at the latest: Q35 with SeaBIOS, PCIEXBAR follows
ECAM: Final = 0xB000_0000
ECAM_BYTES: Final = 256 * MIB
PCI_MEMORY: Final = 0xC000_0000
PCI_MEMORY_END: Final = 0xFEC0_0000
IOAPIC: Final = 0xFEC0_0000
LOCAL_APIC: Final = 0xFEE0_0000
KVM_IDENTITY_MAP: Final = 0xFEFF_C000  # one page
KVM_TSS: Final = 0xFEFF_D000  # three pages
FIRMWARE_END: Final = 0x1_0000_0000
HIGH_RAM: Final = 0x1_0000_0000

# Ports
PORT_PIC_MASTER, PORT_PIT, PORT_PIC_SLAVE = 0x20, 0x40, 0xA0  # in the kernel
PORT_I8042_DATA, PORT_I8042_COMMAND = 0x60, 0x64
PORT_CMOS = 0x70
PORT_A20 = 0x92
PORT_ACPI_GPE, PORT_ACPI_PCI_HOTPLUG, PORT_ACPI_CPU_HOTPLUG = 0x0620, 0xAE00, 0x0CD8
PORT_COM = (0x3F8, 0x2F8, 0x3E8, 0x2E8)
PORT_DEBUG = 0x402  # QEMU's and SeaBIOS's debug console
PORT_PVPANIC = 0x505
PORT_FW_CFG = 0x510
PORT_PM_BASE = 0x0600  # ICH9's: PM1a_EVT +0, PM1a_CNT +4, PM_TMR +8
PORT_PCI_CONFIG = 0x0CF8
PORT_RESET = 0x0CF9
PORT_PCI_IO = 0xC000  # I/O BARs, up to 0xffff

# Global system interrupts: 0-15 are the ISA lines, 16-23 the IOAPIC's PCI pins, messages have those above
GSI_TIMER, GSI_KEYBOARD, GSI_RTC, GSI_SCI, GSI_MOUSE = 0, 1, 8, 9, 12
GSI_COM = (4, 3, 4, 3)
GSI_PCI_PINS = (16, 17, 18, 19)  # INTA# of device n is pin (n % 4): the DSDT's _PRT says the same
GSI_FIRST_MESSAGE: Final = 24

# PCI, bus 0
SLOT_HOST_BRIDGE, SLOT_LPC = 0, 31
LAST_BUS: Final = 0  # there are no bridges; a kernel that is told of more buses looks at each slot of each of them
MAX_VCPUS: Final = 64


def split_ram(size_bytes: int) -> tuple[int, int]:
    """(bytes below the PCI hole, bytes from 4 GiB on)."""
    low = min(size_bytes, LOW_RAM_END)
    return low, size_bytes - low


def pci_memory_64(ram_bytes: int) -> int:
    """Where 64-bit BARs begin: above all RAM, on a boundary of 32 GiB so that it does not move as RAM grows a little."""
    end = HIGH_RAM + split_ram(ram_bytes)[1]
    return -(-end // (32 * GIB)) * (32 * GIB)
