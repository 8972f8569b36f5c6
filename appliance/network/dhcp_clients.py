"""The DHCP clients of containers' interfaces whose addresses the host sets: one each, supervised. On the loop.

    the managed bridge, IPv4    no client: the address is reserved here, and set (ports.py)
    any other bridge            dhcpcd (dhcp_process.py), for `ip=dhcp`, `ip6=dhcp` or both

A client lives as long as its port. It goes on while the appliance is down, keeps its leases then, and is found by its pid and
start time; one that ended is started again, sooner at first, then every 30 s. With its port it gives its addresses back.
What it was told of name servers is `resolvers`; who set `heard` hears of a change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.kernel.pidfd import identify, pidfd_open
from appliance.model.guest import GuestId, NicSpec
from appliance.network import dhcp_process
from appliance.network.dhcp_files import DhcpFiles, DhcpRequest
from appliance.network.dnsmasq import reap
from appliance.tasks import TaskScope
from appliance.threads import to_the_end
from appliance.waiting import readable

log = logging.getLogger(__name__)

BACKOFF_FIRST_S, BACKOFF_LAST_S, STABLE_AFTER_S = 0.5, 30.0, 60.0


@dataclass(slots=True)
class _Client:
    files: DhcpFiles
    request: DhcpRequest
    pid: int | None = None
    pidfd: int | None = None
    resolvers: tuple[str, ...] = ()
    supervision: asyncio.Task[None] | None = None

    @property
    def label(self) -> str:
        """For messages."""
        return f"guest {self.request.guest_id}: {self.request.slot}: DHCP client"

    def let_go(self) -> None:
        """Forget the process without ending it."""
        if self.pidfd is not None:
            os.close(self.pidfd)
        self.pid = self.pidfd = None


def needs_client(nic: NicSpec, *, reserved: bool) -> tuple[bool, bool]:
    """Whether a client has to ask for (IPv4, IPv6); `reserved`: the IPv4 address is known without one. Pure."""
    if not nic.host_managed:
        return False, False
    return nic.ip == "dhcp" and not reserved, nic.ip6 == "dhcp"


class DhcpClients:
    """See the module's docstring. `directory` is this instance's; ports are told apart by their names."""

    def __init__(self, directory: Path, *, tag: str, clock: Clock, scope: TaskScope) -> None:
        self._directory = directory / "dhcp"
        self._prefix = f"{tag}-"
        self._clock = clock
        self._scope = scope
        self._clients: dict[str, _Client] = {}
        self.heard: Callable[[GuestId], None] = lambda guest_id: None

    def resolvers(self, guest_id: GuestId) -> tuple[str, ...]:
        """The name servers this guest's clients were told, as addresses; at most three a client."""
        clients = [client for _, client in sorted(self._clients.items()) if client.request.guest_id == guest_id]
        return tuple(dict.fromkeys(server for each in clients for server in each.resolvers))

    async def begin(self, port: str, guest_id: GuestId, nic: NicSpec, namespace: Path, *, reserved: bool) -> None:
        """Ask for the addresses of the NIC of `port`, whose far end is up in `namespace`, from now on until `end`; nothing where
        no client is needed. Raises `HostError`, `Unsupported`; then there is none."""
        four, six = needs_client(nic, reserved=reserved)
        if not (four or six):
            return
        files = self._files(port)

        def start() -> _Client:
            found = namespace.stat()
            request = DhcpRequest(
                guest_id=guest_id,
                slot=nic.slot,
                interface=nic.name or nic.slot.replace("net", "eth"),
                mac=nic.mac.lower(),
                four=four,
                six=six,
                namespace=(found.st_dev, found.st_ino),
            )
            client = _Client(files, request)
            client.pid, client.pidfd = dhcp_process.start(files, request, namespace)
            return client

        client = await to_the_end(start)
        self._clients[port] = client
        self._supervise(port, client)

    def _files(self, name: str) -> DhcpFiles:
        return DhcpFiles(self._directory / f"{self._prefix}{name}")

    def _supervise(self, name: str, client: _Client) -> None:
        client.supervision = self._scope.start(self._run(client), name=f"dhcp-{name}")

    async def adopt(self, ports: Collection[str]) -> None:
        """Take over the clients of an earlier run whose ports are still there, and end the others."""
        present = await asyncio.to_thread(self._present)
        for name in present.keys() - set(ports) - self._clients.keys():
            await self._end(name)
        for name in present.keys() & set(ports) - self._clients.keys():
            request = present[name]
            if request is None:
                log.warning("port %s: its DHCP client's directory is not complete, removed", name)
                await self._end(name)
                continue
            client = _Client(self._files(name), request)
            self._clients[name] = client
            self._supervise(name, client)

    def _present(self) -> dict[str, DhcpRequest | None]:
        found = [path.name for path in self._directory.glob(f"{self._prefix}*")]
        names = [name.removeprefix(self._prefix) for name in found]
        return {name: self._files(name).request() for name in names}

    async def end(self, guest_id: GuestId, slot: str | None = None) -> None:
        """End a guest's clients (of one of its NICs), addresses given back; not an error where there is none."""
        await self._end_where(lambda request: request.guest_id == guest_id and slot in (None, request.slot))

    async def keep(self, wanted: Collection[tuple[GuestId, str]]) -> None:
        """End all but those of (guest, slot) in `wanted`."""
        await self._end_where(lambda request: (request.guest_id, request.slot) not in wanted)

    async def _end_where(self, meant: Callable[[DhcpRequest], bool]) -> None:
        names = [name for name, client in self._clients.items() if meant(client.request)]
        await asyncio.gather(*(self._end(name) for name in names))

    async def _end(self, name: str) -> None:
        client, files = self._clients.pop(name, None), self._files(name)
        if client is not None:
            await self._stop_supervision(client)

        def work() -> None:
            # the descriptor knows a process that has not yet written down who it is
            process = files.process() if client is None or client.pid is None else identify(client.pid)
            if process is not None:
                dhcp_process.end(process)
            if client is not None and client.pidfd is not None:
                reap(client.pidfd)
                client.let_go()
            files.remove()

        await to_the_end(work)

    async def end_all(self) -> None:
        """Every client of this instance, those of an earlier run as well."""
        names = (await asyncio.to_thread(self._present)).keys() | self._clients.keys()
        await asyncio.gather(*(self._end(name) for name in names))
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._directory.rmdir)

    async def let_go(self) -> None:
        """Leave them all running."""
        for client in self._clients.values():
            await self._stop_supervision(client)
            client.let_go()
        self._clients.clear()

    async def _stop_supervision(self, client: _Client) -> None:
        task, client.supervision = client.supervision, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    # --- supervision --------------------------------------------------------------------------------------------------

    async def _run(self, client: _Client) -> None:
        backoff_s = BACKOFF_FIRST_S
        fd = await to_the_end(client.files.open_heard)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def drain() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
            changed.set()

        loop.add_reader(fd, drain)
        listening = self._scope.start(self._listen(client, changed), name=f"dhcp-{client.files.directory.name}-heard")
        try:
            while True:
                began = self._clock.monotonic()
                try:
                    if not await to_the_end(self._find_or_start, client):
                        return
                except ApplianceError as error:
                    log.error("%s: %s", client.label, error)
                else:
                    assert client.pidfd is not None
                    await readable(client.pidfd)
                    await to_the_end(self._ended, client)
                if self._clock.monotonic() - began > STABLE_AFTER_S:
                    backoff_s = BACKOFF_FIRST_S
                await self._clock.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_LAST_S)
        finally:
            loop.remove_reader(fd)
            os.close(fd)
            listening.cancel()
            await asyncio.wait({listening})

    async def _listen(self, client: _Client, changed: asyncio.Event) -> None:
        """Read what it was told, at first and whenever it says so."""
        while True:
            told = await asyncio.to_thread(client.files.resolvers)
            if told != client.resolvers:
                client.resolvers = told
                self.heard(client.request.guest_id)
            await changed.wait()
            changed.clear()

    @staticmethod
    def _find_or_start(client: _Client) -> bool:
        """See that it runs; False when there is nothing left to run it for. Raises as `dhcp_process.start`."""
        if client.pidfd is not None:
            return True
        process = client.files.process()
        if process is not None:
            client.pid, client.pidfd = process.pid, pidfd_open(process)
            if client.pidfd is not None:
                return True
        namespace = dhcp_process.namespace_of(client.request)
        if namespace is None:  # the container has ended: its port goes next
            return False
        client.pid, client.pidfd = dhcp_process.start(client.files, client.request, namespace)
        return True

    @staticmethod
    def _ended(client: _Client) -> None:
        assert client.pidfd is not None
        assert client.pid is not None
        status, pid = reap(client.pidfd), client.pid
        client.let_go()
        dhcp_process.end_remains(pid)
        log.warning(
            "%s (pid %s) ended with status %s: %s", client.label, pid, status, client.files.complaint() or "no message"
        )
