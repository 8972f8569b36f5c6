"""What the host is made of, read from made-up files of sysfs."""

from __future__ import annotations

from pathlib import Path

from appliance.services import host_inventory


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_whole_disks_are_listed_with_their_use(tmp_path: Path) -> None:
    block = tmp_path / "block"
    write(
        block,
        {
            "sda/size": "2048\n", "sda/dev": "8:0\n", "sda/device/model": "Disk One  \n", "sda/queue/rotational": "1\n",
            "sda/sda1/partition": "1\n", "sda/sda1/dev": "8:1\n", "nvme0n1/size": "4096\n", "nvme0n1/dev": "259:0\n",
            "vdb/size": "nonsense\n", "loop0/size": "99\n", "sdz/size": "0\n",
        },
    )  # fmt: skip
    mounts = tmp_path / "mountinfo"
    mounts.write_text("36 35 8:1 / /mnt/with\\040space rw - ext4 /dev/sda1 rw\n")
    disks = host_inventory.read_disks(block, mounts)
    assert [(disk.path, disk.size_bytes, disk.used, disk.rotational) for disk in disks] == [
        ("/dev/nvme0n1", 4096 * 512, "", False),
        ("/dev/sda", 2048 * 512, "mounted", True),
    ]
    assert disks[1].mounts == ("/mnt/with space",)
    assert disks[1].model == "Disk One"


def test_pci_devices_have_names_where_the_host_knows_them(tmp_path: Path) -> None:
    ids = tmp_path / "pci.ids"
    ids.write_text(
        "# list\n1af4  Red Hat, Inc.\n\t1000  Virtio network device\n\t\t1af4 0001  x\n8086  Intel\nC 01  x\n\t00  y\n"
    )
    write(
        tmp_path / "devices",
        {
            "0000:00:01.0/class": "0x020000\n", "0000:00:01.0/vendor": "0x1af4\n", "0000:00:01.0/device": "0x1000\n",
            "0000:00:02.0/class": "0xff0000\n", "0000:00:02.0/vendor": "0x1234\n", "0000:00:02.0/device": "0x5678\n",
        },
    )  # fmt: skip
    first, second = host_inventory.read_pci(tmp_path / "devices", ids)
    assert (first.class_name, first.vendor_name, first.device_name) == (
        "Network controller", "Red Hat, Inc.", "Virtio network device",
    )  # fmt: skip
    assert (second.class_name, second.vendor_name, second.iommu_group) == ("Other device", "", -1)
    assert host_inventory.read_pci(tmp_path / "missing", ids) == []


def test_units_that_are_not_loaded_are_left_out() -> None:
    text = (
        "Id=ssh.service\nDescription=OpenBSD Secure Shell = server\nActiveState=active\nSubState=running\nLoadState=loaded\n"
        "UnitFileState=enabled\n\nId=gone.service\nLoadState=not-found\n\nnonsense\n"
    )
    (service,) = host_inventory.parse_services(text)
    assert (service.name, service.description, service.unit_file) == ("ssh", "OpenBSD Secure Shell = server", "enabled")


def test_this_host_can_be_read() -> None:
    assert all(disk.size_bytes > 0 for disk in host_inventory.read_disks())
    assert all(device.class_id for device in host_inventory.read_pci())
