"""Creation, update, deletion and cloning of configurations."""

from __future__ import annotations

import itertools
import uuid

import pytest

from appliance.errors import Conflict, InvalidParameter
from appliance.model.guest import GuestKind
from appliance.model.volume import VolumeId
from appliance.services import guest_config
from appliance.services.guest_config import Allocate, CloudInitDrive, EmptyTray, Existing, Import, UpdatePlan

VM, CT = GuestKind.QEMU, GuestKind.LXC
UUID = uuid.UUID("11111111-2222-4333-8444-555555555555")
DISK0, DISK1 = "local:100/vm-100-disk-0.qcow2", "local:100/vm-100-disk-1.qcow2"


def update(
    config: dict[str, str], put: dict[str, object] | None = None, *delete: str, kind: GuestKind = VM
) -> UpdatePlan:
    return guest_config.plan_update(kind, config, guest_config.parse(kind, put or {}), delete, new_uuid=lambda: UUID)


def test_creation_writes_down_identity_and_boot_order() -> None:
    config = guest_config.parse(VM, {"scsi0": "local:8", "ide2": "local:iso/x.iso,media=cdrom", "net0": "virtio"})
    config = guest_config.create_config(VM, 100, config, new_uuid=lambda: UUID, now=7.9)
    assert config["smbios1"] == f"uuid={UUID}"
    assert config["vmgenid"] == str(UUID)
    assert config["boot"] == "order=scsi0;ide2;net0"
    assert config["meta"] == "ctime=7"


def test_creation_keeps_what_was_given() -> None:
    own = "99999999-2222-4333-8444-555555555555"
    given = guest_config.parse(VM, {"smbios1": f"uuid={own}", "boot": "order=net0", "vmgenid": "0", "tags": ""})
    config = guest_config.create_config(VM, 100, given, new_uuid=lambda: UUID, now=0)
    assert config == {"smbios1": f"uuid={own}", "boot": "order=net0", "meta": "ctime=0"}


def test_a_new_container_gets_its_defaults_written_down() -> None:
    config = guest_config.create_config(CT, 101, {"rootfs": "local:4"}, new_uuid=lambda: UUID, now=0)
    assert config == {
        "rootfs": "local:4", "hostname": "CT101", "arch": "amd64", "ostype": "debian", "memory": "512", "swap": "512",
        "unprivileged": "1",
    }  # fmt: skip


def test_missing_mac_addresses_are_filled_in() -> None:
    macs = (f"BC:24:11:00:00:{n:02X}" for n in itertools.count())
    config = guest_config.fill_macs(
        VM, {"net0": "virtio,bridge=vmbr0", "net1": "e1000=BC:24:11:99:00:00"}, lambda: next(macs)
    )
    assert config == {"net0": "virtio=BC:24:11:00:00:00,bridge=vmbr0", "net1": "e1000=BC:24:11:99:00:00"}
    assert guest_config.fill_macs(CT, {"net0": "name=eth0"}, lambda: next(macs)) == {
        "net0": "name=eth0,hwaddr=BC:24:11:00:00:01"
    }


def test_an_update_puts_and_deletes() -> None:
    plan = update(
        {"memory": "512", "name": "a", "tags": "x"},
        {"memory": 1024, "description": "new", "tags": ""},
        "name",
        "onboot",
    )
    assert plan.config == {"memory": "1024", "description": "new"}
    assert plan.changed == {"memory", "name", "description", "tags"}
    assert plan.removed == ()


