"""The pages of a node: summary with graphs, hardware, disks, network, services, tasks, shell."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from appliance.errors import ApplianceError, HostError, NotFound
from appliance.services import host_facts, host_inventory
from appliance.version import PVE_API_VERSION
from appliance.web.pages import areas, contexts, task_kinds
from appliance.web.pages.visit import Visit, visited

TASK_PAGE = 50
TASK_STATES: Final = ("", "running", "failed")


@visited
async def show_node(visit: Visit) -> web.StreamResponse:
    """GET /node and /node/{tab}"""
    tab, viewer = visit.request.match_info.get("tab", "summary"), visit.viewer
    may_open_shell = viewer.may(f"/nodes/{viewer.node}", "Sys.Console")
    tabs = [(name, word) for name, word in areas.NODE_TABS.items() if name != "shell" or may_open_shell]
    if tab not in dict(tabs):
        raise NotFound(f"page '{tab[:40]}' of node {viewer.node}")
    may_power_all = viewer.may("/", "VM.PowerMgmt")
    context = await contexts.node(viewer) | {"may_power_all": may_power_all} | await _tab(visit, tab)
    crumbs = areas.trail((viewer.node, "/node"), here=areas.NODE_TABS[tab])
    topics = "node" if tab == "summary" else ""
    return await visit.page(
        f"node_{tab}", active="node", title=viewer.node, topics=topics, tab=tab, tabs=tabs, crumbs=crumbs, **context
    )


async def _tab(visit: Visit, tab: str) -> contexts.Context:
    """What the tab shows besides the node's figures."""
    services = visit.viewer.services
    match tab:
        case "summary":
            return {"engines": services.engines, "pve_version": PVE_API_VERSION}
        case "hardware":
            return await _read("devices", asyncio.to_thread(host_inventory.read_pci))
        case "disks":
            return await _read("disks", asyncio.to_thread(host_inventory.read_disks))
        case "services":
            return await _read("units", host_inventory.read_services())
        case "network":
            found = await _read("interfaces", services.network.interfaces())
            found["interfaces"] = [each for each in found["interfaces"] if not each.loopback]  # type: ignore[attr-defined]
            managed = services.network.is_managed(services.config.bridge)
            return found | {
                "network_problem": services.network.problem,
                "bridge": services.config.bridge,
                "may_edit": managed and visit.viewer.may(f"/nodes/{visit.viewer.node}", "Sys.Modify"),
            }
        case "system":
            return await _system(visit)
        case "tasks":
            return await _tasks(visit)
    return {}


async def _read(name: str, reading: object) -> contexts.Context:
    """A part of the host that may fail to be read: the page then says why."""
    try:
        return {name: await reading, "problem": ""}  # type: ignore[misc]
    except OSError as error:
        return {name: [], "problem": HostError.from_os_error(error, name).message}
    except ApplianceError as error:
        return {name: [], "problem": error.message}


async def _system(visit: Visit) -> contexts.Context:
    """Time, resolver and certificates of the host, as the API tells them."""
    services = visit.viewer.services
    now = services.clock.now()
    zone, offset_s = await asyncio.to_thread(lambda: (host_facts.read_timezone(), host_facts.utc_offset_s(now)))
    dns = await _read("dns", asyncio.to_thread(host_facts.read_resolver))
    pki = services.config.data_dir / "pki"
    certificates = await _read("certificates", asyncio.to_thread(host_facts.read_certificates, pki))
    sign, minutes = "-" if offset_s < 0 else "+", abs(offset_s) // 60
    return {
        "now": now,
        "local_time": datetime.fromtimestamp(now + offset_s, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "zone": zone,
        "offset": f"{sign}{minutes // 60:02}:{minutes % 60:02}",
        "dns": dns["dns"],
        "dns_problem": dns["problem"],
        "certificates": certificates["certificates"],
        "certificate_problem": certificates["problem"],
    }


async def _tasks(visit: Visit) -> contexts.Context:
    """One page of the task history; `?page=2&state=failed&user=…&kind=Start`"""
    query = visit.request.query
    state = query.get("state", "") if query.get("state", "") in TASK_STATES else ""
    page = min(10_000, int(text)) if (text := query.get("page", "1")).isdecimal() and len(text) < 6 else 1
    who, kind = query.get("user", "")[:100], query.get("kind", "")[:100]
    found = await visit.viewer.services.tasks.list(
        limit=TASK_PAGE + 1,
        start=(max(1, page) - 1) * TASK_PAGE,
        errors=state == "failed",
        running=True if state == "running" else None,
        user_contains=who or None,
        kinds=task_kinds.types_of(kind),
    )
    return {"found_tasks": found[:TASK_PAGE], "has_more": len(found) > TASK_PAGE, "page": max(1, page),
            "task_state": state, "task_user": who, "task_kind": kind, "kinds": task_kinds.words()}  # fmt: skip
