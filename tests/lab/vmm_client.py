"""Our end of `vmm_agent`: native machines in a lab host, each with its console.

async with native_host(lab_host) as host:
    guest = await host.start(100, spec(kernel=..., cmdline=...), disks={"kernel": ...})
    await guest.console.ready()
    await guest.order("pause")
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from tests.lab.guest_console import GuestConsole
from tests.lab.guest_paths import GuestFiles
from tests.lab.host import LabHost
from tests.lab.recipe import SOURCE_DIR, VENV_DIR

AGENT_LIMIT_S: Final = 900.0
READY_TIMEOUT_S: Final = 90.0
ORDER_TIMEOUT_S: Final = 120.0
END_TIMEOUT_S: Final = 30.0
SCRATCH: Final = "/var/tmp/vmm"
QUIET: Final = "console=ttyS0 quiet panic=-1"


class NativeHost:
    """The agent in one host. Every failed order raises `OrderFailed`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.guests: dict[int, NativeGuest] = {}
        self.noise: list[str] = []
        """What the agent and its libraries had to say besides."""
        self._ready = asyncio.Event()

    async def start(
        self,
        number: int,
        spec: dict[str, Any],
        *,
        disks: Mapping[str, str],
        taps: Mapping[str, str] | None = None,
        directories: Mapping[str, str] | None = None,
    ) -> NativeGuest:
        """Build and start one; `disks` maps slots, "kernel" and "initrd" to paths in the host, `directories` those shared."""
        guest = self.guests[number] = NativeGuest(self, number)
        guest.facts = await guest.order(
            "start", spec=spec, disks=dict(disks), taps=dict(taps or {}), directories=dict(directories or {})
        )
        return guest

    async def adopt(self, number: int, spec: dict[str, Any]) -> NativeGuest:
        """Take up what another agent's `detach` left."""
        guest = self.guests[number] = NativeGuest(self, number, after=1000)
        assert await guest.order("adopt", spec=spec), f"vm {number}: nothing to take up:\n{self.tail()}"
        return guest

    async def order(self, guest: int, verb: str, *, timeout_s: float = ORDER_TIMEOUT_S, **order: Any) -> Any:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        line = json.dumps({"id": number, "guest": guest, "do": verb, **order})
        self._writer.write(line.encode() + b"\n")
        await self._writer.drain()
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"vm {guest}: {verb}: no answer in {timeout_s:g} s:\n{self.tail()}") from error

    async def ready(self) -> None:
        """The agent runs. Raises `TimeoutError` with its words."""
        try:
            await asyncio.wait_for(self._ready.wait(), READY_TIMEOUT_S)
        except TimeoutError as error:
            raise TimeoutError(f"the agent in the host did not start:\n{self.tail()}") from error

    def tail(self) -> str:
        """The newest of its log."""
        return "\n".join(self.noise[-40:])

    def tell(self) -> None:
        """What may explain a failure, for the report of it."""
        print("\n".join(self.noise), *(f"vm {n}: {guest.states}" for n, guest in self.guests.items()), sep="\n")

    async def listen(self) -> None:
        """Until the agent has ended: hand out what it says."""
        while line := await self._reader.readline():
            try:
                message = json.loads(line)
            except ValueError:
                self.noise.append(line.decode(errors="replace").rstrip())
                continue
            self._take(message)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(OrderFailed(f"the agent has ended:\n{self.tail()}"))
        for guest in self.guests.values():
            guest.said.feed_eof()

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("ready"):
            self._ready.set()
        elif "id" in message:
            answer = self._answers.pop(message["id"])
            if answer.done():
                return
            if "error" in message:
                answer.set_exception(OrderFailed(message["error"]))
            else:
                answer.set_result(message["ok"])
        elif "console" in message:
            said = self.guests[message["guest"]].said
            said.feed_data(base64.b64decode(message["console"])) if message["console"] else said.feed_eof()
        elif "state" in message:
            self.guests[message["guest"]].states.append((message["state"], message["detail"]))
        else:
            self.noise.append(f"vm {message.get('guest')}: {message.get('log')}")


class OrderFailed(Exception):
    """What the engine answered."""


class _Typist:
    """As much of a stream writer as `GuestConsole` uses: what is written is typed at the guest's console."""

    def __init__(self, guest: NativeGuest) -> None:
        self._guest = guest
        self._waiting = b""

    def write(self, data: bytes) -> None:
        self._waiting += data

    async def drain(self) -> None:
        typed, self._waiting = self._waiting, b""
        await self._guest.order("type", data=base64.b64encode(typed).decode())


