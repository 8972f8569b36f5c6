"""Guests of one node without engines: configurations are real (`guest_config`), everything else happens at once.

What the API asked for is kept in `calls`, as a user would say it: ("shutdown", 100, {"timeout_s": 5}).
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from appliance.errors import Conflict, InvalidParameter, NotFound
from appliance.events import Event, EventBus, GuestConfigChanged, GuestStateChanged
from appliance.model.guest import GuestId, GuestKind, GuestState, GuestStats
from appliance.model.volume import VolumeId
from appliance.services import guest_config, lifecycle
from appliance.services.guest_moves import Move
from appliance.services.guest_view import GuestView
from appliance.services.guest_volumes import volumes_in_use
from tests.fakes.services import NODE, FakeTasks


def _answer(command: str, arguments: Mapping[str, object]) -> object:
    """What an agent answers that was not prepared."""
    if command == "file-write":
        return {"count": len(base64.b64decode(str(arguments["buf-b64"]))), "eof": False}
    return {}


class AgentVm:
    """A running VM whose agent gives prepared answers, or raises them, and remembers what it was asked."""

    def __init__(self, guest_id: int) -> None:
        self.guest_id = GuestId(guest_id)
        self.pid = 4242
        self.state = GuestState.RUNNING
        self.answers: dict[str, list[object]] = {}
        self.asked: list[tuple[str, dict[str, object]]] = []

    async def agent(self, command: str, **arguments: object) -> object:
        self.asked.append((command, arguments))
        answers = self.answers.get(command, [_answer(command, arguments)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass(slots=True)
class FakeGuest:
    """One guest: its kind, its stored configuration, what it does, and what runs."""

    guest_id: int
    kind: GuestKind
    config: dict[str, str]
    state: GuestState = GuestState.STOPPED
    running: object | None = None
    stats: GuestStats | None = None
    started: dict[str, str] | None = None
    kept: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of what an application has said."""

    text: bytes
    stream: str = "stdout"
    time: str = "2026-05-02T10:00:00Z"
    whole: bool = True


class FakeSnapshots:
    """Snapshots that are configurations."""

    def __init__(self, service: FakeGuestService) -> None:
        self._service = service

    def list(self, kind: GuestKind, guest_id: int) -> Sequence[dict[str, object]]:
        kept = self._service.find(guest_id, kind).kept
        told: list[dict[str, object]] = [{"name": name, "description": ""} for name in kept]
        return [*told, {"name": "current", "description": "You are here!"}]

    def config(self, kind: GuestKind, guest_id: int, name: str) -> dict[str, str]:
        guest = self._service.find(guest_id, kind)
        if name not in guest.kept:
            raise NotFound(f"{kind.prefix} {guest_id}: snapshot '{name}'")
        return guest.kept[name] | {"snaptime": "5"}

    async def possible(self, kind: GuestKind, guest_id: int) -> bool:
        return "template" not in self._service.find(guest_id, kind).config

    async def create(
        self, kind: GuestKind, guest_id: int, name: str, *, description: str, with_state: bool, user: str
    ) -> str:
        guest = self._service.find(guest_id, kind)
        guest.kept[name] = dict(guest.config)
        options = {"name": name, "description": description, "with_state": with_state}
        return await self._service.begin("snapshot", kind, guest_id, user, options)

    async def roll_back(self, kind: GuestKind, guest_id: int, name: str, *, start: bool, user: str) -> str:
        self.config(kind, guest_id, name)
        return await self._service.begin("rollback", kind, guest_id, user, {"name": name, "start": start})

    async def remove(self, kind: GuestKind, guest_id: int, name: str, *, force: bool, user: str) -> str:
        self.config(kind, guest_id, name)
        del self._service.find(guest_id, kind).kept[name]
        return await self._service.begin("delsnapshot", kind, guest_id, user, {"name": name, "force": force})

    async def describe(self, kind: GuestKind, guest_id: int, name: str, description: str | None, *, user: str) -> None:
        self.config(kind, guest_id, name)
        self._service.calls.append(("describe", guest_id, {"name": name, "description": description}))


