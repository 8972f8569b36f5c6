"""What a guest is made of, as rows for its tabs: hardware or resources, options, cloud-init; and what can be added to it.

Every key of the configuration tables appears in exactly one tab; a key that is not set shows its default where it always
has an effect. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import unquote

from appliance.errors import ApplianceError
from appliance.model.guest import GuestKind
from appliance.services import guest_config
from appliance.services.guest_config import Existing, Pending, applications
from appliance.services.guest_config.schema import ConfigKey
from appliance.services.guest_config.values import Value, ValueType
from appliance.services.guest_config.vm_devices import DISK_BUSES
from appliance.web.pages import app_forms
from appliance.web.pages.value_words import value_word


class Tab(StrEnum):
    """Tabs of the configuration."""

    HARDWARE = "hardware"
    OPTIONS = "options"
    CLOUD_INIT = "cloudinit"


FORMS: Final[Mapping[str, tuple[str, str, Sequence[str]]]] = {
    "processor": ("Processor", "cpu", ("sockets", "cores", "cpu", "vcpus", "cpulimit", "cpuunits")),
    "memory": ("Memory", "memory-stick", ("memory", "balloon", "shares", "swap", "allow-ksm")),
    "kernel": ("Kernel booted directly", "terminal", ("kernel", "initrd", "cmdline")),
    "network-names": ("DNS", "globe", ("hostname", "nameserver", "searchdomain")),
}
"""Forms of more than one key: their name, icon and keys. Any other key is a form of its own."""
_ALWAYS: Final = {
    GuestKind.QEMU: ("memory", "processor", "bios", "vga", "machine", "scsihw"),
    GuestKind.LXC: ("memory", "processor", "rootfs", "network-names"),
}
_HARDWARE_KEYS: Final = frozenset({
    "bios", "vga", "machine", "scsihw", "rng0", "watchdog", "vsock", "engine", "dataplane", "arch", "keyboard", "hotplug",
    "args", "kvm", "acpi",
})  # fmt: skip
_HARDWARE_FAMILIES: Final = frozenset(
    {*DISK_BUSES, "efidisk", "net", "serial", "unused", "rootfs", "mp", "dev", "virtiofs"}
)
_CLOUD_INIT: Final = (
    "ciuser",
    "cipassword",
    "sshkeys",
    "ciupgrade",
    "citype",
    "nameserver",
    "searchdomain",
    "ipconfig",
)
_HIDDEN: Final = frozenset({
    "digest", "description", "tags", "template", "lock", "smp", "bootdisk", "freeze", "tdf", "keephugepages", "numa",
    "vmstatestorage", "autostart", "reboot", "startdate", "cmode", "console",
})  # fmt: skip
"""Not in a tab: shown elsewhere, older names, or with one value that works."""
_ICONS: Final[Mapping[str, str]] = {
    "net": "network", "serial": "terminal", "unused": "archive", "efidisk": "shield", "bios": "cpu", "machine": "server",
    "vga": "monitor", "scsihw": "hard-drive", "rng": "dices", "watchdog": "timer", "dev": "plug",
    "virtiofs": "folder-symlink",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One device or setting. `form` names its form; `waits` is what runs instead until the next start."""

    key: str
    label: str
    icon: str
    value: str
    detail: str
    form: str
    is_set: bool = True
    is_disk: bool = False
    is_unused: bool = False
    is_movable: bool = False
    removable: bool = False
    editable: bool = True
    waits: str | None = None
    waiting_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """Something that can be added. `slot` is the key it would get, "" where all are taken."""

    name: str
    word: str
    icon: str
    slot: str


def rows(
    kind: GuestKind, tab: Tab, config: Mapping[str, str], waiting: Sequence[Pending], label_of: Callable[[str], str]
) -> Sequence[Row]:
    """The rows of a tab in the order of the forms and tables."""
    shown = guest_config.masked(config)
    pending = {each.key: each for each in waiting}
    found: list[Row] = []
    for name in _names(kind, tab, {**shown, **{each.key: "" for each in waiting}}):
        label = FORMS[name][0] if name in FORMS else label_of(name)
        found.append(_row(kind, name, shown, pending, label if label != name else _description(kind, name)))
    return found


