"""Figures over time, as Proxmox VE's `rrddata`: of the node, of guests, of storages."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from appliance.model.guest import GuestKind
from appliance.model.metrics import Fold, named
from appliance.web.registry import Allow, Call, GuestParams, NodeParams, Resource

api = Resource()

Figures = list[dict[str, float]]
Timeframe = Annotated[
    Literal["hour", "day", "week", "month", "year"],
    Meta(
        description="how far back: steps of 1 min for an hour and a day, 30 min for a week and a month, 6 h for a year"
    ),
]
How = Annotated[Literal["AVERAGE", "MAX"], Meta(description="how the values of one step become one")]


class NodeGraphParams(NodeParams, kw_only=True):
    """Which stretch of time."""

    timeframe: Annotated[
        Literal["hour", "day", "week", "month", "year", "decade"],
        Meta(description="how far back; a year is kept, which is what a decade shows"),
    ]
    cf: How = "AVERAGE"


class GuestGraphParams(GuestParams, kw_only=True):
    """Which stretch of time of a guest."""

    timeframe: Timeframe
    cf: How = "AVERAGE"


class StorageGraphParams(NodeParams, kw_only=True):
    """Which stretch of time of a storage."""

    storage: Annotated[str, Meta(max_length=100, description="the storage's name")]
    timeframe: Timeframe
    cf: How = "AVERAGE"


@api.get("/nodes/{node}/rrddata", summary="Figures of the node over time", allow=Allow("/nodes/{node}", "Sys.Audit"),
         returns=Figures)  # fmt: skip
async def read_node(call: Call, params: NodeGraphParams) -> Figures:
    """One object a step that has figures, oldest first; what is not known is left out.

    Ratios from 0 to 1, sizes in bytes, rates in bytes a second, pressures in percent of time.
    """
    return await _figures(call, f"node/{call.node}", params.timeframe, params.cf)


@api.get("/nodes/{node}/qemu/{vmid}/rrddata", summary="Figures of a VM over time", allow=Allow("/vms/{vmid}", "VM.Audit"),
         returns=Figures)  # fmt: skip
async def read_vm(call: Call, params: GuestGraphParams) -> Figures:
    """One object a step in which it ran, oldest first. `cpu` is the share of `maxcpu`."""
    return await _guest(call, params, GuestKind.QEMU)


@api.get("/nodes/{node}/lxc/{vmid}/rrddata", summary="Figures of a container over time",
         allow=Allow("/vms/{vmid}", "VM.Audit"), returns=Figures)  # fmt: skip
async def read_container(call: Call, params: GuestGraphParams) -> Figures:
    """One object a step in which it ran, oldest first. `cpu` is the share of `maxcpu`."""
    return await _guest(call, params, GuestKind.LXC)


@api.get("/nodes/{node}/storage/{storage}/rrddata", summary="Space of a storage over time",
         allow=Allow("/storage/{storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True),
         returns=Figures)  # fmt: skip
async def read_storage(call: Call, params: StorageGraphParams) -> Figures:
    """`total` and `used` bytes of each step, oldest first."""
    call.services.storage.storage(params.storage)
    return await _figures(call, f"storage/{params.storage}", params.timeframe, params.cf)


async def _guest(call: Call, params: GuestGraphParams, kind: GuestKind) -> Figures:
    call.services.guests.get(params.vmid, kind)
    return await _figures(call, f"{kind.value}/{params.vmid}", params.timeframe, params.cf)


async def _figures(call: Call, series: str, timeframe: str, how: str) -> Figures:
    points = await call.services.metrics.history(series, timeframe, Fold(how))
    return [{"time": point.time, **named(series, point)} for point in points]
