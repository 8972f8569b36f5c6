"""Engines without processes: guests that run because the test says so, and end when it says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import ApplianceError, NotFound, TimedOut, Unsupported
from appliance.model.guest import (
    Capabilities,
    CtResources,
    CtSpec,
    ExitReason,
    GuestId,
    GuestState,
    GuestStats,
    NicSpec,
    VmDisk,
    VmResources,
    VmSpec,
)
from appliance.model.volume import OpenedVolume
from appliance.services.ports import LogLine
from appliance.services.ports.engine import StateCallback
from tests.fakes.console import FakeConsoleSource


class FakePlugs:
    """What hot-plug does to a VM: `attached` is what it has, `keeps` what it does not let go of; `cannot_plug` plays a
    machine without hot-plug, `plug_fails` one that fails."""

    def __init__(self, spec: VmSpec | None) -> None:
        self.attached: dict[str, VmDisk | NicSpec] = {}
        if spec is not None:
            self.attached |= {disk.slot: disk for disk in spec.disks if disk.volume} | {
                nic.slot: nic for nic in spec.nics
            }
        self.volumes: dict[str, OpenedVolume] = {}
        self.taps: dict[str, str] = {}
        self.keeps: set[str] = set()
        self.cannot_plug: Unsupported | None = None
        self.plug_fails: ApplianceError | None = None

    async def attach_disk(self, disk: VmDisk, volume: OpenedVolume) -> None:
        self._plug(disk)
        self.volumes[disk.slot] = volume

    async def attach_nic(self, nic: NicSpec, tap: str) -> None:
        self._plug(nic)
        self.taps[nic.slot] = tap

    def _plug(self, device: VmDisk | NicSpec) -> None:
        if (error := self.cannot_plug or self.plug_fails) is not None:
            raise error
        assert device.slot not in self.attached, f"{device.slot} would be there twice"
        self.attached[device.slot] = device

    async def detach_disk(self, slot: str) -> None:
        if self.cannot_plug is not None:
            raise self.cannot_plug
        if slot not in self.attached:
            raise NotFound(slot)
        if slot in self.keeps:
            raise TimedOut(f"{slot}: the guest letting go of it", 10)
        del self.attached[slot]

    detach_nic = detach_disk

    async def set_link(self, slot: str, *, up: bool) -> None:
        nic = self.attached[slot]
        assert isinstance(nic, NicSpec)
        self.attached[slot] = replace(nic, link_down=not up)


class FakeMirrors(FakePlugs):
    """Disks that move to other images: `may_copy` holds the copying up, `copy_fails` and `cannot_switch` play its failures,
    `unknown` a switch that cannot be known of. `settled` is what was asked for after a restart."""

    def __init__(self, spec: VmSpec | None) -> None:
        super().__init__(spec)
        self.may_copy = asyncio.Event()
        self.may_copy.set()
        self.copy_fails: ApplianceError | None = None
        self.cannot_switch: ApplianceError | None = None
        self.unknown = False
        self.settled: list[dict[str, str]] = []

    @asynccontextmanager
    async def mirroring(self, slot: str, volume: OpenedVolume, *, bytes_per_s: int = 0) -> AsyncIterator[FakeMirror]:
        await asyncio.sleep(0)
        yield FakeMirror(self, slot, str(volume.volume_id))
        await asyncio.sleep(0)

    async def settle_mirrors(self, keep: Mapping[str, str]) -> Mapping[str, str]:
        self.settled.append(dict(keep))
        if self.cannot_switch is None:
            for slot, volume in keep.items():
                self.stand_on(slot, volume)
        disks = [each for each in self.attached.values() if isinstance(each, VmDisk)]
        return {disk.slot: f"/storage/{str(disk.volume).replace(':', '/', 1)}" for disk in disks}

    def stand_on(self, slot: str, volume: str) -> None:
        """The disk has moved."""
        disk = self.attached[slot]
        assert isinstance(disk, VmDisk)
        self.attached[slot] = replace(disk, volume=volume)


class FakeMirror:
    """See `FakeMirrors`."""

    def __init__(self, guest: FakeMirrors, slot: str, volume: str) -> None:
        self._guest, self._slot, self._volume = guest, slot, volume

    async def in_step(self, report: Callable[[float], None]) -> None:
        await self._guest.may_copy.wait()
        if self._guest.copy_fails is not None:
            raise self._guest.copy_fails
        report(1.0)

    async def switch(self) -> bool:
        await asyncio.sleep(0)
        if self._guest.cannot_switch is not None:
            raise self._guest.cannot_switch
        if not self._guest.unknown:
            self._guest.stand_on(self._slot, self._volume)
        return not self._guest.unknown


class FakeRunningGuest(FakeMirrors):
    """One run of a guest. `end` is what happens to it; `complies` False plays one that ignores the power button."""

    def __init__(
        self, guest_id: GuestId, *, started_at: float, on_state: StateCallback, spec: VmSpec | None = None
    ) -> None:
        super().__init__(spec)
        self.guest_id = guest_id
        self.pid = 4000 + guest_id
        self.started_at = started_at
        self.state = GuestState.RUNNING
        self.complies = True
        self.asked: list[str] = []
        self.grown: dict[str, int] = {}
        self.cannot_grow: Unsupported | None = None
        self.cannot_change: dict[str, str] = {}
        self.figures = GuestStats()
        self.state_engine = ""
        self.kept: dict[str, set[str]] = {}  # slot: the snapshots in its image
        self.cannot_keep: ApplianceError | None = None
        self.held = True
        self._on_state = on_state
        self._ended: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()

    def end(self, kind: str = "shutdown", detail: str = "powered off") -> None:
        """It ends, and its engine has cleaned up after it."""
        if not self._ended.done():
            self.state = GuestState.STOPPED
            self._on_state(GuestState.STOPPED, detail)
            self._ended.set_result(ExitReason(kind=kind, detail=detail))

    @property
    def ended(self) -> bool:
        return self._ended.done()

    async def wait(self) -> ExitReason:
        return await asyncio.shield(self._ended)

    async def pause(self) -> None:
        self._move(GuestState.PAUSED)

    async def resume(self) -> None:
        self._move(GuestState.RUNNING)

    async def shutdown(self) -> None:
        self.asked.append("shutdown")
        if self.complies and self.state is GuestState.RUNNING:
            self.end()

    async def stop(self) -> None:
        self.asked.append("stop")
        self.end("stopped", "stopped")

    async def reset(self) -> None:
        self.asked.append("reset")

    def console_names(self) -> Sequence[str]:
        return ("console",)

    async def open_console(self, name: str) -> FakeConsoleSource:
        return FakeConsoleSource()

    async def open_display(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raise NotFound("display")

    async def stats(self) -> GuestStats:
        return self.figures

    async def resize_disk(self, slot: str, size_bytes: int) -> None:
        if self.cannot_grow is not None:
            raise self.cannot_grow
        self.grown[slot] = size_bytes

    async def snapshot_disks(self, name: str, slots: Sequence[str], *, state_slot: str | None = None) -> None:
        assert self.state is GuestState.PAUSED, "it must stand still"
        if self.cannot_keep is not None:
            raise self.cannot_keep
        self.asked.append(f"snapshot {name}{f' memory in {state_slot}' if state_slot else ''}")
        for slot in slots:
            self.kept.setdefault(slot, set()).add(name)

    async def drop_disk_snapshots(self, name: str, slots: Sequence[str]) -> None:
        for slot in slots:
            self.kept.setdefault(slot, set()).discard(name)

    async def update_limits(self, spec: CtSpec, keys: Collection[str]) -> Mapping[str, str]:
        self.asked += sorted(keys)
        return {key: reason for key, reason in self.cannot_change.items() if key in keys}

    async def renew_network(self, spec: CtSpec, names: Collection[str]) -> str:
        self.asked.append(f"network {' '.join(sorted(names))}")
        return "done"

    async def renew_resolver(self, servers: Sequence[str], search_domain: str) -> None:
        self.asked.append(f"resolve by {' '.join(servers)}{f' in {search_domain}' if search_domain else ''}")

    async def detach(self) -> None:
        self.held = False

    def adopted(self, on_state: StateCallback) -> FakeRunningGuest:
        """The same run, for a new appliance."""
        self._on_state, self.held = on_state, True
        return self

    def notice(self, state: GuestState, reason: str) -> None:
        """Its engine has noticed something by itself."""
        self._on_state(state, reason)

    def _move(self, state: GuestState) -> None:
        self.state = state
        self._on_state(state, "")


class FakeEngine:
    """Runs VMs and containers alike. `refusal`, `failure` and `may_start` decide over starts, `unreachable` over adoption."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.alive: dict[GuestId, FakeRunningGuest] = {}
        self.started: list[GuestId] = []
        self.opened: list[VmResources | CtResources] = []
        self.refusal: str = ""
        self.failure: ApplianceError | None = None
        self.unreachable: ApplianceError | None = None
        self.may_start = asyncio.Event()
        self.may_start.set()
        self._clock = clock

    async def probe(self) -> Capabilities:
        return Capabilities(engine=self.name, version="1", available=frozenset({"start"}))

    def refuse(self, spec: VmSpec | CtSpec) -> Sequence[str]:
        return [self.refusal] if self.refusal else []

    async def start(
        self, spec: VmSpec | CtSpec, resources: VmResources | CtResources, *, on_state: StateCallback, log: LogLine
    ) -> FakeRunningGuest:
        await self.may_start.wait()
        if isinstance(resources, CtResources):
            await resources.open()
            await resources.connect(Path(f"/proc/{4000 + spec.guest_id}/ns/net"))
        if self.failure is not None:
            raise self.failure
        assert spec.guest_id not in self.running(), f"guest {spec.guest_id} would run twice"
        running = FakeRunningGuest(
            spec.guest_id,
            started_at=self._clock.now(),
            on_state=on_state,
            spec=spec if isinstance(spec, VmSpec) else None,
        )
        self.alive[spec.guest_id] = running
        self.started.append(spec.guest_id)
        self.opened.append(resources)
        return running

    async def adopt(self, spec: VmSpec | CtSpec, *, on_state: StateCallback) -> FakeRunningGuest | None:
        if self.unreachable is not None:
            raise self.unreachable
        running = self.running().get(spec.guest_id)
        return running.adopted(on_state) if running is not None else None

    async def running_ids(self) -> Sequence[GuestId]:
        return list(self.running())

    async def close(self) -> None:
        """The guests go on."""

    def running(self) -> Mapping[GuestId, FakeRunningGuest]:
        return {guest_id: running for guest_id, running in self.alive.items() if not running.ended}
