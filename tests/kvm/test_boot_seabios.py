"""Debian's SeaBIOS on the real /dev/kvm, with what fw_cfg tells it: its own words, and the tables it has put into memory."""

from __future__ import annotations

import ctypes
import mmap
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest

from appliance.kernel.kvm import Kvm
from appliance.kernel.kvm_abi import KVM_MEM_READONLY
from appliance.kernel.kvm_run_abi import KVM_EXIT_IO_IN, ExitReason
from appliance.kernel.kvm_vcpu import Vcpu
from appliance.kernel.kvm_vm import Vm
from appliance.vmm import layout
from appliance.vmm.boot import cpuid, firmware, firmware_config, smbios
from appliance.vmm.boot.bootorder import BootKind, device_path
from appliance.vmm.boot.cpuid import Leaf, Topology
from appliance.vmm.boot.dsdt import Platform
from appliance.vmm.boot.firmware import Rom
from appliance.vmm.legacy.acpi_pm import AcpiPm
from appliance.vmm.legacy.debug_port import DebugPort
from appliance.vmm.legacy.fw_cfg import FwCfg
from appliance.vmm.legacy.i8042 import I8042
from appliance.vmm.legacy.rtc import Rtc
from appliance.vmm.legacy.rtc_nvram import pc_nvram
from appliance.vmm.legacy.vmgenid import VmGenId
from appliance.vmm.pci.bus import PciBus
from tests.fakes.machine import FakeMachine

pytestmark = pytest.mark.host

DEADLINE_S = 30.0
GUID = UUID("11111111-2222-3333-4444-555555555555")
IDENTITY = smbios.Identity(uuid="00112233-4455-6677-8899-aabbccddeeff", ram_bytes=64 << 20)


class Pc:
    """Enough of a machine for SeaBIOS, run on the test's own thread."""

    def __init__(self, vm: Vm, rom: Rom, view: ctypes.c_char) -> None:
        self.lines: list[str] = []
        self.fake = FakeMachine(memory_mib=64, controller=vm)  # type: ignore[arg-type]
        self.rom = rom
        self._map(vm, view)
        context = self.fake.context
        self.platform = Platform(apic_ids=(0,), ram_bytes=self.fake.memory.size, serials=(0,), vmgenid=True)
        self.fw_cfg = FwCfg("fw_cfg", context)
        options = firmware_config.FirmwareOptions(boot_paths=[device_path(BootKind.BLOCK, 4)])
        for key, data in firmware_config.items(self.platform, IDENTITY, options).items():
            self.fw_cfg.add_item(key, data)
        for name, data in firmware_config.files(self.platform, IDENTITY, options).items():
            self.fw_cfg.add_file(name, data)
        pm = AcpiPm("acpi-pm", context)
        self.devices = [
            pm,
            self.fw_cfg,
            VmGenId("vmgenid", context, guid=GUID, gpe=pm.raise_gpe, fw_cfg=self.fw_cfg),
            DebugPort("debug", context, on_line=self.lines.append),
            PciBus("pci", context),
            I8042("i8042", context),
            Rtc("rtc", context, nvram=pc_nvram(self.fake.memory.size, vcpus=1)),
        ]
        rom.shadow(self.fake.memory)

    def _map(self, vm: Vm, view: ctypes.c_char) -> None:
        memory = self.fake.memory
        ram = [(each.base, each.size, memory.host_address(each.base, each.size), 0) for each in memory.regions]
        # SAFETY: `view` is of the ROM's mapping, which `seabios` unmaps after the VM has gone
        rom = (self.rom.base, len(self.rom.content), ctypes.addressof(view), KVM_MEM_READONLY)
        for slot, (base, size, address, flags) in enumerate([*ram, rom]):
            vm.set_user_memory_region(slot, guest_phys_addr=base, memory_size=size, userspace_addr=address, flags=flags)

    def run(self, vcpu: Vcpu, until: str) -> None:
        """Until SeaBIOS has said a line that contains `until`."""
        deadline = time.monotonic() + DEADLINE_S
        while not any(until in line for line in self.lines):
            assert time.monotonic() < deadline, self.lines[-20:]
            match vcpu.run():
                case ExitReason.IO:
                    self._io(vcpu)
                case ExitReason.MMIO:
                    self._mmio(vcpu)
                case ExitReason.INTR:
                    pass
                case reason:
                    raise AssertionError(f"exit {ExitReason(reason).name}: {self.lines[-5:]}")

    def _io(self, vcpu: Vcpu) -> None:
        io, bus = vcpu.kvm_run.io, self.fake.ports
        port, size, count = io.port, io.size, io.count
        if io.direction == KVM_EXIT_IO_IN:
            vcpu.set_io_data(b"".join(bus.read(port, size).to_bytes(size, "little") for _ in range(count)))
        else:
            data = vcpu.io_data()
            for at in range(0, len(data), size):
                bus.write(port, size, int.from_bytes(data[at : at + size], "little"))

    def _mmio(self, vcpu: Vcpu) -> None:
        access, bus = vcpu.kvm_run.mmio, self.fake.mmio
        if access.is_write:
            bus.write(access.phys_addr, access.len, int.from_bytes(bytes(access.data)[: access.len], "little"))
        else:
            access.data[: access.len] = bus.read(access.phys_addr, access.len).to_bytes(access.len, "little")

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def close(self) -> None:
        for device in reversed(self.devices):
            device.close()
        self.fake.close()


