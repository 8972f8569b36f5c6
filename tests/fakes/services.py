"""Services for tests of the web side, in domain words: users with privileges, guests with consoles, tasks that end.

`fake_services(...)` gives a `Services` of them; `world(services)` reaches the fakes behind it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from appliance.clock import Clock, SystemClock
from appliance.config import Config
from appliance.errors import Conflict, NotAuthenticated, NotFound, PermissionDenied
from appliance.events import EventBus, GuestListChanged, GuestStateChanged, TaskFinished, TaskStarted
from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.model.metrics import Fold, Point
from appliance.model.volume import VolumeId
from appliance.services.directory_mappings import DirectoryMappings
from appliance.services.identity import Identity, parse_auth_id
from appliance.services.roles import PRIVILEGES
from appliance.services.task_records import TaskInfo
from appliance.services.upid import ID_LIMIT, safe_part
from appliance.web.services import Services
from tests.fakes.store import FakeStore
from tests.fakes.viewer import FakeViewer

if TYPE_CHECKING:
    from appliance.services.guest_view import GuestView

NODE = "testnode"
ADMIN = Identity("admin@pve")
TOKEN = "admin@pve!ci=11111111-2222-3333-4444-555555555555"


class FakeAccess:
    """Tickets are "ticket-of-USER"; `grants` maps (user, ACL path) to privileges, `admins` have them all."""

    def __init__(self) -> None:
        self.admins = {"admin@pve", "root@pam"}
        self.grants: dict[tuple[str, str], frozenset[str]] = {}
        self.checked: list[tuple[str, tuple[str, ...]]] = []
        self.pool_names: list[str] = []
        self.pools = SimpleNamespace(visible=lambda caller: [(name, None) for name in self.pool_names])

    def ticket(self, user: str) -> str:
        return f"PVE:{user}:6543ABCD::c2ln+/=="

    def csrf(self, user: str) -> str:
        return f"csrf-of-{self.ticket(user)}"

    def grant(self, user: str, path: str, *privileges: str) -> None:
        self.grants[user, path] = frozenset(privileges)

    def verify_ticket(self, ticket: str) -> Identity:
        kind, _, rest = ticket.partition(":")
        user = rest.partition(":")[0]
        if kind != "PVE" or ticket != self.ticket(user):
            raise NotAuthenticated("authentication failure")
        return Identity(user)

    def still_holds(self, identity: Identity, ticket: str) -> bool:
        try:
            return not ticket or self.verify_ticket(ticket) == identity
        except NotAuthenticated:
            return False

    def verify_csrf(self, ticket: str, token: str) -> None:
        if token != f"csrf-of-{ticket}":
            raise NotAuthenticated("permission denied - invalid csrf token")

    async def verify_token(self, header: str) -> Identity:
        value = header.removeprefix("PVEAPIToken=")
        if value != TOKEN:
            raise NotAuthenticated("authentication failure")
        return parse_auth_id(value.partition("=")[0])

    def has(self, identity: Identity, path: str, privilege: str) -> bool:
        return privilege in self.privileges(identity, path)

    def privileges(self, identity: Identity, path: str) -> frozenset[str]:
        return (
            frozenset(PRIVILEGES)
            if identity.user in self.admins
            else self.grants.get((identity.user, path), frozenset())
        )

    def check(self, identity: Identity, path: str, *privileges: str, require_all: bool = True) -> None:
        self.checked.append((path, privileges))
        held = [self.has(identity, path, privilege) for privilege in privileges]
        if not (all(held) if require_all else any(held)):
            raise PermissionDenied(f"Permission check failed ({path}, {', '.join(privileges)})")

    def console_ticket(self, identity: Identity, path: str) -> str:
        return f"PVEVNC:{identity.auth_id}:6543ABCD::{path}"

    def verify_console_ticket(self, ticket: str, path: str) -> Identity:
        kind, _, rest = ticket.partition(":")
        owner = rest.partition(":")[0]
        if kind != "PVEVNC" or ticket != f"PVEVNC:{owner}:6543ABCD::{path}":
            raise NotAuthenticated("invalid console ticket")
        return parse_auth_id(owner)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One row of the audit log."""

    who: str
    remote: str
    action: str
    target: str
    outcome: str
    detail: str
    n: int = 1
    time: float = 1_700_000_000.0
    previous: str = ""
    hash: str = ""


