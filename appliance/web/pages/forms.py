"""Forms of a guest's configuration, made from the tables the server checks by: what can be set can be set in the browser.

A *form* edits one device or setting: some keys (`cores`, `sockets`, `cpu` for "processor"), each either one input or, for a
property string, an input a part. Parts that only the appliance writes are carried along unseen. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from appliance.model.guest import GuestKind
from appliance.services import guest_config
from appliance.services.guest_config import PropertySchema
from appliance.services.guest_config.schema import ConfigKey
from appliance.services.guest_config.values import Value, ValueType
from appliance.web.pages import app_forms
from appliance.web.pages.app_forms import HealthParts, PortRow
from appliance.web.pages.value_words import value_word

Choices = Mapping[str, Sequence[tuple[str, str]]]
"""What an input offers, by "key.part" or key of its family: "net.bridge" → (value, words)."""

LONG_KEYS: Final = frozenset({"description", "sshkeys", "cmdline"})
WIDGETS: Final[Mapping[str, str]] = {
    "boot": "boot", "env": "env", "app-labels": "labels", "app-health": "health", "app-publish": "ports",
}  # fmt: skip
"""Keys filled in by parts or lines: their widgets of `static/js/widgets.js`."""
HINTS: Final[Mapping[str, str]] = {"sshkeys": "Public keys, one a line."}
"""Said instead of a key's description, where the form is filled in otherwise than the API."""
SECRET_KEYS: Final = frozenset({"cipassword"})
CARRIED: Final = frozenset({"file", "volume", "size", "import-from", "media", "format", "uuid", "base64"})
"""Parts that say which volume or machine it is: shown elsewhere, and kept as they are."""
BASIC_PARTS: Final[Mapping[str, Sequence[str]]] = {
    "scsi": ("cache", "discard", "ssd", "iothread"),
    "virtio": ("cache", "discard", "iothread"),
    "sata": ("cache", "discard", "ssd"),
    "ide": ("cache", "discard", "ssd"),
    "net": ("model", "bridge", "macaddr", "hwaddr", "name", "tag", "firewall", "ip", "gw", "ip6", "gw6"),
    "mp": ("mp", "ro", "backup"),
    "rootfs": ("ro",),
    "cpu": ("cputype",),
    "efidisk": ("efitype", "pre-enrolled-keys"),
    "dev": ("path", "mode", "uid", "gid"),
    "virtiofs": ("dirid", "cache"),
}  # what is not here shows all of its parts at once
ADVANCED_KEYS: Final = frozenset({"vcpus", "cpuunits", "shares", "allow-ksm", "balloon"})
PART_LABELS: Final[Mapping[str, str]] = {
    "dirid": "Resource mapping", "direct-io": "Direct I/O", "expose-acl": "POSIX ACLs", "expose-xattr": "Extended attributes",
    "cache": "Cache", "discard": "Discard", "ssd": "SSD emulation", "iothread": "I/O thread", "ro": "Read-only",
    "backup": "Include in backups", "replicate": "Include in replication", "serial": "Serial number", "aio": "Asynchronous I/O",
    "detect_zeroes": "Detect zeroes", "rerror": "On a read error", "werror": "On a write error", "shared": "Shared",
    "snapshot": "Throw writes away", "queues": "Queues", "scsiblock": "Pass a host disk through", "model": "Model",
    "macaddr": "MAC address", "hwaddr": "MAC address", "bridge": "Bridge", "firewall": "Firewall", "link_down": "Cable pulled",
    "mtu": "MTU", "rate": "Rate limit (MB/s)", "tag": "VLAN tag", "name": "Name inside", "ip": "IPv4", "gw": "IPv4 gateway",
    "ip6": "IPv6", "gw6": "IPv6 gateway", "type": "Type", "host-managed": "Addressed by the host", "mp": "Path inside",
    "mountoptions": "Mount options", "quota": "Quotas", "acl": "ACLs", "keepattrs": "Keep attributes", "idmap": "Map owners",
    "efitype": "Variable store", "pre-enrolled-keys": "Secure Boot keys", "ms-cert": "Certificates", "enabled": "Enabled",
    "freeze-fs": "Freeze file systems for backups", "freeze-fs-on-backup": "Freeze (older name)",
    "guest-fsfreeze": "Freeze (newer name)", "fstrim_cloned_disks": "Trim after cloning", "cputype": "CPU type",
    "flags": "CPU flags", "hidden": "Hide the hypervisor", "memory": "Video memory (MiB)", "clipboard": "Clipboard",
    "current": "Memory (MiB)", "source": "Source", "max_bytes": "Bytes per period", "period": "Period (ms)",
    "action": "Action", "nesting": "Nesting", "keyctl": "Keyctl", "fuse": "FUSE", "mknod": "Device nodes",
    "force_rw_sys": "Writable /sys", "mount": "May mount", "path": "Device on the host", "mode": "Access mode",
    "uid": "Owner inside", "gid": "Group inside", "deny-write": "Deny writing", "seccomp": "System-call filter",
    "apparmor": "AppArmor profile", "drop": "Capabilities to drop", "enable-s3": "Suspend to RAM",
    "when": "Restart", "max": "At most", "enable-s4": "Suspend to disk",
}  # fmt: skip
PLACEHOLDERS: Final[Mapping[str, str]] = {
    "macaddr": "generated", "hwaddr": "generated", "ip": "dhcp, or 192.0.2.10/24", "ip6": "auto, dhcp, or 2001:db8::10/64",
    "mp": "/srv/data", "tags": "web;production", "nameserver": "the host's", "searchdomain": "the host's",
    "startup": "order=1,up=30,down=60", "path": "/dev/ttyUSB0", "timezone": "Europe/Berlin", "locale": "C.UTF-8",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input. `part` is "" where the key is no property string; `kind` one of INPUT_KINDS of the template."""

    key: str
    part: str
    label: str
    kind: str
    value: str
    hint: str = ""
    placeholder: str = ""
    choices: Sequence[tuple[str, str]] = ()
    minimum: float | None = None
    maximum: float | None = None
    step: str = "1"
    required: bool = False
    advanced: bool = False
    health: HealthParts | None = None
    ports: Sequence[PortRow] = ()
    devices: Sequence[tuple[str, str, bool]] = ()
    """Of the boot order: slot, what it is, whether it is booted from; in their order."""
    slots: Sequence[str] = ()
    """Families of keys for which this part exists; empty for all."""

    @property
    def name(self) -> str:
        """The input's name, which is its id too."""
        return f"{self.key}.{self.part}" if self.part else self.key


def inputs_of(
    kind: GuestKind, key_name: str, text: str, *, choices: Choices, label_of: Callable[[str], str]
) -> Sequence[Input]:
    """The inputs for one key with its stored value ("" for none). Raises `KeyError` for a key that does not exist."""
    key = guest_config.key_table(kind).find(key_name)
    if key is None or not key.supported or key.read_only:
        raise KeyError(key_name)
    if isinstance(key.value, Value):
        given = choices.get(key.name, ())
        label = label_of(key_name)
        one = _input(key_name, "", key.value, text, label if label != key_name else key.description.rstrip("."), given)
        return [replace(one, hint=HINTS.get(key.name, key.description), advanced=key.name in ADVANCED_KEYS)]
    values = _parts(key.value, text)
    return [_part_input(key, key_name, part, values.get(part, ""), choices) for part in _shown_parts(key.value, values)]


def carried_parts(kind: GuestKind, key_name: str, text: str) -> Mapping[str, str]:
    """The parts of a stored property string that the form keeps unseen."""
    key = guest_config.key_table(kind).find(key_name)
    if key is None or not isinstance(key.value, PropertySchema):
        return {}
    values = _parts(key.value, text)
    return {part: value for part, value in values.items() if part in CARRIED or not key.value.fields[part].supported}


def _parts(schema: PropertySchema, text: str) -> Mapping[str, str]:
    if not text:
        return {}
    try:
        return schema.parse(text)
    except ValueError:  # written by an older version: shown empty, and refused until it is right
        return {}


def _shown_parts(schema: PropertySchema, values: Mapping[str, str]) -> Sequence[str]:
    def is_shown(part: str, value: Value) -> bool:
        if part in CARRIED or not value.supported:
            return False
        return part in values or len(value.works) != 1  # one value that works is no choice

    return [part for part, value in schema.fields.items() if is_shown(part, value)]


def _part_input(key: ConfigKey, key_name: str, part: str, text: str, choices: Choices) -> Input:
    assert isinstance(key.value, PropertySchema)
    schema = key.value.fields[part]
    label = PART_LABELS.get(part, part.capitalize())
    given = choices.get(f"{key.name}.{part}", choices.get(part, ()))
    one = _input(key_name, part, schema, text, label, given)
    stem = key.name.rstrip("0123456789")
    basic = BASIC_PARTS.get(stem)
    return replace(one, required=part in key.value.required, advanced=basic is not None and part not in basic)


def _input(key: str, part: str, schema: Value, text: str, label: str, given: Sequence[tuple[str, str]]) -> Input:
    common = Input(
        key=key, part=part, label=label, kind="text", value=text, hint=schema.description,
        placeholder=PLACEHOLDERS.get(part or key, schema.default),
    )  # fmt: skip
    if key in WIDGETS:
        return _widget(common, given)
    if given:
        known = [*given] if not text or text in dict(given) else [(text, text), *given]
        return replace(common, kind="select", choices=known)
    if key in SECRET_KEYS:
        return replace(common, kind="password", value="")
    if key in LONG_KEYS:
        return replace(common, kind="long")
    match schema.type:
        case ValueType.BOOLEAN:
            unset = {"1": "Default (yes)", "0": "Default (no)"}.get(schema.default, "Default")
            yes_no = [
                (value, word) for value, word in (("1", "Yes"), ("0", "No")) if value in (schema.works or ("0", "1"))
            ]
            return replace(common, kind="select", choices=[("", unset), *yes_no])
        case ValueType.INTEGER | ValueType.NUMBER:
            step = "1" if schema.type is ValueType.INTEGER else "any"
            return replace(common, kind="number", minimum=schema.minimum, maximum=schema.maximum, step=step)
    if options := schema.works or schema.choices:
        words = [(option, value_word(part or key, option)) for option in options]
        unset = f"Default ({value_word(part or key, schema.default)})" if schema.default else "Default"
        return replace(common, kind="select", choices=[("", unset), *words])
    return common


def _widget(common: Input, given: Sequence[tuple[str, str]]) -> Input:
    """`given` are the ports an image exposes; of the boot order, ("order", SLOTS) and then the devices with their words."""
    text, kind = common.value, WIDGETS[common.key]
    match kind:
        case "boot":
            if not given:  # nobody says which devices there are: the text itself
                return common
            booted = given[0][1].split(";")
            devices = [(slot, words, slot in booted) for slot, words in given[1:]]
            return replace(common, kind=kind, value="", devices=devices)
        case "env":
            return replace(common, kind=kind, value=app_forms.environment_lines(text))
        case "labels":
            return replace(common, kind=kind, value=app_forms.label_lines(text))
        case "health":
            return replace(common, kind=kind, value="", health=app_forms.health_parts(text))
    return replace(common, kind=kind, value="", ports=app_forms.port_rows(text, [port for port, _ in given]))
