"""A container whose addresses the host asks for is told who resolves names, when that is known and when it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.model.guest import GuestKind
from tests.fakes.engines import FakeRunningGuest
from tests.fakes.guest_host import ADMIN, GuestHost, GuestWorld, open_world

LIMIT_S = 10.0


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[GuestWorld]:
    async with open_world(GuestHost(tmp_path)) as opened:
        yield opened


async def is_told(guest: FakeRunningGuest | None, *words: str) -> None:
    """Wait until it has been asked this, and nothing else."""
    assert guest is not None
    async with asyncio.timeout(LIMIT_S):
        while guest.asked != list(words):
            await asyncio.sleep(0)


async def test_it_is_told_when_they_are_known_and_when_they_change(world: GuestWorld) -> None:
    guest = await world.make_ct(start=True, searchdomain="example.org")
    world.host.ports.learn(101, "192.0.2.53")
    await is_told(guest, "resolve by 192.0.2.53 in example.org")
    world.host.ports.learn(101, "192.0.2.54", "2001:db8::53")
    await is_told(guest, "resolve by 192.0.2.53 in example.org", "resolve by 192.0.2.54 2001:db8::53 in example.org")


async def test_what_was_known_before_it_ran_is_told_after_its_start(world: GuestWorld) -> None:
    await world.make_ct()
    world.host.ports.learn(101, "192.0.2.53")
    await world.succeed(await world.guests.power.start(GuestKind.LXC, 101, user=ADMIN))
    await is_told(world.run_of(101), "resolve by 192.0.2.53")


async def test_name_servers_of_its_own_are_left_alone(world: GuestWorld) -> None:
    guest = await world.make_ct(start=True, nameserver="198.51.100.1")
    world.host.ports.learn(101, "192.0.2.53")
    await world.make_ct(102, start=True)
    world.host.ports.learn(102, "192.0.2.53")
    await is_told(world.run_of(102), "resolve by 192.0.2.53")
    assert guest is not None
    assert guest.asked == []