class FakeAudit:
    """Keeps what was recorded, oldest first."""

    def __init__(self) -> None:
        self.rows: list[Recorded] = []

    async def record(self, *, who: str, remote: str, action: str, target: str, outcome: str, detail: str = "") -> None:
        self.rows.append(Recorded(who, remote, action, target, outcome, detail, n=len(self.rows) + 1))

    async def tail(self, limit: int = 100) -> Sequence[Recorded]:
        return self.rows[::-1][:limit]

    async def verify(self) -> SimpleNamespace:
        return SimpleNamespace(ok=True, rows=len(self.rows), bad_line=None, problem="")


class FakeMetrics:
    """`points` by series are what every history shows, `latest_values` what is known now."""

    def __init__(self) -> None:
        self.points: dict[str, list[Point]] = {}
        self.latest_values: dict[str, dict[str, float]] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.now = 1_700_000_000

    async def history(self, series: str, timeframe: str, how: Fold) -> Sequence[Point]:
        self.asked.append((series, timeframe, how.value))
        return self.points.get(series, [])

    def latest(self, series: str) -> dict[str, float]:
        return self.latest_values.get(series, {})

    def latest_time(self) -> int:
        return self.now


class FakeTasks:
    """Tasks end at once; `begin` makes one that runs until `finish`. Newest first in lists."""

    def __init__(self, events: EventBus, clock: Clock) -> None:
        self._events = events
        self._clock = clock
        self.infos: dict[str, TaskInfo] = {}
        self.logs: dict[str, list[str]] = {}
        self.ends: dict[str, asyncio.Event] = {}

    async def run(
        self, kind: str, *, object_id: str, user: str, work: Callable[[SimpleNamespace], Awaitable[None]]
    ) -> str:
        upid = self.begin(kind, object_id=object_id, user=user)
        lines = self.logs[upid]
        await work(SimpleNamespace(upid=upid, log=lines.append, warn=lines.append, progress=lambda fraction: None))
        self.finish(upid)
        return upid

    def begin(self, kind: str, *, object_id: str = "100", user: str = "admin@pve") -> str:
        started, named = int(self._clock.now()), safe_part(object_id, ID_LIMIT)
        upid = f"UPID:{NODE}:{os.getpid():08X}:{len(self.infos) + 1:08X}:{started:08X}:{kind}:{named}:{user}:"
        self.infos[upid] = TaskInfo(
            upid=upid, node=NODE, pid=os.getpid(), pstart=len(self.infos) + 1, starttime=started, endtime=None,
            type=kind, id=object_id, user=user, status=None, progress=None,
        )  # fmt: skip
        self.logs[upid] = []
        self.ends[upid] = asyncio.Event()
        self._events.publish(TaskStarted(upid=upid))
        return upid

    def finish(self, upid: str, status: str = "OK") -> None:
        self.infos[upid] = dataclasses.replace(self.infos[upid], endtime=int(self._clock.now()), status=status)
        self.logs[upid].append(f"TASK {status}")
        self.ends[upid].set()
        self._events.publish(TaskFinished(upid=upid, status=status))

    async def list(
        self, *, guest_id: int | None = None, limit: int = 50, start: int = 0, errors: bool = False,
        running: bool | None = None, kinds: Sequence[str] = (), user: str | None = None,
        user_contains: str | None = None, since: float | None = None, until: float | None = None,
        outcomes: Sequence[str] = (),
    ) -> Sequence[TaskInfo]:  # fmt: skip
        chosen = [
            info
            for info in reversed(self.infos.values())
            if (guest_id is None or info.id == str(guest_id))
            and (running is None or (info.endtime is None) == running)
            and (not errors or (info.status or "OK") != "OK")
            and (not kinds or info.type in kinds)
            and (user is None or user in (info.user, info.user.partition("!")[0]))
            and (user_contains is None or user_contains.lower() in info.user.lower())
            and (not outcomes or info.outcome in outcomes)
            and (since is None or info.starttime >= since)
            and (until is None or info.starttime <= until)
        ]
        return chosen[start : start + limit]

    async def get(self, upid: str) -> TaskInfo:
        if upid not in self.infos:
            raise NotFound(f"task {upid}")
        return self.infos[upid]

    async def wait(self, upid: str, *, timeout_s: float) -> TaskInfo:
        async with asyncio.timeout(timeout_s):
            await self.ends[upid].wait()
        return self.infos[upid]

    async def read_log(self, upid: str, *, start: int = 0, limit: int = 50) -> tuple[Sequence[str], int]:
        lines = self.logs[upid]
        return lines[start : start + limit], len(lines)

    async def cancel(self, upid: str) -> None:
        self.finish(upid, "interrupted by user")


