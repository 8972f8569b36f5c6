"""Application containers while they run and after: how they ended, when they start again, whether they are well, their logs.

    runner ─ started ─▶ health checks, "running" in the store
           ─ ended ───▶ exit code in the store ─ policy ─▶ start again after a while, unless it is stopped meanwhile
    storage of the host ◀─ logs set aside, removed with the guest

What is kept of a container's runs (`applications/ID` in the store) outlives the appliance and the host's boots: exit codes are
asked for long after, and a policy must know what somebody wanted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

import msgspec

from appliance.clock import Clock
from appliance.command import Completed
from appliance.errors import ApplianceError, TimedOut, Unsupported
from appliance.events import EventBus, GuestConfigChanged, GuestListChanged
from appliance.model.application import Application, Health, HealthCheck, RestartPolicy
from appliance.model.guest import ExitReason, GuestId, GuestKind, GuestState
from appliance.services import app_restart
from appliance.services.guest_config import applications
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.ports.application_logs import LogPiece, LogStore
from appliance.services.ports.running_guest import RunningGuest
from appliance.state.documents import Documents
from appliance.state.store import Store
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)

PREFIX: Final = "applications/"
ROTATION_ROUND_S: Final = 5.0
FOLLOW_ROUND_S: Final = 0.2
PROBE_OUTPUT_LIMIT: Final = 4096
PROBES_KEPT: Final = 5


class AppState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a container's runs. Times are epoch seconds, 0 for never; `restarts` counts those by the policy."""

    running: bool = False
    started_at: float = 0.0
    finished_at: float = 0.0
    exit_code: int | None = None
    detail: str = ""
    out_of_memory: bool = False
    stopped_by_hand: bool = False
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One health check that was made."""

    started_at: float
    exit_code: int | None
    """None: it did not end in time, or could not be run."""
    output: str


@dataclass(slots=True)
class _Live:
    """What is known of a container of this process's time."""

    state: AppState = field(default_factory=AppState)
    in_a_row: int = 0
    health: Health | None = None
    failures: int = 0
    probes: list[Probe] = field(default_factory=list)
    checking: asyncio.Task[None] | None = None
    ends: int = 0
    """Which end a restart that waits belongs to: a later end or start makes it void."""