@dataclass(slots=True)
class FakeGuestService:
    """Fulfils what the resources of guests use of `GuestService`."""

    tasks: FakeTasks
    events: EventBus | None = None
    guests: dict[int, FakeGuest] = field(default_factory=dict)
    calls: list[tuple[str, int, dict[str, object]]] = field(default_factory=list)
    removed: list[VolumeId] = field(default_factory=list)
    applications: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(status=lambda guest_id: {}, probes=lambda guest_id: ())
    )
    said: dict[int, list[Said]] = field(default_factory=dict)
    macs: itertools.count[int] = field(default_factory=itertools.count)
    backups: object = None
    backup_files: object = None
    restores: object = None
    replacements: object = None
    moves: object = None

    def add(self, guest_id: int, kind: GuestKind = GuestKind.QEMU, **config: object) -> FakeGuest:
        """Define a guest with this configuration."""
        guest = FakeGuest(guest_id, kind, guest_config.parse(kind, config))
        self.guests[guest_id] = guest
        return guest

    def list(self, kind: GuestKind | None = None) -> Sequence[GuestView]:
        return [self.get(guest_id) for guest_id, guest in self.guests.items() if kind in (None, guest.kind)]

    def get(self, guest_id: int, kind: GuestKind | None = None) -> GuestView:
        guest = self.find(guest_id, kind)
        config = guest.config
        running = guest.state is not GuestState.STOPPED
        return GuestView(
            guest_id=GuestId(guest_id),
            kind=guest.kind,
            node=NODE,
            name=config.get("name") or config.get("hostname") or f"{guest.kind.prefix.upper()}{guest_id}",
            state=guest.state,
            template=config.get("template") == "1",
            tags=tuple(config.get("tags", "").split(";")) if config.get("tags") else (),
            cpus=float(config.get("cores", "1")),
            maxmem=int(config.get("memory", "512")) << 20,
            maxdisk=guest_config.disk_bytes(guest.kind, config),
            maxswap=int(config.get("swap", "512")) << 20,
            pid=4242 if running else None,
            started_at=1_700_000_000.0 if running else None,
            uptime_s=60 if running else 0,
            lock=config.get("lock"),
            pool=None,
            onboot=config.get("onboot") == "1",
            stats=guest.stats,
            cpu_ratio=0.25 if running else 0.0,
            addresses=(),
            description=config.get("description", ""),
            problem="",
            last_exit="",
        )

    def config(self, guest_id: int, kind: GuestKind | None = None) -> tuple[dict[str, str], str]:
        config = self.find(guest_id, kind).config
        return dict(config), guest_config.digest(config)

    def running(self, guest_id: int, kind: GuestKind | None = None) -> object:
        guest = self.find(guest_id, kind)
        if guest.running is None:
            raise Conflict(f"{guest.kind.prefix.upper()} {guest_id} not running")
        return guest.running

    async def application_logs(
        self, guest_id: int, *, tail: int | None, follow: Callable[[], bool]
    ) -> AsyncIterator[Sequence[Said]]:
        yield self.said.get(guest_id, [])

    def pending(self, kind: GuestKind, guest_id: int) -> Sequence[guest_config.Pending]:
        guest = self.find(guest_id, kind)
        if guest.started is None or guest.state is GuestState.STOPPED:
            return ()
        return guest_config.pending(kind, guest.config, guest.started)

    def reverting(self, kind: GuestKind, guest_id: int, keys: Sequence[str]) -> tuple[dict[str, str], Sequence[str]]:
        guest = self.find(guest_id, kind)
        return guest_config.revert(kind, guest.config, guest.started or guest.config, keys)

    async def next_id(self, wanted: int | None = None) -> int:
        if wanted in self.guests:
            raise Conflict(f"VM {wanted} already exists")
        return wanted or next(number for number in itertools.count(100) if number not in self.guests)

    @property
    def configuration(self) -> FakeGuestService:
        """This, `creation` and `power` are parts of `GuestService`; here all are one."""
        return self

    creation = power = configuration

    @property
    def snapshots(self) -> FakeSnapshots:
        return FakeSnapshots(self)

    def named_volumes(self) -> frozenset[VolumeId]:
        return volumes_in_use((guest.kind, guest.config) for guest in self.guests.values())

    async def create(
        self, kind: GuestKind, guest_id: int, params: Mapping[str, object], *, user: str, **options: object
    ) -> str:
        if guest_id in self.guests:
            raise Conflict(f"unable to create guest {guest_id}: VMID {guest_id} already exists")
        config = await asyncio.to_thread(guest_config.parse, kind, params)
        config = guest_config.create_config(kind, guest_id, self._filled(kind, config), new_uuid=uuid.uuid4, now=0)
        _specify(kind, guest_id, config)
        self.guests[guest_id] = FakeGuest(guest_id, kind, config)
        return await self.begin("create", kind, guest_id, user, options)

    async def update(
        self,
        kind: GuestKind,
        guest_id: int,
        *,
        put: Mapping[str, object],
        delete: Sequence[str],
        digest: str | None,
        user: str,
        skip_lock: bool = False,
        log_line: object = None,
    ) -> None:
        guest = self._unlocked(guest_id, kind, skip_lock or "lock" in delete)
        parsed = await asyncio.to_thread(guest_config.parse, kind, put)
        guest_config.check_digest(guest.config, digest)
        plan = guest_config.plan_update(kind, guest.config, parsed, delete)
        if plan.removed and guest.state is not GuestState.STOPPED:
            raise Conflict(f"{kind.prefix} {guest_id} is running: shut it down before volumes are removed")
        _specify(kind, guest_id, plan.config)
        guest.config = self._filled(kind, plan.config)
        self.removed += plan.removed
        self.calls.append(("update", guest_id, {"put": dict(put), "delete": tuple(delete), "user": user}))
        self.tell(GuestConfigChanged(guest_id=GuestId(guest_id), kind=kind))

    async def make_template(self, kind: GuestKind, guest_id: int, *, user: str) -> str:
        self._unlocked(guest_id, kind).config["template"] = "1"
        return await self.begin("template", kind, guest_id, user, {})

    async def resize(
        self, kind: GuestKind, guest_id: int, *, slot: str, size: str, user: str, skip_lock: bool = False
    ) -> str:
        if slot not in self._unlocked(guest_id, kind, skip_lock).config:
            raise InvalidParameter({"disk": f"{kind.prefix} {guest_id} has no disk '{slot}'"})
        return await self.begin("resize", kind, guest_id, user, {"slot": slot, "size": size})

    async def clone(self, kind: GuestKind, guest_id: int, *, new_id: int, user: str, **options: object) -> str:
        self._unlocked(guest_id, kind)
        return await self.begin("clone", kind, guest_id, user, {"new_id": new_id, **options})

    async def destroy(
        self, kind: GuestKind, guest_id: int, *, user: str, unreferenced: bool = False, skip_lock: bool = False
    ) -> str:
        if self._unlocked(guest_id, kind, skip_lock).state is not GuestState.STOPPED:
            raise Conflict(f"{kind.prefix.upper()} {guest_id} is running - destroy failed")
        del self.guests[guest_id]
        return await self.begin("destroy", kind, guest_id, user, {"unreferenced": unreferenced})

    async def start(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        return await self._power("start", kind, guest_id, user, GuestState.RUNNING, skip_lock=skip_lock)

    async def stop(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        return await self._power("stop", kind, guest_id, user, GuestState.STOPPED, skip_lock=skip_lock)

    async def shutdown(
        self,
        kind: GuestKind,
        guest_id: int,
        *,
        user: str,
        timeout_s: float | None = None,
        force_stop: bool = False,
        skip_lock: bool = False,
    ) -> str:
        options = {"timeout_s": timeout_s, "force_stop": force_stop}
        return await self._power("shutdown", kind, guest_id, user, GuestState.STOPPED, skip_lock=skip_lock, **options)

    async def reboot(self, kind: GuestKind, guest_id: int, *, user: str, timeout_s: float | None = None) -> str:
        return await self._power("reboot", kind, guest_id, user, GuestState.RUNNING, timeout_s=timeout_s)

    async def reset(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        return await self._power("reset", kind, guest_id, user, GuestState.RUNNING, skip_lock=skip_lock)

    async def suspend(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        return await self._power("suspend", kind, guest_id, user, GuestState.PAUSED, skip_lock=skip_lock)

    async def resume(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        return await self._power("resume", kind, guest_id, user, GuestState.RUNNING, skip_lock=skip_lock)

    async def _power(
        self,
        verb: str,
        kind: GuestKind,
        guest_id: int,
        user: str,
        state: GuestState,
        *,
        skip_lock: bool = False,
        **options: object,
    ) -> str:
        guest = self._unlocked(guest_id, kind, skip_lock)
        old, guest.state = guest.state, state
        if old is GuestState.STOPPED:
            guest.started = dict(guest.config)
        self.tell(GuestStateChanged(guest_id=GuestId(guest_id), kind=kind, old=old, new=state))
        return await self.begin(verb, kind, guest_id, user, options)

    def tell(self, event: Event) -> None:
        if self.events is not None:
            self.events.publish(event)

    async def begin(self, verb: str, kind: GuestKind, guest_id: int, user: str, options: Mapping[str, object]) -> str:
        async def work(task: SimpleNamespace) -> None:
            self.calls.append((verb, guest_id, dict(options)))

        prefix = "qm" if kind is GuestKind.QEMU else "vz"
        return await self.tasks.run(f"{prefix}{verb}", object_id=str(guest_id), user=user, work=work)

    def find(self, guest_id: int, kind: GuestKind | None) -> FakeGuest:
        guest = self.guests.get(guest_id)
        if guest is None or kind not in (None, guest.kind):
            raise NotFound(f"{(kind or GuestKind.QEMU).prefix} {guest_id}")
        return guest

    def _unlocked(self, guest_id: int, kind: GuestKind, skip_lock: bool = False) -> FakeGuest:
        guest = self.find(guest_id, kind)
        lifecycle.require_unlocked(kind, GuestId(guest_id), guest.config, skip=skip_lock)
        return guest

    def _filled(self, kind: GuestKind, config: Mapping[str, str]) -> dict[str, str]:
        return guest_config.fill_macs(kind, config, lambda: f"BC:24:11:00:00:{next(self.macs):02X}")


def _specify(kind: GuestKind, guest_id: int, config: Mapping[str, str]) -> None:
    if kind is GuestKind.QEMU:
        guest_config.to_vm_spec(guest_id, config)
    else:
        guest_config.to_ct_spec(guest_id, config, id_base=100_000, id_count=65_536)


@dataclass(slots=True)
class FakeMoves:
    """Volumes that are on the other storage at once."""

    service: FakeGuestService

    async def start(self, kind: GuestKind, guest_id: int, move: Move, *, user: str) -> str:
        guest = self.service.find(guest_id, kind)
        lifecycle.require_unlocked(kind, GuestId(guest_id), guest.config)
        guest_config.check_digest(guest.config, move.digest)
        old = guest.config[move.slot]
        volume, _, options = old.partition(",")
        storage, _, name = volume.partition(":")
        if storage == move.storage and move.format is None:
            raise InvalidParameter({"storage": f"{volume} is there already"})
        guest.config[move.slot] = f"{move.storage}:{name}" + (f",{options}" if options else "")
        if not move.delete:
            guest.config[guest_config.free_unused_slot(guest.config)] = volume
        self.service.tell(GuestConfigChanged(guest_id=GuestId(guest_id), kind=kind))
        return await self.service.begin("move", kind, guest_id, user, {"slot": move.slot, "delete": move.delete})
