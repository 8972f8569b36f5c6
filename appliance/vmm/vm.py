"""One native VM that runs, as the services see it: a machine, and the ends of it that others connect to.

One task belongs to it: `_supervise` waits for the machine's end and cleans up. `detach` saves the machine into a file and
ends it here: `NativeEngine.adopt` goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import ApplianceError, GuestFault, HostError, NotFound, Unsupported
from appliance.guest_agent import GuestAgent
from appliance.model.guest import (
    DeviceStats,
    ExitReason,
    GuestId,
    GuestState,
    GuestStats,
    NicSpec,
    VmDisk,
    VmSpec,
)
from appliance.model.volume import OpenedVolume
from appliance.tasks import TaskScope, to_its_end
from appliance.threads import to_the_end
from appliance.vmm import agent_port, refusal
from appliance.vmm.block.disk import Disk
from appliance.vmm.block.qsd import QsdBlk
from appliance.vmm.builder import Built
from appliance.vmm.console import Attachment
from appliance.vmm.life import MachineState
from appliance.vmm.plugs import EJECT_TIMEOUT_S
from appliance.vmm.snapshot import save_machine
from appliance.vmm.vhost.backend import DataPlane
from appliance.vmm.virtio.net import VirtioNet

AGENT_PING_TIMEOUT_S = 2.0
DETACH_SHUTDOWN_S = 20.0  # within the appliance's own limit for its guests' end
DETACH_LEVEL = 0  # the disk is faster than the compression, and shutting down does not wait for ever

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
    """Fulfils `services.ports.running_guest.RunningGuest`. Made by `NativeEngine` around a machine that runs (or is paused)."""

    def __init__(
        self,
        built: Built,
        *,
        started_at: float,
        scope: TaskScope,
        clock: Clock,
        on_state: StateCallback,
        clean_up: Callable[[], Awaitable[None]],
        detach: Callable[[NativeVm], Awaitable[None]],
    ) -> None:
        self.built = built
        self._started_at = started_at
        self._scope, self._clock, self._on_state = scope, clock, on_state
        self._clean_up, self._detach = clean_up, detach
        self._name = f"vm {built.spec.guest_id}"
        self._agent = GuestAgent(partial(agent_port.connect, built, scope), name=self._name)
        self._plugging = asyncio.Lock()
        self._ended: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()
        built.on_panic, built.on_paused = self._panicked, self._paused_itself
        built.plugs.on_ejected = self._let_go
        self._supervisor = scope.start(self._supervise(), name=f"{self._name} ends")

    # --- identity and state -------------------------------------------------------------------------------------

    @property
    def spec(self) -> VmSpec:
        """What it is now: hot-plug changes it."""
        return self.built.spec

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
        await self.built.machine.stop()
        await self.wait()

    async def resize_disk(self, slot: str, size_bytes: int) -> None:
        """The volume in `slot` has grown: tell the guest. Raises `NotFound`, `HostError`."""
        disk = self.built.disks.get(slot)
        if disk is None:
            raise NotFound(f"{self._name}: disk {slot}")
        await to_the_end(disk.resize, size_bytes)

    state_engine = ""

    async def snapshot_disks(self, name: str, slots: Sequence[str], *, state_slot: str | None = None) -> None:
        """Inside the images, by the daemons that have them open; the machine is paused. All or none.

        Raises `Unsupported` for what has no such image, `HostError`.
        """
        if state_slot is not None:
            raise Unsupported(f"{self._name}: a native machine's memory cannot be kept in a snapshot")
        daemons = [self._daemon(slot) for slot in slots]
        try:
            for disk in daemons:
                await to_the_end(disk.daemon.snapshot, name)
        except BaseException:
            await to_its_end(self._drop(name, daemons), name=f"{self._name}: undo snapshot {name}")
            raise

    async def drop_disk_snapshots(self, name: str, slots: Sequence[str]) -> None:
        """Not an error where there is none. Raises `HostError`."""
        await self._drop(name, [self._daemon(slot) for slot in slots])

    async def _drop(self, name: str, disks: Sequence[QsdBlk]) -> None:
        for disk in disks:
            await to_the_end(disk.daemon.drop_snapshot, name)

    def _daemon(self, slot: str) -> QsdBlk:
        disk = self.built.disks.get(slot)
        if not isinstance(disk, QsdBlk):
            raise Unsupported(f"{self._name}: {slot}: its image cannot have snapshots while the machine runs")
        return disk

    async def agent(self, command: str, **arguments: object) -> object:
        """Run a guest agent command: "ping", "network-get-interfaces" ... Raises `GuestFault` when it is not running."""
        if not self.spec.agent:
            raise GuestFault(f"{self._name}: no QEMU guest agent configured")
        return await self._agent.execute(f"guest-{command}", arguments)

    async def set_link(self, slot: str, *, up: bool) -> None:
        """Plug or pull the cable of a NIC. Raises `NotFound`."""
        nic = self.built.nics.get(slot)
        if nic is None:
            raise NotFound(f"{self._name}: NIC {slot}")
        nic.set_link(up=up)
        nics = tuple(replace(each, link_down=not up) if each.slot == slot else each for each in self.spec.nics)
        self.built.spec = replace(self.spec, nics=nics)

    # --- hot-plug ---------------------------------------------------------------------------------------------------

    @property
    def attached(self) -> Mapping[str, VmDisk | NicSpec]:
        """The disks and NICs it has now, by slot, each as it was attached."""
        disks = {disk.slot: disk for disk in self.spec.disks if disk.slot in self.built.disks}
        return {**disks, **{nic.slot: nic for nic in self.spec.nics}}

    async def attach_disk(self, disk: VmDisk, volume: OpenedVolume) -> None:
        """Plug in a disk; the guest is told. Raises `Unsupported`, `Conflict` (there is one already, somebody else has its
        image, it has ended), `InvalidParameter` without a slot for it, `HostError`; nothing has changed then."""

        async def attach() -> None:
            async with self._plugging:
                await self.built.plugs.add_disk(disk, volume)
                self._respecify(
                    disks=(*self.spec.disks, disk), volumes={**self.built.resources.disks, disk.slot: volume}
                )

        self._refuse(disk.slot, refusal.disk_reasons(disk))
        await to_its_end(attach(), name=f"{self._name}: attach {disk.slot}")

    async def detach_disk(self, slot: str) -> None:
        """Take out a disk: the guest is asked, and has let go of it when this returns. Raises `NotFound`, `Conflict` unless
        it runs, `TimedOut` when the guest does not: it may still do so later, and `attached` tells."""
        if slot not in self.built.disks:
            raise NotFound(f"{self._name}: disk {slot}")
        await self._remove(slot)

    async def attach_nic(self, nic: NicSpec, tap: str) -> None:
        """Plug in a NIC with the tap device `tap` as its cable. Raises as `attach_disk`."""

        async def attach() -> None:
            async with self._plugging:
                await self.built.plugs.add_nic(nic, tap)
                self._respecify(nics=(*self.spec.nics, nic), taps={**self.built.resources.taps, nic.slot: tap})

        self._refuse(nic.slot, refusal.nic_reasons(nic))
        await to_its_end(attach(), name=f"{self._name}: attach {nic.slot}")

    async def detach_nic(self, slot: str) -> None:
        """Take out a NIC. As `detach_disk`."""
        if slot not in self.built.nics:
            raise NotFound(f"{self._name}: NIC {slot}")
        await self._remove(slot)

    def _refuse(self, slot: str, reasons: Iterable[str]) -> None:
        if found := [*reasons]:
            raise Unsupported(f"{self._name}: {slot}: {'; '.join(found)}")

    async def _remove(self, slot: str) -> None:
        async with self._plugging:
            await self.built.plugs.remove(slot, timeout_s=EJECT_TIMEOUT_S)

    def _let_go(self, name: str) -> None:
        """The guest has ejected it, asked or not."""
        log.info("%s: the guest has let go of %s", self._name, name)
        spec, resources = self.spec, self.built.resources
        self._respecify(
            disks=tuple(disk for disk in spec.disks if disk.slot != name),
            nics=tuple(nic for nic in spec.nics if nic.slot != name),
            volumes={slot: each for slot, each in resources.disks.items() if slot != name},
            taps={slot: each for slot, each in resources.taps.items() if slot != name},
        )

    def _respecify(
        self,
        *,
        disks: tuple[VmDisk, ...] | None = None,
        nics: tuple[NicSpec, ...] | None = None,
        volumes: Mapping[str, OpenedVolume] | None = None,
        taps: Mapping[str, str] | None = None,
    ) -> None:
        """What is saved and restored is what it has now. None leaves a part as it is."""
        spec, resources = self.spec, self.built.resources
        self.built.spec = replace(
            spec, disks=spec.disks if disks is None else disks, nics=spec.nics if nics is None else nics
        )
        self.built.resources = replace(
            resources,
            disks=resources.disks if volumes is None else volumes,
            taps=resources.taps if taps is None else taps,
        )

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
        try:
            used = await asyncio.to_thread(machine.board.memory.resident_bytes)
        except OSError:  # it has just ended
            used = 0
        devices = await asyncio.to_thread(_device_stats, dict(self.built.disks), dict(self.built.nics))
        return GuestStats(
            cpu_seconds=machine.cpu_seconds(),
            memory_bytes=min(used, memory_max),
            memory_max_bytes=memory_max,
            disk_read_bytes=sum(device.read_bytes for device in devices.values()),
            disk_write_bytes=sum(device.written_bytes for device in devices.values()),
            devices=devices,
        )

    # --- the engine's side ------------------------------------------------------------------------------------------

    async def detach(self) -> None:
        """The appliance goes down, the guest shall not: see `NativeEngine.close`."""
        await self._detach(self)

    async def save_and_end(self, path: Path) -> None:
        """Save it into `path` and end it here; `wait` does not tell of that end. What cannot be saved is told in the log,
        asked to shut down, and ends as by a power cut when it does not. Not to be cancelled."""
        machine = self.built.machine
        if self.ended or machine.state is MachineState.STOPPED:
            return
        self._supervisor.cancel()
        try:
            size = await save_machine(
                self.built, path, started_at=self._started_at, clock=self._clock, level=DETACH_LEVEL, durable=False
            )
            log.info("%s: saved until the appliance is back: %d MiB", self._name, size >> 20)
        except ApplianceError as error:
            log.error("%s: could not be saved and is asked to shut down: %s", self._name, error)
            await self._end_in_order()
        finally:
            await self.built.end()

    async def _end_in_order(self) -> None:
        machine = self.built.machine
        try:
            async with asyncio.timeout(DETACH_SHUTDOWN_S):
                if machine.state is MachineState.PAUSED:
                    await machine.resume()
                await self.shutdown()
                await machine.wait()
        except (ApplianceError, TimeoutError) as error:
            log.error("%s: did not shut down and ends now: %s", self._name, str(error) or f"{DETACH_SHUTDOWN_S:g} s")

    async def _supervise(self) -> None:
        reason = await self.built.machine.wait()
        await self.built.end()
        await self._clean_up()
        self._on_state(GuestState.STOPPED, reason.detail)
        self._ended.set_result(reason)

    def _panicked(self) -> None:
        log.warning("%s: the guest's kernel panicked", self._name)
        self._on_state(self.state, "the guest's kernel panicked")

    def _paused_itself(self, reason: str) -> None:
        self._on_state(self.state, reason)


_PLANES = {DataPlane.PYTHON: "python", DataPlane.OFFLOAD: "vhost"}


def _device_stats(disks: Mapping[str, Disk], nics: Mapping[str, VirtioNet]) -> dict[str, DeviceStats]:
    """Blocking: of a disk that a daemon serves the kernel counts."""
    found = {slot: DeviceStats(data_plane=_PLANES[nic.data_plane]) for slot, nic in nics.items()}
    for slot, disk in disks.items():
        counted = disk.statistics
        found[slot] = DeviceStats(
            data_plane=disk.data_plane, read_bytes=counted.read_bytes, written_bytes=counted.written_bytes
        )
    return found
