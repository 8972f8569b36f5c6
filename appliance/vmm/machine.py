"""The life of one machine: its devices, its vCPUs' threads, and how it is paused, reset and ended. On the loop.

    BUILT ──start──▶ RUNNING ⇄ PAUSED        any ──stop, fault, power-off──▶ STOPPED
        └──start(incoming)──▶ PAUSED         (reset leaves the state as it is)

pause   kick every vCPU and wait until each has parked, `pause` of each device, wait until the pool is idle
resume  `resume` of each device, vCPUs run
reset   pause, interrupt chips, each device's `reset`, `boot.load`, vCPUs' registers, resume
stop    vCPUs end, devices pause and close in reverse order, the bridge closes, the board goes

One of these at a time (`_turn`), each whole even when its caller is cancelled. `request`, `fault` and `note` are a guest's
or a device's doors, from any thread: they stop every vCPU very soon, and the loop does the rest (ADR 13).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from appliance.clock import Clock
from appliance.errors import ApplianceError, Conflict, GuestFault, HostError, ServiceStopping
from appliance.kernel.kvm_vcpu import Vcpu as KvmVcpu
from appliance.model.guest import ExitReason
from appliance.tasks import TaskScope, to_its_end
from appliance.threads import to_the_end
from appliance.vmm import fault
from appliance.vmm.board import Board, BoardOptions
from appliance.vmm.bus import Bus
from appliance.vmm.cpu_state import VcpuState
from appliance.vmm.device import Device, DeviceContext, MachineRequest
from appliance.vmm.guest_log import GuestLog
from appliance.vmm.life import ENDINGS, MOVES, RESETS, Boot, MachineState
from appliance.vmm.loopbridge import LoopBridge, outcome
from appliance.vmm.vcpu import Vcpu

logger = logging.getLogger(__name__)
T = TypeVar("T")

PARK_TIMEOUT_S = 5.0
VCPU_WORK_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 30.0
JOIN_TIMEOUT_S = 10.0
SETTLE_ROUNDS = 100  # each as long as one step of a machine's life
DUMPED_VCPUS = 4  # when nobody knows which one is to blame


async def _nothing() -> None:
    """Wait for one's turn only."""


