"""The pages about the appliance as a whole: the audit log with the state of its chain, and the settings of the cluster."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from appliance.errors import NotFound, PermissionDenied
from appliance.services import cluster_options
from appliance.web.pages.settings import SETTINGS, Setting, by_name
from appliance.web.pages.visit import Visit, visited

AUDIT_ROWS = 200
AUDIT_LIMIT = 1000


@visited
async def show_audit(visit: Visit) -> web.StreamResponse:
    """GET /audit?q=TEXT&limit=N"""
    viewer, query = visit.viewer, visit.request.query
    if not viewer.may("/", "Sys.Audit"):
        raise PermissionDenied("You need Sys.Audit on / for this.")
    text = query.get("q", "")[:200]
    wanted = query.get("limit", "")
    limit = min(AUDIT_LIMIT, max(1, int(wanted))) if wanted.isdecimal() and len(wanted) < 6 else AUDIT_ROWS
    rows = await viewer.services.audit.tail(AUDIT_LIMIT if text else limit)
    words = text.lower().split()
    shown = [row for row in rows if _matches(row, words)][:limit]
    return await visit.page(
        "audit",
        active="audit",
        title="Audit log",
        rows=shown,
        text=text,
        limit=limit,
        more=len(rows) >= limit < AUDIT_LIMIT,
    )


def _matches(row: object, words: Sequence[str]) -> bool:
    names = ("who", "remote", "action", "target", "outcome", "detail")
    text = " ".join(str(getattr(row, name)) for name in names).lower()
    return all(word in text for word in words)


@visited
async def verify_audit(visit: Visit) -> web.StreamResponse:
    """GET /parts/audit-chain: reads the whole log, so only when asked for."""
    if not visit.viewer.may("/", "Sys.Audit"):
        raise PermissionDenied("You need Sys.Audit on / for this.")
    return await visit.part("fragments/audit_chain.html", {"verdict": await visit.viewer.services.audit.verify()})


@visited
async def show_settings(visit: Visit) -> web.StreamResponse:
    """GET /settings"""
    viewer = visit.viewer
    if not viewer.may("/", "Sys.Audit"):
        raise PermissionDenied("You need Sys.Audit on / for this.")
    stored, _ = await cluster_options.read(viewer.services.store)
    groups: dict[str, list[Setting]] = {}
    for setting in SETTINGS:
        groups.setdefault(setting.group, []).append(setting)
    return await visit.page(
        "settings",
        active="settings",
        title="Settings",
        groups=groups,
        stored=stored,
        may_write=viewer.may("/", "Sys.Modify"),
    )


@visited
async def edit_setting(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/settings/{name}"""
    setting = by_name().get(visit.request.match_info["name"])
    if setting is None:
        raise NotFound("this setting")
    for privilege in ("Sys.Audit", "Sys.Modify"):  # it shows what is set, as well
        if not visit.viewer.may("/", privilege):
            raise PermissionDenied(f"You need {privilege} on / for this.")
    stored, _ = await cluster_options.read(visit.viewer.services.store)
    next_page = "/overview" if visit.request.query.get("next") == "overview" else "/settings"
    return await visit.part(
        "dialogs/edit_setting.html",
        {
            "setting": setting,
            "value": stored.get(setting.name, ""),
            "exists": setting.name in stored,
            "digest": cluster_options.digest(stored),
            "next": next_page,
        },
    )
