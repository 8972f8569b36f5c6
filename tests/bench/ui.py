"""Figures of the web UI with 1,000 guests on 10 nodes: pages, first paint of the tree, search, push to 50 pages, size.

    page_p99_ms    HTML of any page, server time, one after another (the highest page's p99 of 100 requests)
    tree_paint_s   from navigation to the tree's rows painted, in Chromium with an empty cache
    search_ms      from a typed letter to the results on the screen: palette and list, the slower median
    push_50_ms     a change on 50 open pages: from the request to the last page's row; p99 of 40
    push_50_cpu    the appliance's CPU meanwhile, with a change every half second, in percent of a core
    assets_kib     compressed scripts, styles and icons of the list of guests

Every figure is taken on an appliance started for it as users start one, over TLS.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import aiohttp
import psutil
from playwright.async_api import BrowserContext, async_playwright

from tests.bench import seed
from tests.bench.client import client
from tests.bench.figures import Benchmark, Figure, percentile
from tests.browser.chromium import ARGUMENTS, CHROMIUM
from tests.harness import Appliance

GUESTS, NODES = 1000, 10
PAGES = (
    "/", "/overview", "/guests/101", "/guests/101/hardware", "/guests/101/tasks", "/node", "/node/tasks", "/storage/local",
    "/audit", "/settings", "/api-explorer",
)  # fmt: skip
ROUNDS = 100
OPEN_PAGES = 50
CHANGES = 40
TYPED = ("web", "oslo", "customer-a", "build-li", "proxy-dublin")
KIB = 1024


@contextmanager
def seeded() -> Iterator[Appliance]:
    """An appliance with the guests and nodes of the goal."""
    with Appliance() as appliance:
        api = appliance.api()
        nodes = seed.node_names(appliance.node_name(api), NODES)
        appliance.stop()
        asyncio.run(seed.seed(appliance.data_dir, guests=GUESTS, nodes=nodes))
        appliance.start()
        yield appliance


def pages() -> Iterable[Figure]:
    """Every page once to warm it, then in turns."""
    with seeded() as appliance:
        slowest = asyncio.run(_pages(appliance))
    yield Figure("page_p99_ms", 1000 * slowest, "ms", 100)


async def _pages(appliance: Appliance) -> float:
    taken: dict[str, list[float]] = {path: [] for path in PAGES}
    async with client(appliance) as session:
        for number in range(ROUNDS + 1):
            for path in PAGES:
                began = time.monotonic()
                async with session.get(path) as response:
                    response.raise_for_status()
                    await response.read()
                if number:
                    taken[path].append(time.monotonic() - began)
    return max(percentile(times, 0.99) for times in taken.values())


def browser() -> Iterable[Figure]:
    """What a person sees: the first paint of the tree, and search."""
    with seeded() as appliance:
        paint, search = asyncio.run(_browser(appliance))
    yield Figure("tree_paint_s", paint, "s", 1.0)
    yield Figure("search_ms", 1000 * search, "ms", 100)


async def _browser(appliance: Appliance) -> tuple[float, float]:
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        paints = []
        for _ in range(5):
            context = await _logged_in(await chromium.new_context(ignore_https_errors=True), appliance)
            paints.append(await _paint(context, appliance))
            await context.close()
        context = await _logged_in(await chromium.new_context(ignore_https_errors=True), appliance)
        search = await _search(context, appliance)
        await context.close()
        await chromium.close()
    return statistics.median(paints), search


async def _logged_in(context: BrowserContext, appliance: Appliance) -> BrowserContext:
    url = f"https://127.0.0.1:{appliance.port}"
    async with client(appliance) as session:
        ticket = session.headers["Cookie"].partition("=")[2]
    for sign, code in ((":", "%3A"), ("+", "%2B"), ("/", "%2F"), ("=", "%3D")):
        ticket = ticket.replace(sign, code)
    await context.add_cookies([{"name": "PVEAuthCookie", "value": ticket, "url": url}])
    return context


async def _paint(context: BrowserContext, appliance: Appliance) -> float:
    """Seconds by the browser's own clock: an empty cache, no session storage."""
    page = await context.new_page()
    await page.add_init_script(
        """new MutationObserver((all, observer) => {
          if (document.querySelectorAll(".tree-item").length < 10) return;
          observer.disconnect();
          requestAnimationFrame(() => requestAnimationFrame(() => { window.paintedAt = performance.now(); }));
        }).observe(document, { childList: true, subtree: true });"""
    )
    await page.goto(f"https://127.0.0.1:{appliance.port}/overview")
    await page.wait_for_function("() => window.paintedAt")
    return float(await page.evaluate("window.paintedAt")) / 1000


