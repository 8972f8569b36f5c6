"""What a VM's guest agent says of the system inside, and what it can do to its file systems: a card of the tab "Inside".

Everything an agent says is the guest's: bounded, and shown as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from appliance.errors import ApplianceError, NotFound, PermissionDenied
from appliance.model.guest import GuestKind
from appliance.services import guest_agent
from appliance.services.ports.running_guest import RunningGuest
from appliance.web.pages import reach
from appliance.web.pages.visit import Visit, visited

TEXT_LIMIT: Final = 200
USERS_LIMIT: Final = 32
ACTIONS: Final = ("freeze", "thaw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the agent says; "" for what it does not. `frozen` is None where it does not say."""

    system: str = ""
    kernel: str = ""
    host_name: str = ""
    time_zone: str = ""
    users: Sequence[str] = ()
    version: str = ""
    frozen: bool | None = None


@visited
async def show(visit: Visit) -> web.StreamResponse:
    """GET /parts/guest/{vmid}/agent"""
    viewer, guest_id = visit.viewer, visit.number("vmid")
    guest, may = viewer.guest(guest_id), reach.rights(viewer, guest_id)
    if guest.kind is not GuestKind.QEMU:
        raise NotFound(f"a guest agent of guest {guest_id}")
    if not may.audit and not may.manage:
        raise PermissionDenied(f"You need VM.GuestAgent.Audit on /vms/{guest_id} for this.")
    told, silence = Told(), ""
    try:
        told = await _ask(viewer.services.guests.running(guest.guest_id), audit=may.audit)
    except ApplianceError as error:
        silence = error.message
    return await visit.part(
        "fragments/guest_agent.html", {"guest": guest, "may": may, "told": told, "silence": silence}
    )


@visited
async def confirm(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/agent/{action}: freeze, thaw."""
    viewer, guest_id, action = visit.viewer, visit.number("vmid"), visit.request.match_info["action"]
    guest = viewer.guest(guest_id)
    if guest.kind is not GuestKind.QEMU or action not in ACTIONS:
        raise NotFound(f"action '{action[:40]}' of a guest agent")
    if not reach.rights(viewer, guest_id).manage:
        raise PermissionDenied(f"You need VM.GuestAgent.FileSystemMgmt on /vms/{guest_id} for this.")
    context = {"guest": guest, "node": viewer.node, "action": action}
    return await visit.part("dialogs/guest_file_systems.html", context)


async def _ask(running: RunningGuest, *, audit: bool) -> Told:
    """What is not known to an older agent is left out. Raises `ApplianceError` when there is none."""
    await guest_agent.ask(running, "ping")
    frozen = _word(await _maybe(running, "fsfreeze-status"))
    known = {"thawed": False, "frozen": True}.get(frozen)
    if not audit or known:  # a frozen agent answers nothing else
        return Told(frozen=known)
    system = _fields(await _maybe(running, "get-osinfo"))
    users = await _maybe(running, "get-users")
    return Told(
        system=_word(system.get("pretty-name")),
        kernel=_word(system.get("kernel-release")),
        host_name=_word(_fields(await _maybe(running, "get-host-name")).get("host-name")),
        time_zone=_word(_fields(await _maybe(running, "get-timezone")).get("zone")),
        users=sorted({_word(_fields(each).get("user")) for each in users[:USERS_LIMIT]} - {""})
        if isinstance(users, list)
        else (),
        version=_word(_fields(await _maybe(running, "info")).get("version")),
        frozen=known,
    )


async def _maybe(running: RunningGuest, command: str) -> object:
    try:
        return await guest_agent.ask(running, command)
    except ApplianceError:
        return None


def _fields(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _word(value: object) -> str:
    return value[:TEXT_LIMIT] if isinstance(value, str) else ""
