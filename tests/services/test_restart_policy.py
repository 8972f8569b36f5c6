"""What becomes of a guest that ended by itself, and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.errors import HostError
from appliance.model.guest import ExitReason, GuestKind, GuestState, GuestStats
from appliance.services.restart_policy import RestartPolicy, delay_s, failures_after, policy
from tests.fakes.engines import FakeRunningGuest
from tests.fakes.guest_host import ADMIN, PATIENCE_S, GuestHost, GuestWorld, open_world

CT = GuestKind.LXC
CRASH, OWN_SHUTDOWN, REBOOT = (ExitReason(kind=kind, detail=kind) for kind in ("crashed", "shutdown", "reset"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[GuestWorld]:
    async with open_world(GuestHost(tmp_path)) as opened:
        yield opened


async def running(world: GuestWorld, *, restart: str = "no") -> FakeRunningGuest:
    guest = await world.make_ct(start=True, restart=restart)
    assert guest is not None
    return guest


async def tasks_of(world: GuestWorld, kind: str) -> list[str]:
    """The statuses of the guest's tasks of this kind, once they have ended."""
    return [(await world.end_of(info.upid)).status or "" for info in await world.tasks.list() if info.type == kind]


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(100):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("when", "reason", "asked", "expected"),
    [
        ("no", CRASH, False, None), ("no", REBOOT, False, 5.0), ("on-failure", CRASH, False, 5.0),
        ("on-failure", OWN_SHUTDOWN, False, None), ("always", OWN_SHUTDOWN, False, 5.0), ("always", CRASH, True, None),
    ],
)  # fmt: skip
def test_the_policy_and_the_reason_decide(when: str, reason: ExitReason, asked: bool, expected: float | None) -> None:
    assert delay_s(RestartPolicy(when=when), reason, asked=asked, ran_s=0, failures=1) == expected


def test_attempts_wait_longer_and_longer_end_at_the_most_and_begin_anew_after_a_lasting_run() -> None:
    always = RestartPolicy(when="always", most=3)
    waits = [delay_s(always, CRASH, asked=False, ran_s=1, failures=count) for count in range(1, 5)]
    assert waits == [5, 10, 20, None]
    assert delay_s(RestartPolicy(when="always"), CRASH, asked=False, ran_s=1, failures=10_000) == 300
    assert failures_after(7, CRASH, ran_s=3600) == 1
    assert failures_after(7, CRASH, ran_s=10) == 8
    assert policy({"restart": "when=on-failure,max=2"}) == policy({"restart": "on-failure,max=2"})
    assert policy({}).when == "no"


async def test_a_crash_is_a_failed_task_and_the_guest_starts_again_as_it_shall(world: GuestWorld) -> None:
    (await running(world, restart="on-failure")).end("crashed", "killed: out of memory")
    await world.reaches(101, GuestState.STOPPED)
    async with asyncio.timeout(PATIENCE_S):
        while not (told := await tasks_of(world, "vzend")):
            await asyncio.sleep(0)
    assert told == ["ct 101 has ended: killed: out of memory"]
    assert world.guests.get(101).last_exit == "killed: out of memory"
    await world.host.clock.advance(5)
    await world.reaches(101, GuestState.RUNNING)


async def test_an_attempt_to_start_again_that_fails_is_tried_again_later(world: GuestWorld) -> None:
    guest = await running(world, restart="always")
    world.host.cts.failure = HostError("no room")
    guest.end("crashed", "died")
    await world.reaches(101, GuestState.STOPPED)
    await settle()
    for _ in range(3):
        await world.host.clock.advance(20)
        await settle()
    assert world.state(101) is GuestState.STOPPED
    world.host.cts.failure = None
    await world.host.clock.advance(300)
    await world.reaches(101, GuestState.RUNNING)


async def test_who_stops_it_is_obeyed(world: GuestWorld) -> None:
    await running(world, restart="always")
    await world.succeed(await world.guests.power.stop(CT, 101, user=ADMIN))
    await world.host.clock.advance(100)
    assert world.state(101) is GuestState.STOPPED
    assert await tasks_of(world, "vzend") == []


async def test_processes_killed_for_lack_of_memory_are_told_once_in_a_while(world: GuestWorld) -> None:
    guest = await running(world)
    for killed in (0, 2, 5):
        guest.figures = GuestStats(oom_kills=killed)
        await world.host.clock.advance(5)
    (status,) = await tasks_of(world, "vzoom")
    assert status == "ct 101: out of memory: the kernel has killed 2 of its processes"
