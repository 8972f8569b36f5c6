"""QemuEngine: starts VMs as QEMU processes and finds them again after a restart of the appliance.

A start, step by step, each undone when a later one fails:
    1 refuse what this host cannot    2 an empty run directory, the control group    3 check and prepare the resources
    4 the record    5 the process, its vCPUs stopped, into its group    6 the record with its pid
    7 monitor, links, `cont`

An adoption believes only what it can verify: the process is the one the record names (pid, start time) and was launched
with this run directory; a launch that had not reached step 7 is undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from appliance.clock import Clock
from appliance.errors import Conflict, HostError, Unsupported
from appliance.kernel.pidfd import ProcessIdentity, identify, pidfd_open
from appliance.kernel.spawn import inheritable, watch_child
from appliance.model.guest import Capabilities, GuestId, VmResources, VmSpec
from appliance.qemu import process
from appliance.qemu.capabilities import HostFacts, probe_host
from appliance.qemu.command_line import build
from appliance.qemu.console import trim_log
from appliance.qemu.devices import has_display
from appliance.qemu.groups import VmGroup, VmGroups, limits_of
from appliance.qemu.prepare import prepare
from appliance.qemu.refusal import reasons
from appliance.qemu.run_dir import RunDir, RunRecord
from appliance.qemu.shares import ShareDaemons
from appliance.qemu.vm import LogLine, RunningVm, StateCallback
from appliance.tasks import TaskScope, to_its_end
from appliance.threads import to_the_end

TRIM_INTERVAL_S = 10.0

log = logging.getLogger(__name__)


class QemuEngine:
    """Fulfils `services.ports.engine.GuestEngine[VmSpec, VmResources]`. `scope` owns its tasks; `close` before closing it."""

    name = "qemu"

    def __init__(self, run_dir: Path, scope: TaskScope, clock: Clock) -> None:
        self._run_dir, self._scope, self._clock = run_dir.absolute(), scope, clock
        self._groups = VmGroups(self._run_dir)
        self._facts: HostFacts | None = None
        self._busy: set[GuestId] = set()
        self._running: dict[GuestId, RunningVm] = {}
        self._trimmer: asyncio.Task[None] | None = None

    async def probe(self) -> Capabilities:
        """Ask the host; about 0.2 s."""
        facts, no_groups = await asyncio.gather(probe_host(), asyncio.to_thread(self._groups.probe))
        self._facts = replace(facts, no_cpu_limit=no_groups)
        return self._facts.summary()

    def refuse(self, spec: VmSpec) -> Sequence[str]:
        """Why this host cannot run `spec`. Raises `HostError` before the first `probe`."""
        return reasons(spec, self._known_facts())

    async def start(self, spec: VmSpec, resources: VmResources, *, on_state: StateCallback, log: LogLine) -> RunningVm:
        """Start it. Raises `Unsupported` with all reasons, `Conflict` when it runs already, `HostError`."""
        if found := self.refuse(spec):
            raise Unsupported(f"vm {spec.guest_id}: {'; '.join(found)}")
        paths = RunDir.of(self._run_dir, spec.guest_id)
        if problem := paths.socket_path_problem():
            raise HostError(f"vm {spec.guest_id}: {problem}")
        group = self._groups.of(spec.guest_id)
        with self._claim(spec.guest_id):
            await to_the_end(_refuse_if_running, paths)
            try:
                await to_the_end(paths.create)
                await to_the_end(group.make, limits_of(spec))
                vm = await self._launch(spec, resources, paths, group, on_state=on_state, log=log)
            except BaseException:
                await to_the_end(group.remove)
                await to_the_end(paths.remove)
                raise
        return self._keep(vm)

    async def adopt(self, spec: VmSpec, *, on_state: StateCallback) -> RunningVm | None:
        """The VM if its QEMU still runs; otherwise None, and what is left of it is removed. Raises `HostError`."""
        paths, group = RunDir.of(self._run_dir, spec.guest_id), self._groups.of(spec.guest_id)
        with self._claim(spec.guest_id):
            found = await asyncio.to_thread(_find, paths, spec)
            pidfd = await asyncio.to_thread(pidfd_open, found[1]) if found else None
            if found is None or pidfd is None:
                await to_the_end(group.remove)
                await to_the_end(paths.remove)
                return None
            record, identity = found
            watch = process.ProcessWatch(identity.pid, pidfd)
            vm = RunningVm(
                record, paths, group, watch, scope=self._scope, clock=self._clock, on_state=on_state,
                task_log=_to_our_log, vhost=self._facts is not None and not self._facts.no_vhost,
            )  # fmt: skip
            try:
                attached = await vm.reattach()
            except BaseException:
                await vm.detach()
                raise
            if not attached:
                log_line = "vm %s: its launch was cut short by the end of the appliance: removed"
                log.warning(log_line, spec.guest_id)
                await vm.abandon()
                return None
        return self._keep(vm)

    def running(self, guest_id: GuestId) -> RunningVm | None:
        """The VM this engine holds, started or adopted."""
        vm = self._running.get(guest_id)
        return None if vm is None or vm.ended else vm

    async def running_ids(self) -> Sequence[GuestId]:
        """Every VM whose QEMU lives, from the run directories, verified against the processes."""
        return await asyncio.to_thread(_running_ids, self._run_dir)

    async def close(self) -> None:
        """Detach from every VM; they go on."""
        if self._trimmer is not None:
            self._trimmer.cancel()
        for guest_id in list(self._running):
            await self.release(guest_id)

    async def release(self, guest_id: GuestId) -> None:
        """Detach from one VM; it goes on and can be adopted."""
        vm = self._running.pop(guest_id, None)
        if vm is not None:
            await vm.detach()

    def _known_facts(self) -> HostFacts:
        if self._facts is None:
            raise HostError("qemu: the host has not been probed")
        return self._facts

    @contextlib.contextmanager
    def _claim(self, guest_id: GuestId) -> Iterator[None]:
        if guest_id in self._busy or self.running(guest_id) is not None:
            raise Conflict(f"vm {guest_id}: is running or being started already")
        self._busy.add(guest_id)
        try:
            yield
        finally:
            self._busy.discard(guest_id)

    def _keep(self, vm: RunningVm) -> RunningVm:
        self._running[vm.guest_id] = vm
        if self._trimmer is None or self._trimmer.done():
            self._trimmer = self._scope.start(self._trim_logs(), name="trim-vm-logs")
        return vm

    async def _launch(
        self,
        spec: VmSpec,
        resources: VmResources,
        paths: RunDir,
        group: VmGroup,
        *,
        on_state: StateCallback,
        log: LogLine,
    ) -> RunningVm:
        launch, notes = await prepare(spec, resources, self._known_facts(), paths)
        for note in notes:
            log(note)
        argv = build(spec, resources, launch)
        record = _record_of(spec, started_at=self._clock.now())
        await to_the_end(paths.write_record, record)
        unwanted = await asyncio.to_thread(inheritable, above=process.QMP_FD)
        shares = ShareDaemons(f"vm {spec.guest_id}")
        try:
            await shares.start(spec, resources, paths)
            watch = _spawn(argv, paths, spec.guest_id, unwanted)
        except BaseException:
            await to_its_end(shares.end(), name=f"vm {spec.guest_id} shares")
            raise
        vm = RunningVm(
            record,
            paths,
            group,
            watch,
            scope=self._scope,
            clock=self._clock,
            on_state=on_state,
            task_log=log,
            shares=shares,
            vhost=not self._known_facts().no_vhost,
        )
        try:
            await to_the_end(group.attach, watch.pid)
            await to_the_end(_note_process, paths, record, watch.pid)
            await vm.begin(links_down=[nic.slot for nic in spec.nics if nic.link_down], state=resources.state)
            for line in await asyncio.to_thread(paths.log_lines):
                log(f"QEMU: {line}")
        except BaseException:
            await vm.abandon()
            raise
        return vm

    async def _trim_logs(self) -> None:
        while True:
            await self._clock.sleep(TRIM_INTERVAL_S)
            self._running = {guest_id: vm for guest_id, vm in self._running.items() if not vm.ended}
            await asyncio.to_thread(_trim_all, [RunDir.of(self._run_dir, guest_id) for guest_id in self._running])


def _to_our_log(line: str) -> None:
    log.info("%s", line)


def _record_of(spec: VmSpec, *, started_at: float) -> RunRecord:
    return RunRecord(
        guest_id=spec.guest_id,
        uuid=spec.uuid,
        started_at=started_at,
        memory_mib=spec.memory_mib,
        serials=spec.serials,
        display=has_display(spec),
        agent=spec.agent,
        balloon=spec.balloon_min_mib is not None,
        spec=replace(spec, cloud_init=None),
    )


def _refuse_if_running(paths: RunDir) -> None:
    """Blocking. Raises `Conflict` when a QEMU still runs there, though nobody adopted it."""
    pid = process.find_launched_with(paths.pid) if paths.path.exists() else None
    if pid is not None:
        raise Conflict(f"vm {paths.guest_id}: runs already as process {pid}")


def _spawn(argv: list[str], paths: RunDir, guest_id: GuestId, unwanted: Sequence[int]) -> process.ProcessWatch:
    """Start QEMU with its monitor socket already listening: our connection waits in it until QEMU looks.

    Not in a thread: a cancellation could lose the pid of a started process.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(paths.qmp))
        listener.listen(1)
        pid = process.spawn(argv, log_path=paths.log, qmp_listener=listener.fileno(), unwanted=unwanted)
        pidfd = watch_child(pid)
    except OSError as error:
        raise HostError.from_os_error(error, f"vm {guest_id}: start {argv[0]}") from error
    finally:
        listener.close()
    return process.ProcessWatch(pid, pidfd)


