"""A VM's specification: PVE's defaults, and the rules between keys."""

from __future__ import annotations

import pytest

from appliance.errors import InvalidParameter
from appliance.model.guest import GuestKind, VmSpec
from appliance.services import guest_config

VM = GuestKind.QEMU
MAC = "BC:24:11:00:00:01"
NIC = f"virtio={MAC},bridge=vmbr0"


def spec_of(**raw: object) -> VmSpec:
    return guest_config.to_vm_spec(100, guest_config.parse(VM, raw))


def refused(**raw: object) -> dict[str, str]:
    with pytest.raises(InvalidParameter) as caught:
        spec_of(**raw)
    return caught.value.errors


def test_the_defaults_are_those_of_pve() -> None:
    spec = spec_of()
    assert (spec.name, spec.memory_mib, spec.sockets, spec.cores, spec.vcpus) == ("VM100", 512, 1, 1, 1)
    assert (spec.machine, spec.firmware, spec.scsi_controller, spec.display) == ("i440fx", "seabios", "lsi", "std")
    assert (spec.os_type, spec.cpu_model, spec.balloon_min_mib) == ("other", "kvm64", 512)
    assert (spec.engine, spec.accelerator, spec.arch) == ("", "auto", "x86_64")
    assert spec.acpi
    assert spec.tablet
    assert not spec.agent
    assert not spec.local_time
    assert spec.cloud_init is None


def test_the_default_boot_order_is_first_disk_then_cdrom_then_nic() -> None:
    spec = spec_of(
        net1=NIC, net0=NIC, sata0="local:8", scsi2="local:8", ide2="none,media=cdrom",
        ide0="local:cloudinit",
    )  # fmt: skip
    assert spec.boot_order == ("scsi2", "ide2", "net0")


def test_a_given_boot_order_holds_and_forgets_devices_that_are_gone() -> None:
    assert spec_of(boot="order=net0;scsi0;sata1", scsi0="local:8", net0=NIC).boot_order == ("net0", "scsi0")
    assert spec_of(boot="dcn", scsi0="local:8", ide2="cdrom", net0=NIC).boot_order == ("ide2", "scsi0", "net0")
    assert spec_of(boot="c", bootdisk="virtio0", scsi0="local:8", virtio0="local:8").boot_order == ("virtio0",)


@pytest.mark.parametrize("boot", ["order=scsi31", "order=usb0", "order=scsi0;scsi0", "xyz", "order=scsi0,legacy=c"])
def test_a_bad_boot_order_is_refused(boot: str) -> None:
    assert list(refused(boot=boot)) == ["boot"]


@pytest.mark.parametrize(
    ("wish", "direct", "io_uring", "used"),
    [
        ("", True, True, "native"),
        ("", False, True, "io_uring"),
        ("", False, False, "threads"),
        ("threads", True, True, "threads"),
        ("io_uring", True, True, "io_uring"),
        ("io_uring", True, False, "native"),
        ("native", False, False, "threads"),
    ],
)
def test_a_disks_io_is_as_wished_where_that_can_be(wish: str, *, direct: bool, io_uring: bool, used: str) -> None:
    (disk,) = spec_of(scsi0=f"local:100/vm-100-disk-0.raw{',aio=' if wish else ''}{wish}").disks
    assert disk.host_io(direct=direct, io_uring=io_uring) == used


def test_disks_carry_their_options() -> None:
    config = "local:100/vm-100-disk-0.qcow2,discard=on,ssd=1,iothread=1,ro=1,cache=writeback,serial=a%20b,size=32G"
    (disk,) = spec_of(scsi3=config).disks
    assert (disk.slot, disk.volume, disk.bus, disk.index) == ("scsi3", "local:100/vm-100-disk-0.qcow2", "scsi", 3)
    assert (disk.discard, disk.ssd, disk.iothread, disk.read_only, disk.cache) == (True, True, True, True, "writeback")
    assert (disk.serial, disk.size_bytes) == ("a b", 32 << 30)


def test_iso_empty_tray_and_cloudinit_are_cdroms() -> None:
    spec = spec_of(
        ide0="local:iso/x.iso,media=cdrom", ide1="none,media=cdrom", ide2="local:100/vm-100-cloudinit.qcow2,media=cdrom"
    )
    assert [(disk.volume, disk.cdrom, disk.cloudinit) for disk in spec.disks] == [
        ("local:iso/x.iso", True, False), (None, True, False), ("local:100/vm-100-cloudinit.qcow2", True, True),
    ]  # fmt: skip


def test_the_firmware_disk_is_apart() -> None:
    spec = spec_of(bios="ovmf", efidisk0="local:100/vm-100-disk-1.raw,efitype=4m,size=4M")
    assert spec.disks == ()
    assert spec.efi_disk is not None
    assert spec.efi_disk.size_bytes == 4 << 20


def test_nics_are_typed() -> None:
    (nic,) = spec_of(net3=f"e1000={MAC},bridge=vmbr0,tag=7,rate=12.5,mtu=1400,firewall=1,link_down=1,queues=4").nics
    assert (nic.slot, nic.model, nic.mac, nic.bridge, nic.vlan) == ("net3", "e1000", MAC, "vmbr0", 7)
    assert (nic.rate_mbyte_s, nic.mtu, nic.firewall, nic.link_down, nic.queues) == (12.5, 1400, True, True, 4)


def test_cloud_init_is_gathered_for_the_cloudinit_drive() -> None:
    spec = spec_of(
        ide2="local:cloudinit", ciuser="debian", cipassword="$6$salt$hashhashhash", ciupgrade="0", nameserver="1.1.1.1,9.9.9.9",
        searchdomain="example.org", ipconfig0="ip=10.0.0.2/24,gw=10.0.0.1", ipconfig2="ip6=auto",
        sshkeys="ssh-ed25519%20AAAA%20a%0A%0Assh-rsa%20BBBB%0A",
    )  # fmt: skip
    assert spec.cloud_init is not None
    assert spec.cloud_init.user == "debian"
    assert spec.cloud_init.password_hash == "$6$salt$hashhashhash"
    assert spec.cloud_init.ssh_keys == ("ssh-ed25519 AAAA a", "ssh-rsa BBBB")
    assert dict(spec.cloud_init.ip_configs) == {0: "ip=10.0.0.2/24,gw=10.0.0.1", 2: "ip6=auto"}
    assert (spec.cloud_init.nameserver, spec.cloud_init.search_domain) == ("1.1.1.1 9.9.9.9", "example.org")
    assert not spec.cloud_init.upgrade


def test_cpu_agent_display_and_engine_are_typed() -> None:
    spec = spec_of(cpu="host,flags=+aes;-pcid", agent="enabled=1,fstrim_cloned_disks=1", vga="serial0", serial0="socket",
                   engine="native", rng0="source=/dev/urandom", kvm="0", args="-device 'a b'")  # fmt: skip
    assert (spec.cpu_model, spec.cpu_flags) == ("host", ("+aes", "-pcid"))
    assert (spec.agent, spec.display, spec.serials, spec.engine) == (True, "serial0", (0,), "native")
    assert (spec.rng, spec.accelerator, spec.extra_args) == (True, "tcg", ("-device", "a b"))


def test_windows_keeps_local_time_unless_told_otherwise() -> None:
    assert spec_of(ostype="win11").local_time
    assert not spec_of(ostype="win11", localtime="0").local_time


def test_another_architecture_has_its_own_machine_and_firmware() -> None:
    spec = spec_of(arch="aarch64")
    assert (spec.machine, spec.firmware) == ("virt", "ovmf")
    assert list(refused(arch="aarch64", bios="seabios")) == ["bios"]
    assert list(refused(arch="aarch64", machine="q35")) == ["machine"]
    assert list(refused(machine="virt")) == ["machine"]


@pytest.mark.parametrize(
    ("raw", "key"),
    [({"balloon": "1024", "memory": "512"}, "balloon"), ({"vcpus": "3", "cores": "2"}, "vcpus"),
     ({"net0": "virtio"}, "net0"), ({"sockets": "64", "cores": "8192"}, "cores"), ({"args": "'unclosed"}, "args")],
)  # fmt: skip
def test_rules_between_keys_name_the_key(raw: dict[str, object], key: str) -> None:
    assert list(refused(**raw)) == [key]


def test_balloon_zero_removes_the_device() -> None:
    assert spec_of(memory="1024", balloon="0").balloon_min_mib is None
    assert spec_of(memory="1024", balloon="256").balloon_min_mib == 256


def test_the_uuid_is_that_of_smbios1_and_otherwise_steady() -> None:
    text = "3b5f0f6e-6f0e-4d43-9a6c-6f6a0c5d9f10"
    assert spec_of(smbios1=f"uuid={text}").uuid == text
    assert spec_of().uuid == spec_of().uuid


def test_a_nic_has_the_addresses_its_cloudinit_drive_tells() -> None:
    told = {"net1": NIC, "ipconfig1": "ip=10.0.0.5/24,gw=10.0.0.1,ip6=auto", "net2": NIC}
    first, second = spec_of(ide2="local:cloudinit", **told).nics
    assert (first.ip, first.gateway, first.ip6, first.gateway6) == ("10.0.0.5/24", "10.0.0.1", "auto", "")
    assert (second.ip, second.ip6) == ("", "")
    assert spec_of(**told).nics[0].ip == "", "without the drive the guest is told nothing"


def test_a_kernel_a_data_plane_and_a_watchdog_reach_the_engine() -> None:
    spec = spec_of(kernel="local:import/vmlinuz", initrd="local:import/initrd.img", cmdline="console=ttyS0 quiet",
              dataplane="python", watchdog="i6300esb,action=poweroff")  # fmt: skip
    assert (spec.kernel, spec.initrd) == ("local:import/vmlinuz", "local:import/initrd.img")
    assert (spec.cmdline, spec.data_plane, spec.watchdog) == ("console=ttyS0 quiet", "python", "poweroff")
    assert (spec_of().kernel, spec_of().data_plane, spec_of().watchdog) == ("", "auto", "")


def test_a_socket_device_is_an_extension_of_ours() -> None:
    assert spec_of(vsock="1").vsock
    assert not spec_of().vsock
