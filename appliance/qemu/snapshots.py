"""Snapshots inside the images a running QEMU has open, by QMP (qapi/block.json, qapi/migration.json).

    disks          one transaction: all images or none
    with memory    the job snapshot-save: QEMU stops the vCPUs, writes RAM and devices into one image, makes the others'
    going on       the job snapshot-load, before the vCPUs have run
Jobs are waited for, and dismissed whatever became of them: QEMU keeps a job that nobody dismisses.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from appliance.clock import Clock
from appliance.errors import HostError, TimedOut
from appliance.qemu.mirror import node_of
from appliance.qemu.monitor import Monitor
from appliance.tasks import to_its_end

JOB_LIMIT_S: Final = 3600.0
JOB_POLL_S: Final = 0.1
SNAPSHOT_LIMIT_S: Final = 60.0


async def make(monitor: Monitor, name: str, slots: Sequence[str]) -> None:
    """Raises `HostError`; no image has it then."""
    actions = [
        {"type": "blockdev-snapshot-internal-sync", "data": {"device": await node_of(monitor, slot), "name": name}}
        for slot in slots
    ]
    await monitor.execute("transaction", {"actions": actions}, timeout_s=SNAPSHOT_LIMIT_S)


async def remove(monitor: Monitor, name: str, slots: Sequence[str]) -> None:
    """Not an error where there is none. Raises `HostError`."""
    present = await _holders(monitor, name)
    for slot in slots:
        if (node := await node_of(monitor, slot)) in present:
            arguments = {"device": node, "name": name}
            await monitor.execute("blockdev-snapshot-delete-internal-sync", arguments, timeout_s=SNAPSHOT_LIMIT_S)


async def save_state(monitor: Monitor, name: str, slots: Sequence[str], state_slot: str, *, clock: Clock) -> None:
    """RAM and devices into the image of `state_slot`, a snapshot in all. Raises `HostError`, `TimedOut`."""
    await _job(monitor, "snapshot-save", name, slots, state_slot, clock)


async def load_state(monitor: Monitor, name: str, slots: Sequence[str], state_slot: str, *, clock: Clock) -> None:
    """The machine goes on from there once its vCPUs are let go. Raises `HostError`, `TimedOut`."""
    await _job(monitor, "snapshot-load", name, slots, state_slot, clock)


async def _job(monitor: Monitor, command: str, name: str, slots: Sequence[str], state_slot: str, clock: Clock) -> None:
    job = f"{command}-{secrets.token_hex(4)}"
    devices = [await node_of(monitor, slot) for slot in slots]
    arguments = {"job-id": job, "tag": name, "vmstate": await node_of(monitor, state_slot), "devices": devices}
    await monitor.execute(command, arguments)
    # such a job cannot be cancelled; what it has made is removed by whoever asked for it
    await to_its_end(_end_of(monitor, job, command, clock), name=job)


async def _end_of(monitor: Monitor, job: str, command: str, clock: Clock) -> None:
    began = clock.monotonic()
    while True:
        state = await _state(monitor, job)
        if state is None:
            raise HostError(f"{monitor.name}: {command}: QEMU has lost the job")
        if state.get("status") == "concluded":
            await monitor.execute("job-dismiss", {"id": job})
            if error := state.get("error"):
                raise HostError(f"{monitor.name}: {command}: {error}")
            return
        if clock.monotonic() - began > JOB_LIMIT_S:
            raise TimedOut(f"{monitor.name}: {command}", JOB_LIMIT_S)
        await clock.sleep(JOB_POLL_S)


async def _state(monitor: Monitor, job: str) -> dict[str, object] | None:
    jobs = await monitor.execute("query-jobs")
    found = [each for each in jobs if isinstance(each, dict)] if isinstance(jobs, list) else []
    return next((each for each in found if each.get("id") == job), None)


async def _holders(monitor: Monitor, name: str) -> set[str]:
    """The nodes whose image has a snapshot `name`."""
    nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
    found: set[str] = set()
    for node in nodes if isinstance(nodes, list) else []:
        kept = node.get("image", {}).get("snapshots", []) if isinstance(node, dict) else []
        if any(each.get("name") == name for each in kept):
            found.add(str(node.get("node-name", "")))
    return found
