"""The recipes as data: which packages, which files, which units. Nothing here runs.

A change of anything in this file changes the cache key (`builder.cache_key`), so images are built anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class ImageKind(StrEnum):
    """What a recipe can be built into."""

    VM = "vm"  # a qcow2 disk, for `import`
    CT = "ct"  # a tar archive of a root directory, for `vztmpl`


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file written into the root directory; an empty `link` means `text` is its content."""

    text: str = ""
    mode: int = 0o644
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One template. Paths in `files` are relative to the image's root; `units` are enabled, `masked` ones cannot start."""

    name: str
    title: str
    codename: str
    version: str
    base_packages: tuple[str, ...]
    vm_packages: tuple[str, ...]
    vm_early_files: Mapping[str, FileEntry]
    """Written before the packages of a VM are installed: what their installation scripts read."""
    files: Mapping[ImageKind, Mapping[str, FileEntry]]
    units: Mapping[ImageKind, tuple[str, ...]]
    masked: Mapping[ImageKind, tuple[str, ...]]
    disk_size_mib: int
    kernel_arguments: str

    def volume_name(self, kind: ImageKind) -> str:
        """The file's name on a storage, formed as PVE names its templates."""
        if kind is ImageKind.CT:
            return f"{self.name}-standard_{self.version}_amd64.tar.zst"
        return f"{self.name}-cloud_{self.version}_amd64.qcow2"


_DHCP = """\
# Any Ethernet interface that no other file configures.
[Match]
Name=en* eth*

[Network]
DHCP=yes
"""

_HOST_KEYS_UNIT = """\
[Unit]
Description=Make this machine's own SSH host key
ConditionFileNotEmpty=!/etc/ssh/ssh_host_ed25519_key
After=cloud-init.service
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
RemainAfterExit=yes
"""

_COMMON_FILES: Final[Mapping[str, FileEntry]] = {
    "etc/hostname": FileEntry(text="debian\n"),
    "etc/hosts": FileEntry(text="127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n"),
    "etc/machine-id": FileEntry(),
    "etc/default/locale": FileEntry(text="LANG=C.UTF-8\n"),
    "etc/systemd/network/80-dhcp.network": FileEntry(text=_DHCP),
    "etc/systemd/system/ssh-host-keys.service": FileEntry(text=_HOST_KEYS_UNIT),
    "etc/systemd/system/ssh.service.d/host-keys.conf": FileEntry(
        text="[Unit]\nWants=ssh-host-keys.service\nAfter=ssh-host-keys.service\n"
    ),
    # one key type: an RSA key costs seconds of every first boot under emulation
    "etc/ssh/sshd_config.d/host-key.conf": FileEntry(text="HostKey /etc/ssh/ssh_host_ed25519_key\n"),
}

_CLOUD_INIT = """\
# Only drives are asked for data: probing the network sources costs minutes where there are none.
datasource_list: [NoCloud, ConfigDrive, None]
ssh_genkeytypes: [ed25519]
ssh_deletekeys: true
manage_etc_hosts: true
preserve_hostname: false
apt_preserve_sources_list: true
cloud_init_modules:
  - seed_random
  - bootcmd
  - write-files
  - growpart
  - resizefs
  - disk_setup
  - mounts
  - set_hostname
  - update_hostname
  - update_etc_hosts
  - ca-certs
  - users-groups
  - ssh
  - set-passwords
cloud_config_modules:
  - ssh-import-id
  - timezone
  - ntp
  - runcmd
cloud_final_modules:
  - package-update-upgrade-install
  - write-files-deferred
  - scripts-vendor
  - scripts-per-once
  - scripts-per-boot
  - scripts-per-instance
  - scripts-user
  - phone-home
  - final-message
  - power-state-change
"""

_VM_FILES: Final[Mapping[str, FileEntry]] = {
    "etc/cloud/cloud.cfg.d/90_appliance.cfg": FileEntry(text=_CLOUD_INIT),
    # without a limit a machine without a network card would wait two minutes for one
    "etc/systemd/system/systemd-networkd-wait-online.service.d/limit.conf": FileEntry(
        text="[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=20\n"
    ),
}

# The initial RAM disk is read through a BIOS and unpacked, perhaps under emulation: it holds what finds a root disk on any
# bus a guest can have here, not every driver there is (MODULES=most is four times as large).
_INITRD_HOOK = """\
#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules ext4 virtio_pci virtio_blk virtio_scsi sd_mod sr_mod ahci ata_piix nvme mptspi vmw_pvscsi \\
    xen-blkfront hv_storvsc
"""

_VM_EARLY_FILES: Final[Mapping[str, FileEntry]] = {
    "etc/initramfs-tools/conf.d/small.conf": FileEntry(text="COMPRESS=lz4\nMODULES=list\n"),
    "etc/initramfs-tools/hooks/disks": FileEntry(text=_INITRD_HOOK, mode=0o755),
}

_SERVICES = ("systemd-networkd.service", "systemd-resolved.service", "ssh.service")

DEBIAN_12: Final = Recipe(
    name="debian-12",
    title="Debian 12 (bookworm)",
    codename="bookworm",
    version="12",
    base_packages=(
        "systemd", "systemd-sysv", "libpam-systemd", "dbus", "systemd-resolved", "iproute2", "iputils-ping",
        "openssh-server", "netbase", "ca-certificates", "procps", "less", "nano", "login", "passwd",
    ),
    # not the cloud kernel: it lacks AHCI, so a q35 machine's CD drive with the cloud-init data would not be seen
    vm_packages=(
        "linux-image-amd64", "initramfs-tools", "lz4", "udev", "kmod", "cloud-init", "cloud-guest-utils",
        "qemu-guest-agent", "e2fsprogs", "fdisk", "sudo", "systemd-timesyncd",
    ),
    vm_early_files=MappingProxyType(_VM_EARLY_FILES),
    files=MappingProxyType({ImageKind.CT: _COMMON_FILES, ImageKind.VM: {**_COMMON_FILES, **_VM_FILES}}),
    units=MappingProxyType({ImageKind.CT: _SERVICES, ImageKind.VM: (*_SERVICES, "serial-getty@ttyS0.service")}),
    masked=MappingProxyType({ImageKind.CT: (), ImageKind.VM: ("e2scrub_reap.service", "e2scrub_all.timer")}),
    disk_size_mib=2048,
    kernel_arguments="console=tty0 console=ttyS0,115200 quiet systemd.show_status=true",
)  # fmt: skip

RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType({DEBIAN_12.name: DEBIAN_12})
