"""The guests' resources over a fake guest service, and a client to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from appliance.web.application import build_application
from tests.web.guests.guest_site import RESOURCES, GuestSite, guest_services


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[GuestSite]:
    services, world, guests = guest_services(tmp_path)
    async with TestClient(TestServer(build_application(services, resources=RESOURCES))) as client:
        yield GuestSite(client, world, guests)