class NativeGuest:
    """One machine of the agent's."""

    def __init__(self, host: NativeHost, number: int, *, after: int = 0) -> None:
        self.number = number
        self.facts: dict[str, Any] = {}
        self.states: list[tuple[str, str]] = []
        """Every state and reason the engine told, in order."""
        self.said = asyncio.StreamReader()
        self.console = GuestConsole(self.said, _Typist(self), after=after)  # type: ignore[arg-type]
        self._host = host

    async def order(self, verb: str, *, timeout_s: float = ORDER_TIMEOUT_S, **order: Any) -> Any:
        """Of `vmm_agent.Agent.do_…`."""
        return await self._host.order(self.number, verb, timeout_s=timeout_s, **order)

    async def run(self, command: str, *, timeout_s: float = 60.0) -> str:
        """A line of shell in the guest that must succeed; its output."""
        answer = await self.console.run(command, timeout_s=timeout_s)
        assert answer.status == 0, f"{command}: status {answer.status}:\n{answer.text}"
        return answer.text

    async def type(self, command: str) -> None:
        """A line of shell that is not expected to come to an end."""
        await self.order("type", data=base64.b64encode(b"0 " + command.encode() + b"\n").decode())

    async def ended(self, *, timeout_s: float = 60.0) -> str:
        """The kind of its end, once it has."""
        return str((await self.order("ended", timeout_s=timeout_s))["kind"])


def direct(*, cmdline: str = QUIET, **more: Any) -> dict[str, Any]:
    """The specification of a guest whose kernel we place: `disks=kernel_disks(...)` goes with it."""
    usual = {"memory_mib": 256, "serials": [0], "uuid": "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "name": "lab"}
    return {**usual, "kernel": "local:kernel", "initrd": "local:initrd", "cmdline": cmdline, **more}


def kernel_disks(files: GuestFiles, *, bzimage: bool = False) -> dict[str, str]:
    """Resources of `direct`."""
    return {"kernel": files.bzimage if bzimage else files.vmlinux, "initrd": files.initramfs}


def equipped(**more: Any) -> dict[str, Any]:
    """`direct` with every small device."""
    devices = {"rng": True, "agent": True, "balloon_min_mib": 64, "vsock": True, "watchdog": "reset"}
    return direct(**{"memory_mib": 384, **devices, **more})


def disk(slot: str, **more: Any) -> dict[str, Any]:
    """A disk of a specification; the resources name its image."""
    return {"slot": slot, "volume": f"local:{slot}", **more}


def nic(slot: str) -> dict[str, Any]:
    """A NIC of a specification; the resources name its tap device."""
    return {"slot": slot, "model": "virtio", "mac": f"BC:24:11:00:00:0{slot[-1]}", "bridge": "none"}


async def raw_image(host: LabHost, name: str, size_mib: int) -> str:
    """An empty one in the host; its path."""
    path = f"{SCRATCH}/{name}"
    await host.shell(f"mkdir -p {SCRATCH}; rm -f {path}; truncate -s {size_mib}M {path}", timeout_s=60)
    return path


async def tap(host: LabHost, name: str, *, address: str = "") -> str:
    """A tap device in the host, on a bridge of its own with `address`, which no earlier one keeps; its name."""
    script = f"""
    for old in $([ -z "{address}" ] || ip -o addr show to {address or "0"} | awk '{{print $2}}'); do ip link del $old; done
    ip link del {name} 2>/dev/null || true; ip link del {name}br 2>/dev/null || true
    ip tuntap add {name} mode tap vnet_hdr
    ip link add {name}br type bridge
    ip link set {name} master {name}br
    [ -z "{address}" ] || ip addr add {address} dev {name}br
    ip link set {name}br up; ip link set {name} up"""
    await host.shell(script, timeout_s=60)
    return name


@contextlib.asynccontextmanager
async def native_host(host: LabHost, *, directory: str = SCRATCH, count: bool = False) -> AsyncIterator[NativeHost]:
    """An agent in `host`, from its source to its end. What it saves in `directory` stays."""
    words = " --count" if count else ""
    script = f"mkdir -p {directory} && cd {SOURCE_DIR} && exec {VENV_DIR}/bin/python -m tests.lab.vmm_agent {directory}{words}"
    async with host.dialogue(["sh", "-c", script], limit_s=AGENT_LIMIT_S) as (reader, writer):
        native = NativeHost(reader, writer)
        listening = asyncio.create_task(native.listen(), name="lab agent")
        try:
            await native.ready()
            yield native
            writer.write_eof()
            await asyncio.wait((listening,), timeout=END_TIMEOUT_S)
        finally:
            listening.cancel()
            await asyncio.wait((listening,))
            native.tell()
