"""A host's network that exists only in memory. Fulfils `services.network.HostNetwork`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network

from appliance.errors import ApplianceError, NotFound
from appliance.model.network import BridgeSettings, BridgeState, HostInterface


class FakeNetwork:
    """`managed` False plays a host whose bridge belongs to somebody else, `broken` one that can have none."""

    def __init__(self, *, managed: bool = True, broken: ApplianceError | None = None) -> None:
        self.managed = managed
        self.broken = broken
        self.applied: list[BridgeSettings] = []
        self.lease_table: dict[str, str] = {}
        self.closed = False
        self.hardware = HostInterface(
            name="eth0",
            kind="",
            address="52:54:00:00:00:01",
            mtu=1500,
            up=True,
            carrier=True,
            owned=False,
            addresses=("192.0.2.2/24", "fe80::1/64", "2001:db8::2/64"),
            gateway="192.0.2.1",
        )

    async def start(self, settings: BridgeSettings | None = None) -> BridgeState:
        if self.broken is not None:
            raise self.broken
        return await self.apply(settings or BridgeSettings())

    async def apply(self, settings: BridgeSettings) -> BridgeState:
        if self.managed and settings.subnet is None:
            settings = settings.with_subnet(IPv4Network("10.64.0.0/22"))
        await asyncio.sleep(0)  # as the real one, which asks the kernel
        self.applied.append(settings)
        return BridgeState(settings=settings, managed=self.managed)

    async def interfaces(self) -> Sequence[HostInterface]:
        bridge = [self._bridge(self.applied[-1])] if self.applied else []
        port = HostInterface(
            name="veth101i0", kind="veth", address="", mtu=1500, up=True, carrier=True, owned=True, hardware=False,
            master="vmbr0",
        )  # fmt: skip
        loopback = HostInterface(
            name="lo", kind="", address="", mtu=65536, up=True, carrier=True, owned=False, loopback=True, hardware=False
        )
        return [self.hardware, loopback, port, *bridge]

    def _bridge(self, settings: BridgeSettings) -> HostInterface:
        own = (f"{settings.gateway}/{settings.subnet.prefixlen}",) if self.managed and settings.subnet else ()
        return HostInterface(
            name=settings.name, kind="bridge", address="02:00:00:00:00:01", mtu=settings.mtu, up=True, carrier=True,
            owned=self.managed, hardware=False, addresses=own, ports=("eth1", "veth101i0"),
        )  # fmt: skip

    async def interface(self, name: str) -> HostInterface:
        for each in await self.interfaces():
            if each.name == name:
                return each
        raise NotFound(f"network interface {name}")

    async def leases(self) -> Mapping[str, str]:
        return self.lease_table

    async def close(self) -> None:
        self.closed = True
