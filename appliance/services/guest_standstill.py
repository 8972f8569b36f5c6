"""A running guest stands still while its volumes are kept or read, its file systems flushed, and goes on whatever happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from appliance.errors import ApplianceError, GuestFault, HostError
from appliance.model.guest import GuestKind, GuestState
from appliance.services import guest_config
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.ports import LogLine
from appliance.services.ports.running_guest import RunningGuest
from appliance.tasks import to_its_end

log = logging.getLogger(__name__)

FREEZE_LIMIT_S = 10.0


@asynccontextmanager
async def standing_still(guest: GuestRuntime, log_line: LogLine) -> AsyncIterator[None]:
    """Hold a running guest, its file systems flushed where its agent can do that; it goes on whatever happens."""
    running = guest.running
    if running is None or guest.state is not GuestState.RUNNING:
        yield
        return
    thaw = await _freeze(guest, running, log_line)
    try:
        await running.pause()
        try:
            yield
        finally:
            await to_its_end(_resume(guest, running), name=f"resume {guest.label}")
    finally:
        if thaw is not None:
            await to_its_end(thaw(), name=f"thaw {guest.label}")


async def _resume(guest: GuestRuntime, running: RunningGuest) -> None:
    try:
        await running.resume()
    except ApplianceError as error:  # it may have ended meanwhile; else somebody must know
        log.error("%s: going on after a snapshot: %s", guest.label, error)


async def _freeze(
    guest: GuestRuntime, running: RunningGuest, log_line: LogLine
) -> Callable[[], Coroutine[Any, Any, None]] | None:
    """Have the guest agent flush and hold the file systems; how to let them go, None when that was not done."""
    agent: Callable[..., Awaitable[object]] | None = getattr(running, "agent", None)
    if agent is None or not _has_agent(guest.stored.record.config):
        return None

    async def thaw() -> None:
        try:
            await agent("fsfreeze-thaw")
        except ApplianceError as error:
            log.error("%s: its file systems stay frozen: %s", guest.label, error)

    try:
        async with asyncio.timeout(FREEZE_LIMIT_S):
            await agent("fsfreeze-freeze")
    except (GuestFault, HostError, TimeoutError) as error:
        log_line(f"its agent did not flush its file systems ({error}): the snapshot is as after a power cut")
        await thaw()
        return None
    return thaw


def _has_agent(config: Mapping[str, str]) -> bool:
    text = config.get("agent", "")
    return bool(text) and guest_config.parse_one(GuestKind.QEMU, "agent", text).get("enabled") == "1"
