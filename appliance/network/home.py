"""The network thread: the one place that talks to the kernel about networks.

It holds the netlink socket and the nft context open for the life of the appliance (a container's start must not pay
for opening them), stands in the network namespace the appliance manages, and does one thing after the other: a port
being made and the same port being removed never overlap.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from appliance.errors import ApplianceError, Conflict, HostError, ServiceStopping, TimedOut, Unsupported
from appliance.kernel import netns, tuntap
from appliance.kernel.nftables import NftContext, NftError
from appliance.kernel.rtnetlink import RouteSocket

P = ParamSpec("P")
T = TypeVar("T")

CALL_TIMEOUT_S = 30.0
SYSCTL_DIRECTORY = Path("/proc/sys/net")
_NOT_THERE = {
    errno.EOPNOTSUPP: "this kernel cannot",
    errno.EPROTONOSUPPORT: "this kernel cannot",
    errno.EAFNOSUPPORT: "this kernel cannot",
    errno.EPERM: "the appliance lacks CAP_NET_ADMIN",
}


class Home:
    """What the thread owns. Its methods and attributes are for the thread only."""

    def __init__(self, namespace: Path | None) -> None:
        if namespace is not None:
            netns.enter_path(namespace)
        self.route = RouteSocket()
        self.nft = NftContext()
        self._presence: socket.socket | None = None

    def announce(self, tag: str) -> bool:
        """Claim this instance's tag in the namespace until the process ends; False when a living process has it.

        Abstract socket names belong to a network namespace and vanish with their process (unix(7)).
        """
        presence = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            presence.bind(_presence_name(tag))
        except OSError as error:
            presence.close()
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        self._presence = presence
        return True

    @staticmethod
    def is_alive(tag: str) -> bool:
        """Whether a living appliance of this namespace has announced `tag`."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            try:
                probe.connect(_presence_name(tag))
            except OSError:
                return False
            return True

    @staticmethod
    def read_sysctl(name: str) -> str | None:
        """`ipv4/ip_forward` of the thread's namespace; None when the kernel has no such setting."""
        try:
            return (SYSCTL_DIRECTORY / name).read_text().strip()
        except FileNotFoundError:
            return None

    @staticmethod
    def write_sysctl(name: str, value: str) -> None:
        """Set it; a setting this kernel lacks is none to set."""
        try:
            (SYSCTL_DIRECTORY / name).write_text(value)
        except FileNotFoundError:
            return

    def close(self) -> None:
        """Release everything."""
        self.route.close()
        self.nft.close()
        if self._presence is not None:
            self._presence.close()


def _presence_name(tag: str) -> bytes:
    return b"\0appliance-network-" + tag.encode()


class NetworkThread:
    """Runs functions in the network thread. `open` first, `close` last, both on the loop."""

    def __init__(self, namespace: Path | None) -> None:
        self._namespace = namespace
        self._executor: ThreadPoolExecutor | None = None
        self._home: Home | None = None

    async def open(self) -> None:
        """Start the thread. Raises `HostError`, `Unsupported` naming what this host lacks."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="network")
        if self._home is None:
            self._home = await self._submit(f"network namespace {self._namespace or 'of the host'}", self._make_home)

    def _make_home(self) -> Home:
        return Home(self._namespace)

    async def call(
        self, about: str, function: Callable[Concatenate[Home, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `function(home, …)` in the thread; an OSError becomes `HostError` or `Unsupported` beginning with `about`.

        A cancelled call is still carried out. Raises `TimedOut` when it is not done in time (it goes on all the same).
        """
        home = self._home
        if home is None:
            raise ServiceStopping(f"{about}: the network is not started")
        return await self._submit(about, lambda: function(home, *args, **kwargs))

    async def _submit(self, about: str, function: Callable[[], T]) -> T:
        assert self._executor is not None
        future = asyncio.get_running_loop().run_in_executor(self._executor, function)
        future.add_done_callback(_seen)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await asyncio.shield(future)
        except TimeoutError as error:
            raise TimedOut(about, CALL_TIMEOUT_S) from error
        except OSError as error:
            raise translate(error, about) from error

    async def close(self) -> None:
        """End the thread after what it is doing."""
        executor, home = self._executor, self._home
        self._executor = self._home = None
        if executor is None:
            return
        if home is not None:
            await asyncio.get_running_loop().run_in_executor(executor, home.close)
        await asyncio.to_thread(executor.shutdown)  # joins the thread


def _seen(future: asyncio.Future[T]) -> None:
    """A call whose caller was cancelled may fail unheard: its caller has cleaned up, or will ask again."""
    if not future.cancelled():
        future.exception()


def translate(error: OSError, about: str) -> ApplianceError:
    """The error for people: which object, what it lacks."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT and error.filename == tuntap.DEVICE:
        return Unsupported(f"{about}: this kernel has no tap devices ({tuntap.DEVICE} is missing: module tun)")
    if isinstance(error, NftError) and error.errno == errno.ENOENT:
        return Unsupported(f"{about}: this kernel lacks a part of nftables ({reason})")
    if error.errno in _NOT_THERE:
        return Unsupported(f"{about}: {_NOT_THERE[error.errno]} ({error.filename or 'kernel'}: {reason})")
    if error.errno == errno.EEXIST:
        return Conflict(f"{about}: {error.filename or 'it'} exists already")
    return HostError.from_os_error(error, f"{about}{f', {error.filename}' if error.filename else ''}")
