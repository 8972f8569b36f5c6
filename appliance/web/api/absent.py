"""What clients ask for and a single appliance truthfully does not have: empty lists, and errors that say so.

The exporter, ansible and the terraform provider read these in passing; an unknown path would stop them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.errors import Conflict
from appliance.web.registry import LOGGED_IN, Allow, Call, Permission, PveBool, Resource, Vmid

api = Resource()

AUDIT = Allow("/", "Sys.Audit")


class NoFilter(msgspec.Struct, kw_only=True):
    """A list that cannot be filtered."""


class TypeFilter(msgspec.Struct, kw_only=True):
    """Which entries; there are none of any type."""

    type: Annotated[str, Meta(max_length=64)] | None = None


class RuleFilter(TypeFilter, kw_only=True):
    """Which rules; there are none."""

    resource: Annotated[str, Meta(max_length=64)] | None = None


class StateFilter(msgspec.Struct, kw_only=True):
    """Which configuration; both are empty."""

    pending: PveBool = False
    running: PveBool = False


class TypeAndStateFilter(StateFilter, kw_only=True):
    """Which entries of which configuration; there are none."""

    type: Annotated[str, Meta(max_length=64)] | None = None


class NodeFilter(msgspec.Struct, kw_only=True):
    """Which node the entries are checked on; there are none."""

    check_node: Annotated[str, Meta(max_length=63)] | None = msgspec.field(name="check-node", default=None)


class GuestFilter(msgspec.Struct, kw_only=True):
    """Whose entries; there are none."""

    guest: Vmid | None = None


EMPTY_LISTS: Sequence[tuple[str, str, Permission, type[msgspec.Struct]]] = (
    ("/cluster/ha/resources", "Guests under high availability", AUDIT, TypeFilter),
    ("/cluster/ha/groups", "Groups of nodes for high availability", AUDIT, NoFilter),
    ("/cluster/ha/rules", "Rules of high availability", AUDIT, RuleFilter),
    ("/cluster/ha/status/current", "State of high availability", AUDIT, NoFilter),
    ("/cluster/backup", "Backup jobs", AUDIT, NoFilter),
    ("/cluster/replication", "Replication jobs", LOGGED_IN, NoFilter),
    ("/nodes/{node}/replication", "Replication jobs of this node", LOGGED_IN, GuestFilter),
    ("/cluster/config/nodes", "Nodes of the cluster's configuration", AUDIT, NoFilter),
    ("/cluster/sdn/zones", "Zones of the software-defined network", LOGGED_IN, TypeAndStateFilter),
    ("/cluster/sdn/vnets", "Virtual networks", LOGGED_IN, StateFilter),
    ("/cluster/sdn/controllers", "Controllers of the software-defined network", LOGGED_IN, TypeAndStateFilter),
    ("/cluster/firewall/groups", "Security groups", LOGGED_IN, NoFilter),
    ("/cluster/firewall/aliases", "Aliases of the firewall", AUDIT, NoFilter),
    ("/cluster/firewall/ipset", "Address sets of the firewall", AUDIT, NoFilter),
    ("/cluster/firewall/rules", "Rules of the firewall", AUDIT, NoFilter),
    ("/cluster/metrics/server", "Metric servers", AUDIT, NoFilter),
    ("/cluster/mapping/pci", "Mappings of PCI devices", LOGGED_IN, NodeFilter),
    ("/cluster/mapping/usb", "Mappings of USB devices", LOGGED_IN, NodeFilter),
    ("/cluster/notifications/endpoints", "Targets of notifications", LOGGED_IN, NoFilter),
    ("/cluster/acme/account", "ACME accounts", LOGGED_IN, NoFilter),
    ("/cluster/acme/plugins", "ACME plugins", Allow("/", "Sys.Modify"), TypeFilter),
)
"""Path, summary, who may ask, and Proxmox VE's filters, which clients send."""


class UnsavedGuest(msgspec.Struct, kw_only=True):
    """A guest no backup job covers."""

    vmid: int
    name: str
    type: str


def _declare_empty(path: str, summary: str, allow: Permission, filters: type[msgspec.Struct]) -> None:
    async def nothing(call: Call, params: msgspec.Struct) -> list[object]:
        """Always empty on this appliance."""
        return []

    nothing.__annotations__["params"] = filters  # each path has its own; the declaration looks here
    api.get(path, summary=summary, allow=allow, returns=list[dict[str, str]])(nothing)


for _entry in EMPTY_LISTS:
    _declare_empty(*_entry)


@api.get("/cluster/config/qdevice", summary="State of the quorum device", allow=AUDIT, returns=dict[str, str])
async def read_qdevice(call: Call) -> dict[str, str]:
    """Empty: there is none."""
    return {}


@api.get("/cluster/config/join", summary="What another node needs to join", allow=AUDIT)
async def read_join(call: Call) -> None:
    """Refused while this appliance is not part of a cluster."""
    raise Conflict("node is not in a cluster, no join info available!")


@api.get("/cluster/backup-info/not-backed-up", summary="Guests that no backup job covers", allow=AUDIT,
         returns=list[UnsavedGuest])  # fmt: skip
async def list_not_backed_up(call: Call) -> list[UnsavedGuest]:
    """There are no backup jobs, so all guests the caller may see."""
    return [
        UnsavedGuest(vmid=guest.guest_id, name=guest.name, type=guest.kind.value)
        for guest in call.services.guests.list()
        if call.has(f"/vms/{guest.guest_id}", "VM.Audit")
    ]
