"""Power operations as tasks: each waits for the guest's lock, checks the state under it, and acts through the runner.

A stop overrules an orderly shutdown that waits for the same guest (ADR 5). `skip_lock` is PVE's `skiplock`: act in spite
of the configuration's `lock`. Shutting all guests down, as a host does that goes down, never minds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from appliance.clock import Clock
from appliance.errors import ApplianceError, Conflict, Unsupported
from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.services import autostart, lifecycle
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_runner import GuestRunner
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.lifecycle import Action
from appliance.services.ports import LogLine
from appliance.services.tasks import TaskHandle, TaskService

log = logging.getLogger(__name__)

SHUTDOWN_LIMIT_S = {GuestKind.QEMU: 180.0, GuestKind.LXC: 60.0}
START_ATTEMPTS_AT_ONCE = 4

Operation = Callable[[GuestRuntime, LogLine], Awaitable[None]]


class GuestPower:
    """See the module's docstring."""

    def __init__(self, *, inventory: GuestInventory, runner: GuestRunner, tasks: TaskService, clock: Clock) -> None:
        self._inventory = inventory
        self._runner = runner
        self._tasks = tasks
        self._clock = clock

    async def start(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        guest = self._inventory.get(guest_id, kind)
        self._check_startable(guest)

        async def operate(guest: GuestRuntime, log_line: LogLine) -> None:
            self._check_startable(guest)
            await self._runner.launch(guest, log_line)

        return await self._task(Action.START, guest, user, operate, skip_lock=skip_lock)

    async def stop(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        guest = self._inventory.get(guest_id, kind)
        self._inventory.require_unlocked(guest, skip=skip_lock)

        async def work(task: TaskHandle) -> None:
            try:
                async with guest.hold(f"{Action.STOP.value} by {user}", log=task.log):
                    self._inventory.require_unlocked(guest, skip=skip_lock)
                    if guest.state is GuestState.STOPPED:
                        task.log("already stopped")
                    await self._runner.stop(guest)
            finally:
                guest.stop_done()

        guest.stop_asked()
        try:
            return await self._tasks.run(
                lifecycle.task_type(Action.STOP, kind), object_id=str(guest_id), user=user, work=work
            )
        except ApplianceError:  # nothing was started
            guest.stop_done()
            raise

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
        async def operate(guest: GuestRuntime, log_line: LogLine) -> None:
            limit_s = SHUTDOWN_LIMIT_S[kind] if timeout_s is None else timeout_s
            await self._runner.shutdown(guest, timeout_s=limit_s, force=force_stop, log_line=log_line)

        return await self._task(
            Action.SHUTDOWN, self._inventory.get(guest_id, kind), user, operate, skip_lock=skip_lock
        )

    async def reboot(self, kind: GuestKind, guest_id: int, *, user: str, timeout_s: float | None = None) -> str:
        """An orderly shutdown and a start, so that changes of the configuration take effect."""

        async def operate(guest: GuestRuntime, log_line: LogLine) -> None:
            limit_s = SHUTDOWN_LIMIT_S[kind] if timeout_s is None else timeout_s
            await self._runner.shutdown(guest, timeout_s=limit_s, force=False, log_line=log_line)
            await self._runner.launch(guest, log_line)

        return await self._task(Action.REBOOT, self._inventory.get(guest_id, kind), user, operate)

    async def reset(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        if kind is GuestKind.LXC:
            raise Unsupported(f"ct {guest_id}: containers cannot be reset; stop and start it")
        return await self._simple(Action.RESET, kind, guest_id, user, self._runner.reset, skip_lock=skip_lock)

    async def suspend(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        return await self._simple(Action.SUSPEND, kind, guest_id, user, self._runner.pause, skip_lock=skip_lock)

    async def resume(self, kind: GuestKind, guest_id: int, *, user: str, skip_lock: bool = False) -> str:
        return await self._simple(Action.RESUME, kind, guest_id, user, self._runner.resume, skip_lock=skip_lock)

    async def start_all(self, *, user: str, guest_ids: Sequence[int] | None = None, force: bool = False) -> str:
        """Start the `onboot` guests in their order, with `force` all; one task, a guest that fails is a warning of it."""
        chosen = [
            guest
            for guest in self._inventory
            if guest.state is GuestState.STOPPED
            and not self._inventory.summary(guest).template
            and (guest_ids is None or guest.guest_id in guest_ids)
            and (force or self._inventory.summary(guest).onboot)
        ]
        rules = [autostart.rule(guest.guest_id, guest.stored.record.config) for guest in chosen]

        async def work(task: TaskHandle) -> None:
            for group in autostart.start_order(rules):
                await self._in_parallel([item.guest_id for item in group], self._start_one, task)
                await self._clock.sleep(max((item.up_s for item in group), default=0.0))

        return await self._tasks.run("startall", object_id="", user=user, work=work)

    async def stop_all(self, *, user: str, guest_ids: Sequence[int] | None = None, force_stop: bool = True) -> str:
        """Shut all running guests down against their start order, as one task; by force what does not comply."""
        rules = {
            guest.guest_id: autostart.rule(guest.guest_id, guest.stored.record.config)
            for guest in self._inventory
            if guest.running is not None and (guest_ids is None or guest.guest_id in guest_ids)
        }

        async def stop_one(guest_id: GuestId, task: TaskHandle) -> None:
            guest = self._inventory.get(guest_id)
            async with guest.hold("stopall", log=task.log):
                if guest.running is not None:
                    task.log(f"shutting {guest.label} down")
                    limit_s = rules[guest_id].down_s
                    await self._runner.shutdown(guest, timeout_s=limit_s, force=force_stop, log_line=task.log)

        async def work(task: TaskHandle) -> None:
            for group in autostart.stop_order(rules.values()):
                await self._in_parallel([item.guest_id for item in group], stop_one, task)

        return await self._tasks.run("stopall", object_id="", user=user, work=work)

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _start_one(self, guest_id: GuestId, task: TaskHandle) -> None:
        guest = self._inventory.get(guest_id)
        async with guest.hold("startall", log=task.log):
            if guest.state is GuestState.STOPPED:
                self._inventory.require_unlocked(guest)
                self._check_startable(guest)
                task.log(f"starting {guest.label}")
                await self._runner.launch(guest, task.log)

    async def _in_parallel(
        self, guest_ids: Sequence[GuestId], one: Callable[[GuestId, TaskHandle], Awaitable[None]], task: TaskHandle
    ) -> None:
        slots = asyncio.Semaphore(START_ATTEMPTS_AT_ONCE)

        async def guarded(guest_id: GuestId) -> None:
            async with slots:
                try:
                    await one(guest_id, task)
                except ApplianceError as error:
                    task.warn(str(error))

        await asyncio.gather(*(guarded(guest_id) for guest_id in guest_ids))

    def _check_startable(self, guest: GuestRuntime) -> None:
        if self._inventory.summary(guest).template:
            raise Conflict(f"{guest.label} is a template: it cannot be started, only cloned")

    async def _simple(
        self,
        action: Action,
        kind: GuestKind,
        guest_id: int,
        user: str,
        act: Callable[[GuestRuntime], Awaitable[None]],
        *,
        skip_lock: bool,
    ) -> str:
        async def operate(guest: GuestRuntime, log_line: LogLine) -> None:
            await act(guest)

        return await self._task(action, self._inventory.get(guest_id, kind), user, operate, skip_lock=skip_lock)

    async def _task(
        self, action: Action, guest: GuestRuntime, user: str, operate: Operation, *, skip_lock: bool = False
    ) -> str:
        self._inventory.require_unlocked(guest, skip=skip_lock)

        async def work(task: TaskHandle) -> None:
            async with guest.hold(f"{action.value} by {user}", log=task.log):
                self._inventory.require_unlocked(guest, skip=skip_lock)
                lifecycle.require(action, guest.kind, guest.guest_id, guest.state)
                await operate(guest, task.log)

        kind = lifecycle.task_type(action, guest.kind)
        return await self._tasks.run(kind, object_id=str(guest.guest_id), user=user, work=work)
