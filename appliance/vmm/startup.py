"""What a machine starts from, and starts from again at each reset: firmware, or a kernel that we place ourselves.

Through firmware: SeaBIOS as a ROM that ends at 4 GiB, its end as RAM below 1 MiB; it finds tables and boot order in fw_cfg.
OVMF, experimental: its code as such a ROM, its variables as a flash chip below it (`boot.variables`).
Directly: tables, kernel, initial RAM disk and command line in memory, the first vCPU entered where the kernel says.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from appliance.errors import HostError, Unsupported
from appliance.kernel.kvm import Kvm
from appliance.kernel.kvm_caps import Cap
from appliance.kernel.kvm_vcpu import Vcpu as KvmVcpu
from appliance.model.guest import VmResources, VmSpec
from appliance.model.volume import VolumeFormat
from appliance.threads import to_the_end
from appliance.vmm.boot import acpi, cpuid, elf, firmware, firmware_config, linux, low_memory, pvh, regs, smbios
from appliance.vmm.boot.bootorder import BootKind, device_path
from appliance.vmm.boot.dsdt import Platform
from appliance.vmm.boot.variables import VariablesFile, VariablesFlash
from appliance.vmm.chipset import Chipset
from appliance.vmm.device import close_wholly
from appliance.vmm.life import Boot
from appliance.vmm.machine import Machine

KERNEL_LIMIT_BYTES = 1 << 30
DEFAULT_MODEL = "kvm64"


async def make_boot(
    machine: Machine, spec: VmSpec, resources: VmResources, chipset: Chipset, *, boot_slots: dict[str, int]
) -> Boot:
    """`boot_slots` maps "virtio0", "net0" to PCI slots, for the firmware's order. Raises `Unsupported`, `HostError`."""
    offered, deadline = await asyncio.to_thread(_offer)
    topology = cpuid.Topology(sockets=spec.sockets, cores=spec.cores)
    platform = Platform(
        apic_ids=topology.apic_ids(spec.vcpus),
        ram_bytes=machine.board.memory.size,
        physical_bits=cpuid.physical_bits(offered),
        serials=spec.serials,
        pvpanic=True,
        vmgenid=True,
        numa=tuple((node.cpus, node.memory_mib << 20) for node in spec.memory_backing.numa),
    )
    identity = smbios.Identity(
        uuid=spec.uuid, ram_bytes=machine.board.memory.size, sockets=spec.sockets, cores=spec.cores
    )
    model = spec.cpu_model or DEFAULT_MODEL
    cpuid.check_model(offered, model)

    def configure(vcpu: KvmVcpu) -> None:
        leaves = cpuid.leaves(offered, model, topology, vcpu.index, tsc_deadline=deadline)  # its number is its APIC ID
        vcpu.set_cpuid2([leaf.to_kvm() for leaf in leaves])

    if spec.kernel:
        kernel = await asyncio.to_thread(_read, resources.disks["kernel"].path, f"{machine.label}: kernel")
        initrd = b""
        if spec.initrd:
            initrd = await asyncio.to_thread(_read, resources.disks["initrd"].path, f"{machine.label}: initrd")
        direct = _Direct(machine, chipset, platform, identity, kernel=kernel, initrd=initrd, cmdline=spec.cmdline)
        return Boot(configure_vcpu=configure, prepare_vcpu=direct.prepare, load=direct.load)
    order = [slot for slot in spec.boot_order if slot in boot_slots]
    paths = [device_path(_kind(slot), boot_slots[slot]) for slot in order]
    serial_console = 0 in spec.serials and spec.display in ("none", "serial0")
    options = firmware_config.FirmwareOptions(boot_paths=paths, serial_console=serial_console)
    for key, data in firmware_config.items(platform, identity, options).items():
        chipset.fw_cfg.add_item(key, data)
    for name, data in firmware_config.files(platform, identity, options).items():
        chipset.fw_cfg.add_file(name, data)
    if spec.firmware == "ovmf":
        await _add_flash(machine, spec, resources)
        return Boot(configure_vcpu=configure)
    rom = await asyncio.to_thread(firmware.load_firmware)
    await asyncio.to_thread(partial(machine.board.add_rom, rom.base, rom.content, name="firmware"))
    return Boot(configure_vcpu=configure, load=partial(rom.shadow, machine.board.memory))


async def _add_flash(machine: Machine, spec: VmSpec, resources: VmResources) -> None:
    """OVMF's two chips: code as a ROM, variables in the EFI disk's volume, or forgotten with the machine."""
    volume = resources.disks.get(spec.efi_disk.slot) if spec.efi_disk is not None else None
    if volume is not None and volume.format is not VolumeFormat.RAW:
        raise Unsupported(f"{machine.label}: efidisk0: {volume.format} images cannot be a flash chip, raw ones can")
    made: list[VariablesFlash] = []

    def make() -> None:
        pair = firmware.load_flash()
        machine.board.add_rom(pair.code.base, pair.code.content, name="firmware")
        variables = pair.variables
        file = VariablesFile(volume.path, variables.content) if volume is not None else None
        try:
            made.append(VariablesFlash("variables", machine.context, variables.base, variables.content, file=file))
        except BaseException:
            if file is not None:
                file.close()
            raise

    try:
        await to_the_end(make)
        machine.add(made[0])
    except BaseException:
        for flash in made:
            await to_the_end(close_wholly, flash)
        raise


class _Direct:
    """A kernel without firmware: placed at each start, for the last run has overwritten it."""

    def __init__(
        self,
        machine: Machine,
        chipset: Chipset,
        platform: Platform,
        identity: smbios.Identity,
        *,
        kernel: bytes,
        initrd: bytes,
        cmdline: str,
    ) -> None:
        self._machine, self._chipset = machine, chipset
        self._platform, self._identity = platform, identity
        self._kernel, self._initrd, self._cmdline = kernel, initrd, cmdline
        self._entry: regs.Entry | None = None

    def load(self) -> None:
        memory, label = self._machine.board.memory, self._machine.label
        tables = low_memory.place_tables(memory, acpi.build(self._platform), self._identity)
        loader = pvh.load_pvh if self._kernel.startswith(elf.MAGIC) else linux.load_linux
        name = f"{label}: kernel"
        self._entry = loader(memory, self._kernel, self._initrd, self._cmdline, tables=tables, name=name)
        if tables.generation_page is not None:
            self._chipset.vmgenid.place(tables.generation_page)

    def prepare(self, vcpu: KvmVcpu) -> None:
        assert self._entry is not None
        regs.enter(vcpu, self._entry)


def _offer() -> tuple[list[cpuid.Leaf], bool]:
    try:
        with Kvm() as kvm:
            offered = [cpuid.Leaf.from_kvm(entry) for entry in kvm.get_supported_cpuid()]
            return offered, bool(kvm.check_extension(Cap.TSC_DEADLINE_TIMER))
    except OSError as error:
        raise HostError.from_os_error(error, "KVM") from error


def _read(path: Path, about: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > KERNEL_LIMIT_BYTES:
            raise Unsupported(f"{about}: {size} bytes; {KERNEL_LIMIT_BYTES} at most")
        return path.read_bytes()
    except OSError as error:
        raise HostError.from_os_error(error, f"{about}: read {path}") from error


def _kind(slot: str) -> BootKind:
    return BootKind.NETWORK if slot.startswith("net") else BootKind.BLOCK
