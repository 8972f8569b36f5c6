"""Every configuration key of a container, as in PVE 9, and some of ours. What cannot be honoured is refused by name."""

from __future__ import annotations

from appliance.services.guest_config import app_formats, formats
from appliance.services.guest_config.property_string import PropertySchema
from appliance.services.guest_config.schema import KeyTable
from appliance.services.guest_config.values import Value, boolean, choice, integer, number, unsupported
from appliance.services.guest_config.vm_schema import key, written_by_us
from appliance.services.guest_config.volumes import mount_volume_text, volume_text

OS_TYPES = (
    "debian", "devuan", "ubuntu", "centos", "fedora", "opensuse", "archlinux", "alpine", "gentoo", "nixos", "unmanaged",
)  # fmt: skip
LOCKS = (
    "backup", "create", "destroyed", "disk", "fstrim", "migrate", "mounted", "rollback", "snapshot", "snapshot-delete",
)  # fmt: skip
_TEXT = r"[^\x00-\x08\x10-\x1F\x7F]"
_ENV_VALUE = rf"\w+={_TEXT}*"

_MOUNT = {
    "volume": Value(
        description="The volume, or how to make it (`STORAGE:SIZE_GIB`).", max_length=512, check=volume_text
    ),
    "acl": boolean("POSIX access control lists; Linux has no file system without them any more.", works=("1",)),
    "mountoptions": Value(
        description="Mount options, separated by semicolons: discard, lazytime, noatime, nodev, noexec, nosuid.",
        check=formats.mount_options,
    ),
    "quota": boolean(
        "User quotas inside: no kernel offers them to an id-mapped container; a volume's size is its limit.",
        works=("0",),
    ),
    "replicate": boolean("Whether replication jobs include the volume.", default="1"),
    "ro": boolean("Read-only."),
    "shared": boolean("The volume is reachable from all nodes under this name.", default="0"),
    "size": Value(description="The volume's size; informational, written by the appliance.", check=formats.disk_size),
}
ROOTFS = PropertySchema(fields=_MOUNT, default_key="volume", required=("volume",))
MOUNT_POINT = PropertySchema(
    fields={
        **_MOUNT,
        "volume": Value(
            description="The volume, or how to make it (`STORAGE:SIZE_GIB`); an absolute path of the host "
            "(needs Sys.Modify on /); or `tmpfs`, of `size`.",
            max_length=1024,
            check=mount_volume_text,
        ),
        "idmap": boolean(
            "Of a path of the host: owners there are the container's own ids, so that what its root "
            "writes is root's outside. Otherwise they are what they are, and the container owns nothing it is not given.",
            default="0",
        ),
        "mp": Value(description="Path inside the container.", max_length=1024, check=formats.mount_path),
        "backup": boolean("Whether backups include the volume."),
        "keepattrs": boolean("Keep the attributes of the path mounted over.", default="0", works=("0",)),
    },
    default_key="volume",
    required=("volume", "mp"),
)
UNUSED = PropertySchema(
    fields={"volume": Value(description="The volume.", max_length=512, check=formats.volume_id)},
    default_key="volume",
    required=("volume",),
)
NIC = PropertySchema(
    fields={
        "name": Value(description="Name inside the container.", pattern=r"[a-zA-Z0-9_][-.\w]{0,14}", max_length=15),
        "bridge": Value(description="Bridge to join.", pattern=r"[a-zA-Z0-9_][-.\w]{0,14}", max_length=15),
        "hwaddr": Value(description="MAC address; generated when absent.", check=formats.mac_address),
        "ip": Value(description="IPv4 address with prefix, dhcp or manual.", check=formats.ip_config),
        "gw": Value(description="IPv4 gateway.", check=formats.ipv4),
        "ip6": Value(description="IPv6 address with prefix, auto, dhcp or manual.", check=formats.ip6_config),
        "gw6": Value(description="IPv6 gateway.", check=formats.ipv6),
        "firewall": boolean("Whether the interface is protected by the firewall."),
        "host-managed": boolean(
            "Whether the host sets the address, so that nothing inside has to. Default: for application containers."
        ),
        "link_down": boolean("Whether the cable is pulled."),
        "mtu": integer("MTU.", minimum=64, maximum=65535),
        "rate": number("Limit in megabytes per second.", minimum=0),
        "tag": integer("VLAN id.", minimum=1, maximum=4094),
        "trunks": unsupported("VLAN ids passed through tagged."),
        "type": choice("veth", description="Kind of interface.", default="veth"),
    },
    required=("name",),
)
FEATURES = PropertySchema(
    fields={
        "nesting": boolean("Allow containers inside.", default="0"),
        "keyctl": boolean("Allow the keyctl system calls.", default="0"),
        "fuse": boolean("Allow FUSE file systems.", default="0"),
        "mknod": boolean("Allow making device nodes, in a privileged container.", default="0"),
        "force_rw_sys": boolean("Mount /sys writable.", default="0"),
        "mount": Value(
            description="File system types a privileged container may mount, separated by semicolons; an "
            "unprivileged one may mount what the kernel lets it.",
            pattern=r"[a-z0-9_]{1,20}(;[a-z0-9_]{1,20}){0,15}",
        ),
    },
)
DEVICE = PropertySchema(
    fields={
        "path": Value(description="The device node on the host.", max_length=256, check=formats.device_path),
        "deny-write": boolean("Refuse writing to it.", default="0"),
        "gid": integer("Its group inside.", minimum=0, maximum=65535),
        "mode": Value(description="Its access mode inside, octal (default 0660).", check=formats.octal_mode),
        "uid": integer("Its owner inside.", minimum=0, maximum=65535),
    },
    default_key="path",
    required=("path",),
)
IO_LIMIT = PropertySchema(
    fields={
        "mbps_rd": number("Megabytes (of 10^6) per second read.", minimum=0, maximum=1e6),
        "mbps_wr": number("Megabytes per second written.", minimum=0, maximum=1e6),
        "iops_rd": integer("Reads per second.", minimum=1, maximum=10**9),
        "iops_wr": integer("Writes per second.", minimum=1, maximum=10**9),
    },
)
RESTART = PropertySchema(
    fields={
        "when": choice(
            "no",
            "on-failure",
            "always",
            "unless-stopped",
            default="no",
            description="Whether a container that ends by itself "
            "is started again: after a crash only, or after its own shutdown too. Never after a stop or a shutdown asked "
            "for here. An application container is also started with the appliance: always, or unless it was stopped.",
        ),
        "max": integer(
            "How many times in a row at most (0: no limit); a run of ten minutes starts the count anew.",
            minimum=0,
            maximum=1_000_000,
            default="0",
        ),
    },
    default_key="when",
    required=("when",),
)
SECURITY = PropertySchema(
    fields={
        "seccomp": choice(
            "default",
            "strict",
            "none",
            default="default",
            description="System-call filter: what a "
            "distribution needs; that without mounts, namespaces and tracing; none.",
        ),
        "apparmor": Value(
            description="AppArmor profile: `default`, `unconfined`, or the name of one that is loaded on the host.",
            default="default",
            pattern=r"[A-Za-z0-9_.-]{1,100}",
        ),
        "drop": Value(description="Capabilities to take away, separated by semicolons.", check=formats.capabilities),
    },
)

