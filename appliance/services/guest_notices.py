"""What happens to guests by itself, told where people look: in the list of tasks, as one that failed, with its log.

Crashes, and processes the kernel killed for lack of memory; of the latter at most one a guest in `OOM_INTERVAL_S`, the
rest is in the process' own log.
"""

from __future__ import annotations

import logging

from appliance.clock import Clock
from appliance.errors import ApplianceError, GuestFault
from appliance.model.guest import ExitReason, GuestId
from appliance.services import lifecycle
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.tasks import TaskHandle, TaskService

log = logging.getLogger(__name__)

OOM_INTERVAL_S = 600.0
USER = "root@pam"


class GuestNotices:
    """See the module's docstring. Never raises: a notice that cannot be written is logged."""

    def __init__(self, tasks: TaskService, clock: Clock) -> None:
        self._tasks = tasks
        self._clock = clock
        self._told_oom: dict[GuestId, float] = {}

    async def crashed(self, guest: GuestRuntime, reason: ExitReason, follows: str) -> None:
        """A run has ended that nobody asked to end. `follows`: what becomes of the guest now."""
        await self._tell(guest, "end", f"{guest.label} has ended: {reason.detail}", follows)

    async def out_of_memory(self, guest: GuestRuntime, killed: int) -> None:
        """The kernel has killed that many of its processes."""
        text = f"{guest.label}: out of memory: the kernel has killed {killed} of its processes"
        log.warning("%s", text)
        now = self._clock.monotonic()
        if now - self._told_oom.get(guest.guest_id, -OOM_INTERVAL_S) >= OOM_INTERVAL_S:
            self._told_oom[guest.guest_id] = now
            await self._tell(guest, "oom", text, "raise its memory, or find out what needs so much")

    async def _tell(self, guest: GuestRuntime, word: str, text: str, follows: str) -> None:
        async def work(task: TaskHandle) -> None:
            task.log(follows)
            raise GuestFault(text)

        try:
            kind = lifecycle.task_type(word, guest.kind)
            await self._tasks.run(kind, object_id=str(guest.guest_id), user=USER, work=work)
        except ApplianceError as error:
            log.warning("%s (not in the list of tasks: %s)", text, error)
