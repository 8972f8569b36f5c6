"""The running side of guests: launch, supervise, end, and find again what runs. The stored side is `guest_records.py`.

Each guest has one `GuestRuntime` (`guest_runtime.py`). Its `state` changes only in `_set_state`. A supervisor task per
running guest waits for its end and is the only place that cleans up after it, whoever caused it; operations wait for `ended`.
Operations that change a guest are called with its lock held; the supervisor needs no lock, so an end is never delayed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import ApplianceError, Conflict, NotFound, TimedOut, Unsupported
from appliance.events import EventBus, GuestStateChanged
from appliance.model.guest import (
    CtResources,
    CtSpec,
    ExitReason,
    GuestId,
    GuestKind,
    GuestState,
    MountKind,
    NicSpec,
    SavedState,
    VmResources,
    VmSpec,
)
from appliance.model.volume import OpenedVolume, VolumeId
from appliance.services import guest_config, guest_hooks, lifecycle, restart_policy
from appliance.services.console import ConsoleService
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.ports import LogLine
from appliance.services.ports.engine import GuestEngine
from appliance.services.ports.network import NetworkBackend
from appliance.services.ports.running_guest import RunningGuest
from appliance.services.storage import StorageService
from appliance.tasks import TaskScope, to_its_end

log = logging.getLogger(__name__)

CLEAN_UP_LIMIT_S = 60.0
"""For each of a guest's consoles and its ports."""
END_LIMIT_S = 2 * CLEAN_UP_LIMIT_S + 10.0
SharedDirectory = Callable[[str], Awaitable[Path]]
"""From a directory mapping's name to the directory on this node (`DirectoryMappings.directory`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """The engines of this host. VMs try `vm` in order; the first that can run the specification does."""

    vm: Sequence[GuestEngine[VmSpec, VmResources]]
    ct: GuestEngine[CtSpec, CtResources]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """The memory of a VM in a snapshot, and the engine that saved it: no other can go on from it."""

    engine: str
    saved: SavedState


class GuestRunner:
    """Starts and ends guests through the engines, with their volumes and NICs."""

    def __init__(
        self,
        *,
        engines: Engines,
        storage: StorageService,
        network: NetworkBackend,
        consoles: ConsoleService,
        events: EventBus,
        clock: Clock,
        scope: TaskScope,
        before_start: Callable[[GuestRuntime, LogLine], Awaitable[None]],
        shared_directory: SharedDirectory,
        tell_end: Callable[[GuestRuntime, ExitReason, str], Awaitable[None]],
        started: Callable[[GuestRuntime, RunningGuest], None] = lambda guest, running: None,
        ended: Callable[[GuestRuntime, ExitReason, float], bool] = lambda guest, reason, ran_s: False,
    ) -> None:
        """`started` is told of every guest that runs, started or found; `ended` of every one that has ended, with how long it
        ran, in seconds: True says that whether it starts again is decided there."""
        self._started = started
        self._ended = ended
        self._before_start = before_start
        self._shared_directory = shared_directory
        self._tell_end = tell_end
        self._engines = engines
        self._storage = storage
        self._network = network
        self._consoles = consoles
        self._events = events
        self._clock = clock
        self._scope = scope

    # --- operations, each with the guest's lock held ----------------------------------------------------------------

    async def launch(self, guest: GuestRuntime, log_line: LogLine, *, state: EngineState | None = None) -> None:
        """Start a stopped guest; returns once it executes. After an error it is stopped and nothing of it is left.

        With `state` a VM goes on from a snapshot's memory, in the engine that saved it.
        """
        lifecycle.require(lifecycle.Action.START, guest.kind, guest.guest_id, guest.state)
        start = partial(self._start_vm, state=state) if guest.kind is GuestKind.QEMU else self._start_ct
        guest.ended.clear()
        guest.restart_due, guest.end_asked_at = False, None
        self._set_state(guest, GuestState.STARTING, "start")
        try:
            await self._before_start(guest, log_line)
            running = await start(guest, log_line)
        except BaseException as error:
            await self._give_up_start(guest, error)
            raise
        guest.tell = log_line
        await self._attach(guest, running)
        await self._hook(guest, guest_hooks.POST_START, log_line)

    async def shutdown(self, guest: GuestRuntime, *, timeout_s: float, force: bool, log_line: LogLine) -> None:
        """Ask for an orderly end and wait. After `timeout_s`: end it by force, or raise `TimedOut` and let it run.

        A stop asked for meanwhile overrules this at once (`Conflict` here, success there).
        """
        running = await self.reach(guest)
        if guest.overruled.is_set():
            raise Conflict(f"{guest.label}: shutdown overruled by a stop")
        if guest.state is GuestState.PAUSED:
            await running.resume()
        guest.end_asked_at = self._clock.now()
        await self._hook(guest, guest_hooks.PRE_STOP, log_line)
        await running.shutdown()
        log_line(f"asked to shut down; waiting for its end, up to {timeout_s:g} s")
        ended, overruled = asyncio.ensure_future(guest.ended.wait()), asyncio.ensure_future(guest.overruled.wait())
        try:
            await asyncio.wait((ended, overruled), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            overruled.cancel()
        if guest.ended.is_set():
            guest.restart_due = False
            log_line(f"ended: {guest.exit_detail}")
            return
        if guest.overruled.is_set():
            raise Conflict(f"{guest.label}: shutdown overruled by a stop")
        if not force:
            raise TimedOut(f"{guest.label}: orderly shutdown", timeout_s)
        log_line(f"no orderly shutdown within {timeout_s:g} s, stopping it")
        await self.stop(guest)

    async def stop(self, guest: GuestRuntime) -> None:
        """End it by force and wait until it is cleaned up. Not an error when it has ended already."""
        guest.restart_due, guest.end_asked_at = False, self._clock.now()
        if guest.state in (GuestState.RUNNING, GuestState.PAUSED):
            running = await self.reach(guest)
            await self._hook(guest, guest_hooks.PRE_STOP, partial(_note, guest))
            self._set_state(guest, GuestState.STOPPING, "stop")
            await running.stop()
        elif guest.running is not None:  # an earlier stop was cut short
            await guest.running.stop()
        await self._wait_ended(guest)
        guest.restart_due = False

    async def reset(self, guest: GuestRuntime) -> None:
        await (await self.reach(guest)).reset()

    async def pause(self, guest: GuestRuntime) -> None:
        await (await self.reach(guest)).pause()

    async def resume(self, guest: GuestRuntime) -> None:
        if guest.state is GuestState.PAUSED:
            await (await self.reach(guest)).resume()

    async def reach(self, guest: GuestRuntime) -> RunningGuest:
        """The engine's side of a guest that runs; one that could not be taken over is tried again.

        Raises `Conflict` when it does not run, and why it cannot be taken over.
        """
        if guest.running is None and guest.state is GuestState.RUNNING:
            await self.adopt(guest)
        if guest.running is None:
            raise Conflict(f"{guest.kind.prefix.upper()} {guest.guest_id} not running")
        return guest.running

    # --- start and end of the appliance -------------------------------------------------------------------------------

    async def adopt(self, guest: GuestRuntime) -> bool:
        """Take over what still runs of `guest` after a restart of the appliance; whether anything does.

        Raises `ApplianceError` when that cannot be done (a configuration no longer understood). If it really runs, it
        counts as running all the same: nobody may start it twice, take its ports or remove its volumes.
        """
        try:
            running = await self._find(guest)
        except ApplianceError:
            if guest.guest_id in await self.running_ids():
                guest.ended.clear()
                self._set_state(guest, GuestState.RUNNING, "it runs, but could not be taken over")
            raise
        if running is None:
            await self._network.unplug(guest.guest_id)
            guest.ended.set()
            self._set_state(guest, GuestState.STOPPED, "it has ended")
            return False
        guest.ended.clear()
        await self._attach(guest, running)
        log.info("%s: found running, pid %d", guest.label, running.pid)
        return True

    async def _find(self, guest: GuestRuntime) -> RunningGuest | None:
        """What runs of `guest`, taken over from the engine that started it."""
        config = guest.stored.record.config
        on_state = partial(self._engine_state, guest)
        if guest.kind is GuestKind.LXC:
            return await self._engines.ct.adopt(self._ct_spec(guest), on_state=on_state)
        spec = guest_config.to_vm_spec(guest.guest_id, config)
        for engine in self._engines.vm:
            running = await engine.adopt(spec, on_state=on_state)
            if running is not None:
                return running
        return None

    async def running_ids(self) -> set[GuestId]:
        """Every guest that runs on this host, whether defined or not."""
        found: set[GuestId] = set(await self._engines.ct.running_ids())
        for engine in self._engines.vm:
            found.update(await engine.running_ids())
        return found

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _start_vm(
        self, guest: GuestRuntime, log_line: LogLine, *, state: EngineState | None = None
    ) -> RunningGuest:
        spec = guest_config.to_vm_spec(guest.guest_id, guest.stored.record.config)
        engine = self._choose(guest, replace(spec, engine=state.engine) if state is not None else spec)
        await self._check_nics(spec.nics)
        wanted = {disk.slot: disk.volume for disk in (*spec.disks, spec.efi_disk) if disk is not None and disk.volume}
        wanted |= {slot: volume for slot, volume in (("kernel", spec.kernel), ("initrd", spec.initrd)) if volume}
        disks = await self._open(wanted)
        directories = {share.slot: await self._shared_directory(share.mapping) for share in spec.shares}
        taps = {nic.slot: await self._network.plug_vm(guest.guest_id, nic) for nic in spec.nics}
        resources = VmResources(
            disks=disks, taps=taps, directories=directories, state=state.saved if state is not None else None
        )
        return await engine.start(spec, resources, on_state=partial(self._engine_state, guest), log=log_line)

    async def _start_ct(self, guest: GuestRuntime, log_line: LogLine) -> RunningGuest:
        spec = self._with_resolver(self._ct_spec(guest))
        if reasons := self._engines.ct.refuse(spec):
            raise Unsupported(f"{guest.label}: {'; '.join(reasons)}")
        volumes = {each.slot: each.volume for each in (spec.root, *spec.mounts) if each.kind is MountKind.VOLUME}

        async def open_and_check() -> Mapping[str, OpenedVolume]:
            opened, _ = await asyncio.gather(self._open(volumes), self._check_nics(spec.nics))
            return opened

        async def connect(namespace: Path) -> None:
            for nic in spec.nics:
                await self._network.plug_ct(guest.guest_id, nic, namespace)
            if spec.application is not None and spec.application.ports:
                await self._network.publish(guest.guest_id, spec.application.ports)

        resources = CtResources(open=open_and_check, connect=connect)
        on_state = partial(self._engine_state, guest)
        return await self._engines.ct.start(spec, resources, on_state=on_state, log=log_line)

    def _with_resolver(self, spec: CtSpec) -> CtSpec:
        """Where the host sets the addresses, nothing inside asks by DHCP who resolves names: it is told here."""
        known = [self._network.resolver(nic.bridge) for nic in spec.nics if nic.host_managed]
        return replace(spec, nameserver=spec.nameserver or next(filter(None, known), ""))

    def _choose(self, guest: GuestRuntime, spec: VmSpec) -> GuestEngine[VmSpec, VmResources]:
        reasons: list[str] = []
        for engine in self._engines.vm:
            if spec.engine and engine.name != spec.engine:
                continue
            refused = engine.refuse(spec)
            if not refused:
                return engine
            reasons += [f"{engine.name}: {reason}" for reason in refused]
        raise Unsupported(f"{guest.label}: {'; '.join(reasons) or f'there is no engine {spec.engine!r} on this host'}")

    def _ct_spec(self, guest: GuestRuntime) -> CtSpec:
        record = guest.stored.record
        return guest_config.to_ct_spec(guest.guest_id, record.config, id_base=record.id_base, id_count=record.id_count)

    async def _open(self, volumes: Mapping[str, str]) -> dict[str, OpenedVolume]:
        opened = await asyncio.gather(*(self._storage.open(VolumeId.parse(volume)) for volume in volumes.values()))
        return dict(zip(volumes, opened, strict=True))

    async def _check_nics(self, nics: Sequence[NicSpec]) -> None:
        for nic in nics:
            await self._network.check(nic)

    async def _attach(self, guest: GuestRuntime, running: RunningGuest) -> None:
        guest.running = running
        self._set_state(guest, running.state if running.state is not GuestState.STOPPED else GuestState.RUNNING, "")
        self._scope.start(self._supervise(guest, running), name=f"supervise {guest.label}")
        self._started(guest, running)
        # not waited for: the engine keeps what the console says until somebody listens, and who attaches first opens it
        self._scope.start(self._listen(guest, running), name=f"consoles of {guest.label}")

    async def _listen(self, guest: GuestRuntime, running: RunningGuest) -> None:
        if guest.running is running:
            await self._consoles.guest_started(running)

    async def _supervise(self, guest: GuestRuntime, running: RunningGuest) -> None:
        reason = await running.wait()
        self._set_state(guest, GuestState.STOPPING, reason.detail)
        guest.exit_detail = reason.detail
        guest.tell(f"{guest.label} has ended: {reason.detail}")
        guest.tell = lambda line: None
        if reason.kind == "crashed":
            log.error("%s: %s", guest.label, reason.detail)
        guest.running = None
        guest.stats, guest.cpus_used = None, 0.0
        await self._clean_up(guest)
        self._set_state(guest, GuestState.STOPPED, reason.detail)
        await self._follow_up(guest, reason, ran_s=self._clock.now() - running.started_at)

    async def _follow_up(self, guest: GuestRuntime, reason: ExitReason, *, ran_s: float) -> None:
        """After the end: whoever waits for it is told, and the guest starts again where it shall."""
        guest.last_exit = reason
        guest.failures = restart_policy.failures_after(guest.failures, reason, ran_s=ran_s)
        asked = restart_policy.counts_as_asked(guest.end_asked_at, self._clock.now())
        guest.restart_due, delay_s = False, None
        decided = self._ended(guest, reason, ran_s)
        if not decided:
            policy = restart_policy.policy(guest.stored.record.config)
            delay_s = restart_policy.delay_s(policy, reason, asked=asked, ran_s=ran_s, failures=guest.failures)
            guest.restart_due = delay_s is not None
        guest.ended.set()
        await self._hook(guest, guest_hooks.POST_STOP, partial(_note, guest))
        if reason.kind == "crashed" and not asked and not decided:
            follows = "it stays stopped" if delay_s is None else f"it starts again in {delay_s:g} s"
            await self._tell_end(guest, reason, follows)
        while delay_s is not None:
            await self._clock.sleep(delay_s)
            if await self._restart(guest, reason):
                return
            guest.failures += 1
            delay_s = restart_policy.delay_after_failed_start(policy, failures=guest.failures)
            guest.restart_due = delay_s is not None

    async def _hook(self, guest: GuestRuntime, phase: str, log_line: LogLine) -> None:
        script = guest.stored.record.config.get("hookscript", "")
        await guest_hooks.run(self._storage, script, guest.guest_id, phase, log_line)

    async def _restart(self, guest: GuestRuntime, reason: ExitReason) -> bool:
        """Start it again, unless somebody has stopped or started it meanwhile; False when it could not be started."""
        try:
            async with guest.hold(f"restart: {reason.detail}"):
                if guest.restart_due and guest.state is GuestState.STOPPED:
                    await self.launch(guest, partial(_note, guest))
        except NotFound:
            return True  # it was removed
        except ApplianceError as error:
            log.error("%s: restart failed: %s", guest.label, error)
            return False
        return True

    async def _give_up_start(self, guest: GuestRuntime, error: BaseException) -> None:
        async def give_up() -> None:
            await self._clean_up(guest)
            guest.ended.set()
            self._set_state(guest, GuestState.STOPPED, f"start failed: {str(error) or 'interrupted'}")

        await to_its_end(give_up(), name=f"clean up {guest.label}")

    async def _clean_up(self, guest: GuestRuntime) -> None:
        """Give back everything but the engine's own, which it has removed. Failures are told, never raised."""
        for what, step in (("consoles", self._consoles.guest_stopped), ("ports", self._network.unplug)):
            try:
                async with asyncio.timeout(CLEAN_UP_LIMIT_S):
                    await step(guest.guest_id)
            except (ApplianceError, TimeoutError) as error:
                log.error("%s: cleaning up its %s: %s", guest.label, what, str(error) or f"over {CLEAN_UP_LIMIT_S:g} s")

    async def _wait_ended(self, guest: GuestRuntime) -> None:
        try:
            async with asyncio.timeout(END_LIMIT_S):
                await guest.ended.wait()
        except TimeoutError as error:
            raise TimedOut(f"{guest.label}: waiting for its end", END_LIMIT_S) from error

    def _engine_state(self, guest: GuestRuntime, state: GuestState, reason: str) -> None:
        """The engine noticed a change by itself. Ends are the supervisor's: it knows when the cleaning up is done."""
        if guest.running is not None and state in (GuestState.RUNNING, GuestState.PAUSED):
            if reason:
                guest.tell(reason)
            self._set_state(guest, state, reason)

    def _set_state(self, guest: GuestRuntime, new: GuestState, reason: str) -> None:
        old = guest.state
        if old is new or not lifecycle.can_move(old, new):
            return
        guest.state = new
        log.info("%s: %s -> %s%s", guest.label, old.value, new.value, f" ({reason})" if reason else "")
        self._events.publish(
            GuestStateChanged(guest_id=guest.guest_id, kind=guest.kind, old=old, new=new, reason=reason)
        )


async def no_shared_directory(name: str) -> Path:
    """Where there are no directory mappings. Raises `NotFound`."""
    raise NotFound(f"directory mapping '{name}'")


def _note(guest: GuestRuntime, line: str) -> None:
    """A line for which there is no task."""
    log.info("%s: %s", guest.label, line)
