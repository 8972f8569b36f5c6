"""SeaBIOS, unmodified, finds our chipset to be a Q35 and programs every BAR there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.kernel.kvm import Kvm
from appliance.kernel.kvm_vm import Vm
from appliance.vmm import layout
from appliance.vmm.legacy.acpi_pm import AcpiPm
from appliance.vmm.legacy.debug_port import DebugPort
from appliance.vmm.legacy.fw_cfg import FwCfg
from appliance.vmm.legacy.rtc import Rtc
from appliance.vmm.legacy.rtc_nvram import pc_nvram
from appliance.vmm.pci import config_space as cs
from appliance.vmm.pci.bar import BarKind
from appliance.vmm.pci.bus import PciBus
from tests.kvm.pci_machine import pci_machine, step
from tests.vmm.pci_software import Card

pytestmark = pytest.mark.host

SEABIOS = Path("/usr/share/seabios/bios-256k.bin")  # of Debian's package seabios, which QEMU needs as well
EXITS = 20_000  # it needs 2,500


def test_seabios_places_every_bar(kvm: Kvm, vm: Vm) -> None:
    rom = SEABIOS.read_bytes()
    with pci_machine(vm, rom=rom) as machine:
        context, said = machine.context, list[str]()
        machine.memory.write(0xE0000, rom[-0x20000:])
        bus = PciBus("pci", context)
        cards = [Card(context, f"card{number}").with_bars() for number in range(2)]
        large = Card(context, "large")
        large.add_bar(0, 8 << 30, BarKind.MEM64, large.registers, prefetchable=True)
        for card in (*cards, large):
            bus.plug(card)
        fw_cfg = FwCfg("fw-cfg", context)
        fw_cfg.add_file("etc/table-loader", b"")  # by which it knows that the PM ports are at 0x600
        others = [AcpiPm("acpi-pm", context), DebugPort("debug-port", context, on_line=said.append), fw_cfg]
        others.append(Rtc("rtc", context, nvram=pc_nvram(machine.memory.size, vcpus=1)))
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid2(kvm.get_supported_cpuid())
        try:
            for _ in range(EXITS):
                step(vcpu, machine)
                if "PCI: No VGA devices found" in said:  # what follows after PCI's set-up
                    break
            assert "PCIe: using q35 mmconfig at 0xb0000000" in said
            placed = [bar for card in (*cards, large) for bar in card.bars.values()]
            assert all(bar.mapped is not None for bar in placed)
            assert [cards[0].bars[0].mapped, cards[1].bars[0].mapped] == [
                machine.ports.find(0xC000),
                machine.ports.find(0xC040),
            ]
            assert large.bars[0].mapped is not None
            assert large.bars[0].mapped.base >= layout.HIGH_RAM
            assert [card.config.read(cs.INTERRUPT_LINE, 1) for card in cards] == [10, 11]
            assert bus.lpc.isa_irq(1) == 10
            assert bus.lpc.isa_irq(2) == 11
            assert machine.notes == []
        finally:
            for device in (*cards, large, bus, *others):
                device.close()
