"""A guest as PVE's lists and status replies show it, and its configuration with PVE's JSON types. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from appliance.model.guest import GuestKind, GuestState, GuestStats
from appliance.services import guest_config
from appliance.services.guest_config.values import Value, ValueType
from appliance.services.guest_view import GuestView

_NOT_YET_RUNNING = frozenset({GuestState.STOPPED, GuestState.STARTING})
_QMP_STATUS = {
    GuestState.STOPPED: "stopped",
    GuestState.STARTING: "prelaunch",
    GuestState.RUNNING: "running",
    GuestState.PAUSED: "paused",
    GuestState.STOPPING: "shutdown",
}
NO_FIGURES = GuestStats()


class GuestRow(msgspec.Struct, kw_only=True):
    """A guest in a list. Sizes in bytes, `uptime` in seconds, `cpu` from 0 to 1 of all its CPUs."""

    vmid: int
    name: str
    status: str
    cpus: float
    cpu: float
    maxmem: int
    mem: int
    maxdisk: int
    disk: int
    uptime: int
    netin: int
    netout: int
    diskread: int
    diskwrite: int
    template: bool | None = None
    tags: str | None = None
    lock: str | None = None
    pid: int | None = None
    type: str | None = None
    maxswap: int | None = None
    swap: int | None = None
    serial: bool | None = None
    qmpstatus: str | None = None


class DeviceRow(msgspec.Struct, kw_only=True):
    """A disk or NIC that runs: who moves its data ("python", "vhost", "vhost-user"), and a disk's bytes since its start."""

    dataplane: str
    diskread: int | None = None
    diskwrite: int | None = None


class GuestStatus(GuestRow, kw_only=True):
    """A guest now. `ha` says whether high availability manages it; `agent` whether a guest agent is configured; `devices`
    is this appliance's own, by slot, for native machines; `lastcrash` how its last run ended, if by a crash; `oomkills` how
    many of its processes the kernel has killed for lack of memory.

    Of an application container also `health` (starting, healthy, unhealthy), how its last run ended, and how often its
    restart policy has started it.
    """

    ha: dict[str, int]
    agent: bool | None = None
    devices: dict[str, DeviceRow] | None = None
    lastcrash: str | None = None
    oomkills: int | None = None
    health: str | None = None
    exit_code: int | None = msgspec.field(name="exit-code", default=None)
    exit_detail: str | None = msgspec.field(name="exit-detail", default=None)
    finished_at: int | None = msgspec.field(name="finished-at", default=None)
    restarts: int | None = None


class PendingRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A key and its value. One that waits for the next start of a guest that runs has as `value` what runs, and as
    `pending` what is configured, or `delete`."""

    key: str
    value: str | None = None
    pending: str | None = None
    delete: int | None = None


class SnapshotRow(msgspec.Struct, kw_only=True):
    """A snapshot; the last row, `current`, is the present state."""

    name: str
    description: str
    parent: str | None = None
    snaptime: int | None = None
    vmstate: bool | None = None
    snapstate: str | None = None
    running: bool | None = None
    digest: str | None = None


def list_row(guest: GuestView, *, has_serial: bool = False) -> dict[str, object]:
    """The row of a list."""
    stats = guest.stats if guest.state not in _NOT_YET_RUNNING and guest.stats else NO_FIGURES
    row: dict[str, object] = {
        "vmid": int(guest.guest_id),
        "name": guest.name,
        "status": "stopped" if guest.state in _NOT_YET_RUNNING else "running",
        "cpus": _whole(guest.cpus),
        "cpu": guest.cpu_ratio if stats is not NO_FIGURES else 0,
        "maxmem": guest.maxmem,
        "mem": stats.memory_bytes,
        "maxdisk": guest.maxdisk,
        "disk": stats.disk_used_bytes,
        "uptime": guest.uptime_s,
        "netin": stats.net_in_bytes,
        "netout": stats.net_out_bytes,
        "diskread": stats.disk_read_bytes,
        "diskwrite": stats.disk_write_bytes,
        "template": True if guest.template else None,
        "tags": ";".join(guest.tags) or None,
        "lock": guest.lock,
        "pid": guest.pid,
    }
    if guest.kind is GuestKind.LXC:
        return row | {"type": "lxc", "maxswap": guest.maxswap, "swap": 0}
    return row | {"serial": True if has_serial else None, "qmpstatus": _QMP_STATUS[guest.state]}


def status_row(guest: GuestView, config: Mapping[str, str]) -> dict[str, object]:
    """The reply of status/current."""
    row = list_row(guest, has_serial=has_serial(config)) | {"ha": {"managed": 0}}
    if guest.kind is GuestKind.QEMU:
        row["agent"] = True if has_agent(config) else None
        row["devices"] = _devices(guest.stats) if guest.state not in _NOT_YET_RUNNING and guest.stats else None
    row["lastcrash"] = guest.last_exit or None
    row["oomkills"] = guest.stats.oom_kills or None if guest.stats is not None else None
    return row


def _devices(stats: GuestStats) -> dict[str, DeviceRow] | None:
    rows = {
        slot: DeviceRow(dataplane=device.data_plane)
        if slot.startswith("net")
        else DeviceRow(dataplane=device.data_plane, diskread=device.read_bytes, diskwrite=device.written_bytes)
        for slot, device in stats.devices.items()
    }
    return rows or None


def has_serial(config: Mapping[str, str]) -> bool:
    """Whether a VM has a serial port."""
    return any(f"serial{index}" in config for index in range(4))


def has_agent(config: Mapping[str, str]) -> bool:
    """Whether a VM is configured for the guest agent."""
    text = config.get("agent", "")
    return bool(text) and guest_config.parse_one(GuestKind.QEMU, "agent", text).get("enabled") == "1"


def config_reply(kind: GuestKind, config: Mapping[str, str], digest: str) -> dict[str, object]:
    """The configuration as clients read it: whole numbers and booleans as JSON numbers, passwords masked."""
    reply: dict[str, object] = {
        key: _typed(kind, key, value) for key, value in sorted(guest_config.masked(config).items())
    }
    reply["digest"] = digest
    if kind is GuestKind.LXC:
        reply["lxc"] = []
    return reply


def pending_rows(config: Mapping[str, str], waiting: Sequence[guest_config.Pending]) -> list[PendingRow]:
    """PVE's list of a configuration with what waits for the next start. Passwords are asterisks."""
    runs = guest_config.masked({each.key: each.running for each in waiting if each.running is not None})
    wanted = guest_config.masked(config)
    by_key = {each.key: each for each in waiting}
    rows = [PendingRow(key=key, value=value) for key, value in wanted.items() if key not in by_key]
    for key in by_key:
        gone = key not in wanted
        rows.append(PendingRow(key=key, value=runs.get(key), pending=wanted.get(key), delete=1 if gone else None))
    return sorted(rows, key=lambda row: row.key)


def config_schema(kind: GuestKind) -> dict[str, dict[str, object]]:
    """JSON schemas of the configuration's keys (`net[n]` stands for a family), for the documents."""
    found: dict[str, dict[str, object]] = {}
    for key in guest_config.key_table(kind):
        if key.read_only:
            continue
        text = key.description if key.supported else f"{key.description} Not supported yet: refused by name."
        schema: dict[str, object] = {"type": "string", "description": text}
        if isinstance(key.value, Value):
            schema |= _value_schema(key.value)
        else:
            required, default_key = key.value.required, key.value.default_key
            names = ", ".join(
                f"{'[' + name + '=]' if name == default_key else name}{'' if name in required else '?'}"
                for name, value in key.value.fields.items()
                if value.supported
            )
            schema["description"] = f"{text} Property string of: {names}."
        found[f"{key.name}[n]" if key.count else key.name] = schema
    return found


def _value_schema(value: Value) -> dict[str, object]:
    schema: dict[str, object] = {"type": value.type.value}
    numeric = value.type in (ValueType.INTEGER, ValueType.NUMBER)
    for name, limit in (("minimum", value.minimum), ("maximum", value.maximum)):
        if limit is not None:
            schema[name] = _whole(limit)
    if value.choices or value.works:
        schema["enum"] = list(value.works or value.choices)
    if value.pattern:
        schema["pattern"] = f"^(?:{value.pattern})$"
    if value.default:
        schema["default"] = _whole(float(value.default)) if numeric else value.default
    if value.type is ValueType.BOOLEAN:
        schema |= {"type": "integer", "enum": [0, 1]}
        if value.default:
            schema["default"] = int(value.default)
    return schema


def _typed(kind: GuestKind, name: str, text: str) -> str | int:
    key = guest_config.key_table(kind).find(name)
    if key is None or not isinstance(key.value, Value) or key.value.type not in (ValueType.INTEGER, ValueType.BOOLEAN):
        return text
    try:
        return int(text)
    except ValueError:
        return text


def _whole(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number