def addable(kind: GuestKind, config: Mapping[str, str]) -> Sequence[Device]:
    """What can be added now."""
    if kind is GuestKind.LXC:
        devices = [
            ("mp", "Mount point", "hard-drive"),
            ("net", "Network device", "network"),
            ("dev", "Device of the host", "plug"),
        ]
        found = [Device(name, word, icon, free_slot(kind, config, name)) for name, word, icon in devices]
        return [device for device in found if device.slot]
    bus = {"disk": "scsi", "cdrom": "ide", "cloudinit": "ide"}
    devices = [
        ("disk", "Disk", "hard-drive"), ("cdrom", "CD/DVD drive", "disc"), ("net", "Network device", "network"),
        ("efidisk", "EFI disk", "shield"), ("serial", "Serial port", "terminal"), ("cloudinit", "Cloud-init drive", "cloud"),
        ("rng", "Random number device", "dices"), ("watchdog", "Watchdog", "timer"),
        ("virtiofs", "Shared directory", "folder-symlink"),
    ]  # fmt: skip
    found = [Device(name, word, icon, free_slot(kind, config, bus.get(name, name))) for name, word, icon in devices]
    return [device for device in found if device.slot]


def free_slot(kind: GuestKind, config: Mapping[str, str], family: str) -> str:
    """The first free key of a family, or of a single device; "" when there is none."""
    table = guest_config.key_table(kind)
    for candidate in (*(f"{family}{index}" for index in range(256)), family):
        key = table.find(candidate)
        if key is not None and key.supported and candidate not in config:
            return candidate
    return ""


def form_keys(kind: GuestKind, form: str) -> Sequence[str]:
    """The keys a form edits. Raises `KeyError` for what is no form of this kind."""
    table = guest_config.key_table(kind)
    names = FORMS[form][2] if form in FORMS else (form,)
    keys = [name for name in names if (key := table.find(name)) is not None and key.supported and not key.read_only]
    if not keys:
        raise KeyError(form)
    return keys


def _names(kind: GuestKind, tab: Tab, config: Mapping[str, str]) -> Sequence[str]:
    """Forms and keys of the tab, each once."""
    if tab is Tab.CLOUD_INIT and kind is GuestKind.LXC:
        return ()
    found: dict[str, None] = {}
    if tab is Tab.HARDWARE:
        found = dict.fromkeys(_ALWAYS[kind])
        grouped = {key for name in FORMS for key in FORMS[name][2]}
        if kind is GuestKind.QEMU and any(key in config for key in FORMS["kernel"][2]):
            found["kernel"] = None
        there = [name for name in config if name not in grouped and _tab_of(kind, name) is Tab.HARDWARE]
        return [*found, *sorted((name for name in there if name not in found), key=_rank)]
    grouped = {key for name in FORMS for key in FORMS[name][2]} - (set(_CLOUD_INIT) if tab is Tab.CLOUD_INIT else set())
    for key in guest_config.key_table(kind):
        if key.name in grouped or not key.supported or key.read_only or key.name in _HIDDEN:
            continue
        if key.name.startswith("app-") and not applications.is_application(config):
            continue
        names = [name for name in key.names() if name in config] if key.count else [key.name]
        found |= dict.fromkeys(name for name in names if _tab_of(kind, name) is tab)
    if tab is Tab.CLOUD_INIT:
        for name in config:
            if name.startswith("net") and name[3:].isdecimal():
                found.setdefault(f"ipconfig{name[3:]}")
        return sorted(found, key=lambda name: (_CLOUD_INIT.index(name.rstrip("0123456789")), _number(name)))
    return list(found)


