"""Application containers after their end, with engines and a clock of our own: what starts again, and what is remembered."""

from __future__ import annotations

import asyncio
from pathlib import Path

from appliance.model.guest import GuestId, GuestKind, GuestState
from tests.fakes.guest_host import ADMIN, GuestHost, open_world

APP = {"app-image": "a/b:1@sha256:0", "entrypoint": "/x"}


async def test_a_stop_while_it_waits_to_start_again_is_remembered(tmp_path: Path) -> None:
    host = GuestHost(tmp_path)
    async with open_world(host) as world:
        run = await world.make_ct(101, start=True, restart="unless-stopped", **APP)
        assert run is not None
        run.end(kind="crashed", detail="it ended")
        await world.reaches(101, GuestState.STOPPED)
        await world.succeed(await world.guests.power.stop(GuestKind.LXC, 101, user=ADMIN))
        for _ in range(20):
            await host.clock.advance(10)
            await asyncio.sleep(0)
        assert world.state(101) is GuestState.STOPPED
    async with open_world(host) as world:
        await world.guests.start_onboot()
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.state(101) is GuestState.STOPPED


async def test_what_ended_by_itself_starts_again_and_counts(tmp_path: Path) -> None:
    host = GuestHost(tmp_path)
    async with open_world(host) as world:
        run = await world.make_ct(101, start=True, restart="always", **APP)
        assert run is not None
        run.end(kind="shutdown", detail="it ended")
        await world.reaches(101, GuestState.STOPPED)
        for _ in range(20):
            await host.clock.advance(1)
            await asyncio.sleep(0)
        await world.reaches(101, GuestState.RUNNING)
        assert world.guests.applications.status(GuestId(101))["restarts"] == 1
        run = world.run_of(101)
        assert run is not None
        run.end(kind="crashed", detail="power cut")  # and the appliance goes at the same moment
    async with open_world(host) as world:
        await world.guests.start_onboot()
        for _ in range(20):
            await host.clock.advance(1)
            await asyncio.sleep(0)
        await world.reaches(101, GuestState.RUNNING)


async def test_what_is_kept_goes_with_the_guest(tmp_path: Path) -> None:
    host = GuestHost(tmp_path)
    async with open_world(host) as world:
        run = await world.make_ct(101, start=True, **APP)
        assert run is not None
        run.end()
        await world.reaches(101, GuestState.STOPPED)
        for _ in range(20):
            await asyncio.sleep(0)
        assert await host.store.get("applications/101") is not None
        await world.succeed(await world.guests.creation.destroy(GuestKind.LXC, 101, user=ADMIN))
        for _ in range(50):
            await asyncio.sleep(0)
        assert await host.store.get("applications/101") is None
        assert world.guests.applications.status(GuestId(101)) == {}
