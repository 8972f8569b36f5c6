"""What a guest says of itself: its interfaces' addresses, and how full its file systems are. Asked for when looked at.

A VM's agent and a container's namespace are the guest's own: everything here is untrusted text, bounded and shown as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web

from appliance.errors import ApplianceError, NotFound, PermissionDenied
from appliance.model.guest import GuestKind
from appliance.services import ct_interfaces, guest_agent
from appliance.services.ports.running_guest import RunningGuest
from appliance.web.pages import contexts, reach
from appliance.web.pages.contexts import Context
from appliance.web.pages.guest_tabs import is_up
from appliance.web.pages.viewer import Viewer
from appliance.web.pages.visit import Visit, visited

ROWS_LIMIT = 64
TEXT_LIMIT = 120
PATH_LIMIT = 4096
UNRESTRICTED = "VM.GuestAgent.Unrestricted"
AGENT_PRIVILEGES = ("VM.GuestAgent.Audit", UNRESTRICTED)
TRIM_PRIVILEGES = (*guest_agent.ACTIONS["fstrim"], UNRESTRICTED)


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface inside."""

    name: str
    mac: str
    addresses: Sequence[str]


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A mounted file system, as the guest counts it."""

    path: str
    type: str
    used_bytes: int
    total_bytes: int


@visited
async def show(visit: Visit) -> web.StreamResponse:
    """GET /parts/guest/{vmid}/inside"""
    return await visit.part("fragments/guest_inside.html", await inside(visit.viewer, visit.number("vmid")))


async def inside(viewer: Viewer, guest_id: int) -> Context:
    """What can be learnt now; `silence` is why it is less than everything."""
    guest = viewer.guest(guest_id)
    interfaces: Sequence[Interface] = ()
    systems: Sequence[FileSystem] = ()
    silence = ""
    try:
        if is_up(guest.state):
            running = viewer.services.guests.running(guest.guest_id)
            if guest.kind is GuestKind.LXC:
                interfaces = interfaces_of(await ct_interfaces.interfaces(running.pid))
            elif any(viewer.may(f"/vms/{guest_id}", name) for name in AGENT_PRIVILEGES):
                interfaces, systems = await _ask_agent(running)
    except ApplianceError as error:
        silence = error.message
    has_agent = guest.kind is GuestKind.QEMU and not silence and bool(interfaces or systems)
    return {
        **contexts.guest_head(viewer, guest_id), "interfaces": interfaces, "systems": systems, "silence": silence,
        "may_set_password": has_agent and viewer.may(f"/vms/{guest_id}", UNRESTRICTED),
        "may_trim": has_agent and any(viewer.may(f"/vms/{guest_id}", name) for name in TRIM_PRIVILEGES),
    }  # fmt: skip


@visited
async def edit_password(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/password: of a user inside a VM, set by its agent."""
    viewer, guest_id = visit.viewer, visit.number("vmid")
    guest = viewer.guest(guest_id)
    if guest.kind is not GuestKind.QEMU:
        raise NotFound(f"a guest agent of guest {guest_id}")
    if not viewer.may(f"/vms/{guest_id}", UNRESTRICTED):
        raise PermissionDenied(f"You need {UNRESTRICTED} on /vms/{guest_id} for this.")
    context = {
        "guest": guest,
        "node": viewer.node,
        "user": viewer.services.guests.config(guest.guest_id)[0].get("ciuser", ""),
    }
    return await visit.part("dialogs/guest_password.html", context)


@visited
async def upload(visit: Visit) -> web.StreamResponse:
    """GET /dialogs/guest/{vmid}/upload?path=DIRECTORY: a file of the reader's into the guest."""
    viewer, guest_id = visit.viewer, visit.number("vmid")
    guest = viewer.guest(guest_id)
    if not reach.rights(viewer, guest_id).write:
        raise PermissionDenied(f"You need VM.GuestAgent.FileWrite on /vms/{guest_id} for this.")
    directory = visit.request.query.get("path", "")[:PATH_LIMIT]
    return await visit.part("dialogs/guest_upload.html", {"guest": guest, "directory": directory or "/"})


async def _ask_agent(running: RunningGuest) -> tuple[Sequence[Interface], Sequence[FileSystem]]:
    interfaces = interfaces_of(await guest_agent.ask(running, "network-get-interfaces"))
    try:
        return interfaces, file_systems_of(await guest_agent.ask(running, "get-fsinfo"))
    except ApplianceError:  # older agents do not know this one
        return interfaces, ()


def interfaces_of(answer: object) -> Sequence[Interface]:
    """The interfaces of an answer in the agent's form, but for the loopback; what is not understood is left out."""
    found: list[Interface] = []
    for row in _rows(answer):
        name = _text(row.get("name"))
        addresses = [_address(each) for each in _rows(row.get("ip-addresses"))]
        if name and name != "lo":
            found.append(Interface(name, _text(row.get("hardware-address")), [each for each in addresses if each]))
    return found


def file_systems_of(answer: object) -> Sequence[FileSystem]:
    """The file systems whose size the agent tells, by path."""
    found: list[FileSystem] = []
    for row in _rows(answer):
        total, used = row.get("total-bytes"), row.get("used-bytes")
        if isinstance(total, int) and isinstance(used, int) and 0 <= used <= total and 0 < total < 1 << 62:
            found.append(FileSystem(_text(row.get("mountpoint")), _text(row.get("type")), used, total))
    return sorted(found, key=lambda each: each.path)


def _rows(value: object) -> Sequence[Mapping[str, object]]:
    return [row for row in value[:ROWS_LIMIT] if isinstance(row, dict)] if isinstance(value, list) else []


def _address(row: Mapping[str, object]) -> str:
    address, prefix = _text(row.get("ip-address")), row.get("prefix")
    return f"{address}/{prefix}" if address and isinstance(prefix, int) else address


def _text(value: object) -> str:
    return value[:TEXT_LIMIT] if isinstance(value, str) else ""
