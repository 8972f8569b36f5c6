"""The DSDT: what the operating system is told of the machine in AML. Pure.

    \\_S5                  power off by PM1: SLP_TYP as the power management device has it
    \\_SB.PCI0             root bridge: windows, interrupt pins (_PRT), _OSC
    \\_SB.PCI0.Snn         one for each slot that can be plugged, nn the slot's number in hexadecimal times 8
    \\_SB.PCI0.ISA         RTC, keyboard, mouse, serial ports, pvpanic
    \\_SB.MBRD .FWCF .VGEN .Cnnn   other ports and memory in use, fw_cfg, generation ID, processors
    \\_GPE._E01 ._E05      something was plugged or shall be ejected; the generation ID has changed

SeaBIOS reads it too (src/fw/dsdt_parser.c), by a parser that knows no 64-bit constants between definitions and forgets a
device as soon as one within it ends: so _HID comes first in each device, and numbers are small.

The ports of hot-plug are QEMU's (docs/specs/acpi_pci_hotplug), those of the generation ID Microsoft's "Virtual Machine
Generation ID" with QEMU's page layout (docs/specs/vmgenid).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from appliance.vmm import layout
from appliance.vmm.boot import aml
from appliance.vmm.boot import aml_resources as res
from appliance.vmm.boot.aml import Access, RegionSpace, argument, integer, local
from appliance.vmm.legacy.acpi_pm import GPE_PCI_HOTPLUG, GPE_VMGENID, PM_PORTS, PORT_SMI_COMMAND, S5_SLEEP_TYPE
from appliance.vmm.legacy.vmgenid import GUID_OFFSET

HOTPLUG_PORTS: Final = 20
NOTIFY_CHECK, NOTIFY_EJECT, NOTIFY_CHANGED = 1, 3, 0x80

_OSC_HOST_BRIDGE: Final = "33db4d5b-1ff7-401c-9657-7441c03dd766"  # PCI Firmware 3.3 §4.5.1
_OSC_GRANTED: Final = 0x10  # PCI Express capability structures; hot-plug, PME and AER are not native here
_OSC_BAD_UUID, _OSC_BAD_REVISION, _OSC_MASKED = 0x04, 0x08, 0x10

_PRESENT: Final = 0x0B  # _STA: present, enabled, working; not for the user to see
_VISIBLE: Final = 0x0F


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What the tables say of one machine. Slots are PCI device numbers on bus 0."""

    apic_ids: tuple[int, ...]
    ram_bytes: int
    physical_bits: int = 40
    serials: tuple[int, ...] = ()
    hotplug_slots: frozenset[int] = frozenset(range(1, layout.SLOT_LPC))
    i8042: bool = True
    pvpanic: bool = False
    fw_cfg: bool = True
    vmgenid: bool = False
    numa: tuple[tuple[tuple[int, ...], int], ...] = ()
    """For each NUMA node its processors by number, and its bytes of RAM; none: the machine has no nodes."""

    def pci_window_64(self) -> tuple[int, int] | None:
        """(first, last) address for 64-bit BARs; None where the processor's address width leaves no room. At most 46
        bits: what any Linux maps, and KVM's four-level tables reach."""
        first, end = layout.pci_memory_64(self.ram_bytes), 1 << min(self.physical_bits, 46)
        return (first, end - 1) if end > first else None


def definition(platform: Platform) -> bytes:
    """The DSDT's content, without its header."""
    parts = [
        aml.name("\\_S5", aml.package(*(integer(each) for each in (S5_SLEEP_TYPE, S5_SLEEP_TYPE, 0, 0)))),
        aml.scope("\\_SB", _motherboard(), *_fw_cfg(platform), *_generation_id(platform), *_processors(platform)),
        aml.scope("\\_SB", _root_bridge(platform)),
        aml.scope("\\_GPE", *_events(platform)),
    ]
    return b"".join(parts)


# The root bridge


def slot_name(slot: int) -> str:
    """ "S18" for slot 3: the function's devfn, as everywhere with QEMU's tables."""
    return f"S{slot << 3:02X}"


def _root_bridge(platform: Platform) -> bytes:
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", integer(0)),
        aml.name("_SEG", integer(0)),
        aml.name("_BBN", integer(0)),
        aml.name("_CRS", res.template(*_windows(platform))),
        aml.name("_PRT", aml.package(*(_pin(slot) for slot in range(32)))),
        _osc(),
        *_hotplug(sorted(platform.hotplug_slots)),
        _isa(platform),
    )