def _tab_of(kind: GuestKind, name: str) -> Tab:
    stem = name.rstrip("0123456789")
    if kind is GuestKind.QEMU and (name in _CLOUD_INIT or stem == "ipconfig"):
        return Tab.CLOUD_INIT
    if stem in _HARDWARE_FAMILIES or name in _HARDWARE_KEYS:
        return Tab.HARDWARE
    return Tab.OPTIONS


def _rank(name: str) -> tuple[int, int, str]:
    order = (*DISK_BUSES, "efidisk", "mp", "net", "serial", "rng", "watchdog", "virtiofs", "dev", "engine", "unused")
    stem = name.rstrip("0123456789")
    return (order.index(stem) if stem in order else len(order), _number(name), name)


def _number(name: str) -> int:
    match = re.search(r"\d+$", name)
    return int(match[0]) if match else 0


def _row(kind: GuestKind, name: str, config: Mapping[str, str], pending: Mapping[str, Pending], label: str) -> Row:
    keys = form_keys(kind, name)
    texts = {key: config[key] for key in keys if key in config}
    changed = tuple(key for key in keys if key in pending)
    runs = {key: pending[key].running for key in changed}
    was = {key: text for key, text in {**texts, **runs}.items() if text is not None}
    if "cipassword" in was:
        was["cipassword"] = guest_config.PASSWORD_MASK
    table_key = guest_config.key_table(kind).find(keys[0])
    assert table_key is not None
    shown = {**texts, **{key: text for key, text in was.items() if key == name}}
    is_disk, icon, word = _disk_facts(kind, name, shown)
    stem = name.rstrip("0123456789")
    return Row(
        key=name,
        label=f"{word} ({name})" if word else label,
        icon=icon or (FORMS[name][1] if name in FORMS else _ICONS.get(stem, "settings")),
        value=_summary(kind, name, texts) or _default(table_key),
        detail=texts.get(name, "") if name not in FORMS and _has_parts(table_key) else "",
        form=name,
        is_set=bool(texts),
        is_disk=is_disk,
        is_unused=stem == "unused",
        is_movable=_is_movable(kind, name, texts.get(name, "")),
        removable=bool(texts) and name not in (*_ALWAYS[kind], "processor") and name not in FORMS,
        editable=bool(texts or not changed) and stem != "unused" and name not in ("arch", "unprivileged"),
        waits=(_summary(kind, name, was) or "–") if changed else None,
        waiting_keys=changed,
    )


def _is_movable(kind: GuestKind, name: str, text: str) -> bool:
    """Whether it is a volume of the guest's own, which another storage could hold."""
    if not text or not guest_config.is_disk_slot(kind, name):
        return False
    try:
        disk = guest_config.parse_disk(kind, name, text)
    except ApplianceError:
        return False
    is_own = isinstance(disk.volume, Existing) and disk.volume.owner is not None
    return is_own and not disk.is_cdrom and not disk.is_unused


def _disk_facts(kind: GuestKind, name: str, texts: Mapping[str, str]) -> tuple[bool, str, str]:
    """Whether it is a disk that can grow, its icon, and its word where it is no plain disk."""
    if not guest_config.is_disk_slot(kind, name):
        return False, "", ""
    try:
        disk = guest_config.parse_disk(kind, name, texts[name])
    except (ApplianceError, KeyError):
        return False, "hard-drive", ""
    if disk.is_unused:
        return False, "archive", ""
    if disk.is_cloudinit:
        return False, "cloud", "Cloud-init drive"
    if disk.is_cdrom:
        return False, "disc", "CD/DVD drive"
    return isinstance(disk.volume, Existing) and not name.startswith("efidisk"), "hard-drive", ""


def _has_parts(key: ConfigKey) -> bool:
    return not isinstance(key.value, Value)


def _default(key: ConfigKey) -> str:
    if not isinstance(key.value, Value) or not key.value.default:
        return ""
    return _plain(key.name, key.value, key.value.default)


