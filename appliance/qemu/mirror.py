"""A disk's content copied to another image while its guest goes on writing to it (qapi/block-core.json, blockdev-mirror).

    begin     the new image becomes a second node; a job copies to it, and what the guest writes goes to both
    in step   all is copied: from now on a write is on both before the guest hears of it (copy-mode write-blocking)
    switch    the job completes: the drive stands on the new node; the old one goes
    give up   the job is cancelled and the new node goes: the drive has never left the old one

A job that fails (the new image's disk is full) leaves the drive where it is. Jobs and nodes outlive an appliance that is
killed: `settle` ends them, one way or the other. A moved drive's node is called `drive-SLOT.HEX`: see `node_of`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

from appliance.clock import Clock
from appliance.errors import HostError, NoSpace, TimedOut
from appliance.qemu.drives import node_name
from appliance.qemu.monitor import Monitor

POLL_S: Final = 0.1
END_LIMIT_S: Final = 60.0
_JOB: Final = "move-"
_FILTER: Final = "mirror-"
_SEPARATOR: Final = "."

log = logging.getLogger(__name__)
Report = Callable[[float], None]


async def node_of(monitor: Monitor, slot: str) -> str:
    """The node the drive in `slot` stands on; the name it begins with where QEMU knows of none. Raises `HostError`."""
    return next((name for name in await _drives(monitor) if is_node_of(name, slot)), node_name(slot))


def is_node_of(name: str, slot: str) -> bool:
    """Whether a drive's node has this name, before or after it was moved."""
    return name == node_name(slot) or name.startswith(node_name(slot) + _SEPARATOR)


class DiskMirror:
    """One drive on its way; see the module's docstring. `begin` first; then `give_up` while `unfinished`."""

    def __init__(
        self,
        monitor: Monitor,
        slot: str,
        node: Mapping[str, Any],
        clock: Clock,
        *,
        switched: Callable[[], Awaitable[None]],
    ) -> None:
        """`node` is the new image as a block node, whose name is chosen here. `switched` is told when the drive stands on it."""
        self._monitor, self._slot, self._clock = monitor, slot, clock
        self._switched = switched
        self.unfinished = False
        self._target = f"{node_name(slot)}{_SEPARATOR}{secrets.token_hex(3)}"
        # what was never written stays a hole: the job writes zeros, which become one
        self._node = {**node, "node-name": self._target, "discard": "unmap", "detect-zeroes": "unmap"}
        self._node["file"] = {**node["file"], "discard": "unmap"}
        self._source = ""
        self._job = f"{_JOB}{slot}"

    async def begin(self, *, bytes_per_s: int = 0) -> None:
        """Raises `HostError`; nothing has changed then."""
        self._source = await node_of(self._monitor, self._slot)
        await self._monitor.execute("blockdev-add", self._node)
        arguments = {
            "job-id": self._job,
            "device": self._source,
            "target": self._target,
            "sync": "full",
            "copy-mode": "write-blocking",
            "filter-node-name": f"{_FILTER}{self._slot}",
            "auto-dismiss": False,
        }
        if bytes_per_s:
            arguments["speed"] = bytes_per_s
        try:
            await self._monitor.execute("blockdev-mirror", arguments)
        except HostError:
            await _remove_node(self._monitor, self._target)
            raise
        self.unfinished = True

    async def in_step(self, report: Report) -> None:
        """Wait until both images hold the same; `report` is told how much is done, 0 to 1. Raises `HostError`, `NoSpace`."""
        while True:
            state = await _job_state(self._monitor, self._job)
            self._check(state)
            total = int(state.get("total-progress", 0))
            report(int(state.get("current-progress", 0)) / total if total else 0.0)
            if state.get("status") == "ready":
                return
            await self._clock.sleep(POLL_S)

    async def switch(self) -> bool:
        """Let the drive stand on the new image; False when that cannot be known, because QEMU does not answer: both go on
        holding the same then, until `settle`. Raises `HostError` when it certainly stands on the old one."""
        try:
            await _complete(self._monitor, self._job, self._clock)
        except HostError as error:
            try:
                stands_on = await node_of(self._monitor, self._slot)
            except HostError:
                log.error("%s: %s: %s", self._monitor.name, self._slot, error)
                self.unfinished = False
                return False
            if stands_on != self._target:
                raise
        self.unfinished = False
        await self._switched()
        await _remove_node(self._monitor, self._source)
        return True

    async def give_up(self) -> None:
        """End it; what cannot be removed is logged, and `settle` tries again."""
        await _cancel(self._monitor, self._job, self._clock)
        await _remove_node(self._monitor, self._target)

    def _check(self, state: Mapping[str, Any]) -> None:
        if not state:
            raise HostError(f"{self._monitor.name}: {self._slot}: QEMU has lost the job that copies it")
        if state.get("status") in ("aborting", "concluded", "null"):
            why = str(state.get("error", "it was cancelled"))
            about = f"{self._monitor.name}: {self._slot}: copying it: {why}"
            raise NoSpace(about) if "No space left" in why else HostError(about)


