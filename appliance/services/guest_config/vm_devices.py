"""Property strings of a VM's devices: disks, network interfaces, firmware disk, CPU, display and the small ones."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.services.guest_config import formats
from appliance.services.guest_config.property_string import PropertySchema
from appliance.services.guest_config.values import Value, boolean, choice, integer, number, unsupported
from appliance.services.guest_config.volumes import import_source, volume_text

NIC_MODELS = (
    "e1000", "e1000-82540em", "e1000-82544gc", "e1000-82545em", "e1000e", "i82551", "i82557b", "i82559er",
    "ne2k_isa", "ne2k_pci", "pcnet", "rtl8139", "virtio", "vmxnet3",
)  # fmt: skip
DISK_BUSES = {"ide": 4, "scsi": 31, "virtio": 16, "sata": 6}
"""Families of disk keys and how many keys each has, in PVE's boot order."""

_THROTTLES = (
    "bps", "bps_max_length", "bps_rd", "bps_rd_length", "bps_rd_max_length", "bps_wr", "bps_wr_length",
    "bps_wr_max_length", "iops", "iops_max", "iops_max_length", "iops_rd", "iops_rd_length", "iops_rd_max",
    "iops_rd_max_length", "iops_wr", "iops_wr_length", "iops_wr_max", "iops_wr_max_length", "mbps", "mbps_max",
    "mbps_rd", "mbps_rd_max", "mbps_wr", "mbps_wr_max",
)  # fmt: skip
_VOLUME: Mapping[str, Value] = {
    "file": Value(description="The volume, or how to make it (`STORAGE:SIZE_GIB`).", max_length=512, check=volume_text),
    "import-from": Value(description="Make the disk as a copy of this volume.", max_length=512, check=import_source),
    "format": choice("raw", "qcow2", "qcow", "qed", "vmdk", "cloop", description="File format of a new volume.",
                     works=("raw", "qcow2")),
    "size": Value(description="The disk's size; informational, written by the appliance.", check=formats.disk_size),
}  # fmt: skip
_DISK: Mapping[str, Value] = {
    **_VOLUME,
    **{name: unsupported("Limit on the disk's throughput.") for name in _THROTTLES},
    "aio": choice("native", "threads", "io_uring", description="How the host does the I/O, where it can."),
    "backup": boolean("Whether backups include the disk.", default="1"),
    "cache": choice("none", "writethrough", "writeback", "unsafe", "directsync", description="Host cache mode."),
    "detect_zeroes": boolean("Whether writes of zeroes become discards; a hint."),
    "discard": choice("ignore", "on", description="Whether the guest's discards free space on the storage."),
    "media": choice("cdrom", "disk", description="Disk or CD-ROM drive.", default="disk"),
    "replicate": boolean("Whether replication jobs include the disk.", default="1"),
    "rerror": choice("ignore", "report", "stop", description="What a read error does.", works=("report",)),
    "serial": Value(description="Serial number the guest reads, urlencoded.", max_length=60,
                    check=formats.url_encoded),
    "shared": boolean("The volume is reachable from all nodes under this name.", default="0"),
    "snapshot": boolean("Throw all writes away at shutdown.", works=("0",)),
    "werror": choice("enospc", "ignore", "report", "stop", description="What a write error does.",
                     works=("enospc",)),
}  # fmt: skip
_SSD = {"ssd": boolean("Present it as a solid-state disk.")}
_WWN = {"wwn": unsupported("World-wide name of the disk.")}
_IOTHREAD = {"iothread": boolean("Serve the disk from a thread of its own."), "ro": boolean("Read-only disk.")}


def _disk(*parts: Mapping[str, Value]) -> PropertySchema:
    fields = dict(_DISK)
    for part in parts:
        fields.update(part)
    return PropertySchema(fields=fields, default_key="file", required=("file",), aliases={"volume": "file"})


