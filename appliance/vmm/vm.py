"""One native VM that runs, as the services see it: a machine, and the ends of it that others connect to.

Two tasks belong to it: `_supervise` waits for the machine's end and cleans up; one for each connection to the guest agent
pumps bytes. `detach` saves the machine into a file and ends it here: `NativeEngine.adopt` goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import ApplianceError, GuestFault, HostError, NotFound
from appliance.guest_agent import ANSWER_LIMIT_BYTES, GuestAgent
from appliance.model.guest import ExitReason, GuestId, GuestState, GuestStats, VmSpec
from appliance.tasks import TaskScope, to_its_end
from appliance.threads import to_the_end
from appliance.vmm.builder import Built
from appliance.vmm.console import Attachment, ByteChannel
from appliance.vmm.life import MachineState
from appliance.vmm.snapshot import save_machine
from appliance.vmm.virtio.blk import VirtioBlk

AGENT_PING_TIMEOUT_S = 2.0
AGENT_TIMEOUT_S = 5.0
DETACH_LEVEL = 0  # the disk is faster than the compression, and shutting down does not wait for ever
_PUMP_BYTES = 64 << 10

log = logging.getLogger(__name__)
StateCallback = Callable[[GuestState, str], None]
LogLine = Callable[[str], None]

_STATES = {
    MachineState.BUILT: GuestState.RUNNING,
    MachineState.RUNNING: GuestState.RUNNING,
    MachineState.PAUSED: GuestState.PAUSED,
    MachineState.STOPPED: GuestState.STOPPED,
}


class NativeVm:
    """Fulfils `services.ports.RunningGuest`. Made by `NativeEngine` around a machine that runs (or is paused)."""

    def __init__(
        self,
        built: Built,
        spec: VmSpec,
        *,
        started_at: float,
        scope: TaskScope,
        clock: Clock,
        on_state: StateCallback,
        clean_up: Callable[[], Awaitable[None]],
        detach: Callable[[NativeVm], Awaitable[None]],
    ) -> None:
        self.spec = spec
        self.built = built
        self._started_at = started_at
        self._scope, self._clock, self._on_state = scope, clock, on_state
        self._clean_up, self._detach = clean_up, detach
        self._name = f"vm {spec.guest_id}"
        self._agent = GuestAgent(self._connect_agent, name=self._name)
        self._stop_asked = False
        self._ended: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()
        built.on_panic = self._panicked
        self._supervisor = scope.start(self._supervise(), name=f"{self._name} ends")

    # --- identity and state -------------------------------------------------------------------------------------

    @property
    def guest_id(self) -> GuestId:
        return self.spec.guest_id

    @property
    def pid(self) -> int:
        """Ours: the machine lives in this process."""
        return os.getpid()

    @property
    def started_at(self) -> float:
        """Epoch seconds of its start; a restore does not change it."""
        return self._started_at

    @property
    def state(self) -> GuestState:
        return _STATES[self.built.machine.state]

    @property
    def ended(self) -> bool:
        """Whether `wait` would return at once."""
        return self._ended.done()

    async def wait(self) -> ExitReason:
        """Return when the machine has ended and all it held has been given back."""
        return await asyncio.shield(self._ended)

    # --- orders ---------------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Stop the vCPUs and devices."""
        await self.built.machine.pause()
        self._on_state(GuestState.PAUSED, "paused")

    async def resume(self) -> None:
        """Go on."""
        await self.built.machine.resume()
        self._on_state(GuestState.RUNNING, "resumed")

    async def reset(self) -> None:
        """As by the button."""
        await self.built.machine.reset()

    async def shutdown(self) -> None:
        """Ask the guest agent if it answers, else press the ACPI power button."""
        if self.built.machine.state is MachineState.STOPPED:
            return
        try:
            await self._agent.execute("guest-ping", {}, timeout_s=AGENT_PING_TIMEOUT_S)
            await self._agent.execute("guest-shutdown", {"mode": "powerdown"}, answers=False)
        except (GuestFault, HostError):
            self.built.power.press_power_button()

    async def stop(self) -> None:
        """End it, from any state, and return when nothing is left of it."""
        self._stop_asked = True
        await self.built.machine.stop()
        await self.wait()

    async def resize_disk(self, slot: str, size_bytes: int) -> None:
        """The volume in `slot` has grown: tell the guest. Raises `NotFound`, `HostError`."""
        disk = self.built.disks.get(slot)
        if disk is None:
            raise NotFound(f"{self._name}: disk {slot}")
        await to_the_end(disk.resize, size_bytes)

    async def agent(self, command: str, **arguments: object) -> object:
        """Run a guest agent command: "ping", "network-get-interfaces" ... Raises `GuestFault` when it is not running."""
        return await self._agent.execute(f"guest-{command}", arguments, timeout_s=AGENT_TIMEOUT_S)

    async def set_link(self, slot: str, *, up: bool) -> None:
        """Plug or pull the cable of a NIC. Raises `NotFound`."""
        nic = self.built.nics.get(slot)
        if nic is None:
            raise NotFound(f"{self._name}: NIC {slot}")
        nic.set_link(up=up)

    # --- consoles, display, figures ---------------------------------------------------------------------------------

    def console_names(self) -> Sequence[str]:
        """ "serial0" ... as it was started with."""
        return list(self.built.serials)

    async def open_console(self, name: str) -> Attachment:
        """Attach; any number may. Raises `NotFound`."""
        channel = self.built.serials.get(name)
        if channel is None:
            raise NotFound(f"{self._name}: console {name}")
        return channel.attach()

    async def open_display(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new RFB connection. Raises `NotFound` without a display."""
        if self.built.display is None:
            raise NotFound(f"{self._name}: display")
        return await self.built.display.connect()

    async def stats(self) -> GuestStats:
        """Figures now. What the guest says of its memory (balloon statistics) is believed within its size."""
        machine, memory_max = self.built.machine, self.spec.memory_mib << 20
        used = await asyncio.to_thread(machine.board.memory.resident_bytes) if not self.ended else 0
        disks = [
            disk for disk in self.built.disks.values() if isinstance(disk, VirtioBlk)
        ]  # a daemon counts for itself
        return GuestStats(
            cpu_seconds=machine.cpu_seconds(),
            memory_bytes=min(used, memory_max),
            memory_max_bytes=memory_max,
            disk_read_bytes=sum(disk.statistics.read_bytes for disk in disks),
            disk_write_bytes=sum(disk.statistics.written_bytes for disk in disks),
        )

    # --- the engine's side ------------------------------------------------------------------------------------------

    async def detach(self) -> None:
        """The appliance goes down, the guest shall not: see `NativeEngine.close`."""
        await self._detach(self)

    async def save_and_end(self, path: Path) -> bool:
        """Save it into `path` and end it here, without telling of an end; whether there is something to go on from.

        What cannot be saved is told in the log: the guest ends as by a power cut.
        """
        if self.ended or self.built.machine.state is MachineState.STOPPED:
            return False
        self._supervisor.cancel()
        try:
            size = await save_machine(
                self.built, self.spec, path, started_at=self._started_at, clock=self._clock, level=DETACH_LEVEL
            )
        except ApplianceError as error:
            log.error("%s: could not be saved, it ends now: %s", self._name, error)
            return False
        else:
            log.info("%s: saved until the appliance is back: %d MiB", self._name, size >> 20)
            return True
        finally:
            await to_its_end(self.built.machine.stop(), name=f"{self._name} ends")
            await self._end_channels()

    async def _supervise(self) -> None:
        reason = await self.built.machine.wait()
        if self._stop_asked:
            reason = ExitReason(kind="stopped", detail="stopped")
        await self._end_channels()
        await self._clean_up()
        self._on_state(GuestState.STOPPED, reason.detail)
        self._ended.set_result(reason)

    async def _end_channels(self) -> None:
        for channel in (*self.built.serials.values(), *([self.built.agent] if self.built.agent else [])):
            channel.end()
        if self.built.display is not None:
            await self.built.display.close()

    def _panicked(self) -> None:
        log.warning("%s: the guest's kernel panicked", self._name)
        self._on_state(self.state, "the guest's kernel panicked")

    # --- the guest agent's port as a stream ---------------------------------------------------------------------------

    async def _connect_agent(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        channel = self.built.agent
        if channel is None:
            raise ConnectionRefusedError(f"{self._name}: no guest agent is configured")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._scope.start(_pump(channel, ours), name=f"{self._name} guest agent")
        return await asyncio.open_connection(sock=theirs, limit=ANSWER_LIMIT_BYTES)


async def _pump(channel: ByteChannel, connection: socket.socket) -> None:
    """Until the other end of `connection` closes: bytes both ways, from now on."""
    loop = asyncio.get_running_loop()
    listening = channel.attach()

    async def said() -> None:
        with contextlib.suppress(OSError):
            while data := await listening.read():
                await loop.sock_sendall(connection, data)

    hearing = loop.create_task(said(), name=f"{channel.name} said")
    try:
        while data := await loop.sock_recv(connection, _PUMP_BYTES):
            await channel.write(data)
    except (OSError, HostError) as error:
        log.debug("%s: %s", channel.name, error)
    finally:
        hearing.cancel()
        await asyncio.wait((hearing,))
        await listening.close()
        connection.close()