def _plain(name: str, value: Value, text: str) -> str:
    if value.type is ValueType.BOOLEAN:
        return {"1": "Yes", "0": "No"}.get(text, text)
    return value_word(name, text)


def _description(kind: GuestKind, name: str) -> str:
    key = guest_config.key_table(kind).find(name)
    return key.description.rstrip(".") if key is not None else name


def _summary(kind: GuestKind, name: str, texts: Mapping[str, str]) -> str:
    """A form's values in a few words."""
    match name:
        case "processor":
            return _processor(kind, texts)
        case "memory":
            return _memory(kind, texts)
        case "sshkeys":
            lines = [line for line in unquote(texts.get(name, "")).splitlines() if line.strip()]
            return ", ".join(" ".join(line.split()[2:]) or line.split()[0] for line in lines)
        case "kernel" | "network-names":
            return " · ".join(texts.values())
        case "env":
            return " · ".join(part for part in texts.get(name, "").split("\0") if part)
        case "app-health":
            check = app_forms.health_parts(texts.get(name, ""))
            return f"{check.command} · {check.interval} s" if check.is_set else texts.get(name, "")
        case "app-labels":
            return " · ".join(app_forms.label_lines(texts.get(name, "")).splitlines())
    text = texts.get(name, "")
    key = guest_config.key_table(kind).find(name)
    if key is not None and isinstance(key.value, Value):
        return _plain(name, key.value, text)
    return _property_words(kind, name, text)


def _property_words(kind: GuestKind, name: str, text: str) -> str:
    if not text:
        return ""
    try:
        values = guest_config.parse_one(kind, name, text)
        if guest_config.is_disk_slot(kind, name):
            return _disk_words(kind, name, text)
    except ApplianceError:
        return text
    if name.startswith("net"):
        first = [values[part] for part in ("name", "model", "bridge") if part in values]
        return " · ".join([*first, *(f"VLAN {values['tag']}" for _ in "x" if "tag" in values), *_addresses(values)])
    if set(values) == {"enabled"}:
        return {"1": "Yes", "0": "No"}[values["enabled"]]
    return text


def _addresses(values: Mapping[str, str]) -> Sequence[str]:
    return [values[part] for part in ("ip", "ip6") if part in values]


def _disk_words(kind: GuestKind, name: str, text: str) -> str:
    disk = guest_config.parse_disk(kind, name, text)
    size = guest_config.format_size(disk.size_bytes) if disk.size_bytes else ""
    volume = str(disk.volume.volume_id) if isinstance(disk.volume, Existing) else ""
    if disk.is_cloudinit:
        return volume
    if disk.is_cdrom:
        return volume or "No medium"
    where = disk.options.get("mp", "")
    return " · ".join(part for part in (where, size.replace("G", " GiB").replace("M", " MiB"), volume) if part)


def _processor(kind: GuestKind, texts: Mapping[str, str]) -> str:
    if kind is GuestKind.LXC:
        cores = texts.get("cores")
        parts = [f"{cores} CPU" if cores == "1" else f"{cores} CPUs"] if cores else []
    else:
        sockets, cores = texts.get("sockets", "1"), texts.get("cores", "1")
        total = int(sockets) * int(cores)
        parts = [f"{total} ({sockets} × {cores})"]
        if texts.get("cpu"):
            parts.append(texts["cpu"])
    if texts.get("cpulimit", "0") != "0":
        parts.append(f"≤ {texts['cpulimit']}")
    return " · ".join(parts)


def _memory(kind: GuestKind, texts: Mapping[str, str]) -> str:
    memory = texts.get("memory", "512").removeprefix("current=")
    parts = [f"{memory} MiB"]
    if texts.get("balloon", "0") not in ("0", memory):
        parts = [f"{texts['balloon']}–{memory} MiB"]
    if kind is GuestKind.LXC:
        parts.append(f"+ {texts.get('swap', '512')} MiB swap")
    return " ".join(parts)
