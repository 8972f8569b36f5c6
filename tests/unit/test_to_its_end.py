"""Rules of what must be whole before a cancellation goes on."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from appliance.errors import HostError
from appliance.tasks import to_its_end
from appliance.threads import both_to_the_end, to_the_end


async def test_a_cancellation_goes_on_only_when_the_work_has_ended_however_often_it_comes() -> None:
    may_end, steps = asyncio.Event(), list[str]()

    async def work() -> None:
        await may_end.wait()
        steps.append("work")

    async def caller() -> None:
        try:
            await to_its_end(work(), name="work")
        except asyncio.CancelledError:
            steps.append("cancelled")
            raise

    calling = asyncio.ensure_future(caller())
    for _ in range(3):
        await asyncio.sleep(0)
        calling.cancel()
    await asyncio.sleep(0)
    assert not calling.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert steps == ["work", "cancelled"]


async def test_results_and_errors_come_back_as_they_are() -> None:
    async def work(error: HostError | None) -> int:
        if error:
            raise error
        return 7

    assert await to_its_end(work(None), name="work") == 7
    with pytest.raises(HostError, match="broken"):
        await to_its_end(work(HostError("broken")), name="work")


async def test_an_error_after_a_cancellation_is_logged_and_the_cancellation_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    may_end = asyncio.Event()

    async def work() -> None:
        await may_end.wait()
        raise HostError("vm 100: its disk is gone")

    calling = asyncio.ensure_future(to_its_end(work(), name="undo"))
    await asyncio.sleep(0)
    calling.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert "undo: vm 100: its disk is gone" in caplog.text


async def test_a_thread_is_waited_for_however_often_its_caller_is_cancelled() -> None:
    begun, may_end = threading.Event(), threading.Event()
    steps = list[str]()

    def work() -> None:
        begun.set()
        assert may_end.wait(10)
        steps.append("work")

    calling = asyncio.ensure_future(to_the_end(work))
    assert await asyncio.to_thread(begun.wait, 10)
    for _ in range(3):
        calling.cancel()
        await asyncio.sleep(0)
    assert not calling.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert steps == ["work"]


async def test_two_threads_are_both_over_when_one_fails_or_the_caller_is_cancelled() -> None:
    over = threading.Event()

    def slow() -> str:
        time.sleep(0.05)
        over.set()
        return "done"

    def fails() -> str:
        raise ValueError("no")

    assert await both_to_the_end(to_the_end(lambda: 1), to_the_end(slow)) == (1, "done")
    over.clear()
    with pytest.raises(ValueError, match="no"):
        await both_to_the_end(to_the_end(fails), to_the_end(slow))
    assert over.is_set()
    over.clear()
    task = asyncio.ensure_future(both_to_the_end(to_the_end(slow), to_the_end(slow)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert over.is_set()