@pytest.mark.parametrize("delete", ["bogus", "net32", "meta", "smbios1"])
def test_deleting_what_cannot_be_deleted_is_refused(delete: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        update({}, None, delete)
    assert list(caught.value.errors) == ["delete"]


def test_a_key_cannot_be_set_and_deleted_at_once() -> None:
    with pytest.raises(InvalidParameter) as caught:
        update({}, {"ide2": "none"}, "cdrom")
    assert "at the same time" in caught.value.errors["delete"]


def test_a_deleted_disk_becomes_unused_and_a_deleted_unused_disk_goes() -> None:
    detached = update({"scsi0": f"{DISK0},size=8G", "unused0": DISK1}, None, "scsi0")
    assert detached.config == {"unused0": DISK1, "unused1": DISK0}
    assert detached.removed == ()
    gone = update(detached.config, None, "unused1")
    assert gone.config == {"unused0": DISK1}
    assert gone.removed == (VolumeId.parse(DISK0),)


def test_a_replaced_disk_becomes_unused_and_a_changed_option_does_not_detach() -> None:
    assert update({"scsi0": DISK0}, {"scsi0": "local:8"}).config == {"scsi0": "local:8", "unused0": DISK0}
    assert update({"scsi0": DISK0}, {"scsi0": f"{DISK0},discard=on"}).config == {"scsi0": f"{DISK0},discard=on"}


def test_an_attached_unused_disk_is_unused_no_longer() -> None:
    assert update({"unused0": DISK0}, {"virtio0": DISK0}).config == {"virtio0": DISK0}
    assert update({"scsi0": DISK0}, {"virtio0": DISK0}, "scsi0").config == {"virtio0": DISK0}


def test_one_volume_cannot_be_two_disks() -> None:
    with pytest.raises(InvalidParameter) as caught:
        update({"scsi0": DISK0}, {"scsi1": DISK0})
    assert list(caught.value.errors) == ["scsi1"]


def test_isos_are_let_go_and_cloudinit_drives_are_removed() -> None:
    drive = "local:100/vm-100-cloudinit.qcow2"
    plan = update({"ide0": "local:iso/x.iso,media=cdrom", "ide2": f"{drive},media=cdrom"}, None, "ide0", "ide2")
    assert plan.config == {}
    assert plan.removed == (VolumeId.parse(drive),)


def test_a_containers_identity_is_fixed() -> None:
    for put in ({"unprivileged": "0"}, {"arch": "arm64"}):
        with pytest.raises(InvalidParameter) as caught:
            update({"rootfs": "local:4", "unprivileged": "1"}, dict(put), kind=CT)
        assert list(caught.value.errors) == list(put)
    assert update({"unprivileged": "1"}, {"unprivileged": "1"}, kind=CT).changed == frozenset()
    with pytest.raises(InvalidParameter):
        update({"rootfs": "local:4"}, None, "rootfs", kind=CT)


def test_a_stale_digest_is_a_conflict() -> None:
    config = {"a": "1"}
    guest_config.check_digest(config, None)
    guest_config.check_digest(config, guest_config.digest(config))
    with pytest.raises(Conflict):
        guest_config.check_digest(config, "0" * 40)


def test_a_clone_has_an_identity_of_its_own() -> None:
    config = {"name": "a", "net0": "virtio=BC:24:11:00:00:01", "smbios1": f"uuid={uuid.uuid4()}", "lock": "backup",
              "template": "1", "unused0": DISK1, "scsi0": DISK0, "vmgenid": str(uuid.uuid4())}  # fmt: skip
    copy = guest_config.clone_config(
        VM, 100, config, name=None, new_uuid=lambda: UUID, new_mac=lambda: "BC:24:11:00:00:02", now=5
    )
    assert copy == {
        "name": "Copy-of-a", "net0": "virtio=BC:24:11:00:00:02", "smbios1": f"uuid={UUID}", "scsi0": DISK0,
        "vmgenid": str(UUID), "meta": "ctime=5",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("local:8", Allocate("local", 8 << 30)),
        ("local:0.5,format=qcow2", Allocate("local", 1 << 29)),
        ("local:0.1", Allocate("local", 104858 << 10)),  # whole KiB
        ("local:0,import-from=local:import/x.qcow2", Import("local", VolumeId("local", "import/x.qcow2"))),
        ("local:cloudinit", CloudInitDrive("local")),
        ("none,media=cdrom", EmptyTray()),
        ("cdrom", EmptyTray()),
        ("file=local:iso/x.iso,media=cdrom", Existing(VolumeId("local", "iso/x.iso"))),
        ("volume=" + DISK0, Existing(VolumeId.parse(DISK0))),
    ],
)
def test_the_volume_a_disk_means_is_typed(text: str, wanted: object) -> None:
    assert guest_config.parse_disk(VM, "ide0", guest_config.parse(VM, {"ide0": text})["ide0"]).volume == wanted


