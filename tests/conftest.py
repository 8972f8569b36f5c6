"""Habits every test keeps: nothing leaks, nothing blocks the loop, warnings are errors (pyproject.toml).

Order matters: the leak check is set up first and so looks last, after the test's own fixtures have cleaned up.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from blockbuster import BlockBuster

from tests.images import build_images
from tests.leaks import Snapshot


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
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaks a thread, a child process or a file descriptor."""
    before = Snapshot.take()
    yield
    gc.collect()
    leaked = before.leaked_since(settle_s=10.0)
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


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Fail an asynchronous test that ends while a task it started is still running."""
    function = pyfuncitem.obj
    if inspect.iscoroutinefunction(function):
        pyfuncitem.obj = _ends_with_no_task(function)
    return (yield)


def _ends_with_no_task(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(function)
    async def checked(*args: object, **kwargs: object) -> None:
        before = asyncio.all_tasks()
        await function(*args, **kwargs)
        for _ in range(300):
            left = {task.get_name() for task in asyncio.all_tasks() - before if not task.done()}
            if not left:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"the test left tasks running: {sorted(left)}")

    return checked


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
