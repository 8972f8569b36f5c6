"""Every configuration key of a virtual machine: PVE 9's and our own (`engine`).

Keys and values this appliance cannot honour are listed too, and refused by name: nothing is silently dropped. *A hint*
is stored and shown, and not applied.
"""

from __future__ import annotations

from appliance.services.guest_config import formats, vm_devices
from appliance.services.guest_config.boot import boot_text
from appliance.services.guest_config.property_string import PropertySchema
from appliance.services.guest_config.schema import ConfigKey, KeyTable
from appliance.services.guest_config.values import Value, boolean, choice, integer, number, unsupported

OS_TYPES = (
    "other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26", "solaris",
)  # fmt: skip
KEYBOARDS = (
    "de", "de-ch", "da", "en-gb", "en-us", "es", "fi", "fr", "fr-be", "fr-ca", "fr-ch", "hu", "is", "it", "ja", "lt",
    "mk", "nl", "no", "pl", "pt", "pt-br", "sv", "sl", "tr",
)  # fmt: skip
LOCKS = (
    "backup", "clone", "create", "migrate", "rollback", "snapshot", "snapshot-delete", "suspending", "suspended",
)  # fmt: skip


def key(
    name: str,
    privilege: str,
    value: Value | PropertySchema,
    description: str = "",
    *,
    count: int = 0,
    live: bool = False,
    reprint: bool = False,
) -> ConfigKey:
    """A supported key; a plain value's own description is the key's."""
    text = description or (value.description if isinstance(value, Value) else "")
    return ConfigKey(
        name=name, description=text, value=value, privilege=privilege, count=count, live=live, reprint=reprint
    )


def refused(name: str, privilege: str, description: str, *, count: int = 0) -> ConfigKey:
    """A key of PVE that this appliance names in its refusal."""
    return ConfigKey(
        name=name, description=description, value=unsupported(description), privilege=privilege, count=count,
        supported=False,
    )  # fmt: skip


def written_by_us(name: str, description: str) -> ConfigKey:
    """A key that only the appliance writes and everyone reads."""
    return ConfigKey(name=name, description=description, value=Value(), privilege="", read_only=True)


_GENERAL = (
    key("name", "Options", Value(description="Name of the machine.", check=formats.dns_name), live=True),
    key("description", "Options", Value(description="Notes, in Markdown.", lines=True), live=True),
    key("tags", "Options", Value(description="Tags, separated by semicolons.", check=formats.tags), live=True),
    key("onboot", "Options", boolean("Start it when the host starts.", default="0"), live=True),
    key("startup", "Options", Value(description="Order and delays of starting and stopping with the host.",
        check=formats.startup), live=True),
    key("protection", "Options", boolean("Refuse to remove the machine and its disks.", default="0"), live=True),
    key("template", "Options", boolean("Whether it is a template: never started, only cloned.", default="0")),
    key("lock", "", choice(*LOCKS, description="Marks an operation under way; clears with delete=lock."), live=True),
    key("ostype", "Options", choice(*OS_TYPES, description="Guest operating system.", default="other")),
    key("hotplug", "HWType", Value(description="What may be plugged while it runs: `network`, `disk`; 1 all, 0 nothing.",
        default="network,disk,usb", pattern=r"[01]|[a-z]+(,[a-z]+)*", max_length=64)),
    key("agent", "Options", vm_devices.AGENT, "Communication with the QEMU guest agent."),
    key("migrate_downtime", "Options", number("Longest pause of a migration in seconds.", minimum=0, default="0.1")),
    key("migrate_speed", "Options", integer("Migration speed limit in MB/s, 0 for none.", minimum=0, default="0")),
    key("vmstatestorage", "Disk", Value(description="Storage for saved machine states.",
        pattern=r"[a-zA-Z][a-zA-Z0-9_.-]{0,99}")),
    key("autostart", "Options", boolean("Restart after a crash; ignored by PVE and here.", default="0")),
    key("engine", "HWType", choice("auto", "qemu", "native", default="auto",
        description="What runs it; `auto` lets the host choose. (Extension of this appliance.)")),
    key("dataplane", "HWType", choice("auto", "python", "offload", default="auto",
        description="Who moves a native machine's disk and network data. (Extension of this appliance.)")),
    key("vsock", "HWType", boolean("A socket device, on UNIX sockets, or the host's AF_VSOCK with dataplane=offload. "
        "(Extension of this appliance.)", default="0")),
    key("kernel", "HWType", Value(description="Volume of a kernel to boot directly. (Extension of this appliance.)",
        check=formats.volume_id)),
    key("initrd", "HWType", Value(description="Volume of that kernel's initial RAM disk. (Extension of this appliance.)",
        check=formats.volume_id)),
    key("cmdline", "HWType", Value(description="That kernel's command line. (Extension of this appliance.)",
        pattern=r"[\x20-\x7e]*", max_length=2047)),
    written_by_us("meta", "When and by what the machine was created."),
    written_by_us("parent", "The snapshot this state comes from."),
    written_by_us("vmstate", "Volume with the saved state of the machine."),
    written_by_us("snaptime", "When the snapshot was taken."),
)  # fmt: skip

