"""The guests' services over a host of fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.guest_host import GuestHost, GuestWorld, open_world


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[GuestHost]:
    """What outlives an appliance: its store, its volumes, what runs."""
    host = GuestHost(tmp_path)
    yield host
    await host.store.close()


@pytest.fixture
async def world(host: GuestHost) -> AsyncIterator[GuestWorld]:
    """The services of one run, started."""
    async with open_world(host) as world:
        yield world