_GENERAL = (
    key("hostname", "Options", Value(description="Host name inside (default CT and the id).", check=formats.dns_name)),
    key("description", "Options", Value(description="Notes, in Markdown.", lines=True), live=True),
    key("tags", "Options", Value(description="Tags, separated by semicolons.", check=formats.tags), live=True),
    key("onboot", "Options", boolean("Start it when the host starts.", default="0"), live=True),
    key("startup", "Options", Value(description="Order and delays of starting and stopping with the host.",
        check=formats.startup), live=True),
    key("protection", "Options", boolean("Refuse to remove the container and its volumes.", default="0"), live=True),
    key("template", "Options", boolean("Whether it is a template: never started, only cloned.", default="0")),
    key("lock", "", choice(*LOCKS, description="Marks an operation under way; clears with delete=lock."), live=True),
    key("ostype", "Options", choice(*OS_TYPES, description="Distribution inside (default debian).", default="debian")),
    key("arch", "Options", choice("amd64", "i386", "arm64", "armhf", "riscv32", "riscv64", default="amd64",
        description="Architecture inside.")),
    key("unprivileged", "", boolean("Whether root inside is an ordinary user outside. Default 1 on this appliance "
        "(PVE: 0); 0 needs Sys.Modify on /.", default="1")),
    key("features", "", FEATURES, "Extra abilities; all but nesting need Sys.Modify on /."),
    key("tty", "Options", integer("Number of terminals.", minimum=0, maximum=6, default="2")),
    key("console", "Options", boolean("Whether there is a console.", default="1", works=("1",))),
    key("cmode", "Options", choice("shell", "console", "tty", default="tty", works=("tty", "console", "shell"),
        description="What the console attaches to.")),
    key("debug", "Options", boolean("More messages; a hint.", default="0")),
    key("entrypoint", "Options", Value(description="Command run as the first process.", default="/sbin/init",
        pattern=rf"{_TEXT}+")),
    key("env", "Options", Value(description="Environment of the first process: NAME=VALUE, separated by NUL.",
        pattern=rf"{_ENV_VALUE}(\0{_ENV_VALUE})*", max_length=65536)),
    key("timezone", "Options", Value(description="Time zone inside: Area/City, or host for the host's.",
        check=formats.time_zone)),
    key("locale", "Options", Value(description="Locale inside (LANG), as far as the distribution has it.",
        pattern=r"[A-Za-z]{1,8}(_[A-Z]{2})?(\.[A-Za-z0-9-]{1,20})?(@[a-z]{1,20})?")),
    key("hookscript", "", Value(description="Snippet run on the host at the container's changes of state: executable, "
        "called with id and phase (pre-start, post-start, pre-stop, post-stop). Needs Sys.Modify on /.",
        check=formats.snippet), live=True),
    key("restart", "Options", RESTART, "Whether to start it again when it ends by itself.", live=True, reprint=True),
    key("security", "", SECURITY, "Another confinement than the usual one. Needs Sys.Modify on /.", reprint=True),
    written_by_us("parent", "The snapshot this state comes from."),
    written_by_us("snaptime", "When the snapshot was taken."),
)  # fmt: skip

