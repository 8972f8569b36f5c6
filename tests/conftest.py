"""Habits every test keeps: nothing leaks, nothing blocks the loop, warnings are errors (pyproject.toml).

Order matters: the leak check is set up first and so looks last, after the test's own fixtures have cleaned up.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import uvloop
from blockbuster import BlockBuster

from tests.images import build_images
from tests.leaks import Snapshot

hypothesis.settings.register_profile("untimed", deadline=None)  # figures are the bench's: machines are noisy
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("settle_s", "how long what a test started may take to go away", default="10")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop the product runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session", autouse=True)
def libuv_is_warm() -> None:
    """libuv opens one signal pipe per process with its first loop and keeps it: not a leak of the test that came first."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run_true())


@pytest.fixture(scope="module", autouse=True)
def what_is_there_is_old() -> None:
    """Each test's collection looks at what came since, not at the heap of thousands of collected tests: 5 ms, not 100."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def leaves_nothing_behind(pytestconfig: pytest.Config) -> Iterator[None]:
    """Fail a test that leaks a thread, a child process or a file descriptor."""
    before = Snapshot.take()
    yield
    gc.collect()
    leaked = before.leaked_since(settle_s=float(pytestconfig.getini("settle_s")))
    assert not leaked, f"the test left behind: {leaked}"


@pytest.fixture(autouse=True)
def loop_is_never_blocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test whose coroutine makes a blocking call (file, socket, sleep, sqlite) on the loop."""
    if request.node.get_closest_marker("browser"):
        yield
        return
    buster = BlockBuster(scanned_modules=["appliance"])
    buster.activate()
    try:
        yield
    finally:
        buster.deactivate()


@pytest.fixture(autouse=True)
def leaves_no_task_behind(request: pytest.FixtureRequest, leaves_nothing_behind: None) -> None:
    """Fail an asynchronous test after which a task still runs, its fixtures having ended theirs."""
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("no_task_is_left")


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    """On the test's own loop; set up before the test's fixtures, so that it looks after them."""
    before = asyncio.all_tasks()
    yield
    known = {*before, asyncio.current_task()}
    for _ in range(300):
        left = {task.get_name() for task in asyncio.all_tasks() - known}
        if not left:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"the test left tasks running: {sorted(left)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail an asynchronous test that outlasts its limit.

    pytest-timeout fails what does not run on a loop, by a signal; uvloop swallows what a signal's handler raises. Its other
    method ends the whole worker process and leaves behind what the test had started.
    """
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):  # not yet pytest-asyncio's wrapper
        mark = item.get_closest_marker("timeout")
        item.obj = _in_bounds(item.obj, limit_s=float(mark.args[0] if mark else item.config.getini("timeout")))
    return (yield)


def _in_bounds(function: Callable[..., Awaitable[None]], *, limit_s: float) -> Callable[..., Awaitable[None]]:
    @functools.wraps(function)
    async def bounded(*args: object, **kwargs: object) -> None:
        try:
            async with asyncio.timeout(limit_s) as limit:
                await function(*args, **kwargs)
        except TimeoutError as error:
            if limit.expired():
                raise AssertionError(f"the test did not end within {limit_s:g} s") from error
            raise

    return bounded


@pytest.fixture(scope="session")
def images() -> tuple[Path, Path]:
    """The two images of `debian-12`, (VM disk, container root), built once: the builder locks, also between processes."""
    return asyncio.run(build_images(print))


@pytest.fixture
def repository() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parent.parent


async def _run_true() -> None:
    await (await asyncio.create_subprocess_exec("true")).wait()
