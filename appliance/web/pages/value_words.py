"""What codes of a configuration are called by people: the names Proxmox VE's own forms give them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

VALUE_WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "ostype": {
        "l26": "Linux 2.6+", "l24": "Linux 2.4", "win11": "Windows 11/2022/2025", "win10": "Windows 10/2016/2019",
        "win8": "Windows 8.x/2012/2012 R2", "win7": "Windows 7/2008 R2", "w2k8": "Windows 2008", "wvista": "Windows Vista",
        "w2k3": "Windows 2003", "wxp": "Windows XP", "w2k": "Windows 2000", "solaris": "Solaris", "other": "Other",
        "debian": "Debian", "devuan": "Devuan", "ubuntu": "Ubuntu", "centos": "CentOS", "fedora": "Fedora",
        "opensuse": "openSUSE", "archlinux": "Arch Linux", "alpine": "Alpine", "gentoo": "Gentoo", "nixos": "NixOS",
        "unmanaged": "Unmanaged",
    },
    "bios": {"seabios": "SeaBIOS", "ovmf": "OVMF (UEFI)"},
    "scsihw": {
        "lsi": "LSI 53C895A", "lsi53c810": "LSI 53C810", "virtio-scsi-pci": "VirtIO SCSI",
        "virtio-scsi-single": "VirtIO SCSI single", "megasas": "MegaRAID SAS 8708EM2", "pvscsi": "VMware PVSCSI",
    },
}  # fmt: skip
"""Key → value → words. A value without words is its own word."""


def value_word(key: str, value: str) -> str:
    """What a value of a key is called."""
    return VALUE_WORDS.get(key, {}).get(value, value)


def words() -> Sequence[str]:
    """Those that are words of a language; the others are names."""
    return ["Other", "Unmanaged"]