async def _search(context: BrowserContext, appliance: Appliance) -> float:
    page = await context.new_page()
    await page.goto(f"https://127.0.0.1:{appliance.port}/")
    await page.wait_for_function(
        "() => document.querySelectorAll('.tree-item').length > 5 && document.body.dataset.live"
    )
    await page.keyboard.press("Control+k")
    palette: list[float] = []
    for text in TYPED:
        took = await page.evaluate(
            """(text) => new Promise((done) => {
              const input = document.getElementById("palette-input");
              const began = performance.now();
              input.value = text;
              input.dispatchEvent(new Event("input", { bubbles: true }));
              requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
            })""",
            text,
        )
        assert await page.locator("#palette-list [role=option]").count() > 0, f"nothing is found for {text!r}"
        palette.append(float(took) / 1000)
    await page.keyboard.press("Escape")
    listed: list[float] = []
    for text in TYPED:
        took = await page.evaluate(
            """(text) => new Promise((done) => {
              const input = document.getElementById("find");
              const began = performance.now();
              document.addEventListener("live:change", function shown() {
                const rows = [...document.querySelectorAll("#guest-rows > tr")];
                if (rows.length === 0 || !rows.every((row) => row.textContent.toLowerCase().includes(text))) return;
                document.removeEventListener("live:change", shown);
                requestAnimationFrame(() => done(performance.now() - began));
              });
              input.value = text;
              input.dispatchEvent(new Event("input", { bubbles: true }));
            })""",
            text,
        )
        listed.append(float(took) / 1000)
    return max(statistics.median(palette), statistics.median(listed))


def push() -> Iterable[Figure]:
    """50 pages with the list of guests open; one guest's name changes."""
    with seeded() as appliance:
        latency, cpu = asyncio.run(_push(appliance))
    yield Figure("push_50_ms", 1000 * latency, "ms", 500)
    yield Figure("push_50_cpu", cpu, "% core", 20)


async def _push(appliance: Appliance) -> tuple[float, float]:
    assert appliance.process is not None
    process = psutil.Process(appliance.process.pid)
    async with client(appliance) as session:
        node = (await (await session.get("/api2/json/nodes")).json())["data"][0]["node"]
        sockets = [await session.ws_connect("/ws/page", max_msg_size=0) for _ in range(OPEN_PAGES)]
        for socket in sockets:
            await socket.send_json({"topics": ["tasks", "notices", "tree:", "guests:", "host"]})
        await asyncio.sleep(8)  # what is sent whole has gone out, and the first rounds of figures
        seen: list[asyncio.Queue[float]] = [asyncio.Queue() for _ in sockets]
        word = ""

        async def watch(socket: aiohttp.ClientWebSocketResponse, queue: asyncio.Queue[float]) -> None:
            async for message in socket:
                if word and word in str(message.data):
                    queue.put_nowait(time.monotonic())

        watching = [asyncio.create_task(watch(*each)) for each in zip(sockets, seen, strict=True)]
        before, began = process.cpu_times(), time.monotonic()
        latencies = []
        for number in range(CHANGES):
            word = f"renamed-{number}-"
            asked = time.monotonic()
            url = f"/api2/json/nodes/{node}/qemu/{101 + 3 * (number % 30)}/config"
            async with session.put(url, data={"name": f"{word}x"}) as response:
                response.raise_for_status()
            ends = [await asyncio.wait_for(queue.get(), 20) for queue in seen]
            latencies.append(max(ends) - asked)
            await asyncio.sleep(max(0.0, 0.5 - (time.monotonic() - asked)))
            for queue in seen:
                while not queue.empty():
                    queue.get_nowait()
        after, took = process.cpu_times(), time.monotonic() - began
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        for socket in sockets:
            await socket.close()
    spent = (after.user + after.system) - (before.user + before.system)
    return percentile(latencies, 0.99), 100 * spent / took


def assets() -> Iterable[Figure]:
    """What a browser with an empty cache fetches for the list of guests, as it comes over the wire."""
    with Appliance() as appliance:
        size = asyncio.run(_assets(appliance))
    yield Figure("assets_kib", size / KIB, "KiB", 200)


async def _assets(appliance: Appliance) -> int:
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        context = await _logged_in(await chromium.new_context(ignore_https_errors=True), appliance)
        page = await context.new_page()
        sizes: dict[str, int] = {}
        finished = []

        async def note(request: object) -> None:
            url = request.url  # type: ignore[attr-defined]
            if "/static/" in url:
                sizes[url] = (await request.sizes())["responseBodySize"]  # type: ignore[attr-defined]

        page.on("requestfinished", lambda request: finished.append(asyncio.ensure_future(note(request))))
        await page.goto(f"https://127.0.0.1:{appliance.port}/")
        await page.wait_for_load_state("networkidle")
        await asyncio.gather(*finished)
        await chromium.close()
    if not any(url.partition("?")[0].endswith(".css") for url in sizes):
        raise RuntimeError("no style sheet was fetched")
    return sum(sizes.values())


BENCHMARKS: list[Benchmark] = [pages, browser, push, assets]
