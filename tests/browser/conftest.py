"""Real Chromium, driven by Playwright. Each test has a browser of its own, which ends with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser as AsyncBrowser
from playwright.async_api import async_playwright
from playwright.async_api import expect as async_expect
from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser.chromium import ARGUMENTS, CHROMIUM
from tests.browser.fake_site import FakeSite, open_site
from tests.browser.office_site import open_office_site
from tests.e2e.busybox import write_template
from tests.fakes.office import Office
from tests.harness import ROOT

SCREENSHOTS = ROOT / ".build" / "screenshots"
PATIENCE_MS = 30_000
"""For what should be seen soon: a machine that is busy with other tests takes its time."""

expect.set_options(timeout=PATIENCE_MS)
async_expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture
def browser() -> Iterator[Browser]:
    """For tests against a process of its own."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
async def loop_browser() -> AsyncIterator[AsyncBrowser]:
    """For tests whose server runs on the test's own loop."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def file_browser() -> AsyncIterator[AsyncBrowser]:
    """One browser for all tests of a file; these are marked `asyncio(loop_scope="module")`."""
    # the loop's pool stays as long as the file: its threads are there before the first test counts threads
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.02) for _ in range(64)))
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        await chromium.close()


@pytest.fixture
def screenshots() -> Path:
    """Where screenshots are kept as build artefacts."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS


@pytest.fixture(scope="session")
def busybox_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A container template of a megabyte that starts at once."""
    return write_template(tmp_path_factory.mktemp("template") / "busybox_1_amd64.tar.gz")


@pytest_asyncio.fixture(loop_scope="module")
async def site(file_browser: AsyncBrowser, tmp_path: Path, screenshots: Path) -> AsyncIterator[FakeSite]:
    """The furnished world, one for each test; nothing may go wrong in any of its pages."""
    async with open_site(file_browser, tmp_path, screenshots) as opened:
        yield opened
    assert not opened.faults


@pytest_asyncio.fixture(loop_scope="module")
async def place(
    file_browser: AsyncBrowser, tmp_path: Path, screenshots: Path
) -> AsyncIterator[tuple[FakeSite, Office]]:
    """The same with everything a datacenter's pages show, and what stands behind them."""
    async with open_office_site(file_browser, tmp_path, screenshots) as opened:
        yield opened
    assert not opened[0].faults