DISKS: Mapping[str, PropertySchema] = {
    "ide": _disk(_SSD, _WWN, {"model": unsupported("Model name the guest reads.")}),
    "sata": _disk(_SSD, _WWN),
    "scsi": _disk(_SSD, _WWN, _IOTHREAD, {
        "product": unsupported("SCSI product name."),
        "vendor": unsupported("SCSI vendor name."),
        "queues": integer("Number of queues; a hint.", minimum=2, maximum=64),
        "scsiblock": boolean("Pass a whole host disk through.", works=("0",)),
    }),
    "virtio": _disk(_IOTHREAD),
}  # fmt: skip

EFI_DISK = PropertySchema(
    fields={
        **_VOLUME,
        "efitype": choice("2m", "4m", description="Size of the firmware's variable store.", default="2m"),
        "ms-cert": choice("2011", "2023", "2023w", "2023k", description="Generation of the enrolled certificates."),
        "pre-enrolled-keys": boolean("Start with the distribution's Secure Boot keys.", default="0"),
    },
    default_key="file",
    required=("file",),
    aliases={"volume": "file"},
)
UNUSED = PropertySchema(
    fields={"file": Value(description="The volume.", max_length=512, check=formats.volume_id)},
    default_key="file",
    required=("file",),
    aliases={"volume": "file"},
)
NIC = PropertySchema(
    fields={
        "model": choice(*NIC_MODELS, description="Network card model."),
        "macaddr": Value(description="MAC address; generated when absent.", check=formats.mac_address),
        "bridge": Value(description="Bridge to join.", pattern=r"[a-zA-Z0-9_][-.\w]{0,14}", max_length=15),
        "firewall": boolean("Whether the interface is protected by the firewall."),
        "link_down": boolean("Whether the cable is pulled."),
        "mtu": integer("MTU; 1 takes the bridge's.", minimum=1, maximum=65520),
        "queues": integer("Number of queue pairs (virtio).", minimum=0, maximum=64),
        "rate": number("Limit in megabytes per second.", minimum=0),
        "tag": integer("VLAN id.", minimum=1, maximum=4094),
        "trunks": unsupported("VLAN ids passed through tagged."),
    },
    default_key="model",
    required=("model",),
    key_aliases=NIC_MODELS,
    name_key="model",
    value_key="macaddr",
)
AGENT = PropertySchema(
    fields={
        "enabled": boolean("Whether the guest runs the QEMU guest agent.", default="0"),
        "freeze-fs": boolean("Freeze file systems around backups.", default="1"),
        "freeze-fs-on-backup": boolean("Older name of freeze-fs.", default="1"),
        "guest-fsfreeze": boolean("Newer name of freeze-fs.", default="1"),
        "fstrim_cloned_disks": boolean("Trim after a disk was moved or cloned.", default="0"),
        "type": choice("virtio", "isa", description="Device of the channel.", default="virtio", works=("virtio",)),
    },
    default_key="enabled",
    required=("enabled",),
)
CPU = PropertySchema(
    fields={
        "cputype": Value(description="CPU model.", default="kvm64", pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"),
        "flags": Value(description="CPU flags to add or remove, separated by semicolons.",
                       pattern=r"[+-][a-zA-Z0-9_.-]{1,40}(?:;[+-][a-zA-Z0-9_.-]{1,40}){0,63}"),
        "hidden": boolean("Hide the hypervisor from the guest.", default="0", works=("0",)),
        "hv-vendor-id": unsupported("Hyper-V vendor id."),
        "guest-phys-bits": unsupported("Physical address bits the guest may use."),
        "phys-bits": unsupported("Physical address bits of the CPU."),
        "reported-model": unsupported("Model reported by a custom CPU."),
    },
    default_key="cputype",
)  # fmt: skip
VGA = PropertySchema(
    fields={
        "type": choice("cirrus", "qxl", "qxl2", "qxl3", "qxl4", "none", "serial0", "serial1", "serial2", "serial3",
                       "std", "virtio", "virtio-gl", "vmware", description="Display card.", default="std",
                       works=("std", "virtio", "cirrus", "vmware", "none", "serial0")),
        "memory": integer("Video memory in MiB; a hint.", minimum=4, maximum=512),
        "clipboard": unsupported("Clipboard through VNC."),
    },
    default_key="type",
)  # fmt: skip
MACHINE = PropertySchema(
    fields={
        "type": Value(
            description="Machine type.", default="pc", max_length=40, works=("pc", "q35", "virt"),
            pattern=r"pc|pc(-i440fx)?-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?|q35|pc-q35-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?"
                    r"|virt(-\d+(\.\d+)+)?(\+pve\d+)?"),
        "aw-bits": unsupported("Address width of the virtual IOMMU."),
        "enable-s3": boolean("Suspend to RAM in the guest.", works=("0",)),
        "enable-s4": boolean("Suspend to disk in the guest.", works=("0",)),
        "viommu": unsupported("Virtual IOMMU."),
    },
    default_key="type",
)  # fmt: skip
MEMORY = PropertySchema(
    fields={"current": integer("Memory in MiB.", minimum=16, maximum=16 << 20, default="512")},
    default_key="current",
    required=("current",),
)
_NUMBERS = r"[0-9]{1,4}(-[0-9]{1,4})?(;[0-9]{1,4}(-[0-9]{1,4})?){0,63}"
NUMA = PropertySchema(
    fields={
        "cpus": Value(description="vCPUs of the node.", pattern=_NUMBERS),
        "hostnodes": Value(description="Nodes of the host its memory shall be of.", pattern=_NUMBERS),
        "memory": number("Memory of the node in MiB.", minimum=1, maximum=16 << 20),
        "policy": choice("preferred", "bind", "interleave", description="How the host's nodes are used."),
    },
    required=("cpus",),
)
VIRTIOFS = PropertySchema(
    fields={
        "dirid": Value(description="The directory mapping; the guest mounts it by this name.",
                       pattern=r"[A-Za-z][A-Za-z0-9_-]{1,35}"),
        "cache": choice("auto", "always", "metadata", "never", description="What the guest may keep.", default="auto"),
        "direct-io": boolean("Whether files the guest opens with O_DIRECT are opened so on the host.", default="0"),
        "expose-acl": boolean("Whether POSIX ACLs are shown, and extended attributes with them.", default="0"),
        "expose-xattr": boolean("Whether extended attributes are shown.", default="0"),
    },
    default_key="dirid",
    required=("dirid",),
)  # fmt: skip
SMBIOS = PropertySchema(
    fields={
        "uuid": Value(description="UUID of the machine.", check=formats.uuid_text),
        "base64": boolean("Whether the texts are base64."),
        **{
            name: unsupported("SMBIOS text.")
            for name in ("family", "manufacturer", "product", "serial", "sku", "version")
        },
    },
)
RNG = PropertySchema(
    fields={
        "source": choice("/dev/urandom", "/dev/random", "/dev/hwrng", description="Where the host takes it from."),
        "max_bytes": integer("Bytes per period; a hint.", minimum=0),
        "period": integer("Period in milliseconds; a hint.", minimum=1),
    },
    default_key="source",
    required=("source",),
)
WATCHDOG = PropertySchema(
    fields={
        "model": choice("i6300esb", "ib700", description="Its model.", default="i6300esb", works=("i6300esb",)),
        "action": choice(
            "reset",
            "shutdown",
            "poweroff",
            "pause",
            "debug",
            "none",
            default="reset",
            description="What happens when the guest does not serve it in time.",
            works=("reset", "shutdown", "poweroff", "pause", "none"),
        ),
    },
    default_key="model",
)
IP_CONFIG = PropertySchema(
    fields={
        "ip": Value(description="IPv4 address with prefix, or dhcp.", check=formats.ip_config),
        "gw": Value(description="IPv4 gateway.", check=formats.ipv4),
        "ip6": Value(description="IPv6 address with prefix, auto or dhcp.", check=formats.ip6_config),
        "gw6": Value(description="IPv6 gateway.", check=formats.ipv6),
    },
)
