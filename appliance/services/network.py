"""Networks of this node: the managed bridge's stored settings, MAC addresses, what the host's interfaces are.

The settings are one document, `network/bridges/vmbr0`, written when the bridge is first made, so that its subnet stays
the same over reboots. Where the bridge exists already and is somebody else's, nothing is stored: it is used as it is.
A network that cannot be made does not stop the appliance: guests with NICs then fail to start with `problem` as reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Interface, IPv4Network, NetmaskValueError
from typing import Protocol

import msgspec

from appliance.errors import ApplianceError, Conflict, InvalidParameter, Unsupported
from appliance.model.network import DEFAULT_BRIDGE, BridgeSettings, BridgeState, HostInterface
from appliance.network.addresses import MAC_PREFIX, new_mac
from appliance.services import digests
from appliance.state.documents import Documents
from appliance.state.store import Store
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)

BRIDGES_PREFIX = "network/bridges/"
OPTIONS_KEY = "cluster/options"


class HostNetwork(Protocol):
    """The part of the network backend this service speaks to (`network.backend.NetworkBackend`)."""

    async def start(self, settings: BridgeSettings | None = None) -> BridgeState: ...

    async def apply(self, settings: BridgeSettings) -> BridgeState: ...

    async def interfaces(self) -> Sequence[HostInterface]: ...

    async def interface(self, name: str) -> HostInterface: ...

    async def leases(self) -> Mapping[str, str]: ...

    async def close(self) -> None: ...


class BridgeDocument(msgspec.Struct, kw_only=True):
    """The managed bridge as it is stored."""

    subnet: str | None = None
    dhcp: bool = True
    dns: bool = True
    mtu: int = 1500
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeChange:
    """New settings for the managed bridge; None leaves one as it is. `cidr` is the bridge's own address.

    `digest`: only while its settings are those (`NetworkService.digest`).
    """

    cidr: str | None = None
    mtu: int | None = None
    comment: str | None = None
    digest: str | None = None


class NetworkService:
    """See the module's docstring."""

    def __init__(self, backend: HostNetwork, store: Store, scope: TaskScope, *, bridge: str = DEFAULT_BRIDGE) -> None:
        self._backend = backend
        self._bridges = Documents(store, BRIDGES_PREFIX, BridgeDocument)
        self._store = store
        self._scope = scope
        self._name = bridge
        self._mac_prefix = MAC_PREFIX
        self.state: BridgeState | None = None
        self._changing = asyncio.Lock()  # a change begins with the state the one before it left
        self.problem = ""
        """Why there is no network; "" when there is."""

    async def start(self) -> None:
        """Bring the network up as stored. A host that cannot is logged, not raised. Raises `StoreError`."""
        await self._read_mac_prefix()
        self._scope.start(self._watch_mac_prefix(), name="mac-prefix")
        stored = await self._bridges.get(self._name)
        settings = BridgeSettings(name=self._name) if stored is None else _settings(self._name, stored.value)
        try:
            self.state = await self._backend.start(settings)
        except ApplianceError as error:
            self.problem = str(error)
            log.error("bridge %s: %s", self._name, error)
            return
        if self.state.managed and self.state.settings != settings:
            await self._save(self.state.settings)

    async def close(self) -> None:
        """Let go of the network; it goes with the last guest."""
        await self._backend.close()

    async def _save(self, settings: BridgeSettings) -> None:
        await self._store.txn([], [self._bridges.put(self._name, _document(settings))])

    # --- MAC addresses

    def new_mac(self, used: Collection[str]) -> str:
        """A MAC no guest has (`used`, any case), below the cluster's `mac_prefix`. Raises `Conflict`."""
        return new_mac(used, prefix=self._mac_prefix)

    async def _read_mac_prefix(self) -> int:
        documents, revision = await self._store.range(OPTIONS_KEY)
        value = next((each.value for each in documents if each.key == OPTIONS_KEY), b"{}")
        self._mac_prefix = _prefix_in(value)
        return revision

    async def _watch_mac_prefix(self) -> None:
        revision = await self._read_mac_prefix()
        async with self._store.watch(OPTIONS_KEY, after=revision) as changes:
            async for _ in changes:
                await self._read_mac_prefix()

    # --- asking

    async def leases(self) -> Mapping[str, str]:
        """MAC (upper case) to IPv4 address of guests that have a DHCP lease now."""
        return await self._backend.leases()

    async def interfaces(self) -> Sequence[HostInterface]:
        """Every interface of the host, guests' ports included."""
        return await self._backend.interfaces()

    async def interface(self, name: str) -> HostInterface:
        """One of them. Raises `NotFound`."""
        return await self._backend.interface(name)

    def is_managed(self, name: str) -> bool:
        """Whether `name` is the bridge this appliance makes."""
        return self.state is not None and self.state.managed and name == self._name

    @property
    def comment(self) -> str:
        """The managed bridge's comment."""
        return self.state.settings.comment if self.state is not None else ""

    @property
    def digest(self) -> str:
        """What tells one state of the managed bridge's settings from another; "" while there is no bridge."""
        return digests.digest(_document(self.state.settings)) if self.state is not None else ""

    # --- changing

    async def update_bridge(self, name: str, change: BridgeChange) -> None:
        """Change the managed bridge at once; guests get new addresses when they renew their leases.

        Raises `NotFound`, `Unsupported` for any other interface, `InvalidParameter` naming what is wrong, `Conflict` when
        its settings are not those of `change.digest` any more.
        """
        async with self._changing:
            await self._update_bridge(name, change)

    async def _update_bridge(self, name: str, change: BridgeChange) -> None:
        await self._backend.interface(name)
        if not self.is_managed(name) or self.state is None:
            raise Unsupported(f"network interface {name}: the appliance does not change interfaces it did not make")
        settings = self.state.settings
        if change.digest and change.digest != self.digest:
            raise Conflict(f"bridge {name} has changed meanwhile: it is edited as it is now, or without a digest")
        if change.cidr is not None:
            settings = settings.with_subnet(await self._free_subnet(name, change.cidr))
        if change.mtu is not None:
            settings = replace(settings, mtu=change.mtu)
        if change.comment is not None:
            settings = replace(settings, comment=change.comment)
        self.state = await self._backend.apply(settings)
        await self._save(self.state.settings)

    async def _free_subnet(self, name: str, cidr: str) -> IPv4Network:
        try:
            wanted = IPv4Interface(cidr)
        except (AddressValueError, NetmaskValueError, ValueError) as error:
            raise InvalidParameter({"cidr": f"{cidr!r} is not an IPv4 address with a prefix"}) from error
        if wanted.network.prefixlen < 30 and wanted.ip != wanted.network[1]:
            raise InvalidParameter({"cidr": f"the bridge has the first address of its subnet, {wanted.network[1]}"})
        for each in await self._backend.interfaces():
            for text in each.addresses:
                if each.name != name and ":" not in text and IPv4Interface(text).network.overlaps(wanted.network):
                    raise InvalidParameter({"cidr": f"{wanted.network} overlaps {text} of {each.name}"})
        return wanted.network

    async def reapply(self) -> None:
        """Bring the managed bridge back to its settings, whatever has been done to it. Raises `Conflict` without one."""
        if self.state is None:
            raise Conflict(f"the network is not available: {self.problem or 'it has not been started'}")
        async with self._changing:
            self.state = await self._backend.apply(self.state.settings)


def _document(settings: BridgeSettings) -> BridgeDocument:
    return BridgeDocument(
        subnet=None if settings.subnet is None else str(settings.subnet),
        dhcp=settings.dhcp,
        dns=settings.dns,
        mtu=settings.mtu,
        comment=settings.comment,
    )


def _settings(name: str, document: BridgeDocument) -> BridgeSettings:
    return BridgeSettings(
        name=name,
        subnet=None if document.subnet is None else IPv4Network(document.subnet),
        dhcp=document.dhcp,
        dns=document.dns,
        mtu=document.mtu,
        comment=document.comment,
    )


def _prefix_in(options: bytes) -> str:
    """`mac_prefix` of the cluster's options, checked where it is written; the default when it is not set."""
    try:
        value = msgspec.json.decode(options)
    except msgspec.DecodeError:
        return MAC_PREFIX
    prefix = value.get("mac_prefix") if isinstance(value, dict) else None
    return prefix.rstrip(":").upper() if isinstance(prefix, str) and prefix else MAC_PREFIX