class FakeGuests:
    """Guests that start and stop at once. `add` defines one; `consoles` are by (id, name), `displays` by id.
    `asked_of_all` is what was asked of all of them, with its options."""

    def __init__(self, events: EventBus, tasks: FakeTasks) -> None:
        self._events = events
        self._tasks = tasks
        self.views: dict[int, GuestView] = {}
        self.named: frozenset[VolumeId] = frozenset()
        self.asked_of_all: list[tuple[str, dict[str, object]]] = []
        self.consoles: dict[tuple[int, str], FakeViewer] = {}
        self.displays: dict[int, Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]] = {}

    def add(self, guest_id: int, kind: GuestKind = GuestKind.QEMU, **changes: object) -> GuestView:
        defaults = SimpleNamespace(
            guest_id=GuestId(guest_id), kind=kind, node=NODE, name=f"{kind.prefix}{guest_id}", state=GuestState.STOPPED,
            template=False, tags=(), cpus=2, maxmem=512 << 20, maxdisk=8 << 30, maxswap=0, pid=None, started_at=None,
            uptime_s=0, lock=None, pool=None, onboot=False, stats=None, cpu_ratio=0.0, addresses=(), description="",
            problem="",
        )  # fmt: skip
        view = cast("GuestView", SimpleNamespace(**(vars(defaults) | changes)))
        self.views[guest_id] = view
        self._events.publish(GuestListChanged(guest_id=view.guest_id, kind=kind, exists=True))
        return view

    def named_volumes(self) -> frozenset[VolumeId]:
        return self.named

    def set_state(self, guest_id: int, state: GuestState) -> None:
        old = self.views[guest_id]
        self.views[guest_id] = cast("GuestView", SimpleNamespace(**(vars(old) | {"state": state})))
        self._events.publish(GuestStateChanged(guest_id=old.guest_id, kind=old.kind, old=old.state, new=state))

    def list(self, kind: GuestKind | None = None) -> Sequence[GuestView]:
        return [view for view in self.views.values() if kind in (None, view.kind)]

    def get(self, guest_id: int, kind: GuestKind | None = None) -> GuestView:
        view = self.views.get(guest_id)
        if view is None or kind not in (None, view.kind):
            raise NotFound(f"{kind.prefix if kind else 'guest'} {guest_id}")
        return view

    async def next_id(self, wanted: int | None = None) -> int:
        if wanted is None:
            return next(number for number in range(100, 1000) if number not in self.views)
        if wanted in self.views:
            raise Conflict(f"VM {wanted} already exists")
        return wanted

    def config(self, guest_id: int, kind: GuestKind | None = None) -> tuple[dict[str, str], str]:
        return {"name": self.get(guest_id, kind).name}, "0" * 40

    def running(self, guest_id: int, kind: GuestKind | None = None) -> object:
        raise Conflict(f"{self.get(guest_id, kind).kind.prefix} {guest_id}: no engine runs it")

    def pending(self, kind: GuestKind, guest_id: int) -> Sequence[object]:
        self.get(guest_id, kind)
        return ()

    @property
    def configuration(self) -> FakeGuests:
        """Its own part."""
        return self

    @property
    def power(self) -> FakeGuests:
        """Its own part."""
        return self

    @property
    def snapshots(self) -> SimpleNamespace:
        return SimpleNamespace(list=lambda kind, guest_id: [{"name": "current", "description": "You are here!"}])

    async def start(self, kind: GuestKind, guest_id: int, *, user: str, **options: object) -> str:
        return await self._power("start", kind, guest_id, user, GuestState.RUNNING)

    async def stop(self, kind: GuestKind, guest_id: int, *, user: str, **options: object) -> str:
        return await self._power("stop", kind, guest_id, user, GuestState.STOPPED)

    async def suspend(self, kind: GuestKind, guest_id: int, *, user: str, **options: object) -> str:
        return await self._power("suspend", kind, guest_id, user, GuestState.PAUSED)

    async def resume(self, kind: GuestKind, guest_id: int, *, user: str, **options: object) -> str:
        return await self._power("resume", kind, guest_id, user, GuestState.RUNNING)

    async def start_all(self, *, user: str, guest_ids: Sequence[int] | None = None, force: bool = False) -> str:
        return await self._all("startall", user, {"guest_ids": guest_ids, "force": force})

    async def stop_all(self, *, user: str, guest_ids: Sequence[int] | None = None, force_stop: bool = True) -> str:
        return await self._all("stopall", user, {"guest_ids": guest_ids, "force_stop": force_stop})

    async def _all(self, verb: str, user: str, options: dict[str, object]) -> str:
        async def work(task: SimpleNamespace) -> None:
            self.asked_of_all.append((verb, options))

        return await self._tasks.run(verb, object_id="", user=user, work=work)

    async def _power(self, verb: str, kind: GuestKind, guest_id: int, user: str, state: GuestState) -> str:
        self.get(guest_id, kind)
        prefix = "qm" if kind is GuestKind.QEMU else "vz"

        async def work(task: SimpleNamespace) -> None:
            task.log(f"{kind.prefix} {guest_id}: {verb}")
            self.set_state(guest_id, state)

        return await self._tasks.run(f"{prefix}{verb}", object_id=str(guest_id), user=user, work=work)

    async def attach_console(self, guest_id: int, name: str) -> FakeViewer:
        if (console := self.consoles.get((guest_id, name))) is None:
            raise Conflict(f"guest {guest_id}: not running, so {name} cannot be opened")
        return console

    async def open_display(self, guest_id: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if guest_id not in self.displays:
            raise NotFound(f"vm {guest_id}: a display")
        return await self.displays[guest_id]()


@dataclass(slots=True)
class World:
    """The fakes behind a `Services`."""

    access: FakeAccess
    audit: FakeAudit
    tasks: FakeTasks
    guests: FakeGuests
    events: EventBus
    store: FakeStore
    extras: SimpleNamespace = field(default_factory=SimpleNamespace)


def fake_services(directory: Path, *, clock: Clock | None = None) -> tuple[Services, World]:
    """A `Services` made of fakes, and the fakes. `directory` is the test's own."""
    clock = clock or SystemClock()
    events = EventBus()
    tasks = FakeTasks(events, clock)
    world = World(FakeAccess(), FakeAudit(), tasks, FakeGuests(events, tasks), events, FakeStore())
    world.extras.metrics = FakeMetrics()
    config = Config(
        data_dir=directory / "data", run_dir=directory / "run", listen_host="127.0.0.1", listen_port=0, node_name=NODE
    )
    others = {
        "network": SimpleNamespace(),
        "storage": SimpleNamespace(storages=list),
        "node": SimpleNamespace(status=_node_status),
        "metrics": world.extras.metrics,
        "consoles": SimpleNamespace(),
        "templates": SimpleNamespace(),
        "directory_mappings": DirectoryMappings(world.store, node=NODE, data_dir=config.data_dir),
        "images": SimpleNamespace(find=_no_image),
        "builder": SimpleNamespace(),
    }
    parts = {"access": world.access, "audit": world.audit, "tasks": tasks, "guests": world.guests, **others}
    # the fakes fulfil what `web/` uses of each service; the services are classes, not Protocols, hence the cast
    make = cast(Callable[..., Services], Services)
    return make(config=config, clock=clock, events=events, store=world.store, **parts), world


async def _no_image(volume_id: VolumeId) -> None:
    """Every template is a plain one."""


async def _node_status() -> SimpleNamespace:
    return SimpleNamespace(
        cpu_ratio=0.25, cpu_count=2, memory_used_bytes=1 << 30, memory_total_bytes=4 << 30, rootfs_used_bytes=5 << 30,
        rootfs_total_bytes=20 << 30, uptime_s=1234.5,
    )  # fmt: skip