_HARDWARE = (
    key("memory", "Memory", vm_devices.MEMORY, "Memory in MiB (default 512)."),
    key("balloon", "Memory", integer("Least memory in MiB; 0 removes the balloon device.", minimum=0)),
    key("shares", "Memory", integer("Weight for automatic ballooning; a hint.", minimum=0, maximum=50000,
        default="1000")),
    key("allow-ksm", "Memory", boolean("Whether equal pages may be merged; a hint.", default="1")),
    key("cores", "CPU", integer("Cores per socket.", minimum=1, maximum=8192, default="1")),
    key("sockets", "CPU", integer("CPU sockets.", minimum=1, maximum=64, default="1")),
    key("smp", "CPU", integer("Number of CPUs: older name of sockets.", minimum=1, maximum=64, default="1")),
    key("vcpus", "CPU", integer("vCPUs present at start.", minimum=1, maximum=8192)),
    key("cpu", "CPU", vm_devices.CPU, "CPU model and flags."),
    key("cpulimit", "CPU", number("Limit of CPU time, in CPUs; 0 for none.", minimum=0, maximum=128, default="0")),
    key("cpuunits", "CPU", integer("Weight of CPU time.", minimum=1, maximum=262144, default="100")),
    key("numa", "CPU", boolean("Whether the machine has NUMA nodes: those of numa[n], else one for each socket.",
        default="0")),
    key("hugepages", "Memory", choice("any", "2", "1024", description="Take the memory from huge pages of this many MiB.")),
    key("arch", "HWType", choice("x86_64", "aarch64", description="CPU architecture.", default="x86_64")),
    key("machine", "HWType", vm_devices.MACHINE, "Machine type: pc, q35 or virt (default pc)."),
    key("bios", "Options", choice("seabios", "ovmf", description="Firmware.", default="seabios")),
    key("acpi", "HWType", boolean("Whether the machine has ACPI.", default="1")),
    key("kvm", "HWType", boolean("Whether hardware virtualization may be used.", default="1")),
    key("tablet", "HWType", boolean("Whether a USB tablet gives the pointer's position.", default="1")),
    key("vga", "HWType", vm_devices.VGA, "Display (default std)."),
    key("keyboard", "Options", choice(*KEYBOARDS, description="Keyboard layout of VNC.")),
    key("localtime", "Options", boolean("Whether the clock keeps local time (default for Windows).")),
    key("startdate", "Options", Value(description="Clock at start.", default="now", works=("now",),
        pattern=r"now|\d{4}-\d{1,2}-\d{1,2}(T\d{1,2}:\d{1,2}:\d{1,2})?")),
    key("scsihw", "HWType", choice("lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi",
        description="SCSI controller.", default="lsi")),
    key("boot", "Disk", Value(description="Boot order: `order=scsi0;ide2;net0`.", check=boot_text)),
    key("bootdisk", "Disk", Value(description="First boot disk, older form.", pattern=r"(ide|sata|scsi|virtio)\d+")),
    key("rng0", "HWType", vm_devices.RNG, "Random number device."),
    key("watchdog", "HWType", vm_devices.WATCHDOG, "Watchdog device."),
    key("smbios1", "HWType", vm_devices.SMBIOS, "SMBIOS type 1: the machine's UUID."),
    key("vmgenid", "HWType", Value(description="Generation id; 1 makes a new one, 0 none.", default="1",
        pattern=r"[a-fA-F0-9]{8}(-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}|[01]")),
    key("args", "", Value(description="Extra arguments for QEMU; needs Sys.Modify on / as well.", max_length=4096)),
    key("freeze", "", boolean("Do not start the CPUs.", works=("0",))),
    key("reboot", "Options", boolean("Whether the guest may reboot itself.", default="1", works=("1",))),
    key("tdf", "Options", boolean("Time drift fix.", default="0", works=("0",))),
    key("keephugepages", "Memory", boolean("Keep huge pages reserved on the host after stopping.", default="0")),
    key("prealloc", "Memory", boolean("Take all memory at the start, or fail. (Extension of this appliance.)",
        default="0")),
)  # fmt: skip