@pytest.mark.parametrize(
    ("slot", "text"),
    [
        ("scsi0", "local:0"), ("scsi0", "local:9999999"), ("scsi0", "/dev/sda"), ("scsi0", "none,media=disk"),
        ("virtio0", "none,media=cdrom"), ("virtio0", "local:iso/x.iso,media=cdrom"), ("ide0", "local:8,media=cdrom"),
        ("scsi0", "local:../../etc/passwd"), ("scsi0", f"{DISK0},import-from=local:import/x.raw"), ("efidisk0", "none"),
        ("scsi0", "local:0,import-from=/etc/shadow"), ("unused0", "local:8/../x"), ("scsi0", "local:8\n"),
    ],
)  # fmt: skip
def test_a_disk_that_makes_no_sense_is_refused_by_its_slot(slot: str, text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        guest_config.parse_disk(VM, slot, guest_config.parse(VM, {slot: text})[slot])
    assert list(caught.value.errors) == [slot]


def test_after_allocation_the_text_is_canonical() -> None:
    disk = guest_config.parse_disk(VM, "scsi0", "local:32,format=qcow2,iothread=1")
    assert guest_config.print_disk(VM, disk, VolumeId.parse(DISK0), 32 << 30) == f"{DISK0},iothread=1,size=32G"
    drive = guest_config.parse_disk(VM, "ide2", "local:cloudinit")
    volume = VolumeId.parse("local:100/vm-100-cloudinit.qcow2")
    assert guest_config.print_disk(VM, drive, volume, 4 << 20) == f"{volume},media=cdrom,size=4M"
    mount = guest_config.parse_disk(CT, "mp0", "local:8,mp=/data,backup=1")
    volume = VolumeId.parse("local:101/vm-101-disk-1.raw")
    assert guest_config.print_disk(CT, mount, volume, 8 << 30) == f"{volume},mp=/data,backup=1,size=8G"


def test_the_root_and_boot_buses_come_first_as_pve_numbers_their_volumes() -> None:
    ct = {"mp10": "local:1,mp=/b", "mp9": "local:1,mp=/a", "rootfs": "local:4"}
    assert [disk.slot for disk in guest_config.disks(CT, ct)] == ["rootfs", "mp9", "mp10"]
    vm = dict.fromkeys(("virtio0", "scsi10", "scsi9", "efidisk0", "sata0", "ide0"), "local:1")
    assert [disk.slot for disk in guest_config.disks(VM, vm)] == [
        "ide0", "scsi9", "scsi10", "virtio0", "sata0", "efidisk0",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["vm-100-cloudinit", "100/vm-100-cloudinit.qcow2", "100/vm-100-cloudinit-0.raw"])
def test_a_cloudinit_drive_is_known_by_its_name(name: str) -> None:
    disk = guest_config.parse_disk(VM, "ide2", f"local:{name},media=cdrom,size=4M")
    assert disk.is_cloudinit
    assert disk.is_cdrom


def test_referenced_and_owned_volumes_are_told_apart() -> None:
    config = {"scsi0": f"{DISK0},size=8G", "ide2": "local:iso/x.iso,media=cdrom", "scsi1": "local:8", "unused0": DISK1,
              "scsi3": "local:200/vm-200-disk-0.raw"}  # fmt: skip
    assert [slot for slot, _ in guest_config.referenced_volumes(VM, config)] == ["ide2", "scsi0", "scsi3", "unused0"]
    assert [slot for slot, _ in guest_config.owned_volumes(VM, 100, config)] == ["scsi0", "unused0"]


def test_the_disk_figure_is_that_of_the_first_boot_disk_or_the_root() -> None:
    config = {"scsi0": f"{DISK0},size=8G", "ide2": "none,media=cdrom", "boot": "order=ide2;scsi0"}
    assert guest_config.disk_bytes(VM, config) == 8 << 30
    assert guest_config.disk_bytes(CT, {"rootfs": "local:101/vm-101-disk-0.raw,size=4G"}) == 4 << 30
    assert guest_config.disk_bytes(VM, {}) == 0
