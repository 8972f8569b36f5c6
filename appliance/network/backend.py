"""`NetworkBackend`: bridges and guest ports of one appliance, as services see them (`services.ports.network.NetworkBackend`).

    backend (loop)  →  home.NetworkThread  →  bridge, ports  →  kernel.rtnetlink, nftables, tuntap, netns
                    →  dnsmasq.Dnsmasq (supervised process)
                    →  dhcp_clients.DhcpClients (supervised processes in containers' namespaces)
    names, addresses, rules: pure

What is made: the managed bridge (NAT, DHCP, DNS), a tap or veth port for each NIC, the nft tables `inet` and `bridge`
`appliance-TAG`, one dnsmasq. All of it carries this instance's tag, is found again by it at the next start, and goes
with `teardown`. Interfaces, rules and processes of anybody else are never changed. The one setting of the host that is
touched is `net.ipv4.ip_forward`, noted and restored.

Several instances on one host need a network namespace each (`netns`), or bridges of different names.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import ApplianceError, Conflict, HostError, NotFound
from appliance.kernel import netns as kernel_netns
from appliance.model.application import PublishedPort
from appliance.model.guest import GuestId, NicSpec
from appliance.model.network import DEFAULT_BRIDGE, BridgeSettings, BridgeState, HostInterface
from appliance.network import bridge, dnsmasq, names
from appliance.network.addresses import Reservations, pool_of
from appliance.network.dhcp_clients import DhcpClients
from appliance.network.dnsmasq import Dnsmasq, DnsmasqFiles
from appliance.network.home import Home, NetworkThread
from appliance.network.interfaces import describe
from appliance.network.ports import Ports
from appliance.network.publish import Published
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)


class NetworkBackend:
    """See the module's docstring. `start` first; `close` last.

    `instance` tells appliances of one host apart (the data directory, say); `run_dir` is a tmpfs of this instance.
    With `only_one` the ports have Proxmox VE's names; an appliance beside another one gives that up.
    """

    def __init__(
        self,
        run_dir: Path,
        scope: TaskScope,
        clock: Clock,
        *,
        instance: str,
        bridge: str = DEFAULT_BRIDGE,
        netns: str | None = None,
        only_one: bool = True,
    ) -> None:
        self.tag = names.tag_of(instance)
        self._port_space = "" if only_one else self.tag
        self.default_bridge = bridge
        self._directory = run_dir / "network"
        self._note = self._directory / "host-settings.json"
        self._scope = scope
        self._clock = clock
        self._thread = NetworkThread(None if netns is None else kernel_netns.path_of(netns))
        self._ports: Ports | None = None
        self._published: Published | None = None
        self._failure = ""
        self._dnsmasq: Dnsmasq | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._applying = asyncio.Lock()
        self._clients = DhcpClients(self._directory, tag=self.tag, clock=clock, scope=scope)

    # --- life

    async def start(self, settings: BridgeSettings | None = None) -> BridgeState:
        """Make or find the bridge, take over the ports an earlier run left, start DHCP.

        Returns what became of `settings`: the subnet chosen, and whether the bridge is ours. Raises `Conflict` (another
        appliance has it), `Unsupported`, `HostError`; then every later call says why the network is not there.
        """
        try:
            await self._thread.open()
            if not await self._thread.call("network", Home.announce, self.tag):
                raise Conflict(f"another appliance of this instance ({self.tag}) runs in this network namespace")
            return await self.apply(settings or BridgeSettings(name=self.default_bridge))
        except ApplianceError as error:
            self._failure = str(error)
            await self._thread.close()
            raise

    async def apply(self, settings: BridgeSettings) -> BridgeState:
        """Bring the managed bridge to `settings` (the name cannot change while it exists); DHCP starts anew."""
        async with self._applying:
            await self._stop_dnsmasq()
            try:
                self._ports = await self._thread.call(f"bridge {settings.name}", self._establish, settings)
                await self._clients.adopt(set(self._ports.known))
                return self._ports.state
            finally:
                if self._ports is not None:  # after an error those of before: the guests on them keep their DHCP
                    await self._serve_dhcp(self._ports)

    async def _serve_dhcp(self, ports: Ports) -> None:
        settings = ports.state.settings
        if ports.reservations is not None and settings.subnet is not None:
            await self._start_dnsmasq(settings, len(pool_of(settings.subnet)))

    def _establish(self, home: Home, settings: BridgeSettings) -> Ports:
        self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        state = bridge.establish(home, self.tag, settings, self._note)
        files = self._files(settings.name)
        reservations = None
        if state.managed and state.settings.dhcp and state.settings.subnet is not None:
            text = files.hosts.read_text() if files.hosts.exists() else ""
            reservations = Reservations(state.settings.subnet, dnsmasq.parse_hosts(text))
        ports = Ports(home, self.tag, state, reservations, files.hosts, {}, self._port_space)
        ports.adopt()
        if reservations is not None:
            ports.write_hosts()
        self._published = Published(home, self.tag, self._directory / "published.json")
        self._published.restore()
        return ports

    def _files(self, name: str) -> DnsmasqFiles:
        return DnsmasqFiles(self._directory, tag=self.tag, bridge=name)

    async def _start_dnsmasq(self, settings: BridgeSettings, pool_size: int) -> None:
        files = self._files(settings.name)

        def prepare(_: Home) -> None:
            left = dnsmasq.end_running(self.tag, settings.name)
            if left:
                log.info("bridge %s: ended %d dnsmasq of an earlier run", settings.name, left)
            user = dnsmasq.user_for(self._directory)
            files.config.write_text(dnsmasq.configuration(settings, files, user=user, pool_size=pool_size))

        await self._thread.call(f"dnsmasq of {settings.name}", prepare)
        self._dnsmasq = Dnsmasq(
            files,
            self._clock,
            lambda function: self._thread.call(f"dnsmasq of {settings.name}", lambda _: function()),
        )
        self._supervision = self._scope.start(self._dnsmasq.supervise(), name=f"dnsmasq-{settings.name}")

    async def _stop_supervision(self) -> None:
        task, self._supervision = self._supervision, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _stop_dnsmasq(self) -> None:
        await self._stop_supervision()
        process, self._dnsmasq = self._dnsmasq, None
        if process is not None:
            await self._thread.call(process.files.config.name, lambda _: process.end())

    async def close(self) -> None:
        """Let go. With no guest port left everything is removed; else it all stays, DHCP too, for the next start."""
        ports = self._ports
        if ports is not None and not ports.known:
            await self.teardown()
        await self._clients.let_go()
        await self._stop_supervision()
        process, self._dnsmasq = self._dnsmasq, None
        if process is not None:  # in the thread: after a start that may be under way there
            await self._thread.call(process.files.config.name, lambda _: process.let_go())
        self._ports = None
        await self._thread.close()

    async def teardown(self) -> Sequence[str]:
        """Remove everything this instance made, running guests' ports too; the interfaces removed, by name.

        Works without `start` as well (after it failed, or to clean up after an instance that is gone).
        """
        await self._thread.open()
        await self._stop_dnsmasq()
        await self._clients.end_all()
        self._ports = self._published = None

        def remove(home: Home) -> list[str]:
            bridges = [link.name for link in bridge.owned_links(home, self.tag) if link.kind == "bridge"]
            for name in bridges:
                dnsmasq.end_running(self.tag, name)
                for path in self._files(name).all():
                    path.unlink(missing_ok=True)
            Published(home, self.tag, self._directory / "published.json").clear()
            return list(bridge.remove(home, self.tag, self._note))

        return await self._thread.call("network", remove)

    # --- ports

    def _ready(self) -> Ports:
        if self._ports is None:
            raise HostError(f"the network is not available: {self._failure or 'it has not been started'}")
        return self._ports

    async def check(self, nic: NicSpec) -> None:
        """Refuse what cannot be plugged. Raises `NotFound`, `Unsupported`, `InvalidParameter`."""
        ports = self._ready()
        await self._thread.call(nic.slot, lambda _: ports.check(nic))

    async def plug_vm(self, guest_id: GuestId, nic: NicSpec) -> str:
        """Make (or find) the tap device of this NIC; its name."""
        ports = self._ready()
        if await self._thread.call(f"vm {guest_id}: {nic.slot}", lambda _: ports.plug_vm(guest_id, nic)):
            self._reload_dnsmasq()
        return names.port_name("tap", guest_id, nic.slot, space=self._port_space)

    async def plug_ct(self, guest_id: GuestId, nic: NicSpec, namespace: Path) -> None:
        """Make the veth pair of this NIC, its far end inside the network `namespace`, up, named `nic.name`.

        Addresses that a DHCP server gives (`DhcpClients`) are asked for from now on, and not waited for.
        """
        ports = self._ready()
        await self._clients.end(guest_id, nic.slot)
        if await self._thread.call(f"ct {guest_id}: {nic.slot}", lambda _: ports.plug_ct(guest_id, nic, namespace)):
            self._reload_dnsmasq()
        name = names.port_name("veth", guest_id, nic.slot, space=self._port_space)
        try:
            await self._clients.begin(name, guest_id, nic, namespace, reserved=ports.reserves(nic))
        except ApplianceError:
            await self._thread.call(f"ct {guest_id}: {nic.slot}", lambda _: ports.remove(name))
            raise

    def _reload_dnsmasq(self) -> None:
        if self._dnsmasq is not None:
            self._dnsmasq.reload()

    def resolver(self, bridge: str) -> str:
        """The name server for guests on this bridge that do not ask by DHCP; "" where we know none."""
        state = self._ports.state if self._ports is not None else None
        if state is None or not state.managed or state.settings.name != bridge:
            return ""
        return str(state.settings.gateway) if state.settings.dns and state.settings.dhcp else ""

    def learned_resolvers(self, guest_id: GuestId) -> Sequence[str]:
        """The name servers that DHCP servers told the host for this guest; none where it asks itself, or not yet."""
        return self._clients.resolvers(guest_id)

    def on_learned(self, heard: Callable[[GuestId], None]) -> None:
        """Have `heard` called on the loop whenever `learned_resolvers` of a guest has changed. For one listener."""
        self._clients.heard = heard

    async def publish(self, guest_id: GuestId, wanted: Sequence[PublishedPort]) -> None:
        """Let ports of the host lead to this guest, which is plugged, until it is unplugged.

        Raises `Conflict` for a port that is taken, `Unsupported` when its address is not known here, `InvalidParameter`.
        """
        ports, published = self._ready(), self._published
        assert published is not None

        def work(_: Home) -> None:
            port, address = ports.reachable(guest_id)
            published.add(guest_id, wanted, address=address, bridge=port.bridge)

        await self._thread.call(f"guest {guest_id}: published ports", work)

    async def unplug(self, guest_id: GuestId) -> None:
        """Remove every port of this guest, and what it publishes; not an error when there is none."""
        ports, published = self._ports, self._published
        if ports is None or published is None:
            return
        await self._clients.end(guest_id)

        def work(_: Home) -> None:
            published.remove(guest_id)
            ports.unplug(guest_id)

        await self._thread.call(f"guest {guest_id}: network", work)

    async def unplug_one(self, guest_id: GuestId, slot: str) -> None:
        """Remove one port of this guest; not an error when there is none."""
        ports = self._ready()
        await self._clients.end(guest_id, slot)
        await self._thread.call(f"guest {guest_id}: {slot}", lambda _: ports.unplug_one(guest_id, slot))

    async def reconcile(self, keep: Collection[tuple[GuestId, str]]) -> Sequence[str]:
        """Remove the ports of guests that do not run: all but (guest, slot) in `keep`; the names removed."""
        ports, published = self._ready(), self._published
        assert published is not None
        await self._clients.keep(keep)

        def work(_: Home) -> Sequence[str]:
            published.keep({guest_id for guest_id, _ in keep})
            return ports.reconcile(keep)

        return await self._thread.call("network", work)

    async def set_link(self, guest_id: GuestId, slot: str, *, up: bool) -> None:
        """Plug or pull the cable of a port. Raises `NotFound`."""
        ports = self._ready()
        await self._thread.call(f"guest {guest_id}: {slot}", lambda _: ports.set_link(guest_id, slot, up=up))

    # --- asking

    async def leases(self) -> Mapping[str, str]:
        """MAC (upper case) to IPv4 address of the DHCP leases on the managed bridge."""
        ports = self._ports
        if ports is None or ports.reservations is None:
            return {}
        path = self._files(ports.state.settings.name).leases
        return await asyncio.to_thread(dnsmasq.read_leases, path, now=self._clock.now())

    async def counters(self, guest_id: GuestId) -> tuple[int, int]:
        """Bytes (in, out) as the guest sees them, summed over its ports; zeros when it has none."""
        ports = self._ports
        if ports is None:
            return 0, 0
        return await self._thread.call(f"guest {guest_id}: network", lambda _: ports.counters(guest_id))

    async def interfaces(self) -> Sequence[HostInterface]:
        """Every network interface of the host (of the namespace), guests' ports included, by name."""
        await self._thread.open()
        return await self._thread.call("network interfaces", lambda home: describe(home, self.tag))

    async def interface(self, name: str) -> HostInterface:
        """One of them. Raises `NotFound`."""
        for each in await self.interfaces():
            if each.name == name:
                return each
        raise NotFound(f"network interface {name}")