_CLOUD_INIT = (
    key("citype", "Cloudinit", choice("configdrive2", "nocloud", "opennebula", works=("nocloud",),
        description="Format of the cloud-init drive.")),
    key("ciuser", "Cloudinit", Value(description="User to set up.", pattern=r"[a-zA-Z0-9_][a-zA-Z0-9_.@-]{0,63}\$?")),
    key("cipassword", "Cloudinit", Value(description="The user's password; kept as a hash, read as asterisks.",
        max_length=1024)),
    key("ciupgrade", "Cloudinit", boolean("Upgrade packages at first boot.", default="1")),
    key("sshkeys", "Cloudinit", Value(description="Public SSH keys, one a line, urlencoded.", max_length=65536,
        check=formats.ssh_keys)),
    key("nameserver", "Cloudinit", Value(description="DNS servers.", check=formats.ip_addresses)),
    key("searchdomain", "Cloudinit", Value(description="DNS search domains.", check=formats.dns_names)),
    refused("cicustom", "Cloudinit", "Custom cloud-init files."),
)  # fmt: skip

_FAMILIES = (
    *(key(bus, "Disk", vm_devices.DISKS[bus], f"Disk or CD-ROM on the {bus} bus.", count=count, reprint=True)
      for bus, count in vm_devices.DISK_BUSES.items()),
    key("efidisk0", "Disk", vm_devices.EFI_DISK, "Disk of the UEFI firmware's variables.", reprint=True),
    key("unused", "Disk", vm_devices.UNUSED, "A volume of this machine no device uses.", count=256, reprint=True),
    key("net", "Network", vm_devices.NIC, "Network interface.", count=32, reprint=True),
    key("numa", "CPU", vm_devices.NUMA, "A NUMA node of the machine, with numa=1.", count=8),
    key("virtiofs", "Disk", vm_devices.VIRTIOFS, "A directory of the host, shared by virtio-fs.", count=10),
    key("ipconfig", "Cloudinit", vm_devices.IP_CONFIG, "Addresses of a NIC, for cloud-init.", count=32),
    key("serial", "HWType", Value(description="Serial port: socket.", pattern=r"/dev/.+|socket", works=("socket",)),
        count=4),
)  # fmt: skip

_REFUSED = (
    refused("affinity", "CPU", "Host CPUs the machine may use."),
    refused("amd-sev", "HWType", "Encrypted memory on AMD."),
    refused("intel-tdx", "HWType", "Encrypted memory on Intel."),
    refused("audio0", "HWType", "Sound card."),
    key(
        "hookscript",
        "",
        Value(
            description="Snippet run on the host at the machine's changes of state: executable, called "
            "with id and phase (pre-start, post-start, pre-stop, post-stop). Needs Sys.Modify on /.",
            check=formats.snippet,
        ),
        live=True,
    ),
    refused("ivshmem", "HWType", "Memory shared between machines."),
    refused("spice_enhancements", "HWType", "Options of SPICE."),
    refused("tpmstate0", "Disk", "State of an emulated TPM."),
    refused("hostpci", "HWType", "A PCI device of the host.", count=16),
    refused("usb", "HWType", "A USB device of the host.", count=14),
    refused("parallel", "HWType", "A parallel port of the host.", count=3),
)

VM_KEYS = KeyTable((*_GENERAL, *_HARDWARE, *_CLOUD_INIT, *_FAMILIES, *_REFUSED))
VM_KEY_ALIASES = {"cdrom": "ide2"}
"""Older spellings, replaced when read."""
