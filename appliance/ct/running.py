"""One running container: fulfils ports.RunningGuest. On the loop; file and process work goes to threads.

Its life is watched by pidfds. When init ends, the shim drains the terminal, writes the exit code and ends; then the
engine removes what it made, and `wait` returns. A shim that dies first takes its container with it: nobody else holds
the terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from appliance import command
from appliance.command import Completed
from appliance.ct import application, interior, limits, renewal, rootfs, shim
from appliance.ct.console import ConmonConsole
from appliance.ct.execution import Executions, ShellConsole, kill_by_file
from appliance.ct.files import Files
from appliance.ct.records import CtRecord
from appliance.ct.runtime import OciRuntime
from appliance.errors import ApplianceError, Conflict, NotFound, TimedOut, Unsupported
from appliance.kernel import pidfd
from appliance.kernel.cgroups import Cgroup
from appliance.model.application import Application, signal_number
from appliance.model.guest import CtSpec, ExitReason, GuestId, GuestState, GuestStats
from appliance.model.inside import ExecRequest
from appliance.tasks import TaskScope
from appliance.threads import to_the_end
from appliance.waiting import readable

log = logging.getLogger(__name__)

CONSOLE, SHELL = "console", "shell"
SHIM_END_LIMIT_S = 10.0
STOP_LIMIT_S = 30.0
_SIGNALLED = 128
HALT_LIMIT_S = 10.0
_HALT_SIGNALS = {"systemd": signal.SIGRTMIN + 3, "busybox": signal.SIGUSR2, "init": signal.SIGPWR}
"""The signal that asks an init to power off, by the name of its program: systemd(1), busybox init, sysvinit."""
_HALT_PROGRAMS = {
    "init": ("/sbin/init", "0"),
    "runit": ("/sbin/init", "0"),
    "openrc-init": ("openrc-shutdown", "--poweroff", "now"),
}
"""What is better asked by a program of its own, run inside: sysvinit (telinit(8); SIGPWR does only what inittab says of
it), runit-init(8), openrc-init."""

StateCallback = Callable[[GuestState, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CtParts:
    """What a running container is made of."""

    record: CtRecord
    bundle: Path
    container: str
    cgroup: Cgroup
    runtime: OciRuntime
    init_fd: int
    shim_fd: int
    pids_limit: int
    application: Application | None = None


class RunningCt:
    """See the module's docstring. `remove` removes everything the engine made for it, and may be called again."""

    def __init__(
        self,
        parts: CtParts,
        *,
        state: GuestState,
        on_state: StateCallback,
        remove: Callable[[], Awaitable[None]],
        scope: TaskScope,
    ) -> None:
        self._parts = parts
        self._state = state
        self._on_state = on_state
        self._remove = remove
        self._scope = scope
        self._ended: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()
        self._asked: str | None = None
        self._kills_known = 0
        self._fds = [parts.init_fd, parts.shim_fd]
        self._label = f"ct {parts.record.guest_id}"
        self.executions = Executions(
            parts.runtime, parts.container, parts.bundle, self.pid, label=self._label, require=self._require_running
        )
        self.files = Files(
            self.pid,
            label=self._label,
            privileged=parts.record.id_base == 0,
            is_alive=lambda: parts.init_fd in self._fds and not pidfd.has_ended(parts.init_fd),
        )
        self._watcher = scope.start(self._watch(), name=f"watch {self._label}")

    @property
    def guest_id(self) -> GuestId:
        return GuestId(self._parts.record.guest_id)

    @property
    def pid(self) -> int:
        return self._parts.record.init.pid

    @property
    def started_at(self) -> float:
        return self._parts.record.started_at

    @property
    def state(self) -> GuestState:
        return self._state

    async def wait(self) -> ExitReason:
        return await asyncio.shield(self._ended)

    async def pause(self) -> None:
        await asyncio.to_thread(self._parts.cgroup.freeze, frozen=True)
        self._set_state(GuestState.PAUSED, "paused")

    async def resume(self) -> None:
        await asyncio.to_thread(self._parts.cgroup.freeze, frozen=False)
        self._set_state(GuestState.RUNNING, "resumed")

    async def shutdown(self) -> None:
        self._asked = self._asked or "shutdown"
        if (made_of := self._parts.application) is not None:
            self._signal_init(signal_number(made_of.stop_signal or "SIGTERM"))
            return
        init = await asyncio.to_thread(program_of, self.pid)
        program = _HALT_PROGRAMS.get(init)
        if program is None or not await self._halted_by(program):
            self._signal_init(halt_signal(init))

    async def _halted_by(self, program: Sequence[str]) -> bool:
        """Run the init's own program for it; whether that was there and content."""
        try:
            async with (
                asyncio.timeout(HALT_LIMIT_S),
                self.executions.run(ExecRequest(argv=tuple(program))) as execution,
            ):
                while await execution.next():
                    pass
                return await execution.wait() == 0
        except (ApplianceError, TimeoutError) as error:
            log.info("%s: %s: %s", self._label, " ".join(program), error or "no end")
            return False

    async def stop(self) -> None:
        self._asked = "stopped"
        self._signal_init(signal.SIGKILL)
        if self._state is GuestState.PAUSED:  # a frozen process dies when it thaws
            with contextlib.suppress(ApplianceError):
                await asyncio.to_thread(self._parts.cgroup.freeze, frozen=False)
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await self.wait()
        except TimeoutError as error:
            raise TimedOut(f"{self._label}: stop", STOP_LIMIT_S) from error

    async def reset(self) -> None:
        raise Unsupported(f"{self._label}: a container has no reset button")

    def console_names(self) -> Sequence[str]:
        return (CONSOLE,)

    async def open_console(self, name: str) -> ConmonConsole | ShellConsole:
        """The login console, or a shell, which is started when somebody asks for it and ends by itself."""
        if name == SHELL:
            return await self.executions.shell()
        if name != CONSOLE:
            raise NotFound(f"{self._label}: console {name}")
        return await ConmonConsole.attach(self._parts.bundle)

    async def open_display(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raise NotFound(f"{self._label}: display")

    async def stats(self) -> GuestStats:
        return await asyncio.to_thread(self._read_stats)

    async def resize_disk(self, slot: str, size_bytes: int) -> None:
        """Grow the mounted file system of a raw volume; a directory volume has no size of its own."""
        volume = self._parts.record.volumes.get(slot)
        if volume is None:
            raise NotFound(f"{self._label}: disk {slot}")
        if volume.device is not None:
            mounted = self._parts.bundle / slot
            await asyncio.to_thread(rootfs.grow, mounted, Path(volume.device), about=f"{self._label}: {slot}")

    state_engine = ""

    async def snapshot_disks(self, name: str, slots: Sequence[str], *, state_slot: str | None = None) -> None:
        raise Unsupported(f"{self._label}: a container has no disk images")

    async def drop_disk_snapshots(self, name: str, slots: Sequence[str]) -> None:
        raise Unsupported(f"{self._label}: a container has no disk images")

    async def update_limits(self, spec: CtSpec, keys: Collection[str]) -> Mapping[str, str]:
        """Bring its limits to what these configuration `keys` of `spec` ask for; why it could not be done, by key."""
        parts = self._parts
        return await asyncio.to_thread(
            limits.apply, parts.cgroup, spec, keys, pids_limit=parts.pids_limit, volumes=parts.record.volumes
        )

    async def renew_network(self, spec: CtSpec, names: Collection[str]) -> str:
        """Let the distribution inside take over what `spec` says of its interfaces `names`; a line about it."""
        return await renewal.renew(self.files, self.executions, spec, names)

    async def renew_resolver(self, servers: Sequence[str], search_domain: str) -> None:
        """Have names resolved by these addresses inside. Raises what `Files.write` does, `HostError`."""
        text = interior.resolver_text(servers, search_domain)
        if self._parts.application is None:
            await renewal.resolver(self.files, text)
        else:
            await asyncio.to_thread(application.rewrite_resolver, self._parts.bundle, text)

    async def execute(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes | None = None) -> Completed:
        """Run a program inside as its root and return what it said, whatever its status.

        Raises `Conflict` when the container is not running, `TimedOut` (the program is killed then), `HostError`.
        """
        self._require_running()
        pid_file = self._parts.bundle / f"exec-{id(argv):x}.pid"
        prefix = [*self._parts.runtime.argv, "exec", "--cwd", "/", "--pid-file", str(pid_file), self._parts.container]
        try:
            return await command.run([*prefix, *argv], timeout_s=timeout_s, stdin=stdin, check=False)
        except BaseException:
            await to_the_end(kill_by_file, pid_file, self.pid)
            raise
        finally:
            await to_the_end(pid_file.unlink, missing_ok=True)

    async def detach(self) -> None:
        """Let go of it; one that has just ended is removed first."""
        if self._parts.init_fd in self._fds and pidfd.has_ended(self._parts.init_fd):
            await asyncio.wait((self._watcher,), timeout=STOP_LIMIT_S)
        self._watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watcher
        self._close_fds()

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Wait for the end, remove what is left, tell."""
        init_ended = asyncio.ensure_future(readable(self._parts.init_fd))
        shim_ended = asyncio.ensure_future(readable(self._parts.shim_fd))
        try:
            await asyncio.wait((init_ended, shim_ended), return_when=asyncio.FIRST_COMPLETED)
            lost_shim = not init_ended.done()
            if lost_shim:
                self._signal_init(signal.SIGKILL)
                await init_ended
            await self._end_of_shim(shim_ended)
        finally:
            init_ended.cancel()
            shim_ended.cancel()
        reason = await asyncio.to_thread(self._exit_reason, lost_shim=lost_shim)
        try:
            await self._remove()
        except ApplianceError as error:
            log.error("%s: removing what is left of it: %s", self._label, error)
        self._close_fds()
        self._set_state(GuestState.STOPPED, reason.detail)
        self._ended.set_result(reason)

    async def _end_of_shim(self, shim_ended: asyncio.Future[None]) -> None:
        done, _ = await asyncio.wait((shim_ended,), timeout=SHIM_END_LIMIT_S)
        if not done:
            log.warning("%s: its shim does not end, killing it", self._label)
            pidfd.pidfd_send_signal(self._parts.shim_fd, signal.SIGKILL)
            await shim_ended

    def _exit_reason(self, *, lost_shim: bool) -> ExitReason:
        code = shim.exit_code(self._parts.bundle, self._parts.container)
        # of the kills known before, one was another process's: init's own is a new one
        out_of_memory = self._parts.cgroup.out_of_memory_kills() > self._kills_known
        reason = exit_reason(
            code,
            asked=self._asked,
            lost_shim=lost_shim,
            out_of_memory=out_of_memory,
            is_init=self._parts.application is None,
        )
        return replace(reason, exit_code=code, asked=self._asked is not None)

    def _signal_init(self, number: int) -> None:
        if self._parts.init_fd in self._fds:
            pidfd.pidfd_send_signal(self._parts.init_fd, number)

    def _require_running(self) -> None:
        if self._state is not GuestState.RUNNING:
            paused = " (it is paused)" if self._state is GuestState.PAUSED else ""
            raise Conflict(f"{self._label}: not running{paused}")

    def _set_state(self, new: GuestState, reason: str) -> None:
        if self._state is GuestState.STOPPED or self._state is new:
            return
        log.info("%s: %s -> %s (%s)", self._label, self._state.value, new.value, reason)
        self._state = new
        self._on_state(new, reason)

    def _read_stats(self) -> GuestStats:
        received, sent = network_bytes(self.pid)
        root = self._parts.record.volumes["rootfs"]
        used = _used_bytes(self._parts.bundle / "rootfs") if root.device is not None else 0
        figures = self._parts.cgroup.stats()
        killed = self._kills_known = self._parts.cgroup.out_of_memory_kills()
        return replace(figures, net_in_bytes=received, net_out_bytes=sent, disk_used_bytes=used, oom_kills=killed)

    def _close_fds(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def program_of(pid: int) -> str:
    """The name of the program a process runs, whatever it calls itself; empty when it has gone. Blocking."""
    try:
        return Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""


def halt_signal(program: str) -> int:
    """The signal by which this init is asked to power off; SIGTERM for a program that is no init."""
    return int(_HALT_SIGNALS.get(program, signal.SIGTERM))


def exit_reason(
    code: int | None, *, asked: str | None, lost_shim: bool, out_of_memory: bool, is_init: bool = True
) -> ExitReason:
    """What an exit code means. An application's first process is no init: what it ends with is its own affair.

    In a pid namespace reboot(2) ends init: SIGINT for power off, SIGHUP for restart."""
    first = "init" if is_init else "the program"
    if asked == "stopped":
        return ExitReason(kind="stopped", detail="stopped")
    if lost_shim:
        return ExitReason(kind="crashed", detail="its shim died")
    match code:
        case None:
            return ExitReason(kind="crashed", detail="its shim died with it")
        case 0:
            return ExitReason(kind="shutdown", detail=f"{first} ended")
        case _ if is_init and code == _SIGNALLED + signal.SIGINT:
            return ExitReason(kind="shutdown", detail="powered off")
        case _ if is_init and code == _SIGNALLED + signal.SIGHUP and asked is None:
            return ExitReason(kind="reset", detail="restart asked for inside")
        case _ if asked == "shutdown":
            return ExitReason(kind="shutdown", detail=f"{first} ended with status {code} after the shutdown request")
        case _ if code == _SIGNALLED + signal.SIGKILL and out_of_memory:
            return ExitReason(kind="crashed", detail="killed: out of memory")
        case _ if code > _SIGNALLED:
            return ExitReason(kind="crashed", detail=f"{first} was killed by signal {code - _SIGNALLED}")
        case _:
            return ExitReason(kind="crashed", detail=f"{first} ended with status {code}")


def network_bytes(pid: int) -> tuple[int, int]:
    """Bytes (in, out) over all interfaces but lo in the network namespace of `pid` (proc(5), net/dev). Blocking."""
    received = sent = 0
    try:
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    except OSError:
        return 0, 0
    for line in lines:
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        if name.strip() != "lo" and len(fields) >= 9:
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent


def _used_bytes(path: Path) -> int:
    try:
        usage = os.statvfs(path)
    except OSError:
        return 0
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize
