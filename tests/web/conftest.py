"""A web application over fake services, and a client to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from appliance.web.application import build_application
from appliance.web.services import Services
from appliance.web.static import StaticFiles
from tests.fakes.house import furnished, settle_in
from tests.fakes.services import World, fake_services

Headers = dict[str, str]


@dataclass(slots=True)
class Site:
    """The application under test."""

    client: TestClient  # type: ignore[type-arg]  # generic over request and application, which no test cares for
    services: Services
    world: World

    def as_user(self, user: str = "admin@pve") -> Headers:
        """Headers of a browser in which `user` has logged in."""
        return {"Cookie": f"PVEAuthCookie={self.world.access.ticket(user)}",
                "CSRFPreventionToken": self.world.access.csrf(user)}  # fmt: skip

    @property
    def origin(self) -> str:
        """The Origin header of our own pages."""
        return f"http://{self.client.host}:{self.client.port}"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    services, world = fake_services(tmp_path)
    async with TestClient(TestServer(build_application(services))) as client:
        yield Site(client, services, world)


@pytest.fixture
async def house(tmp_path: Path, repository: Path) -> AsyncIterator[Site]:
    """The application over a furnished world, with the files its pages name."""
    services, world = furnished(tmp_path)
    settle_in(world)
    static = await asyncio.to_thread(StaticFiles.scan, repository / "static")
    async with TestClient(TestServer(build_application(services, static=static))) as client:
        yield Site(client, services, world)