_RESOURCES = (
    key("memory", "Memory", integer("Memory in MiB.", minimum=16, maximum=16 << 20, default="512")),
    key("swap", "Memory", integer("Swap in MiB.", minimum=0, maximum=16 << 20, default="512")),
    key("cores", "CPU", integer("CPUs inside; all of the host's when absent.", minimum=1, maximum=8192)),
    key("cpulimit", "CPU", number("Limit of CPU time, in CPUs; 0 for none.", minimum=0, maximum=8192, default="0")),
    key("cpuunits", "CPU", integer("Weight of CPU time.", minimum=0, maximum=500000, default="100")),
    key(
        "pids",
        "CPU",
        integer("Limit of processes and threads (default: the appliance's).", minimum=16, maximum=4_194_304),
    ),
    key("iolimit", "Disk", IO_LIMIT, "Limits of disk traffic, of each disk its volumes are on.", reprint=True),
    key("nameserver", "Network", Value(description="DNS servers (default: the host's).", check=formats.ip_addresses)),
    key("searchdomain", "Network", Value(description="DNS search domains.", check=formats.dns_names)),
    key("rootfs", "Disk", ROOTFS, "Volume of the root file system.", reprint=True),
)
_FAMILIES = (
    key("mp", "Disk", MOUNT_POINT, "A volume mounted inside.", count=256, reprint=True),
    key("unused", "Disk", UNUSED, "A volume of this container nothing mounts.", count=256, reprint=True),
    key("net", "Network", NIC, "Network interface.", count=32, reprint=True),
    key("dev", "", DEVICE, "A device of the host. Needs Sys.Modify on /.", count=256, reprint=True),
)

_APPLICATION = (
    key("app-image", "Options", Value(description="What an application container is made of, REFERENCE@DIGEST; set when it "
        "is made of an image, and what makes it one.", pattern=r"[A-Za-z0-9._:/@+-]{1,700}")),
    key("app-user", "Options", Value(description="Who runs the program: USER or USER:GROUP, by name or number.",
        check=app_formats.user)),
    key("app-workdir", "Options", Value(description="Working directory of the program.", max_length=4096,
        check=app_formats.working_directory)),
    key("app-stopsignal", "Options", Value(description="Signal that asks the program to end (default SIGTERM).",
        check=app_formats.stop_signal)),
    key("app-terminal", "Options", boolean("Whether the program has a terminal; its errors are not told apart then.",
        default="0")),
    key("app-health", "Options", Value(description="Health check as JSON (command, interval, timeout, start-period, "
        "retries; seconds), or none.", check=app_formats.health)),
    key("app-publish", "", Value(description="Ports of the host that lead to the container's: "
        "[ADDRESS:]HOST_PORT:PORT[/tcp|/udp], separated by commas. Needs Sys.Modify on /.", check=app_formats.publish)),
    key("app-labels", "Options", Value(description="Labels, a JSON object of texts.", max_length=65536,
        check=app_formats.labels), live=True),
)  # fmt: skip

CT_KEYS = KeyTable((*_GENERAL, *_RESOURCES, *_APPLICATION, *_FAMILIES))
