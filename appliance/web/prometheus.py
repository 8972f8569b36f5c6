"""GET /metrics: the figures of now in Prometheus' text format (exposition format 0.0.4), for what the caller may see.

The caller proves who they are as everywhere, by an API token; Prometheus itself can only send
`Authorization: Bearer USER@REALM!TOKENID=SECRET`, which is understood here too:

    scrape_configs:
      - job_name: appliance
        scheme: https
        authorization: { credentials: "monitor@pve!prometheus=11111111-…" }
        static_configs: [{ targets: ["HOST:8006"] }]

Values come from what is sampled anyway: a scrape asks no guest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from appliance.model.guest import GuestState
from appliance.version import VERSION
from appliance.web import keys
from appliance.web.pages.viewer import Viewer

if TYPE_CHECKING:
    from appliance.services.guest_view import GuestView
    from appliance.services.node import NodeStatus
    from appliance.services.storage_config import StorageConfig

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BEARER = "Bearer "
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Sample:
    """One value and its labels."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `kind` is "gauge" or "counter"."""

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


async def serve(request: web.Request) -> web.StreamResponse:
    """The handler. Raises `NotAuthenticated`."""
    caller = request[keys.CALLER]
    services = request.app[keys.SERVICES]
    authorization = request.headers.get("Authorization", "")
    if caller.identity is None and authorization.startswith(BEARER):
        identity = await services.access.verify_token("PVEAPIToken=" + authorization.removeprefix(BEARER).strip())
    else:
        identity = keys.require_identity(caller)
    families = await collect(Viewer(services, identity))
    return web.Response(body=exposition(families).encode(), headers={"Content-Type": CONTENT_TYPE})


async def collect(viewer: Viewer) -> Sequence[Family]:
    """Everything the viewer may see."""
    found = [Family("appliance_info", "gauge", "The appliance's version.", [Sample({"version": VERSION}, 1)])]
    if viewer.sees_node:
        found += node_families(viewer.node, await viewer.services.node.status())
        running = await viewer.services.tasks.list(running=True, limit=0)
        found.append(Family("appliance_tasks_running", "gauge", "Tasks that run now.", [Sample({}, len(running))]))
    found += guest_families(viewer.guests())
    found += storage_families(viewer)
    return found


def node_families(node: str, status: NodeStatus) -> Iterator[Family]:
    """The host's."""
    values = (
        ("cpu_ratio", "Share of all CPUs in use.", status.cpu_ratio),
        ("iowait_ratio", "Share of CPU time waiting for I/O.", status.iowait_ratio),
        ("cpus", "Hardware threads.", status.cpu_count),
        ("load1", "Load average over a minute.", status.load[0]),
        ("memory_bytes", "Memory there is.", status.memory_total_bytes),
        ("memory_used_bytes", "Memory in use.", status.memory_used_bytes),
        ("swap_bytes", "Swap there is.", status.swap_total_bytes),
        ("swap_used_bytes", "Swap in use.", status.swap_used_bytes),
        ("rootfs_bytes", "Size of the root file system.", status.rootfs_total_bytes),
        ("rootfs_used_bytes", "Used of the root file system.", status.rootfs_used_bytes),
        ("network_receive_bytes_per_second", "Received by the host's own interfaces.", status.net_in_bytes_s),
        ("network_transmit_bytes_per_second", "Sent by the host's own interfaces.", status.net_out_bytes_s),
        ("disk_read_bytes_per_second", "Read from whole disks.", status.disk_read_bytes_s),
        ("disk_written_bytes_per_second", "Written to whole disks.", status.disk_write_bytes_s),
        ("uptime_seconds", "Time since the host was booted.", status.uptime_s),
    )
    for name, text, value in values:
        yield Family(f"appliance_node_{name}", "gauge", text, [Sample({"node": node}, value)])
    pressures = [
        Sample({"node": node, "resource": resource, "kind": kind}, status.pressure[key] / 100)
        for resource in ("cpu", "io", "memory")
        for kind in ("some", "full")
        if (key := f"pressure{resource}{kind}") in status.pressure
    ]
    yield Family("appliance_node_pressure_ratio", "gauge", "Share of the last 10 s in which work waited.", pressures)