@contextmanager
def seabios(kvm: Kvm) -> Iterator[tuple[Pc, Vcpu]]:
    rom = firmware.load_firmware()
    content = mmap.mmap(-1, len(rom.content))
    content[:] = rom.content
    view = ctypes.c_char.from_buffer(content)
    with kvm.create_vm("vm t") as vm:
        vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP)
        vm.set_tss_addr(layout.KVM_TSS)
        vm.create_irqchip()
        vm.create_pit2()
        made = Pc(vm, rom, view)
        try:
            vcpu = vm.create_vcpu(0)
            offer = [Leaf.from_kvm(entry) for entry in kvm.get_supported_cpuid()]
            leaves = cpuid.leaves(offer, "host", Topology(), 0, tsc_deadline=True)
            vcpu.set_cpuid2([leaf.to_kvm() for leaf in leaves])
            yield made, vcpu
        finally:
            vm.close()
            made.close()
    del view
    content.close()


def in_bios_area(pc: Pc, signature: bytes) -> int:
    area = pc.fake.memory.read(0xE0000, 0x20000)
    return 0xE0000 + next(at for at in range(0, len(area), 16) if area[at:].startswith(signature))


def table(pc: Pc, address: int) -> bytes:
    data = pc.fake.memory.read(address, pc.fake.memory.load_u32(address + 4))
    assert sum(data) & 0xFF == 0, data[:4]
    return data


@pytest.mark.skipif(bool(firmware.problem()), reason="seabios is not installed")
def test_seabios_takes_memory_tables_and_boot_order_from_fw_cfg(kvm: Kvm) -> None:
    with seabios(kvm) as (pc, vcpu):
        pc.run(vcpu, "No bootable device")
        assert pc.said("Running on QEMU (q35)")
        assert pc.said("Running on KVM")
        assert pc.said("len 0x0000000004000000 [RAM]")
        assert pc.said(f"Machine UUID {IDENTITY.uuid}")
        assert pc.said("ACPI: parse DSDT at")
        assert pc.said("Found 1 cpu(s) max supported 1 cpu(s)")
        assert pc.said("/pci@i0cf8/scsi@4/disk@0,0")
        assert not pc.said("parse error")
        assert not pc.said("internal error")
        assert pc.said("PS2 keyboard initialized")  # only with a keyboard in the DSDT

        memory = pc.fake.memory
        rsdp = memory.read(in_bios_area(pc, b"RSD PTR "), 36)
        assert sum(rsdp) & 0xFF == sum(rsdp[:20]) & 0xFF == 0
        xsdt = table(pc, struct.unpack_from("<Q", rsdp, 24)[0])
        roots = {table(pc, at)[:4]: table(pc, at) for at in struct.unpack(f"<{(len(xsdt) - 36) // 8}Q", xsdt[36:])}
        assert set(roots) == {b"FACP", b"APIC", b"MCFG"}
        assert table(pc, struct.unpack_from("<Q", roots[b"FACP"], 140)[0])[:4] == b"DSDT"

        identifier = int.from_bytes(pc.fw_cfg.file("etc/vmgenid_addr"), "little")
        assert memory.read(identifier, 16) == GUID.bytes_le

        anchor = memory.read(in_bios_area(pc, b"_SM_"), 31)
        length, where = struct.unpack_from("<HI", anchor, 22)
        assert sum(anchor) & 0xFF == 0
        assert memory.read(where, length) == smbios.structures(IDENTITY)


@pytest.mark.skipif(bool(firmware.problem()), reason="seabios is not installed")
def test_seabios_starts_again_after_a_reset_with_its_shadow_restored(kvm: Kvm) -> None:
    with seabios(kvm) as (pc, vcpu):
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        assert sregs.cs.base + regs.rip == 0xFFFF_FFF0
        pc.run(vcpu, "Searching bootorder")
        pc.lines.clear()
        for device in pc.devices:
            device.reset()
        pc.rom.shadow(pc.fake.memory)
        vcpu.set_sregs(sregs)
        vcpu.set_regs(regs)
        pc.run(vcpu, "ACPI: parse DSDT at")
        assert pc.said("len 0x0000000004000000 [RAM]")