async def settle(monitor: Monitor, keep: Collection[str], clock: Clock) -> dict[str, str]:
    """End what an earlier appliance left: complete the jobs of the slots in `keep`, cancel all others, and remove the nodes no
    drive stands on. Returns by slot the file each drive stands on now. Raises `HostError` when QEMU does not answer."""
    for state in await _jobs(monitor):
        job = str(state.get("id", ""))
        if not job.startswith(_JOB):
            continue
        if job.removeprefix(_JOB) in keep and state.get("status") == "ready":
            try:
                await _complete(monitor, job, clock)
                continue
            except HostError as error:
                log.error("%s: %s", monitor.name, error)
        await _cancel(monitor, job, clock)
    drives = await _drives(monitor)
    nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
    for node in nodes if isinstance(nodes, list) else []:
        name = str(node.get("node-name", ""))
        if name.startswith(node_name("")) and name not in drives:
            await _remove_node(monitor, name)
    return {name.removeprefix(node_name("")).partition(_SEPARATOR)[0]: file for name, file in drives.items()}


async def _complete(monitor: Monitor, job: str, clock: Clock) -> None:
    await monitor.execute("job-complete", {"id": job})
    await _conclude(monitor, job, clock)


async def _cancel(monitor: Monitor, job: str, clock: Clock) -> None:
    try:
        state = await _job_state(monitor, job)
        if not state:
            return
        if state.get("status") not in ("aborting", "concluded"):
            await monitor.execute("job-cancel", {"id": job})
        await _conclude(monitor, job, clock, cancelled=True)
    except HostError as error:
        log.warning("%s: %s: %s", monitor.name, job, error)


async def _conclude(monitor: Monitor, job: str, clock: Clock, *, cancelled: bool = False) -> None:
    """Wait for the job's end and let QEMU forget it. Raises `HostError` with what it failed of, unless it was to be cancelled."""
    began = clock.monotonic()
    while (state := await _job_state(monitor, job)).get("status") != "concluded":
        if not state:
            raise HostError(f"{monitor.name}: {job}: QEMU has lost the job")
        if clock.monotonic() - began > END_LIMIT_S:
            raise TimedOut(f"{monitor.name}: {job}: its end", END_LIMIT_S)
        await clock.sleep(POLL_S)
    await monitor.execute("job-dismiss", {"id": job})
    if (error := state.get("error")) and not cancelled:
        raise HostError(f"{monitor.name}: {job}: {error}")


async def _remove_node(monitor: Monitor, name: str) -> None:
    try:
        await monitor.execute("blockdev-del", {"node-name": name})
    except HostError as error:
        log.warning("%s: block node %s stays: %s", monitor.name, name, error)


async def _drives(monitor: Monitor) -> dict[str, str]:
    """The nodes that drives stand on, each with the file it is in."""
    blocks = await monitor.execute("query-block")
    inserted = [each.get("inserted") for each in blocks if isinstance(each, dict)] if isinstance(blocks, list) else []
    return {str(each.get("node-name", "")): str(each.get("file", "")) for each in inserted if isinstance(each, dict)}


async def _jobs(monitor: Monitor) -> list[dict[str, Any]]:
    jobs = await monitor.execute("query-jobs")
    return [each for each in jobs if isinstance(each, dict)] if isinstance(jobs, list) else []


async def _job_state(monitor: Monitor, job: str) -> dict[str, Any]:
    """Empty when there is no such job."""
    return next((each for each in await _jobs(monitor) if each.get("id") == job), {})
