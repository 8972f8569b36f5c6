"""The application over an office (`tests.fakes.office`), and pages of a browser logged in to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp.test_utils import TestServer
from playwright.async_api import Browser

from appliance.web.application import build_application
from appliance.web.static import StaticFiles
from tests.browser.fake_site import FakeSite
from tests.fakes.office import Office, open_office
from tests.harness import ROOT


@asynccontextmanager
async def open_office_site(
    browser: Browser, directory: Path, screenshots: Path
) -> AsyncIterator[tuple[FakeSite, Office]]:
    """Serve the office."""
    async with open_office(directory) as office:
        static = await asyncio.to_thread(StaticFiles.scan, ROOT / "static")
        application = build_application(office.services, static=static)
        async with TestServer(application) as server:
            url = f"http://127.0.0.1:{server.port}"
            yield FakeSite(browser, url, office.world, application, screenshots), office
