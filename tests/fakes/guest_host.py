"""A host for guests in memory, and the guest services on it.

`GuestHost` is what outlives the appliance's process, as real processes, interfaces and files do: a test opens the services
on it a second time and looks what they find. `GuestHost.fresh_boot` is another boot of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from appliance.errors import ApplianceError, HostError, NotFound
from appliance.events import Event, EventBus, GuestStateChanged
from appliance.model.application import PublishedPort
from appliance.model.guest import CtCredentials, CtTree, GuestId, GuestKind, GuestState, NicSpec
from appliance.model.volume import ContentType, OpenedVolume, VolumeId
from appliance.services import backup_names
from appliance.services.access import AccessService
from appliance.services.console import ConsoleService
from appliance.services.guest_runner import Engines
from appliance.services.guests import GuestService
from appliance.services.ports import LogLine
from appliance.services.ports.archives import ArchivedFile
from appliance.services.storage import StorageService
from appliance.services.task_records import TaskInfo
from appliance.services.tasks import TaskService
from appliance.tasks import TaskScope
from tests.fakes.clock import FakeClock
from tests.fakes.engines import FakeEngine, FakeRunningGuest
from tests.fakes.store import FakeStore
from tests.fakes.volumes import FakeStorages, FakeVolumes

PATIENCE_S = 30.0
ADMIN = "admin@pve"
TEMPLATE = "local:vztmpl/debian.tar.zst"


class FakePorts:
    """Fulfils `NetworkBackend`: `plugged` are the ports there are now, `nics` how each was made, `missing` the bridges there
    are not."""

    def __init__(self) -> None:
        self.plugged: set[tuple[int, str]] = set()
        self.nics: dict[tuple[int, str], NicSpec] = {}
        self.missing: set[str] = set()
        self.published: dict[int, tuple[PublishedPort, ...]] = {}
        self.broken: HostError | None = None
        self.links: dict[tuple[int, str], bool] = {}
        self.learned: dict[int, tuple[str, ...]] = {}
        self._heard: Callable[[GuestId], None] = lambda guest_id: None

    async def check(self, nic: NicSpec) -> None:
        if nic.bridge in self.missing:
            raise NotFound(f"bridge '{nic.bridge}'")

    async def plug_vm(self, guest_id: GuestId, nic: NicSpec) -> str:
        self.plugged.add((guest_id, nic.slot))
        return f"tap{guest_id}i{nic.slot[3:]}"

    async def plug_ct(self, guest_id: GuestId, nic: NicSpec, namespace: Path) -> None:
        self.plugged.add((guest_id, nic.slot))
        self.nics[guest_id, nic.slot] = nic

    def resolver(self, bridge: str) -> str:
        return "192.0.2.53" if bridge == "vmbr0" else ""

    def learned_resolvers(self, guest_id: GuestId) -> Sequence[str]:
        return self.learned.get(guest_id, ())

    def on_learned(self, heard: Callable[[GuestId], None]) -> None:
        self._heard = heard

    def learn(self, guest_id: int, *servers: str) -> None:
        """A DHCP server says something of this guest's name servers."""
        self.learned[guest_id] = servers
        self._heard(GuestId(guest_id))

    async def publish(self, guest_id: GuestId, wanted: Sequence[PublishedPort]) -> None:
        self.published[guest_id] = tuple(wanted)

    async def unplug(self, guest_id: GuestId) -> None:
        self.published.pop(guest_id, None)
        if self.broken is not None:
            raise self.broken
        self.plugged = {port for port in self.plugged if port[0] != guest_id}

    async def unplug_one(self, guest_id: GuestId, slot: str) -> None:
        self.plugged.discard((guest_id, slot))

    async def set_link(self, guest_id: GuestId, slot: str, *, up: bool) -> None:
        self.links[guest_id, slot] = up

    async def leases(self) -> Mapping[str, str]:
        return {}

    async def counters(self, guest_id: GuestId) -> tuple[int, int]:
        return 0, 0


@dataclass(frozen=True)
class FakePass:
    """A pass in which little had changed."""

    files: int = 1
    bytes: int = 1
    seconds: float = 0.1


class FakeTreeCopy:
    """A copy that counts its passes; `failing` is the number of the one that fails."""

    def __init__(self, failing: int) -> None:
        self.passes = 0
        self._failing = failing

    async def again(self) -> FakePass:
        await asyncio.sleep(0)
        self.passes += 1
        if self.passes == self._failing:
            raise HostError("no space left on device")
        return FakePass()

    async def differences(self) -> int:
        return 0


