"""/nodes/{node}/network: the host's interfaces. Only the bridge the appliance made can be changed."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_interface
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.errors import InvalidParameter, NotFound, Unsupported
from appliance.model.network import HostInterface
from appliance.services.network import BridgeChange, NetworkService
from appliance.services.tasks import TaskHandle
from appliance.web.registry import LOGGED_IN, Allow, Call, NodeParams, Resource

api = Resource()

SYS_AUDIT = Allow("/nodes/{node}", "Sys.Audit")
SYS_MODIFY = Allow("/nodes/{node}", "Sys.Modify")
KINDS = {"bridge": "bridge", "bond": "bond", "vlan": "vlan"}
InterfaceType = Literal[
    "bridge", "bond", "eth", "alias", "vlan", "fabric", "OVSBridge", "OVSBond", "OVSPort", "OVSIntPort", "vnet",
    "any_bridge", "any_local_bridge", "include_sdn",
]  # fmt: skip
InterfaceName = Annotated[str, Meta(min_length=2, max_length=20, pattern=r"^[a-zA-Z][a-zA-Z0-9_.:-]{1,19}$")]
Mask = Annotated[str, Meta(pattern=r"^(\d{1,2}|\d{1,3}(\.\d{1,3}){3})$")]


class ListParams(NodeParams, kw_only=True):
    """A filter."""

    type: Annotated[InterfaceType, Meta(description="only interfaces of this type")] | None = None


class InterfaceParams(NodeParams, kw_only=True):
    """One interface."""

    iface: InterfaceName


class ChangeParams(InterfaceParams, kw_only=True):
    """New settings of the managed bridge; its address is always the first of its subnet."""

    type: Literal["bridge", "bond", "eth", "alias", "vlan", "OVSBridge", "OVSBond", "OVSPort", "OVSIntPort"]
    cidr: Annotated[str, Meta(max_length=18)] | None = None
    address: Annotated[str, Meta(max_length=15)] | None = None
    netmask: Mask | None = None
    mtu: Annotated[int, Meta(ge=1280, le=65520)] | None = None
    comments: Annotated[str, Meta(max_length=4096)] | None = None
    autostart: bool | None = None
    digest: Annotated[str, Meta(max_length=40, description="refuse if its settings are not these any more")] | None = (
        None
    )


class InterfaceRow(msgspec.Struct, kw_only=True):
    """An interface. `priority` is its place in the list; `comments` end with a newline, as in Proxmox VE."""

    iface: str
    type: str
    active: bool
    exists: bool = True
    autostart: bool = True
    method: str
    method6: str
    families: list[str]
    priority: int
    mtu: int
    address: str | None = None
    netmask: str | None = None
    cidr: str | None = None
    gateway: str | None = None
    address6: str | None = None
    netmask6: int | None = None
    cidr6: str | None = None
    bridge_ports: str | None = None
    bridge_stp: str | None = None
    bridge_fd: str | None = None
    bridge_vlan_aware: bool | None = None
    comments: str | None = None
    digest: Annotated[str, Meta(description="of the managed bridge: for `digest` of a change")] | None = None


def type_of(interface: HostInterface) -> str | None:
    """Proxmox VE's word; None for what is not a matter of the host's configuration (loopback, guests' ports …)."""
    if interface.loopback or (interface.owned and interface.kind != "bridge"):
        return None
    return KINDS.get(interface.kind) or ("eth" if interface.hardware else None)


def describe(
    interface: HostInterface, type_: str, *, priority: int, guest_ports: frozenset[str], comment: str
) -> InterfaceRow:
    """The API's form of an interface; its first address of each family counts (link-local ones never)."""
    addresses = [ip_interface(text) for text in interface.addresses]
    v4 = next((each for each in addresses if each.version == 4), None)
    v6 = next((each for each in addresses if each.version == 6 and not each.is_link_local), None)
    row = InterfaceRow(
        iface=interface.name,
        type=type_,
        active=interface.up,
        method="static" if v4 else "manual",
        method6="static" if v6 else "manual",
        families=["inet", *(["inet6"] if v6 else [])],
        priority=priority,
        mtu=interface.mtu,
        gateway=interface.gateway or None,
        comments=f"{comment}\n" if comment else None,
    )
    if v4 is not None:
        row.address, row.netmask, row.cidr = str(v4.ip), str(v4.network.prefixlen), str(v4)
    if v6 is not None:
        row.address6, row.netmask6, row.cidr6 = str(v6.ip), v6.network.prefixlen, str(v6)
    if type_ == "bridge":
        row.bridge_ports = " ".join(port for port in interface.ports if port not in guest_ports)
        row.bridge_stp, row.bridge_fd = "off", "0"
        row.bridge_vlan_aware = interface.vlan_aware or None
    return row


async def _rows(service: NetworkService) -> list[InterfaceRow]:
    interfaces = await service.interfaces()
    guest_ports = frozenset(each.name for each in interfaces if each.owned and each.kind != "bridge")
    rows: list[InterfaceRow] = []
    for each in interfaces:
        type_ = type_of(each)
        if type_ is not None:
            is_managed = service.is_managed(each.name)
            comment = service.comment if is_managed else ""
            row = describe(each, type_, priority=len(rows) + 3, guest_ports=guest_ports, comment=comment)
            row.digest = service.digest if is_managed else None
            rows.append(row)
    return rows


@api.get("/nodes/{node}/network", summary="Network interfaces of the host", allow=LOGGED_IN, returns=list[InterfaceRow])
async def list_interfaces(call: Call, params: ListParams) -> list[InterfaceRow]:
    """All of them with Sys.Audit on the node; else the bridges the caller may use for guests."""
    wanted = {"any_bridge": "bridge", "any_local_bridge": "bridge", "include_sdn": None}.get(
        params.type or "include_sdn", params.type
    )
    everything = call.has(f"/nodes/{call.node}", "Sys.Audit")
    return [
        row
        for row in await _rows(call.services.network)
        if (wanted is None or row.type == wanted) and (everything or _may_use(call, row))
    ]


def _may_use(call: Call, row: InterfaceRow) -> bool:
    path = f"/sdn/zones/localnetwork/{row.iface}"
    return row.type == "bridge" and (call.has(path, "SDN.Use") or call.has(path, "SDN.Audit"))


@api.get("/nodes/{node}/network/{iface}", summary="One network interface", allow=SYS_AUDIT, returns=InterfaceRow)
async def read_interface(call: Call, params: InterfaceParams) -> InterfaceRow:
    """As in the list."""
    for row in await _rows(call.services.network):
        if row.iface == params.iface:
            return row
    raise NotFound(f"network interface {params.iface}")


@api.put("/nodes/{node}/network/{iface}", summary="Change the managed bridge", allow=SYS_MODIFY)
async def change_interface(call: Call, params: ChangeParams) -> None:
    """Takes effect at once. Other interfaces belong to the host's own configuration and are refused.

    With the `digest` that was read, only while nobody else has changed the bridge.
    """
    if params.autostart is False:
        raise Unsupported(f"network interface {params.iface}: the managed bridge always starts with the appliance")
    change = BridgeChange(
        cidr=_cidr(params),
        mtu=params.mtu,
        comment=None if params.comments is None else params.comments.strip(),
        digest=params.digest,
    )
    await call.services.network.update_bridge(params.iface, change)


def _cidr(params: ChangeParams) -> str | None:
    if params.cidr is not None:
        if params.address is not None and params.address != params.cidr.partition("/")[0]:
            raise InvalidParameter({"address": "does not fit to cidr"})
        return params.cidr
    if params.address is None:
        return None
    if params.netmask is None:
        raise InvalidParameter({"netmask": "property is missing and it is required by address"})
    try:
        prefix = IPv4Network(f"0.0.0.0/{params.netmask}").prefixlen
    except ValueError as error:
        raise InvalidParameter({"netmask": f"{params.netmask!r} is not a netmask"}) from error
    return f"{params.address}/{prefix}"


@api.put("/nodes/{node}/network", summary="Apply the network configuration", allow=SYS_MODIFY, returns=str)
async def apply_configuration(call: Call, params: NodeParams) -> str:
    """A task that brings the managed bridge back to its settings. Changes take effect at once: none ever wait for this."""
    service = call.services.network

    async def work(task: TaskHandle) -> None:
        await service.reapply()
        task.log("the managed bridge has been brought to its settings")

    return await call.services.tasks.run("srvreload", object_id="networking", user=call.user, work=work)


@api.post("/nodes/{node}/network", summary="Make a network interface", allow=SYS_MODIFY)
async def make_interface(call: Call, params: ChangeParams) -> None:
    """Refused: the host's own configuration makes interfaces."""
    raise Unsupported(
        f"network interface {params.iface}: the appliance makes no interfaces of the host; use its own configuration"
    )


@api.delete("/nodes/{node}/network/{iface}", summary="Remove a network interface", allow=SYS_MODIFY)
async def remove_interface(call: Call, params: InterfaceParams) -> None:
    """Refused: the host's own configuration removes interfaces."""
    await call.services.network.interface(params.iface)
    raise Unsupported(f"network interface {params.iface}: the appliance removes no interfaces of the host")