def guest_families(guests: Iterable[GuestView]) -> Iterator[Family]:
    """Of each guest; usage of those that run."""
    everyone = [(_labels(guest), guest) for guest in guests]
    active = [(labels, guest) for labels, guest in everyone if guest.state in (GuestState.RUNNING, GuestState.PAUSED)]
    info = [
        Sample(
            {**labels, "name": guest.name, "node": guest.node, "pool": guest.pool or "", "tags": ";".join(guest.tags),
             "template": str(int(guest.template))}, 1
        )
        for labels, guest in everyone
    ]  # fmt: skip
    yield Family("appliance_guest_info", "gauge", "A guest that is defined.", info)
    up = [Sample(labels, int(guest.state is GuestState.RUNNING)) for labels, guest in everyone]
    yield Family("appliance_guest_up", "gauge", "Whether it runs.", up)
    plain: Sequence[tuple[str, str, Callable[[GuestView], float]]] = (
        ("cpu_ratio", "Share of its CPUs in use.", lambda guest: guest.cpu_ratio),
        ("cpus", "CPUs it has.", lambda guest: guest.cpus),
        ("memory_max_bytes", "Memory it has.", lambda guest: guest.maxmem),
        ("uptime_seconds", "Time since its start.", lambda guest: guest.uptime_s),
    )
    for name, text, value in plain:
        samples = [Sample(labels, value(guest)) for labels, guest in active]
        yield Family(f"appliance_guest_{name}", "gauge", text, samples)
    counted = (
        ("memory_used_bytes", "gauge", "Memory in use.", "memory_bytes"),
        ("disk_used_bytes", "gauge", "Used of its root disk, where it can be told.", "disk_used_bytes"),
        ("cpu_seconds_total", "counter", "CPU time since its start.", "cpu_seconds"),
        ("network_receive_bytes_total", "counter", "Received since its start.", "net_in_bytes"),
        ("network_transmit_bytes_total", "counter", "Sent since its start.", "net_out_bytes"),
        ("disk_read_bytes_total", "counter", "Read since its start.", "disk_read_bytes"),
        ("disk_written_bytes_total", "counter", "Written since its start.", "disk_write_bytes"),
    )
    for name, kind, text, attribute in counted:
        samples = [Sample(labels, getattr(guest.stats, attribute)) for labels, guest in active if guest.stats]
        yield Family(f"appliance_guest_{name}", kind, text, samples)


def storage_families(viewer: Viewer) -> Iterator[Family]:
    """Of each storage whose usage is known."""
    configs: Sequence[StorageConfig] = viewer.storages()
    up = [Sample({"storage": each.storage_id}, int(each.active)) for each in configs]
    yield Family("appliance_storage_up", "gauge", "Whether it can be used.", up)
    known = [
        (each.storage_id, usage)
        for each in configs
        if (usage := viewer.services.storage.cached_usage(each.storage_id)) is not None
    ]
    total = [Sample({"storage": name}, usage.total_bytes) for name, usage in known]
    used = [Sample({"storage": name}, usage.used_bytes) for name, usage in known]
    yield Family("appliance_storage_bytes", "gauge", "Its size.", total)
    yield Family("appliance_storage_used_bytes", "gauge", "Used of it.", used)


def exposition(families: Iterable[Family]) -> str:
    """The text. A family without samples is left out."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
        for sample in family.samples:
            labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
            lines.append(f"{family.name}{'{' + labels + '}' if labels else ''} {float(sample.value)!r}")
    return "\n".join(lines) + "\n"


def _labels(guest: GuestView) -> dict[str, str]:
    return {"id": str(guest.guest_id), "type": guest.kind.value}


def _escaped(value: str) -> str:
    """A label's value: backslash, quote and line feed have escapes; other control characters are a space."""
    text = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return _UNPRINTABLE.sub(" ", text)