class FakeProvisioner:
    """Fulfils `CtProvisioner`. `failure` plays a template or archive that is refused, `may_finish` a long one. `archived` are
    the configurations in backups by their file's name, `filled` what was filled out of one: where, below which directory."""

    def __init__(self) -> None:
        self.populated: list[tuple[Path, CtCredentials]] = []
        self.unpacked: list[Path] = []
        self.copies: list[tuple[bool, Path, FakeTreeCopy]] = []
        self.failing_pass = 0
        self.archived: dict[str, str] = {}
        self.filled: list[tuple[Path, str]] = []
        self.failure: ApplianceError | None = None
        self.may_finish = asyncio.Event()
        self.may_finish.set()
        self.begun = asyncio.Event()

    async def populate(
        self, root: OpenedVolume, template: Path, *, id_base: int, credentials: CtCredentials, log: LogLine
    ) -> None:
        self.begun.set()
        await self.may_finish.wait()
        if self.failure is not None:
            raise self.failure
        self.populated.append((root.path, credentials))

    async def unpack(self, root: OpenedVolume, template: Path, *, log: LogLine) -> None:
        self.begun.set()
        await self.may_finish.wait()
        if self.failure is not None:
            raise self.failure
        self.unpacked.append(template)

    async def personalise(self, root: OpenedVolume, *, credentials: CtCredentials) -> None:
        self.populated.append((root.path, credentials))

    async def pack(
        self,
        guest_id: GuestId,
        trees: Sequence[CtTree],
        target: Path,
        *,
        config: str,
        exclude: Sequence[str],
        compress: str,
        log: LogLine,
    ) -> None:
        raise HostError("nothing is packed here")

    @contextlib.asynccontextmanager
    async def copying(
        self, guest_id: GuestId, source: CtTree, target: OpenedVolume
    ) -> AsyncGenerator[FakeTreeCopy, None]:
        copy = FakeTreeCopy(self.failing_pass)
        self.copies.append((source.volume is None, target.path, copy))
        yield copy

    async def unpack_backup(
        self, root: OpenedVolume, archive: Path, *, below: str, exclude: Sequence[str], log: LogLine
    ) -> None:
        self.begun.set()
        await self.may_finish.wait()
        if self.failure is not None:
            raise self.failure
        self.filled.append((root.path, below))

    async def read_archived(self, archive: Path, name: str) -> bytes:
        if archive.name not in self.archived:
            raise NotFound(f"'{name}' in {archive.name}")
        return self.archived[archive.name].encode()

    async def archived_files(self, archive: Path) -> Sequence[ArchivedFile]:
        return ()

    async def stream_archived(self, archive: Path, name: str) -> AsyncGenerator[bytes, None]:
        yield b""


class FakePools:
    """What guests use of `AccessService`: `pools` are there, `members` maps a guest to its pool."""

    def __init__(self) -> None:
        self.pools: set[str] = {"office"}
        self.members: dict[int, str] = {}
        self.forgotten: list[int] = []

    def pool_of(self, guest_id: GuestId) -> str | None:
        return self.members.get(guest_id)

    async def set_pool(self, guest_id: GuestId, pool: str | None) -> None:
        await asyncio.sleep(0)
        if pool not in self.pools:
            raise NotFound(f"pool '{pool}'")
        self.members[guest_id] = pool

    async def forget_guest(self, guest_id: GuestId) -> None:
        self.members.pop(guest_id, None)
        self.forgotten.append(guest_id)