class Executes(Protocol):
    """A running guest in which programs can be run."""

    async def execute(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Completed: ...


class ApplicationSupervisor:
    """See the module's docstring. `launch` starts a guest whose lock is held."""

    def __init__(
        self,
        *,
        store: Store,
        events: EventBus,
        clock: Clock,
        scope: TaskScope,
        logs: LogStore | None,
        launch: Callable[[GuestRuntime], Awaitable[None]],
    ) -> None:
        self._documents = Documents(store, PREFIX, AppState)
        self._store = store
        self._events = events
        self._clock = clock
        self._scope = scope
        self._logs = logs
        self._launch = launch
        self._live: dict[GuestId, _Live] = {}
        self._writing: dict[GuestId, asyncio.Lock] = {}

    # --- start of the appliance ---------------------------------------------------------------------------------------

    async def load(self, guests: Iterable[GuestRuntime]) -> None:
        """Read what is kept, before guests are adopted; remove what belongs to guests that are gone."""
        known = {guest.guest_id for guest in guests if is_application(guest)}
        stored, _ = await self._documents.all()
        for each in stored:
            if GuestId(int(each.id)) in known:
                self._live[GuestId(int(each.id))] = _Live(each.value)
            else:
                await self._store.txn([], [self._documents.delete(each.id)])
        if self._logs is not None:
            await self._logs.sweep(known)
        self._scope.start(self._forget_removed(), name="removed applications")
        self._scope.start(self._set_logs_aside(), name="logs of applications")

    async def start_with_appliance(self, guests: Iterable[GuestRuntime]) -> None:
        """Start what its policy wants, and does not run. Each one's failure is logged, and tried again by its policy."""
        for guest in guests:
            if not is_application(guest) or guest.state is not GuestState.STOPPED or guest.stored.record.busy:
                continue
            live = self._of(guest)
            application = _application(guest)
            if application is None:
                continue
            was_running, by_hand = live.state.running, live.state.stopped_by_hand
            if was_running:  # it ended while nobody was there to see it
                reason = ExitReason(kind="crashed", detail="it ended while the appliance was away")
                live.state = _ended(live.state, reason, self._clock.now())
                await self._keep(guest.guest_id)
            if app_restart.starts_with_appliance(application.restart, was_running=was_running, stopped_by_hand=by_hand):
                guest.restart_due = True
                self._scope.start(self._start_later(guest, live, live.ends, 0.0), name=f"start {guest.label}")

    # --- told by the runner -------------------------------------------------------------------------------------------

    def started(self, guest: GuestRuntime, running: RunningGuest) -> None:
        """A guest runs, started or found."""
        application = _application(guest)
        if application is None:
            return
        live = self._of(guest)
        live.ends += 1
        live.state = msgspec.structs.replace(
            live.state, running=True, started_at=running.started_at, stopped_by_hand=False
        )
        self._scope.start(self._keep(guest.guest_id), name=f"state of {guest.label}")
        live.health, live.failures = None, 0
        if application.health is not None:
            live.health = Health.STARTING
            live.checking = self._scope.start(
                self._check(guest, running, application.health, live), name=f"health of {guest.label}"
            )

    def ended(self, guest: GuestRuntime, reason: ExitReason, ran_s: float) -> bool:
        """A guest has ended and is cleaned up. Whether it is an application, whose starting again is decided here."""
        if not is_application(guest):
            return False
        live = self._of(guest)
        live.ends += 1
        live.health = None
        if live.checking is not None:
            live.checking.cancel()
            live.checking = None
        live.state = _ended(live.state, reason, self._clock.now())
        live.in_a_row = app_restart.restarts_in_a_row(live.in_a_row, ran_s=ran_s)
        application = _application(guest)
        policy = application.restart if application is not None else RestartPolicy()
        wait_s = app_restart.delay_s(policy, asked=reason.asked, exit_code=reason.exit_code, in_a_row=live.in_a_row)
        self._scope.start(self._keep(guest.guest_id), name=f"state of {guest.label}")
        if wait_s is not None:
            guest.restart_due = True  # a stop, or a start, withdraws it
            log.info("%s: is started again in %.1f s", guest.label, wait_s)
            self._scope.start(self._start_later(guest, live, live.ends, wait_s), name=f"restart {guest.label}")
        return True

    # --- asked by the API ---------------------------------------------------------------------------------------------

    def status(self, guest_id: GuestId) -> Mapping[str, object]:
        """What is added to a container's status; empty for one that is no application."""
        live = self._live.get(guest_id)
        if live is None:
            return {}
        state = live.state
        return {
            "health": live.health.value if live.health else None,
            "exit-code": None if state.running else state.exit_code,
            "exit-detail": None if state.running else state.detail or None,
            "finished-at": int(state.finished_at) or None,
            "restarts": state.restarts,
        }

    def probes(self, guest_id: GuestId) -> Sequence[Probe]:
        """The newest health checks of its present run, the oldest first."""
        live = self._live.get(guest_id)
        return tuple(live.probes) if live else ()

    async def logs(
        self, guest: GuestRuntime, *, tail: int | None, follow: Callable[[], bool]
    ) -> AsyncGenerator[Sequence[LogPiece], None]:
        """What it has said, from `tail` lines before the end or from as far back as is kept; then, for as long as `follow`
        says so, what it says until it has ended. Raises `Unsupported` for a system container, `HostError`."""
        if not is_application(guest) or self._logs is None:
            raise Unsupported(f"{guest.label}: a system container keeps its own logs; it has a console")
        reader = self._logs.reader(guest.guest_id, tail)
        try:
            while True:
                over = guest.state is GuestState.STOPPED and not guest.restart_due
                lines = await reader.read()
                if lines:
                    yield lines
                elif over or not follow():
                    return
                else:
                    await asyncio.sleep(FOLLOW_ROUND_S)
        finally:
            await reader.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _of(self, guest: GuestRuntime) -> _Live:
        return self._live.setdefault(guest.guest_id, _Live())

    async def _keep(self, guest_id: GuestId) -> None:
        """Write what is known of a container now. What cannot be written is, with the next change."""
        live = self._live.get(guest_id)
        try:
            async with self._writing.setdefault(guest_id, asyncio.Lock()):
                if live is not None and self._live.get(guest_id) is live:
                    await self._store.txn([], [self._documents.put(str(guest_id), live.state)])
        except ApplianceError as error:
            log.error("ct %d: its state is not kept: %s", guest_id, error)

    async def _start_later(self, guest: GuestRuntime, live: _Live, end: int, wait_s: float) -> None:
        """Start it, unless it was stopped, started or removed meanwhile; a start that fails is tried again."""
        while True:
            await self._clock.sleep(wait_s)
            try:
                async with guest.hold("restart policy"):
                    if live.ends != end or guest.state is not GuestState.STOPPED:
                        return
                    if not guest.restart_due:  # stopped while it waited: that is remembered as any stop is
                        live.state = msgspec.structs.replace(live.state, stopped_by_hand=True)
                        await self._keep(guest.guest_id)
                        return
                    await self._launch(guest)
                    live.state = msgspec.structs.replace(live.state, restarts=live.state.restarts + 1)
                    await self._keep(guest.guest_id)
                    return
            except ApplianceError as error:
                log.error("%s: start by its restart policy: %s", guest.label, error)
                application = _application(guest) if not guest.removed else None
                live.in_a_row += 1
                policy = application.restart if application is not None else RestartPolicy()
                again = app_restart.delay_s(policy, asked=False, exit_code=None, in_a_row=live.in_a_row)
                if again is None or live.ends != end:
                    return
                guest.restart_due = True
                wait_s = again

    async def _check(self, guest: GuestRuntime, running: RunningGuest, check: HealthCheck, live: _Live) -> None:
        live.probes = []
        while True:
            await self._clock.sleep(check.interval_s)
            if guest.state is not GuestState.RUNNING:  # paused: nothing can answer
                continue
            probe = await self._probe(guest, cast(Executes, running), check)
            live.probes = [*live.probes, probe][-PROBES_KEPT:]
            if probe.exit_code == 0:
                live.failures, health = 0, Health.HEALTHY
            else:
                early = self._clock.now() - running.started_at < check.start_period_s
                live.failures += 0 if early and live.health is Health.STARTING else 1
                health = Health.UNHEALTHY if live.failures >= check.retries else live.health or Health.STARTING
            if health is not live.health:
                log.info("%s: %s -> %s", guest.label, live.health, health)
                live.health = health
                self._events.publish(GuestConfigChanged(guest_id=guest.guest_id, kind=guest.kind))

    async def _probe(self, guest: GuestRuntime, running: Executes, check: HealthCheck) -> Probe:
        began = self._clock.now()
        try:
            done = await running.execute(check.command, timeout_s=check.timeout_s)
        except TimedOut:
            return Probe(started_at=began, exit_code=None, output=f"no answer within {check.timeout_s:g} s")
        except ApplianceError as error:
            return Probe(started_at=began, exit_code=None, output=str(error)[:PROBE_OUTPUT_LIMIT])
        said = (done.stdout + done.stderr).decode(errors="replace")
        return Probe(started_at=began, exit_code=done.returncode, output=said[:PROBE_OUTPUT_LIMIT])

    async def _set_logs_aside(self) -> None:
        while True:
            await self._clock.sleep(ROTATION_ROUND_S)
            for guest_id, live in list(self._live.items()):
                if live.state.running and self._logs is not None:
                    try:
                        await self._logs.rotate(guest_id)
                    except ApplianceError as error:
                        log.warning("ct %d: its log: %s", guest_id, error)

    async def _forget_removed(self) -> None:
        with self._events.subscribe() as events:
            async for event in events:
                if isinstance(event, GuestListChanged) and not event.exists:
                    await self._forget(event.guest_id)

    async def _forget(self, guest_id: GuestId) -> None:
        """What a lost event leaves is removed at the next start."""
        if self._live.pop(guest_id, None) is None:
            return
        try:
            async with self._writing.setdefault(guest_id, asyncio.Lock()):
                await self._store.txn([], [self._documents.delete(str(guest_id))])
            if self._logs is not None:
                await self._logs.remove(guest_id)
        except ApplianceError as error:
            log.error("ct %d: forgetting its runs: %s", guest_id, error)
        self._writing.pop(guest_id, None)


def is_application(guest: GuestRuntime) -> bool:
    """Whether a guest is made of an image."""
    return guest.kind is GuestKind.LXC and applications.is_application(guest.stored.record.config)


def _application(guest: GuestRuntime) -> Application | None:
    """What it is; None when it is none, or its configuration is no longer understood."""
    if not is_application(guest):
        return None
    try:
        return applications.to_application(guest.stored.record.config)
    except ApplianceError as error:
        log.error("%s: %s", guest.label, error)
        return None


def _ended(state: AppState, reason: ExitReason, now: float) -> AppState:
    return msgspec.structs.replace(
        state,
        running=False,
        finished_at=now,
        exit_code=reason.exit_code,
        detail=reason.detail,
        out_of_memory="out of memory" in reason.detail,
        stopped_by_hand=reason.asked,
    )
