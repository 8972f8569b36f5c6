"""The pages that concern everything: overview, API explorer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web
from markupsafe import Markup

from appliance.model.guest import GuestKind, GuestState
from appliance.services import cluster_options
from appliance.web import openapi
from appliance.web.pages import contexts, notes
from appliance.web.pages.viewer import Viewer
from appliance.web.pages.visit import Visit, visited

if TYPE_CHECKING:
    from appliance.model.volume import StorageUsage
    from appliance.services.guest_view import GuestView


@dataclass(frozen=True, slots=True)
class Share:
    """How many guests of a kind are in a state; `query` finds them in the list."""

    state: str
    word: str
    vms: int
    containers: int

    @property
    def count(self) -> int:
        return self.vms + self.containers


@dataclass(frozen=True, slots=True)
class StorageLine:
    """One storage's space; `usage` is None while it is not known."""

    storage_id: str
    kind: str
    usage: StorageUsage | None
    problem: str


def shares(guests: Iterable[GuestView]) -> Sequence[Share]:
    """Guests by state; templates are a state of their own here. Pure."""
    counts = Counter(("template" if guest.template else guest.state.value, guest.kind) for guest in guests)
    order = sorted(GuestState, key=lambda state: state is not GuestState.RUNNING)
    words = {**{state.value: state.value.capitalize() for state in order}, "template": "Template"}
    found = [
        Share(state, word, counts[state, GuestKind.QEMU], counts[state, GuestKind.LXC]) for state, word in words.items()
    ]
    return [share for share in found if share.count or share.state in ("running", "stopped")]


async def overview(viewer: Viewer) -> contexts.Context:
    """What the overview shows. Also pushed."""
    guests = viewer.guests()
    options, _ = await cluster_options.read(viewer.services.store)
    lines = [
        StorageLine(
            config.storage_id,
            config.kind,
            viewer.services.storage.cached_usage(config.storage_id),
            config.problem or ("" if config.enabled else "disabled"),
        )
        for config in viewer.storages()
    ]
    active = [guest for guest in guests if guest.state in (GuestState.RUNNING, GuestState.PAUSED)]
    may_read = viewer.may("/", "Sys.Audit")  # as GET /cluster/options has it
    return {
        "shares": shares(guests),
        "total": len(guests),
        "storage_lines": lines,
        "given_cpus": sum(guest.cpus for guest in active),
        "given_memory": sum(guest.maxmem for guest in active),
        "busiest": sorted(active, key=lambda guest: -guest.cpu_ratio * guest.cpus)[:5],
        "nodes": sorted({viewer.node} | {guest.node for guest in guests}),
        "node": viewer.node,
        "notes": notes.to_html(text) if may_read and (text := str(options.get("description", ""))) else "",
        "may_note": may_read and viewer.may("/", "Sys.Modify"),
        **await contexts.host(viewer),
        **await contexts.notice_list(viewer),
    }


@visited
async def show_api(visit: Visit) -> web.StreamResponse:
    """GET /api-explorer"""
    operations = Markup(await openapi.explorer(visit.request))  # noqa: S704  rendered by our own template, escaped
    return await visit.page("api", active="api", title="API", operations=operations)


@visited
async def show_overview(visit: Visit) -> web.StreamResponse:
    """GET /overview"""
    context = await overview(visit.viewer) | await contexts.setup_offer(visit.viewer)
    return await visit.page("overview", active="overview", title="Overview", topics="overview", **context)
