"""The devices every native machine has: PCI with the chipset, ACPI, clocks, keyboard, fw_cfg. In the order of saving.

Nothing is decided here but the order: what is asked of others comes first (the power management device raises the events
of hot-plug and generation ID; fw_cfg is filled by those after it).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from appliance.vmm.console import ByteChannel
from appliance.vmm.device import DeviceContext
from appliance.vmm.legacy.acpi_pm import AcpiPm
from appliance.vmm.legacy.debug_port import DebugPort
from appliance.vmm.legacy.fw_cfg import FwCfg
from appliance.vmm.legacy.i8042 import I8042
from appliance.vmm.legacy.port92 import A20Gate, Port92
from appliance.vmm.legacy.pvpanic import PvPanic
from appliance.vmm.legacy.rtc import Rtc
from appliance.vmm.legacy.rtc_nvram import pc_nvram
from appliance.vmm.legacy.serial import SerialPort
from appliance.vmm.legacy.vmgenid import VmGenId
from appliance.vmm.machine import Machine
from appliance.vmm.pci.bus import PciBus
from appliance.vmm.pci.function import PciFunction
from appliance.vmm.pci.hotplug import PciHotplug


@dataclass(frozen=True, slots=True)
class Chipset:
    """What others are plugged into, or press."""

    pci: PciBus
    hotplug: PciHotplug
    power: AcpiPm
    fw_cfg: FwCfg
    keyboard: I8042
    vmgenid: VmGenId
    serials: dict[str, ByteChannel]


def add_chipset(
    machine: Machine,
    context: DeviceContext,
    *,
    serials: tuple[int, ...],
    local_time: bool,
    generation: uuid.UUID,
    ejected: Callable[[PciFunction], None],
) -> Chipset:
    """All of them, added to `machine`. `context` is the machine's, perhaps with doors of the builder's own."""
    pci = PciBus("pci", context)
    power = AcpiPm("acpi-pm", context)
    fw_cfg = FwCfg("fw-cfg", context)
    hotplug = PciHotplug("pci-hotplug", context, pci, gpe=power.raise_gpe, ejected=ejected)
    vmgenid = VmGenId("vmgenid", context, guid=generation, gpe=power.raise_gpe, fw_cfg=fw_cfg)
    a20 = A20Gate()
    keyboard = I8042("i8042", context, a20=a20)
    nvram = pc_nvram(context.memory.size, vcpus=len(machine.vcpus))
    devices = [
        pci,
        power,
        fw_cfg,
        hotplug,
        vmgenid,
        keyboard,
        Port92("port92", context, a20=a20),
        Rtc("rtc", context, nvram=nvram, local_time=local_time),
        DebugPort("debug-port", context),
        PvPanic("pvpanic", context),
    ]
    for device in devices:
        machine.add(device)
    channels = {f"serial{index}": _serial(machine, context, index) for index in serials}
    return Chipset(pci, hotplug, power, fw_cfg, keyboard, vmgenid, channels)


def _serial(machine: Machine, context: DeviceContext, index: int) -> ByteChannel:
    channel = ByteChannel(f"{context.label}: serial{index}", context.bridge)
    port = SerialPort(f"serial{index}", context, index, sink=channel.feed, on_room=channel.has_room)
    channel.bind(port)
    machine.add(port)
    return channel