def _windows(platform: Platform) -> list[bytes]:
    windows = [
        res.bus_window(0, layout.LAST_BUS),
        res.io(layout.PORT_PCI_CONFIG, 8),
        res.io_window(0, layout.PORT_PCI_CONFIG - 1),
        res.io_window(layout.PORT_PCI_CONFIG + 8, 0xFFFF),
        res.memory_window_32(layout.VGA_HOLE, layout.VGA_HOLE_END - 1, cacheable=True),
        res.memory_window_32(layout.PCI_MEMORY, layout.PCI_MEMORY_END - 1),
    ]
    high = platform.pci_window_64()
    return [*windows, res.memory_window_64(*high)] if high else windows


def _pin(slot: int) -> bytes:
    """§6.2.13: any function of the slot, INTA#, no link device, the GSI itself."""
    gsi = layout.GSI_PCI_PINS[slot % len(layout.GSI_PCI_PINS)]
    return aml.package(integer(slot << 16 | 0xFFFF), integer(0), integer(0), integer(gsi))


def _osc() -> bytes:
    """§6.2.11: grant what is in `_OSC_GRANTED` of the control field asked for, and say so when that is less."""
    capabilities, control = aml.name_string("CDW1"), aml.name_string("CDW3")
    known = aml.equal(argument(0), aml.uuid(_OSC_HOST_BRIDGE))
    return aml.method(
        "_OSC",
        4,
        aml.create_dword_field(argument(3), 0, "CDW1"),
        aml.if_(
            known,
            aml.create_dword_field(argument(3), 8, "CDW3"),
            aml.bit_and(control, integer(_OSC_GRANTED), local(0)),
            aml.if_(
                aml.logical_not(aml.equal(argument(1), integer(1))),
                aml.bit_or(capabilities, integer(_OSC_BAD_REVISION), capabilities),
            ),
            aml.if_(
                aml.logical_not(aml.equal(control, local(0))),
                aml.bit_or(capabilities, integer(_OSC_MASKED), capabilities),
            ),
            aml.store(local(0), control),
        ),
        aml.else_(aml.bit_or(capabilities, integer(_OSC_BAD_UUID), capabilities)),
        aml.return_(argument(3)),
        serialized=True,
    )


def _hotplug(slots: list[int]) -> list[bytes]:
    """The registers, a device for each slot, and the scan that turns bits into Notify."""
    if not slots:
        return []
    return [
        aml.operation_region("PCST", RegionSpace.SYSTEM_IO, layout.PORT_ACPI_PCI_HOTPLUG, 8),
        aml.field("PCST", Access.DWORD, (("PCIU", 32), ("PCID", 32))),
        aml.operation_region("SEJ", RegionSpace.SYSTEM_IO, layout.PORT_ACPI_PCI_HOTPLUG + 8, 4),
        aml.field("SEJ", Access.DWORD, (("B0EJ", 32),)),
        aml.mutex("BLCK"),
        aml.method(
            "PCEJ",
            1,
            aml.acquire("BLCK"),
            aml.store(aml.shift_left(integer(1), argument(0)), aml.name_string("B0EJ")),
            aml.release("BLCK"),
            aml.return_(integer(0)),
        ),
        *(_slot(slot) for slot in slots),
        aml.method("DVNT", 2, *(_notify_slot(slot) for slot in slots)),
        aml.method(
            "PCNT",
            0,
            aml.acquire("BLCK"),
            aml.store(aml.name_string("PCIU"), local(0)),  # reading it forgets it: once
            aml.store(aml.name_string("PCID"), local(1)),
            aml.release("BLCK"),
            aml.call("DVNT", local(0), integer(NOTIFY_CHECK)),
            aml.call("DVNT", local(1), integer(NOTIFY_EJECT)),
        ),
    ]


def _slot(slot: int) -> bytes:
    return aml.device(
        slot_name(slot),
        aml.name("_SUN", integer(slot)),
        aml.name("_ADR", integer(slot << 16)),
        aml.method("_EJ0", 1, aml.call("PCEJ", aml.name_string("_SUN"))),
    )


def _notify_slot(slot: int) -> bytes:
    return aml.if_(aml.bit_and(argument(0), integer(1 << slot)), aml.notify(slot_name(slot), argument(1)))


# Below the LPC bridge


def _isa(platform: Platform) -> bytes:
    devices = [_isa_device("RTC", "PNP0B00", res.io(layout.PORT_CMOS, 2), res.irq(layout.GSI_RTC))]
    if platform.i8042:
        ports = (res.io(layout.PORT_I8042_DATA, 1), res.io(layout.PORT_I8042_COMMAND, 1))
        devices.append(_isa_device("KBD", "PNP0303", *ports, res.irq(layout.GSI_KEYBOARD)))
        devices.append(_isa_device("MOU", "PNP0F13", res.irq(layout.GSI_MOUSE)))
    for number in sorted(platform.serials):
        resources = (res.io(layout.PORT_COM[number], 8), res.irq(layout.GSI_COM[number]))
        devices.append(_isa_device(f"COM{number + 1}", "PNP0501", *resources, uid=number + 1))
    if platform.pvpanic:
        devices.append(_pvpanic())
    return aml.device("ISA", aml.name("_ADR", integer(layout.SLOT_LPC << 16)), *devices)


