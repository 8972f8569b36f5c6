"""What clients ask for and a single appliance truthfully does not have: empty lists, and errors that say so.

The exporter, ansible and the terraform provider read these in passing; an unknown path would stop them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from appliance.errors import Conflict
from appliance.web.registry import LOGGED_IN, Allow, Call, Resource

api = Resource()

AUDIT = Allow("/", "Sys.Audit")

EMPTY_LISTS: Sequence[tuple[str, str]] = (
    ("/cluster/ha/resources", "Guests under high availability"),
    ("/cluster/ha/groups", "Groups of nodes for high availability"),
    ("/cluster/ha/rules", "Rules of high availability"),
    ("/cluster/ha/status/current", "State of high availability"),
    ("/cluster/backup", "Backup jobs"),
    ("/cluster/replication", "Replication jobs"),
    ("/nodes/{node}/replication", "Replication jobs of this node"),
    ("/cluster/config/nodes", "Nodes of the cluster's configuration"),
    ("/cluster/sdn/zones", "Zones of the software-defined network"),
    ("/cluster/sdn/vnets", "Virtual networks"),
    ("/cluster/sdn/controllers", "Controllers of the software-defined network"),
    ("/cluster/firewall/groups", "Security groups"),
    ("/cluster/firewall/aliases", "Aliases of the firewall"),
    ("/cluster/firewall/ipset", "Address sets of the firewall"),
    ("/cluster/firewall/rules", "Rules of the firewall"),
    ("/cluster/metrics/server", "Metric servers"),
    ("/cluster/mapping/pci", "Mappings of PCI devices"),
    ("/cluster/mapping/usb", "Mappings of USB devices"),
    ("/cluster/mapping/dir", "Mappings of directories"),
    ("/cluster/notifications/endpoints", "Targets of notifications"),
    ("/cluster/acme/account", "ACME accounts"),
    ("/cluster/acme/plugins", "ACME plugins"),
)


class UnsavedGuest(msgspec.Struct, kw_only=True):
    """A guest no backup job covers."""

    vmid: int
    name: str
    type: str


def _declare_empty(path: str, summary: str) -> None:
    @api.get(path, summary=summary, allow=LOGGED_IN, returns=list[dict[str, str]])
    async def nothing(call: Call) -> list[object]:
        """Always empty on this appliance."""
        return []


for _path, _summary in EMPTY_LISTS:
    _declare_empty(_path, _summary)


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