class GuestHost:
    """Everything that outlives the appliance's process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.store = FakeStore(self.clock)
        self.vms, self.cts = FakeEngine("qemu", self.clock), FakeEngine("ct", self.clock)
        self.ports, self.pools, self.provisioner = FakePorts(), FakePools(), FakeProvisioner()
        self.volumes = FakeVolumes("local")
        self.big, self.isos = FakeVolumes("big"), FakeVolumes("isos", frozenset({ContentType.ISO}))
        self.volumes.put(TEMPLATE.partition(":")[2], content=ContentType.VZTMPL)

    def back_up(self, kind: GuestKind, guest_id: int, config: str) -> VolumeId:
        """A backup with this configuration, a line a key."""
        name = backup_names.file_name(kind, guest_id, self.clock.now(), "zstd")
        self.provisioner.archived[name] = config
        return self.volumes.put(f"backup/{name}", content=ContentType.BACKUP, guest_id=guest_id)


@dataclass(slots=True)
class GuestWorld:
    """The guest services on a host, and the words tests use."""

    host: GuestHost
    guests: GuestService
    tasks: TaskService
    events: list[Event]

    async def end_of(self, upid: str) -> TaskInfo:
        """The task, once it has ended."""
        return await self.tasks.wait(upid, timeout_s=PATIENCE_S)

    async def cancel_after(self, upid: str, turns: int) -> TaskInfo:
        """Cancel a task once everything has gone on `turns` times, wherever it is then; the task when it has ended."""
        for _ in range(turns):
            await asyncio.sleep(0)
        await self.tasks.cancel(upid)
        return await self.end_of(upid)

    async def succeed(self, upid: str) -> None:
        """The task ends well."""
        status = (await self.end_of(upid)).status
        assert status == "OK", status

    async def fail(self, upid: str) -> str:
        """The task ends with this error."""
        status = (await self.end_of(upid)).status or ""
        assert status != "OK"
        return status

    async def make_vm(self, guest_id: int = 100, *, start: bool = False, **config: str) -> FakeRunningGuest | None:
        """A VM of one disk and one NIC."""
        wanted = {"scsi0": "local:8", "net0": "virtio,bridge=vmbr0"} | config
        await self.succeed(await self.guests.creation.create(GuestKind.QEMU, guest_id, wanted, user=ADMIN, start=start))
        return self.run_of(guest_id)

    async def make_ct(self, guest_id: int = 101, *, start: bool = False, **config: str) -> FakeRunningGuest | None:
        """An unprivileged container of one NIC."""
        wanted = {"rootfs": "local:4", "net0": "name=eth0,bridge=vmbr0,ip=dhcp"} | config
        await self.succeed(
            await self.guests.creation.create(
                GuestKind.LXC, guest_id, wanted, user=ADMIN, start=start, template=TEMPLATE
            )
        )
        return self.run_of(guest_id)

    async def running_vm(self, **config: str) -> FakeRunningGuest:
        """VM 100, running."""
        running = await self.make_vm(100, start=True, **config)
        assert running is not None
        return running

    async def running_ct(self) -> FakeRunningGuest:
        """Container 101, running."""
        running = await self.make_ct(start=True)
        assert running is not None
        return running

    def run_of(self, guest_id: int) -> FakeRunningGuest | None:
        """What runs of the guest."""
        for engine in (self.host.vms, self.host.cts):
            if running := engine.running().get(GuestId(guest_id)):
                return running
        return None

    def state(self, guest_id: int) -> GuestState:
        return self.guests.get(guest_id).state

    async def reaches(self, guest_id: int, state: GuestState) -> None:
        """Wait until the guest is in this state."""
        async with asyncio.timeout(PATIENCE_S):
            while self.state(guest_id) is not state:
                await asyncio.sleep(0)

    def states(self, guest_id: int) -> list[GuestState]:
        """The states the guest has moved to, in order."""
        return [
            event.new for event in self.events if isinstance(event, GuestStateChanged) and event.guest_id == guest_id
        ]


async def turns() -> None:
    """Let everything that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def open_world(host: GuestHost) -> AsyncIterator[GuestWorld]:
    """The services from their start to the end of the appliance; the host goes on."""
    events, scope = EventBus(), TaskScope("test")
    tasks = TaskService(host.store, events, host.clock, directory=host.directory / "tasks", node="n")
    await tasks.start()
    consoles = ConsoleService(scope)
    guests = GuestService(
        store=host.store,
        events=events,
        clock=host.clock,
        tasks=tasks,
        access=cast(AccessService, host.pools),
        storage=cast(StorageService, FakeStorages(host.volumes, host.big, host.isos)),
        network=host.ports,
        consoles=consoles,
        engines=Engines(vm=(host.vms,), ct=host.cts),
        provisioner=host.provisioner,
        node="n",
        scope=scope,
        new_mac=_new_mac,
    )
    world = GuestWorld(host, guests, tasks, [])

    async def listen() -> None:
        with events.subscribe() as subscription:
            async for event in subscription:
                world.events.append(event)

    scope.start(listen(), name="listen")
    await asyncio.sleep(0)
    try:
        await guests.load()
        yield world
    finally:
        await tasks.close()
        await guests.close()
        await consoles.close()
        await scope.close()


def _new_mac(used: frozenset[str]) -> str:
    macs = (f"BC:24:11:00:00:{n:02X}" for n in range(256))
    return next(mac for mac in macs if mac not in used)