def _isa_device(title: str, hid: str, *resources: bytes, uid: int | None = None) -> bytes:
    return aml.device(
        title,
        aml.name("_HID", aml.eisa_id(hid)),
        *([] if uid is None else [aml.name("_UID", integer(uid))]),
        aml.name("_STA", integer(_VISIBLE)),
        aml.name("_CRS", res.template(*resources)),
    )


def _pvpanic() -> bytes:
    """QEMU docs/specs/pvpanic: a byte-wide port, with the two methods of its ACPI interface."""
    port = aml.name_string("PEPT")
    return aml.device(
        "PEVT",
        aml.name("_HID", aml.string("QEMU0001")),
        aml.name("_STA", integer(_VISIBLE)),
        aml.name("_CRS", res.template(res.io(layout.PORT_PVPANIC, 1))),
        aml.operation_region("PEOR", RegionSpace.SYSTEM_IO, layout.PORT_PVPANIC, 1),
        aml.field("PEOR", Access.BYTE, (("PEPT", 8),)),
        aml.method("RDPT", 0, aml.store(port, local(0)), aml.return_(local(0))),
        aml.method("WRPT", 1, aml.store(argument(0), port)),
    )


# Beside the root bridge


def _motherboard() -> bytes:
    """Everything fixed that no other device tells of, so that nothing is put there (and Linux trusts the ECAM)."""
    ports = (
        (layout.PORT_PM_BASE, PM_PORTS),
        (PORT_SMI_COMMAND, 2),
        (layout.PORT_ACPI_PCI_HOTPLUG, HOTPLUG_PORTS),
        (layout.PORT_A20, 1),
    )
    return aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", integer(1)),
        aml.name(
            "_CRS",
            res.template(
                res.memory32_fixed(layout.ECAM, layout.ECAM_BYTES),
                res.memory32_fixed(0xFED1_C000, 0x4000),  # ICH9's root complex registers
                *(res.io(base, length) for base, length in ports),
            ),
        ),
    )


def _fw_cfg(platform: Platform) -> list[bytes]:
    if not platform.fw_cfg:
        return []
    return [
        aml.device(
            "FWCF",
            aml.name("_HID", aml.string("QEMU0002")),
            aml.name("_STA", integer(_PRESENT)),
            aml.name("_CRS", res.template(res.io(layout.PORT_FW_CFG, 12))),
        )
    ]


def generation_id_name() -> bytes:
    """The object whose integer the placement patches with the page's address: a DWord."""
    return aml.name("VGIA", aml.dword(0))


def _generation_id(platform: Platform) -> list[bytes]:
    if not platform.vmgenid:
        return []
    page = aml.name_string("VGIA")
    return [
        aml.device(
            "VGEN",
            aml.name("_HID", aml.string("APLC0001")),  # drivers go by _CID; four hexadecimal digits are due (§6.1.5)
            aml.name("_CID", aml.string("VM_Gen_Counter")),
            aml.name("_DDN", aml.string("VM_Gen_Counter")),
            generation_id_name(),
            aml.method(
                "_STA",
                0,
                aml.if_(aml.equal(page, integer(0)), aml.return_(integer(0))),
                aml.return_(integer(_VISIBLE)),
            ),
            aml.method(
                "ADDR",
                0,
                aml.store(aml.package(integer(0), integer(0)), local(0)),
                aml.add(page, integer(GUID_OFFSET), aml.index(local(0), integer(0))),
                aml.return_(local(0)),
                serialized=True,
            ),
        )
    ]


def _processors(platform: Platform) -> list[bytes]:
    """§8.4: the _UID is that of the MADT."""
    return [
        aml.device(f"C{number:03X}", aml.name("_HID", aml.string("ACPI0007")), aml.name("_UID", integer(number)))
        for number in range(len(platform.apic_ids))
    ]


def _events(platform: Platform) -> list[bytes]:
    events = []
    if platform.hotplug_slots:
        events.append(aml.method(f"_E{GPE_PCI_HOTPLUG:02X}", 0, aml.call("\\_SB.PCI0.PCNT")))
    if platform.vmgenid:
        event = aml.notify("\\_SB.VGEN", integer(NOTIFY_CHANGED))
        events.append(aml.method(f"_E{GPE_VMGENID:02X}", 0, event))
    return events