def _note_process(paths: RunDir, record: RunRecord, pid: int) -> None:
    """Blocking. Put the process into the record. A zombie is not noted: `begin` will say why it died."""
    identity = identify(pid)
    if identity is not None:
        paths.write_record(msgspec.structs.replace(record, pid=pid, start_ticks=identity.start_ticks))


def _find(paths: RunDir, spec: VmSpec) -> tuple[RunRecord, ProcessIdentity] | None:
    """Blocking. A record that cannot be read is made anew from `spec` when a process runs all the same."""
    if not paths.path.is_dir():
        return None
    record = paths.read_record()
    if record is None:
        started_at = paths.path.stat().st_mtime
        log.warning("vm %s: %s is unreadable", paths.guest_id, paths.record)
        record = msgspec.structs.replace(_record_of(spec, started_at=started_at), spec=None)
    identity = paths.find_process(record)
    return (record, identity) if identity else None


def _running_ids(run_dir: Path) -> list[GuestId]:
    """Blocking."""
    try:
        names = [path.name for path in (run_dir / "vm").iterdir()]
    except FileNotFoundError:
        return []
    found: list[GuestId] = []
    for guest_id in sorted(int(name) for name in names if name.isdigit()):
        paths = RunDir.of(run_dir, GuestId(guest_id))
        record = paths.read_record()
        if paths.find_process(record) if record else process.find_launched_with(paths.pid):
            found.append(GuestId(guest_id))
    return found


def _trim_all(directories: Sequence[RunDir]) -> None:
    """Blocking."""
    for paths in directories:
        for path in (paths.log, *(paths.serial_log(number) for number in range(4))):
            try:
                trim_log(path)
            except OSError as error:
                log.warning("vm %s: trim %s: %s", paths.guest_id, path, error)
