"""Rules of what must be whole before a cancellation goes on."""

from __future__ import annotations

import asyncio
import threading

import pytest

from appliance.errors import HostError
from appliance.tasks import to_its_end
from appliance.threads import to_the_end


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
