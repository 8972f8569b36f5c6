"""One VM that runs: its state as QMP tells it, its orderly and hard end; `ports` and `plugs` have the rest.

    PRELAUNCH (-S) --begin--> RUNNING <--STOP/RESUME--> PAUSED --the process ends--> STOPPED

Two tasks belong to it: `supervise` waits for the process to end and cleans up after it; `monitor` keeps the QMP
connection, which QEMU may lose without ending. Both end with `detach`, which leaves the VM as it is.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from appliance.clock import Clock
from appliance.errors import GuestFault, HostError, TimedOut
from appliance.model.guest import ExitReason, GuestId, GuestState, GuestStats, NicSpec, SavedState, VmDisk
from appliance.model.volume import OpenedVolume
from appliance.qemu import snapshots, stats
from appliance.qemu.console import SerialConsole
from appliance.qemu.drives import slot_of
from appliance.qemu.ending import LastWords, exit_reason
from appliance.qemu.groups import VmGroup
from appliance.qemu.mirror import DiskMirror, node_of
from appliance.qemu.monitor import Monitor
from appliance.qemu.plugs import Plugs
from appliance.qemu.ports import Ports
from appliance.qemu.process import ProcessWatch, read_stat
from appliance.qemu.run_dir import RunDir, RunRecord
from appliance.qemu.shares import ShareDaemons
from appliance.tasks import TaskScope
from appliance.threads import to_the_end

LAUNCH_TIMEOUT_S = 60.0
QUIT_TIMEOUT_S = 10.0
TERMINATE_TIMEOUT_S = 5.0
KILL_TIMEOUT_S = 10.0
CLEANUP_TIMEOUT_S = 10.0
AGENT_PING_TIMEOUT_S = 2.0
LAST_EVENTS_TIMEOUT_S = 1.0
RECONNECT_FIRST_S, RECONNECT_LAST_S = 1.0, 30.0
PANIC_NOTE_INTERVAL_S = 10.0
BALLOON_POLL_S = 2

log = logging.getLogger(__name__)
StateCallback = Callable[[GuestState, str], None]
LogLine = Callable[[str], None]


class RunningVm:
    """Fulfils `RunningGuest` and `HotPlug` of `services.ports`. Made by `QemuEngine`, which calls `begin` or `reattach` once."""

    def __init__(
        self,
        record: RunRecord,
        paths: RunDir,
        group: VmGroup,
        watch: ProcessWatch,
        *,
        scope: TaskScope,
        clock: Clock,
        on_state: StateCallback,
        task_log: LogLine,
        shares: ShareDaemons | None = None,
        vhost: bool = False,
    ) -> None:
        """`shares`: those this appliance started; of an adopted VM they end with QEMU."""
        self._record, self._paths, self._group, self._watch = record, paths, group, watch
        self._scope, self._clock = scope, clock
        self._on_state, self._task_log = on_state, task_log
        self._name = f"vm {record.guest_id}"
        self._monitor = Monitor(paths.qmp, name=self._name, on_event=self._on_event, on_flood=self._on_flood)
        self._ports = Ports(record, paths, self._monitor, name=self._name, pid=watch.pid)
        self._plugs = Plugs(record.spec, paths, self._monitor, scope=scope, name=self._name, vhost=vhost)
        self._state = GuestState.RUNNING
        self._last_words = LastWords()
        self._pause_reason = ""
        self._panic_noted_at = float("-inf")
        self._shares = shares or ShareDaemons(self._name)
        self._tasks: list[asyncio.Task[None]] = []
        self._ended: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()

    # --- identity and state ------------------------------------------------------------------------------------

    @property
    def guest_id(self) -> GuestId:
        return GuestId(self._record.guest_id)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._watch.pid

    @property
    def started_at(self) -> float:
        """Epoch seconds of the launch, from the record."""
        return self._record.started_at

    @property
    def state(self) -> GuestState:
        """RUNNING, PAUSED or STOPPED."""
        return self._state

    @property
    def ended(self) -> bool:
        """Whether `wait` would return at once."""
        return self._ended.done()

    async def wait(self) -> ExitReason:
        """Return when QEMU has ended and its run directory and control group are gone."""
        return await asyncio.shield(self._ended)

    # --- the engine's side -------------------------------------------------------------------------------------

    async def begin(self, *, links_down: Sequence[str], state: SavedState | None = None) -> None:
        """Let a QEMU launched with -S run, from a saved `state` where there is one.

        Raises `HostError` with QEMU's own words when it did not come up.
        """
        try:
            await self._monitor.connect(timeout_s=LAUNCH_TIMEOUT_S)
            self._last_words.heard = True
            await self._poll_balloon()
            if state is not None:
                await snapshots.load_state(self._monitor, state.name, state.slots, state.slot, clock=self._clock)
            for slot in links_down:
                await self._monitor.execute("set_link", {"name": slot, "up": False})
            await self._monitor.execute("cont")
        except HostError as error:
            words = await asyncio.to_thread(self._paths.complaints)
            raise HostError(f"{self._name}: QEMU did not start: {' / '.join(words[-3:]) or error}") from error
        self._watch_over()

    async def reattach(self) -> bool:
        """Take over a VM of an earlier appliance. False when its launch was never finished.

        A monitor that does not answer is no reason to let go of a living process: it is tried again and again, and
        meanwhile the VM counts as running and can be stopped.
        """
        try:
            status = await self._connect()
        except HostError as error:
            log.error("%s: runs as process %d, but: %s", self._name, self.pid, error)
            status = "running"
        if status == "prelaunch":
            return False
        self._watch_over()
        return True

    async def abandon(self) -> None:
        """Kill what `begin` or `reattach` refused, and leave nothing of it."""
        await self._end_tasks()
        self._watch.send(signal.SIGKILL)
        if not await self._exited_within(KILL_TIMEOUT_S):
            log.error("%s: process %d does not end after SIGKILL", self._name, self.pid)
        self._watch.close()
        await self._monitor.close()
        await self._remove_remains()

    async def detach(self) -> None:
        """Let go of it: the VM, its process and its run directory stay."""
        await self._end_tasks()
        await self._ports.close_consoles()
        await self._monitor.close()
        self._watch.close()
        self._shares.detach()

    # --- orders ------------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Stop the vCPUs."""
        self._pause_reason = "paused"
        await self._monitor.execute("stop")

    async def resume(self) -> None:
        """Let the vCPUs run again, also after a failed write or the guest's own suspend to RAM."""
        wake = await self._query_status() == "suspended"
        await self._monitor.execute("system_wakeup" if wake else "cont")

    async def reset(self) -> None:
        """As by the button."""
        await self._monitor.execute("system_reset")

    async def shutdown(self) -> None:
        """Ask the guest agent if it answers, else press the ACPI power button."""
        if self._watch.ended:
            return
        try:
            await self._ports.agent("guest-ping", {}, timeout_s=AGENT_PING_TIMEOUT_S)
            await self._ports.agent("guest-shutdown", {"mode": "powerdown"}, answers=False)
        except (GuestFault, HostError):
            await self._monitor.execute("system_powerdown")

    async def stop(self) -> None:
        """End QEMU: by its monitor, else SIGTERM, else SIGKILL. Raises `TimedOut` when even that does not end it."""
        self._last_words.stop_asked = True
        if self._monitor.connected and not self._watch.ended:
            try:
                await self._monitor.execute("quit", timeout_s=QUIT_TIMEOUT_S)
            except HostError as error:
                log.debug("%s: quit: %s", self._name, error)  # gone already, or deaf: the signals come next
            else:
                await self._exited_within(QUIT_TIMEOUT_S)
        for number, timeout_s in ((signal.SIGTERM, TERMINATE_TIMEOUT_S), (signal.SIGKILL, KILL_TIMEOUT_S)):
            if not self._watch.ended:
                self._watch.send(number)
                await self._exited_within(timeout_s)
        if not self._watch.ended:
            raise TimedOut(f"{self._name}: process {self.pid} ending after SIGKILL", KILL_TIMEOUT_S)
        try:
            await asyncio.wait_for(asyncio.shield(self._ended), CLEANUP_TIMEOUT_S)
        except TimeoutError as error:
            raise TimedOut(f"{self._name}: removal of {self._paths.path}", CLEANUP_TIMEOUT_S) from error

    async def resize_disk(self, slot: str, size_bytes: int) -> None:
        """Grow the disk: QEMU grows the image itself, raw and qcow2, which it holds locked, and tells the guest."""
        node = await node_of(self._monitor, slot)
        await self._monitor.execute("block_resize", {"node-name": node, "size": size_bytes})

    state_engine = "qemu"

    async def snapshot_disks(self, name: str, slots: Sequence[str], *, state_slot: str | None = None) -> None:
        """Inside the images, all or none. Raises `HostError`, `TimedOut`."""
        if state_slot is None:
            await snapshots.make(self._monitor, name, slots)
        else:
            await snapshots.save_state(self._monitor, name, slots, state_slot, clock=self._clock)

    async def drop_disk_snapshots(self, name: str, slots: Sequence[str]) -> None:
        """Not an error where there is none. Raises `HostError`."""
        await snapshots.remove(self._monitor, name, slots)

    @property
    def attached(self) -> Mapping[str, VmDisk | NicSpec]:
        """The disks and NICs it has now, by slot."""
        return self._plugs.attached

    async def attach_disk(self, disk: VmDisk, volume: OpenedVolume) -> None:
        """Plug in a disk. Raises `Unsupported`, `Conflict`, `HostError`; nothing has changed then."""
        await self._plugs.attach_disk(disk, volume)

    async def attach_nic(self, nic: NicSpec, tap: str) -> None:
        """As `attach_disk`."""
        await self._plugs.attach_nic(nic, tap)

    async def detach_disk(self, slot: str) -> None:
        """Take it out. Raises `NotFound`, `TimedOut` when the guest does not let go, `HostError`."""
        await self._plugs.detach(slot)

    def mirroring(
        self, slot: str, volume: OpenedVolume, *, bytes_per_s: int = 0
    ) -> AbstractAsyncContextManager[DiskMirror]:
        """A disk on its way to another image. Raises `NotFound`, `Unsupported`, `HostError`; nothing has changed then."""
        return self._plugs.mirroring(slot, volume, bytes_per_s=bytes_per_s, clock=self._clock)

    async def settle_mirrors(self, keep: Mapping[str, str]) -> Mapping[str, str]:
        """End what an earlier appliance began. Raises `HostError`."""
        return await self._plugs.settle_mirrors(keep, self._clock)

    async def detach_nic(self, slot: str) -> None:
        """As `detach_disk`."""
        await self._plugs.detach(slot)

    async def set_link(self, slot: str, *, up: bool) -> None:
        """Plug or pull the cable of a NIC. Raises `NotFound`, `HostError`."""
        await self._plugs.set_link(slot, up=up)

    async def agent(self, command: str, **arguments: object) -> object:
        """Run a guest agent command: "ping", "network-get-interfaces" ... Raises `GuestFault` when it is not running."""
        return await self._ports.agent(f"guest-{command}", arguments)

    # --- consoles and display ----------------------------------------------------------------------------------

    def console_names(self) -> Sequence[str]:
        """ "serial0" ... as the VM was started with."""
        return self._ports.console_names()

    async def open_console(self, name: str) -> SerialConsole:
        """Attach. Raises `NotFound`, `Conflict` while another attachment is open, `HostError`."""
        return await self._ports.open_console(name)

    async def open_display(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new RFB connection. Raises `NotFound` without a display, `HostError`."""
        return await self._ports.open_display()

    async def stats(self) -> GuestStats:
        """Figures now; those of the block layer and the balloon are left at zero while the monitor is deaf."""
        process = await asyncio.to_thread(read_stat, self.pid) if not self._watch.ended else None
        if process is None:
            return GuestStats(memory_max_bytes=self._record.memory_mib << 20)
        blocks, balloon = await self._ask("query-blockstats"), None
        if self._record.balloon:
            balloon = await self._ask("qom-get", {"path": stats.BALLOON_PATH, "property": "guest-stats"})
        return stats.figures(process, blocks, balloon, memory_mib=self._record.memory_mib)

    # --- inside ------------------------------------------------------------------------------------------------

    def _set_state(self, new: GuestState, reason: str) -> None:
        if new is self._state:
            return
        log.info("%s: %s → %s: %s", self._name, self._state, new, reason)
        self._state = new
        self._on_state(new, reason)

    def _on_event(self, name: str, data: Mapping[str, object]) -> None:
        """QEMU's events (qapi/run-state.json, qapi/block-core.json). The guest can cause most of them at will."""
        match name:
            case "STOP":
                self._set_state(GuestState.PAUSED, self._pause_reason or "paused by QEMU")
                self._pause_reason = ""
            case "RESUME" | "WAKEUP":
                self._set_state(GuestState.RUNNING, "resumed")
            case "SUSPEND":
                self._set_state(GuestState.PAUSED, "the guest suspended itself to RAM")
            case "SHUTDOWN":
                self._last_words.shutdown_reason = str(data.get("reason", ""))
            case "DEVICE_DELETED":
                self._plugs.deleted(str(data.get("device", "")))
            case "RESET":
                self._last_words.panicked = False
            case "GUEST_PANICKED":
                self._last_words.panicked = True
                if self._clock.monotonic() - self._panic_noted_at > PANIC_NOTE_INTERVAL_S:
                    self._panic_noted_at = self._clock.monotonic()
                    log.warning("%s: the guest's kernel panicked", self._name)
                    self._on_state(self._state, "the guest's kernel panicked")
            case "BLOCK_IO_ERROR" if data.get("action") == "stop":
                why = "no space left" if data.get("nospace") else str(data.get("reason", "input/output error"))
                disk = slot_of(str(data.get("node-name", "")))
                self._pause_reason = f"paused: {disk}: {data.get('operation', 'access')} failed: {why}"
            case _:
                pass

    def _on_flood(self) -> None:
        """A guest's fault stops that guest: resumed, it may try again."""
        log.warning("%s: floods QEMU's monitor with events: paused", self._name)
        self._pause_reason = "paused: the guest floods QEMU's monitor with events"
        self._tasks.append(self._scope.start(self._stop_vcpus(), name=f"{self._name.replace(' ', '-')}-flood"))

    async def _stop_vcpus(self) -> None:
        try:
            await self._monitor.execute("stop")
        except HostError as error:
            log.error("%s: %s", self._name, error)  # the next flood tries again

    async def _connect(self) -> str:
        await self._monitor.connect()
        self._last_words.heard = True
        await self._poll_balloon()
        status = await self._query_status()
        if status not in ("prelaunch", "shutdown"):
            running = status == "running"
            self._set_state(GuestState.RUNNING if running else GuestState.PAUSED, f"QEMU says {status}")
        return status

    async def _query_status(self) -> str:
        answer = await self._monitor.execute("query-status")
        return str(answer.get("status", "")) if isinstance(answer, dict) else ""

    async def _poll_balloon(self) -> None:
        if self._record.balloon:
            interval = {"property": "guest-stats-polling-interval", "value": BALLOON_POLL_S}
            await self._monitor.execute("qom-set", {"path": stats.BALLOON_PATH, **interval})

    async def _ask(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        try:
            return await self._monitor.execute(command, arguments)
        except HostError as error:
            log.debug("%s: %s", self._name, error)
            return None

    def _watch_over(self) -> None:
        name = self._name.replace(" ", "-")
        self._tasks = [
            self._scope.start(self._supervise(), name=f"{name}-supervise"),
            self._scope.start(self._keep_monitor(), name=f"{name}-monitor"),
        ]

    async def _supervise(self) -> None:
        status = await self._watch.wait()
        await self._hear_last_events()
        await self._end_tasks()
        await self._monitor.close()
        words = await asyncio.to_thread(self._paths.complaints)
        reason = exit_reason(self._last_words, status, words)
        if reason.kind == "crashed":
            for line in words:
                log.error("%s: qemu: %s", self._name, line)
                self._task_log(f"QEMU: {line}")
        await self._remove_remains()
        self._ended.set_result(reason)
        self._set_state(GuestState.STOPPED, reason.detail)

    async def _hear_last_events(self) -> None:
        """The process has ended; what it said last may still lie in the socket."""
        try:
            await asyncio.wait_for(self._monitor.wait_disconnected(), LAST_EVENTS_TIMEOUT_S)
        except TimeoutError:
            log.debug("%s: the monitor outlived its process", self._name)

    async def _keep_monitor(self) -> None:
        delay_s = RECONNECT_FIRST_S
        while True:
            await self._monitor.wait_disconnected()
            if await self._exited_within(delay_s):
                return
            self._last_words.heard = False
            try:
                await self._connect()
                delay_s = RECONNECT_FIRST_S
            except HostError as error:
                log.warning("%s: %s", self._name, error)
                delay_s = min(2 * delay_s, RECONNECT_LAST_S)

    async def _exited_within(self, timeout_s: float) -> bool:
        try:
            await asyncio.wait_for(self._watch.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def _end_tasks(self) -> None:
        others = [task for task in self._tasks if task is not asyncio.current_task() and not task.done()]
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)

    async def _remove_remains(self) -> None:
        """The consoles stay open: the guest's last words are still in them, and they end by themselves after those."""
        await to_the_end(self._group.clear)
        await self._shares.end()
        try:
            await to_the_end(self._paths.remove)
        except OSError as error:
            log.error("%s: remove %s: %s", self._name, self._paths.path, error)
