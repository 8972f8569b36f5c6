"""The command line is a pure function; the golden files show it whole, one argument a line.

After a wanted change: APPLIANCE_WRITE_GOLDEN=1 pytest tests/qemu/test_command_line.py, then read the diff.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import HostError
from appliance.kernel.virtiofsd import C
from appliance.model.guest import GuestId, MemoryBacking, NicSpec, NumaNode, VmDisk, VmResources, VmShare, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.qemu.capabilities import Emulator, HostFacts
from appliance.qemu.command_line import build
from appliance.qemu.cpu import cpu_argument
from appliance.qemu.firmware import Firmware, VarsStore
from appliance.qemu.launch import Launch, board_of
from appliance.qemu.pci import address_of
from appliance.qemu.refusal import reasons
from appliance.qemu.run_dir import RunDir

GOLDEN = Path(__file__).parent / "golden"
UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
DEVICES = (
    "VGA virtio-vga cirrus-vga vmware-svga virtio-gpu-pci virtio-net-pci e1000 e1000e rtl8139 vmxnet3 virtio-scsi-pci "
    "lsi53c895a lsi53c810 megasas pvscsi vhost-user-fs-pci"
)
X86 = Emulator(
    arch="x86_64",
    binary="/usr/bin/qemu-system-x86_64",
    version=(7, 2, 0),
    machines=frozenset({"pc", "q35", "pc-q35-7.2"}),
    types=frozenset(DEVICES.split()),
    sandbox=True,
    firmware=Firmware(Path("/fw/CODE.fd"), Path("/fw/VARS.fd"), 540672),
)
ARM = replace(
    X86,
    arch="aarch64",
    binary="/usr/bin/qemu-system-aarch64",
    machines=frozenset({"virt"}),
    firmware=Firmware(Path("/fw/AA_CODE.fd"), Path("/fw/AA_VARS.fd"), 64 << 20),
)
FACTS = HostFacts(
    emulators={"x86_64": X86, "aarch64": ARM},
    host_arch="x86_64",
    keymaps=frozenset({"de"}),
    boot_roms=frozenset({"efi-virtio.rom"}),
    virtiofsd=C,
    huge_pages_kib=frozenset({2048}),
)
PLAIN = VmSpec(guest_id=GuestId(100), name="plain", uuid=UUID, rng=True, serials=(0,))


def volume(name: str, format: VolumeFormat = VolumeFormat.RAW) -> OpenedVolume:
    return OpenedVolume(volume_id=None, path=Path("/srv/images/100") / name, format=format, size_bytes=1 << 30)


def launch(arch: str = "x86_64", accelerator: str = "tcg", **changes: object) -> Launch:
    made = Launch(
        facts=FACTS,
        emulator=FACTS.emulators[arch],
        paths=RunDir.of(Path("/run/appliance"), GuestId(100)),
        accelerator=accelerator,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # the caller names Launch's own fields


def nic(number: int, model: str = "virtio", **changes: object) -> NicSpec:
    made = NicSpec(slot=f"net{number}", model=model, mac=f"BC:24:11:00:00:{number:02X}", bridge="vmbr0")
    return replace(made, **changes)  # type: ignore[arg-type]  # the caller names NicSpec's own fields


def disk(slot: str, **changes: object) -> VmDisk:
    return replace(VmDisk(slot=slot, volume=f"local:{slot}"), **changes)  # type: ignore[arg-type]  # as above


SERVER = replace(
    PLAIN,
    name="server",
    machine="q35",
    firmware="ovmf",
    memory_mib=4096,
    sockets=2,
    cores=2,
    vcpus=3,
    cpu_model="x86-64-v3",
    cpu_flags=("+md-clear", "-pcid"),
    balloon_min_mib=1024,
    agent=True,
    scsi_controller="virtio-scsi-single",
    disks=(
        disk("scsi0", discard=True, ssd=True, iothread=True, serial="S-0"),
        disk("virtio9", cache="unsafe", aio="io_uring"),
        disk("ide2", volume=None, cdrom=True),
        disk("sata1", cdrom=True),
    ),
    efi_disk=disk("efidisk0"),
    nics=(nic(0, queues=4, mtu=1450), nic(7, model="vmxnet3")),
    display="virtio",
    keyboard="de",
    boot_order=("scsi0", "net0", "ide2"),
    extra_args=("-device", "intel-iommu"),
)
SERVER_RESOURCES = VmResources(
    disks={
        "scsi0": volume("vm-100-disk-0.qcow2", VolumeFormat.QCOW2),
        "virtio9": volume("vm-100-disk-1.raw"),
        "sata1": volume("x.iso"),
    },
    taps={"net0": "tap100i0", "net7": "tap100i7"},
)
EVIL = replace(
    PLAIN,
    name='a,process=x "\n-monitor stdio',
    display="serial0",
    acpi=False,
    disks=(disk("scsi0", serial='",,\\'), disk("ide0", cache="writethrough", read_only=True)),
    scsi_controller="lsi",
)
EVIL_RESOURCES = VmResources(
    disks={"scsi0": volume('a,b",id=c.raw'), "ide0": replace(volume("x"), path=Path("/dev/vg/lv"))}
)
WINDOWS = replace(PLAIN, os_type="win11", local_time=True, cpu_model="host", nics=(nic(0, "e1000", link_down=True),))
BACKED = replace(
    PLAIN,
    cores=2,
    vcpus=2,
    memory_backing=MemoryBacking(
        hugepages="2",
        numa=(
            NumaNode(index=0, cpus=(0,), memory_mib=256, host_nodes=(0, 1), policy="interleave"),
            NumaNode(index=1, cpus=(1,), memory_mib=256),
        ),
    ),
    shares=(VmShare(slot="virtiofs2", mapping="home"),),
)
ARM_SPEC = replace(PLAIN, arch="aarch64", serials=(0, 1), disks=(disk("scsi0"),), nics=(nic(0),))
ARM_RESOURCES = VmResources(disks={"scsi0": volume("arm.raw")}, taps={"net0": "tap100i0"})

CASES = {
    "plain": (PLAIN, VmResources(), launch()),
    "server": (
        SERVER,
        SERVER_RESOURCES,
        launch(vars=VarsStore(Path("/srv/images/100/efi.qcow2"), VolumeFormat.QCOW2, 540672), accelerator="kvm"),
    ),
    "hostile": (EVIL, EVIL_RESOURCES, launch(buffered=frozenset({"scsi0"}))),
    "backed": (BACKED, VmResources(directories={"virtiofs2": Path("/srv/home")}), launch(hugepages_kib=2048)),
    "windows": (WINDOWS, VmResources(taps={"net0": "tap100i0"}), launch(accelerator="kvm")),
    "aarch64": (
        ARM_SPEC,
        ARM_RESOURCES,
        launch("aarch64", vars=VarsStore(Path("/run/vars.fd"), VolumeFormat.RAW, 64 << 20)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_command_line_is_the_one_on_record(name: str) -> None:
    spec, resources, made = CASES[name]
    assert reasons(spec, FACTS) == []
    text = "\n".join(json.dumps(argument) for argument in build(spec, resources, made)) + "\n"
    golden = GOLDEN / f"{name}.argv"
    if os.environ.get("APPLIANCE_WRITE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def test_what_the_host_lacks_for_memory_and_shares_is_said_by_name() -> None:
    poor = replace(FACTS, virtiofsd=None, huge_pages_kib=frozenset())
    assert reasons(BACKED, poor) == ["the kernel has no huge pages of 2 MiB", "virtiofs2: virtiofsd is not installed"]
    picky = replace(BACKED, shares=(VmShare(slot="virtiofs0", mapping="home", cache="metadata"),))
    assert "virtiofs0: cache=metadata" in reasons(picky, FACTS)[0]


def test_a_kernel_is_booted_directly_and_a_watchdog_acts_as_configured() -> None:
    spec = replace(PLAIN, kernel="local:import/vmlinuz", cmdline="console=ttyS0 quiet", watchdog="poweroff")
    disks = {"kernel": volume("vmlinuz"), "initrd": volume("initrd.img")}
    arguments = build(spec, VmResources(disks=disks), launch())
    pairs = list(itertools.pairwise(arguments))
    assert ("-kernel", "/srv/images/100/vmlinuz") in pairs
    assert ("-initrd", "/srv/images/100/initrd.img") in pairs
    assert ("-append", "console=ttyS0 quiet") in pairs
    assert ("-action", "watchdog=poweroff") in pairs
    assert any("i6300esb" in each for each in arguments)


def test_no_tcp_port_is_ever_opened() -> None:
    for spec, resources, made in CASES.values():
        for argument in build(spec, resources, made):
            assert "tcp:" not in argument
            assert "port=" not in argument
            assert "host=" not in argument or argument.startswith(("clock=host", "host,"))


def test_a_disk_or_nic_without_its_resource_is_named() -> None:
    with pytest.raises(HostError, match="vm 100: scsi0"):
        build(SERVER, VmResources(), launch())
    with pytest.raises(HostError, match="vm 100: net0"):
        build(replace(PLAIN, nics=(nic(0),)), VmResources(), launch())


def test_every_device_has_an_address_of_its_own() -> None:
    names = ["vga", "balloon0", "ahci0", "agent", "rng0", "usb", "panic", "serial1", "serial2", "serial3"]
    names += [f"scsihw{n}" for n in range(5)] + [f"virtioscsi{n}" for n in range(31)]
    names += [f"virtio{n}" for n in range(16)] + [f"net{n}" for n in range(32)]
    places = [address_of(name) for name in names]
    assert len(set(places)) == len(places)
    assert address_of("net0").device == 0x12
    with pytest.raises(KeyError):
        address_of("virtioscsi31")
    with pytest.raises(KeyError):
        address_of("flux0")


@pytest.mark.parametrize(
    ("spec", "accelerator", "expected"),
    [
        (PLAIN, "tcg", "max"),
        (PLAIN, "kvm", "host"),
        (replace(PLAIN, cpu_model="host"), "tcg", "max"),
        (replace(PLAIN, cpu_model="Skylake-Server", cpu_flags=("-pcid",)), "kvm", "Skylake-Server,pcid=off"),
        (replace(PLAIN, arch="aarch64"), "tcg", "max,pauth-impdef=on"),
        (replace(PLAIN, arch="aarch64", cpu_model="cortex-a57"), "tcg", "cortex-a57"),
    ],
)
def test_the_processor_follows_the_accelerator(spec: VmSpec, accelerator: str, expected: str) -> None:
    assert cpu_argument(spec, accelerator) == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"arch": "riscv64"}, "architecture 'riscv64' is not known"),
        ({"machine": "microvm"}, "machine 'microvm' is not one of x86_64"),
        ({"machine": "pc-q35-99.0"}, "'pc-q35-99.0' is not known to this QEMU"),
        ({"arch": "aarch64", "machine": "q35"}, "machine 'q35' is not one of aarch64"),
        ({"arch": "aarch64", "accelerator": "kvm"}, "a aarch64 guest cannot use KVM on a x86_64 host"),
        ({"accelerator": "hvf"}, "accelerator 'hvf'"),
        ({"firmware": "uboot"}, "firmware 'uboot'"),
        ({"display": "qxl,x=y"}, "display 'qxl,x=y' is not supported"),
        ({"keyboard": "de,x=y"}, "keyboard 'de,x=y'"),
        ({"serials": (0, 0)}, "serial ports"),
        ({"serials": (4,)}, "serial ports"),
        ({"uuid": "x,y"}, "uuid 'x,y' is not a UUID"),
        ({"cpu_model": "host,kvm=off"}, "processor 'host,kvm=off'"),
        ({"cpu_flags": ("+aes,x",)}, r"processor flag '\+aes,x'"),
        ({"vcpus": 2}, "2 vCPUs do not fit"),
        ({"memory_mib": 0}, "0 MiB"),
        ({"disks": (disk("virtio16"),)}, "virtio16: no such slot"),
        ({"disks": (disk("floppy0"),)}, "floppy0: no such slot"),
        ({"disks": (disk("ide0"), disk("ide0"))}, "ide0: given twice"),
        ({"disks": (disk("ide0", cache="fast"),)}, "ide0: cache 'fast'"),
        ({"disks": (disk("ide0", volume=None),)}, "ide0: a disk needs a volume"),
        ({"disks": (disk("scsi0"),), "scsi_controller": "warp"}, "scsi0: controller 'warp'"),
        ({"arch": "aarch64", "disks": (disk("ide0"),)}, "ide0: this machine has no IDE"),
        ({"nics": (nic(0, "ne2k"),)}, "net0: model 'ne2k'"),
        ({"nics": (nic(0, mac="x"),)}, "net0: 'x' is not a MAC"),
        ({"nics": (nic(32),)}, "net32: no such slot"),
    ],
)
def test_what_cannot_run_is_refused_with_its_reason(changes: dict[str, object], reason: str) -> None:
    spec = replace(PLAIN, **changes)  # type: ignore[arg-type]  # the table names VmSpec's own fields
    with pytest.raises(AssertionError, match=reason):
        assert not reasons(spec, FACTS), "; ".join(reasons(spec, FACTS))


def test_kvm_asked_for_where_it_is_unfit_is_refused_with_why() -> None:
    unfit = replace(FACTS, no_kvm="the processor shows neither vmx nor svm")
    assert reasons(replace(PLAIN, accelerator="kvm"), unfit) == [
        "KVM is asked for and not usable: the processor shows neither vmx nor svm"
    ]
    assert reasons(PLAIN, unfit) == []


def test_boards_are_known_by_family_alias_and_version() -> None:
    assert [board_of(name, "x86_64") for name in ("i440fx", "pc", "pc-i440fx-9.0", "q35", "pc-q35-8.1", "isapc")] == [
        "i440fx",
        "i440fx",
        "i440fx",
        "q35",
        "q35",
        "",
    ]
