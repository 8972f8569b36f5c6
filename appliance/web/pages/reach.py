"""Whether programs and files inside a guest can be reached now, and what the viewer may do there: its tab "Inside".

The tab calls the API (`web/api/lxc_inside.py`, `guest_agent_commands.py`), which decides again. An agent is asked when the
tab is looked at, in a request of its own: a silent one takes its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from aiohttp import web

from appliance.errors import ApplianceError, Conflict
from appliance.model.guest import GuestKind, GuestState
from appliance.services import ct_inside, guest_agent
from appliance.web.api.guest_rows import has_agent
from appliance.web.api.inside_params import UNRESTRICTED
from appliance.web.pages import contexts
from appliance.web.pages.contexts import Context
from appliance.web.pages.viewer import Viewer
from appliance.web.pages.visit import Visit, visited

FILE_LIMIT_BYTES: Final = 1 << 20
"""A larger file is not shown as text, only downloaded."""


class Reach(StrEnum):
    """How a guest can be reached."""

    READY = "ready"
    """The container runs, or the VM's agent has answered."""
    ASKED = "asked"
    """The VM's agent is to be asked."""
    STOPPED = "stopped"
    PAUSED = "paused"
    OFF = "off"
    """The agent is off in the VM's options."""
    WAITING = "waiting"
    """The agent is on in the options from the VM's next start."""
    SILENT = "silent"
    """The agent does not answer, or the engine lets nobody in."""


@dataclass(frozen=True, slots=True)
class InsideRights:
    """What the viewer may do inside a guest, as the API's methods demand it."""

    execute: bool
    read: bool
    write: bool
    audit: bool
    """See what a VM's agent says of the system."""
    manage: bool
    """Freeze and thaw a VM's file systems."""

    @property
    def any(self) -> bool:
        """Whether there is a tab; what an agent tells alone is on the summary too."""
        return self.execute or self.read or self.write or self.manage


def rights(viewer: Viewer, guest_id: int) -> InsideRights:
    """What to show of the tab."""
    held = viewer.services.access.privileges(viewer.identity, f"/vms/{guest_id}")
    everything, is_vm = UNRESTRICTED in held, viewer.guest(guest_id).kind is GuestKind.QEMU
    return InsideRights(
        execute=everything,
        read=everything or "VM.GuestAgent.FileRead" in held,
        write=everything or "VM.GuestAgent.FileWrite" in held,
        audit=is_vm and (everything or "VM.GuestAgent.Audit" in held),
        manage=is_vm and (everything or "VM.GuestAgent.FileSystemMgmt" in held),
    )


def now(viewer: Viewer, guest_id: int) -> Context:
    """What is known without asking the guest."""
    guest = viewer.guest(guest_id)
    reach, silence = _of_state(guest.state), ""
    if reach is Reach.READY and guest.kind is GuestKind.QEMU:
        reach = _of_configuration(viewer, guest_id)
    elif reach is Reach.READY:
        try:
            ct_inside.of(viewer.services.guests.running(guest.guest_id))
        except Conflict:  # it has just ended
            reach = Reach.STOPPED
        except ApplianceError as error:
            reach, silence = Reach.SILENT, error.message
    return {**contexts.guest_head(viewer, guest_id), "reach": reach, "silence": silence}


@visited
async def show(visit: Visit) -> web.StreamResponse:
    """GET /parts/guest/{vmid}/reach: the same once the agent has been asked."""
    viewer, guest_id = visit.viewer, visit.number("vmid")
    context = now(viewer, guest_id)
    if context["reach"] is Reach.ASKED:
        try:
            await guest_agent.ask(viewer.services.guests.running(viewer.guest(guest_id).guest_id), "ping")
            context["reach"] = Reach.READY
        except ApplianceError as error:
            context |= {"reach": Reach.SILENT, "silence": error.message}
    return await visit.part("fragments/guest_reach.html", context)


def _of_state(state: GuestState) -> Reach:
    match state:
        case GuestState.RUNNING:
            return Reach.READY
        case GuestState.PAUSED:
            return Reach.PAUSED
        case _:
            return Reach.STOPPED


def _of_configuration(viewer: Viewer, guest_id: int) -> Reach:
    guest = viewer.guest(guest_id)
    guests = viewer.services.guests
    if not has_agent(guests.config(guest.guest_id)[0]):
        return Reach.OFF
    for each in guests.configuration.pending(guest.kind, guest.guest_id):
        if each.key == "agent" and not has_agent({"agent": each.running or ""}):
            return Reach.WAITING
    return Reach.ASKED