class Machine:
    """Made by `create`; the builder then adds devices (each takes `context`), sets `boot`, and starts it."""

    def __init__(
        self, board: Board, *, scope: TaskScope, clock: Clock, log: GuestLog, resets: frozenset[MachineRequest]
    ) -> None:
        self.board = board
        self.label = board.label
        self.state = MachineState.BUILT
        self.boot = Boot()
        self.devices: list[Device] = []
        self.ports, self.mmio = Bus("port"), Bus("address")
        self._scope, self._log, self._resets = scope, log, resets
        self._turn = asyncio.Lock()
        self._ended: asyncio.Future[ExitReason] = asyncio.get_running_loop().create_future()
        self._guard = threading.Lock()
        self._requested = False  # under _guard: a request of the guest is being dealt with, further ones are the same
        self._failure: Exception | None = None  # under _guard: the first
        self._failed_vcpu: int | None = None
        self._released: list[Device] = []  # closed, and to be released
        self._power_on: dict[int, VcpuState] = {}
        self._bridge = LoopBridge(asyncio.get_running_loop(), label=self.label, on_error=self._bridge_failed)
        number = self.label.split()[-1]
        self.vcpus = [
            Vcpu(kvm, self, ports=self.ports, mmio=self.mmio, thread_name=f"vcpu-{number}-{kvm.index}")
            for kvm in board.vcpus
        ]
        self.context = DeviceContext(
            label=self.label,
            memory=board.memory,
            ports=self.ports,
            mmio=self.mmio,
            interrupts=board.interrupts,
            bridge=self._bridge,
            clock=clock,
            request=self.request,
            fault=self.fault,
            note=log.note,
            doorbells=board,
            slots=board.slots,
        )

    @classmethod
    async def create(
        cls,
        options: BoardOptions,
        *,
        scope: TaskScope,
        clock: Clock,
        write_log: Callable[[str], None] | None = None,
        resets: frozenset[MachineRequest] = RESETS,
    ) -> Machine:
        """A machine of `options`, BUILT, without devices. Raises `HostError`. `stop` gives it back, whatever became of it.

        `write_log` writes a line to the guest's own log, from any thread. `resets`: which requests of a guest's reset it
        in place; any other ends it. `scope` owns what the machine does by itself.
        """
        made: list[Board] = []
        try:
            await to_the_end(lambda: made.append(Board(options)))
        except asyncio.CancelledError:
            for board in made:
                await to_the_end(board.close)
            raise
        log = GuestLog(write_log or partial(logger.info, "%s: %s", options.label), clock)
        return cls(made[0], scope=scope, clock=clock, log=log, resets=resets)

    def add(self, device: Device) -> None:
        """One more device, quiet at once when the machine is paused. Raises `Conflict`: its name is taken, or it is over."""
        if self.state is MachineState.STOPPED or any(device.name == each.name for each in self.devices):
            raise Conflict(f"{self.label}: {device.name} cannot be added: the machine is {self.state}, or has one")
        self.devices.append(device)
        if self.state is MachineState.PAUSED:
            device.pause()

    def remove(self, device: Device) -> None:
        """Close a device that was unplugged; harmless when done twice. What of it blocks is over before the machine is."""
        if device not in self.devices:
            return
        self.devices.remove(device)
        device.close()
        self._released.append(device)
        self._begin(self._release, f"{device.name} goes")

    async def released(self) -> None:
        """What was removed has given back all it had on the host."""
        await self._in_turn(self._release, "release")

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self, *, incoming: bool = False) -> None:
        """Load, prepare the vCPUs and let them run. `incoming`: PAUSED instead and nothing is loaded, for a state to be
        restored. Raises `HostError`, `GuestFault`; then only `stop` is left to do."""
        await self._in_turn(partial(self._start, incoming=incoming), "start")

    async def pause(self) -> None:
        """No vCPU runs, no device touches memory or interrupts. Nothing when paused already. Raises `TimedOut` naming
        what would not stop, and then it runs on; `Conflict` when it has not started or is over."""
        await self._in_turn(self._pause, "pause")

    async def resume(self) -> None:
        """Go on. Nothing when it runs. Raises `Conflict` when it has not started or is over."""
        await self._in_turn(self._resume, "resume")

    async def reset(self) -> None:
        """A warm reset; a paused machine stays paused. Raises as `pause`, and `HostError`."""
        await self._in_turn(self._reset, "reset")

    async def stop(self) -> None:
        """End it now, from any state; all it held has been given back. Harmless when done twice."""
        await self._in_turn(partial(self._stop, ExitReason(kind="stopped", detail="stopped")), "stop")

    async def between(self, work: Callable[[], None]) -> None:
        """Do `work` on the loop while nothing of the above is under way: for what adds devices. It raises what `work` does."""

        async def at_once() -> None:
            work()

        await self._in_turn(at_once, "between")

    async def settle(self) -> None:
        """While paused: what the guest asked for before, or did wrong, has had its effect. It may be over then."""
        for _ in range(SETTLE_ROUNDS):
            await asyncio.sleep(0)  # what its threads posted before they parked begins
            with self._guard:
                pending = self._requested or self._failure is not None
            if self.state is MachineState.STOPPED or not pending:
                return
            await self._in_turn(_nothing, "settle")
        raise HostError(f"{self.label}: what its guest asked for is not done")

    async def wait(self) -> ExitReason:
        """Why it has ended, once it has."""
        return await asyncio.shield(self._ended)

    async def run_on(self, index: int, work: Callable[[KvmVcpu], T]) -> T:
        """Do `work` in a vCPU's thread, running or parked, and tell its result; an `OSError` becomes a `HostError`.

        Raises `Conflict` before the start and after the end, `TimedOut`.
        """
        if self.state not in (MachineState.RUNNING, MachineState.PAUSED):
            raise Conflict(f"{self.label}: is {self.state}")
        return await self._on_vcpu(self.vcpus[index], work)

    def kick(self) -> None:
        """Every vCPU leaves KVM_RUN once and goes on."""
        for vcpu in self.vcpus:
            vcpu.kick()

    def cpu_seconds(self) -> float:
        """Of all vCPU threads so far; 0 once it is over."""
        return sum(vcpu.cpu_seconds() for vcpu in self.vcpus)

    # --- doors of devices and vCPUs: any thread ---------------------------------------------------------------------

    def request(self, request: MachineRequest, why: str) -> None:
        """What the guest wants of its machine: no vCPU runs on, and the loop deals with it."""
        with self._guard:
            if self._requested:
                return
            self._requested = True
        self._log.note(f"{request}: {why}")
        self._hold()
        self._bridge.post(partial(self._begin, partial(self._obey, request), str(request)))

    def fault(self, error: GuestFault) -> None:
        """The guest did what it must not: it ends, with its registers in its log."""
        self._fail(error, None)

    def vcpu_failed(self, index: int, error: Exception) -> None:
        """`VcpuHost`."""
        self._fail(error, index)

    def _bridge_failed(self, error: BaseException) -> None:
        self._fail(error if isinstance(error, Exception) else HostError(str(error)), None)

    def _fail(self, error: Exception, vcpu: int | None) -> None:
        with self._guard:
            if self._failure is not None:
                return
            self._failure, self._failed_vcpu = error, vcpu
        self._hold()
        self._bridge.post(partial(self._begin, self._end_failed, "fault"))

    def _hold(self) -> None:
        for vcpu in self.vcpus:
            vcpu.hold()

    # --- on the loop ------------------------------------------------------------------------------------------------

    def _begin(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        with contextlib.suppress(ServiceStopping):  # whoever closes the scope stops the machine
            self._scope.start(self._in_turn(work, name), name=f"{self.label} {name}")

    async def _in_turn(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        async def turn() -> None:
            async with self._turn:
                await work()

        await to_its_end(turn(), name=f"{self.label}: {name}")

    def _set_state(self, state: MachineState) -> None:
        assert state in MOVES[self.state], f"{self.label}: {self.state} → {state}"
        logger.info("%s: %s → %s", self.label, self.state, state)
        self.state = state

    def _require(self, *states: MachineState) -> None:
        if self.state not in states:
            raise Conflict(f"{self.label}: is {self.state}, not {' or '.join(states)}")

    async def _start(self, *, incoming: bool) -> None:
        self._require(MachineState.BUILT)
        for vcpu in self.vcpus:
            vcpu.start()
        for vcpu in self.vcpus:
            await self._on_vcpu(vcpu, self._configure)
        if incoming:
            for device in self.devices:
                device.pause()
            self._set_state(MachineState.PAUSED)
            return
        await self._load()
        self._set_state(MachineState.RUNNING)
        self._run_vcpus()

    def _configure(self, vcpu: KvmVcpu) -> None:
        self.boot.configure_vcpu(vcpu)
        self._power_on[vcpu.index] = self.board.power_on_state(vcpu)

    async def _load(self) -> None:
        await to_the_end(self.boot.load)
        for vcpu in self.vcpus:
            await self._on_vcpu(vcpu, self.boot.prepare_vcpu)

    async def _pause(self) -> None:
        self._require(MachineState.RUNNING, MachineState.PAUSED)
        if self.state is MachineState.RUNNING:
            await self._quiesce()
            self._set_state(MachineState.PAUSED)

    async def _quiesce(self) -> None:
        """vCPUs parked, devices quiet, the pool idle; when one will not, everything goes on and `TimedOut` is raised."""
        quiet: list[Device] = []
        try:
            for parked in [(vcpu.name, vcpu.park()) for vcpu in self.vcpus]:
                await outcome(parked[1], waiting_for=f"{parked[0]}: leaving the guest", timeout_s=PARK_TIMEOUT_S)
            for device in self.devices:
                quiet.append(device)
                device.pause()
            await self._bridge.idle(timeout_s=IDLE_TIMEOUT_S)
        except Exception:
            self._go_on([device for device in quiet if device in self.devices])  # one may have been ejected meanwhile
            raise

    async def _resume(self) -> None:
        self._require(MachineState.RUNNING, MachineState.PAUSED)
        if self.state is MachineState.PAUSED:
            self._set_state(MachineState.RUNNING)
            self._go_on(self.devices)

    def _go_on(self, devices: list[Device]) -> None:
        for device in devices:
            device.resume()
        self._run_vcpus()

    def _run_vcpus(self) -> None:
        with self._guard:
            if self._requested or self._failure is not None:
                return  # the loop has yet to deal with that, and they are held
        for vcpu in self.vcpus:
            vcpu.run()

    async def _reset(self, *, guests_wish: bool = False) -> None:
        self._require(MachineState.RUNNING, MachineState.PAUSED)
        was_running = self.state is MachineState.RUNNING
        if was_running:
            await self._quiesce()
        try:
            await self._power_cycle()
        except Exception as error:  # it can neither go on nor begin anew
            if not guests_wish:
                self._fail(error, None)
            raise
        with self._guard:
            self._requested = False  # before anything runs: the next request is a new one
        if was_running:
            self._go_on(self.devices)

    async def _power_cycle(self) -> None:
        await to_the_end(self.board.reset_chips)
        for device in self.devices:
            device.reset()
        for vcpu in self.vcpus:
            await self._on_vcpu(vcpu, lambda kvm: self.board.reset_vcpu(kvm, self._power_on[kvm.index]))
        await self._load()

    async def _obey(self, request: MachineRequest) -> None:
        if self.state is MachineState.STOPPED:
            return
        if request not in self._resets or self.state is MachineState.BUILT:
            await self._stop(ENDINGS[request])
            return
        try:
            await self._reset(guests_wish=True)
        except Exception as error:
            # to the guest a new machine is as good as its own made new: whoever started it starts it again
            logger.exception("%s: cannot be reset in place", self.label)
            detail = f"{ENDINGS[request].detail}; the machine could not be reset in place: {error}"
            await self._stop(ExitReason(kind="reset", detail=detail))

    async def _end_failed(self) -> None:
        error = self._failure
        if self.state is MachineState.STOPPED or error is None:
            return
        detail = str(error) if isinstance(error, ApplianceError) else f"a device of ours failed: {error!r}"
        self._log.line(detail)
        logger.warning("%s: ends: %s", self.label, detail)
        if self.state is not MachineState.BUILT:
            await self._dump()
        await self._stop(ExitReason(kind="crashed", detail=detail))

    async def _dump(self) -> None:
        chosen = [vcpu for vcpu in self.vcpus if self._failed_vcpu in (None, vcpu.index)][:DUMPED_VCPUS]
        for vcpu in chosen:
            try:
                self._log.line(await self._on_vcpu(vcpu, partial(fault.dump, read_physical=self.board.read_physical)))
            except ApplianceError as error:
                self._log.line(f"{vcpu.name}: no registers: {error}")

    async def _on_vcpu(self, vcpu: Vcpu, work: Callable[[KvmVcpu], T]) -> T:
        try:
            return await outcome(vcpu.call(work), waiting_for=vcpu.name, timeout_s=VCPU_WORK_TIMEOUT_S)
        except OSError as error:
            raise HostError.from_os_error(error, vcpu.name) from error

    async def _stop(self, reason: ExitReason) -> None:
        """Every step is taken whatever became of the one before."""
        if self.state is MachineState.STOPPED:
            return
        for vcpu in self.vcpus:
            vcpu.end()
        stuck = await to_the_end(lambda: [vcpu.name for vcpu in self.vcpus if not vcpu.join(JOIN_TIMEOUT_S)])
        for device in reversed(self.devices):
            self._attempt(device.pause, device.label)
        try:
            await self._bridge.idle(timeout_s=IDLE_TIMEOUT_S)
        except HostError as error:
            logger.error("%s", error)
        await self._bridge.close()
        for device in reversed(self.devices):
            self._attempt(device.close, device.label)
            self._released.append(device)
        await self._release()
        if stuck:  # taking the memory from under it would take the whole process
            logger.error("%s: %s did not end; its memory stays until the process ends", self.label, ", ".join(stuck))
        else:
            await to_the_end(self._attempt, self.board.close, self.label)
        self._set_state(MachineState.STOPPED)
        self._ended.set_result(reason)

    async def _release(self) -> None:
        while self._released:
            device = self._released.pop(0)
            await to_the_end(self._attempt, device.give_back, device.label)

    @staticmethod
    def _attempt(work: Callable[[], None], label: str) -> None:
        try:
            work()
        except Exception:
            logger.exception("%s: could not be closed in order", label)
