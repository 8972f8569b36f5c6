"""What crosses to the loop runs there, in order, while the bridge is open; what it raises ends its machine only."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future

import pytest

from appliance.errors import GuestFault, TimedOut
from appliance.kernel.eventfd import EventFd
from appliance.vmm.loopbridge import LoopBridge, outcome


class Crossing:
    """A bridge and what it said."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.bridge = LoopBridge(asyncio.get_running_loop(), label="vm 101", on_error=self.errors.append)


@pytest.fixture
async def crossing() -> AsyncIterator[Crossing]:
    made = Crossing()
    yield made
    await made.bridge.close()


async def elsewhere(work: object) -> None:
    """Call it in another thread."""
    assert callable(work)
    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.to_thread(thread.join)


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await event.wait()


async def test_what_a_thread_posts_runs_on_the_loop_in_order(crossing: Crossing) -> None:
    seen, done = list[tuple[int, str]](), asyncio.Event()

    def post() -> None:
        for number in range(100):
            crossing.bridge.post(lambda number=number: seen.append((number, threading.current_thread().name)))  # type: ignore[misc]
        crossing.bridge.post(done.set)

    await elsewhere(post)
    await soon(done)
    assert seen == [(number, threading.current_thread().name) for number in range(100)]


async def test_a_watched_descriptor_calls_until_it_is_unwatched(crossing: Crossing) -> None:
    calls, rung = 0, asyncio.Event()
    with EventFd() as bell:

        def heard() -> None:
            nonlocal calls
            calls += bell.drain()
            rung.set()

        await elsewhere(lambda: crossing.bridge.watch(bell.fileno(), heard))
        for _ in range(3):
            rung.clear()
            bell.signal()
            await soon(rung)
        crossing.bridge.unwatch(bell.fileno())
        bell.signal()
        await asyncio.sleep(0.01)
        assert calls == 3


async def test_what_a_callback_raises_is_told_once_and_the_loop_goes_on(
    crossing: Crossing, caplog: pytest.LogCaptureFixture
) -> None:
    done = asyncio.Event()

    def guest() -> None:
        raise GuestFault("vm 101: broken ring")

    crossing.bridge.post(guest)
    crossing.bridge.post(lambda: 1 // 0)  # type: ignore[arg-type]
    crossing.bridge.submit(guest)
    await crossing.bridge.idle(timeout_s=10)
    crossing.bridge.post(done.set)
    await soon(done)
    assert sorted(type(each).__name__ for each in crossing.errors) == ["GuestFault", "GuestFault", "ZeroDivisionError"]
    assert "vm 101: a device of ours failed" in caplog.text


async def test_a_timer_runs_once_unless_it_is_cancelled(crossing: Crossing) -> None:
    seen, done = list[str](), asyncio.Event()
    cancelled = crossing.bridge.later(0.001, lambda: seen.append("cancelled"))
    crossing.bridge.later(0.002, lambda: seen.append("due"))
    await elsewhere(cancelled.cancel)
    await elsewhere(lambda: crossing.bridge.later(0.02, done.set))
    await soon(done)
    cancelled.cancel()
    assert seen == ["due"]


async def test_idle_waits_for_what_was_submitted_and_says_when_it_takes_too_long(crossing: Crossing) -> None:
    await crossing.bridge.idle(timeout_s=0)
    finish, finished = threading.Event(), list[bool]()
    for _ in range(3):
        crossing.bridge.submit(lambda: finished.append(finish.wait(10)))
    with pytest.raises(TimedOut, match="vm 101: I/O in flight"):
        await crossing.bridge.idle(timeout_s=0.01)
    finish.set()
    await crossing.bridge.idle(timeout_s=10)
    assert finished == [True] * 3


async def test_nothing_runs_once_the_bridge_is_closed(crossing: Crossing) -> None:
    seen = list[str]()
    with EventFd() as bell:
        crossing.bridge.watch(bell.fileno(), lambda: seen.append("watched"))
        crossing.bridge.later(0, lambda: seen.append("timed"))
        crossing.bridge.post(lambda: seen.append("posted before"))
        bell.signal()
        await crossing.bridge.close()
        crossing.bridge.post(lambda: seen.append("posted"))
        crossing.bridge.submit(lambda: seen.append("submitted"))
        crossing.bridge.later(0, lambda: seen.append("timed after"))
        crossing.bridge.watch(bell.fileno(), lambda: seen.append("watched after"))
        crossing.bridge.unwatch(bell.fileno())
        await asyncio.sleep(0.02)
        await crossing.bridge.close()
    assert seen == []
    assert crossing.errors == []


async def test_close_waits_for_work_that_has_begun_and_drops_the_rest(crossing: Crossing) -> None:
    began, finish, finished = threading.Event(), threading.Event(), list[int]()

    def work(number: int) -> None:
        began.set()
        finish.wait(10)
        finished.append(number)

    for number in range(20):
        crossing.bridge.submit(lambda number=number: work(number))  # type: ignore[misc]
    await asyncio.to_thread(began.wait, 10)
    closing = asyncio.create_task(crossing.bridge.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    finish.set()
    await closing
    assert 1 <= len(finished) <= 4


async def test_an_outcome_is_the_futures_result_or_its_error_or_a_named_time_out() -> None:
    done: Future[int] = Future()
    await elsewhere(lambda: done.set_result(7))
    assert await outcome(done, waiting_for="it", timeout_s=1) == 7
    failed: Future[int] = Future()
    failed.set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        await outcome(failed, waiting_for="it", timeout_s=1)
    never: Future[int] = Future()
    with pytest.raises(TimedOut, match=r"vcpu 0: nothing within 0\.01 s"):
        await outcome(never, waiting_for="vcpu 0", timeout_s=0.01)
    assert never.cancelled()


async def lingers(crossing: Crossing, bell: EventFd) -> Future[bool]:
    """A job of the pool that waits for `bell`; what `linger` answers it."""
    begun, answer = asyncio.Event(), Future[bool]()

    def work() -> None:
        crossing.bridge.post(begun.set)
        answer.set_result(crossing.bridge.linger([bell.fileno()], 60))

    crossing.bridge.submit(work)
    await soon(begun)
    await asyncio.sleep(0.02)
    return answer


async def test_who_lingers_in_the_pool_hears_the_descriptor(crossing: Crossing) -> None:
    with EventFd() as bell:
        answer = await lingers(crossing, bell)
        assert not answer.done()
        bell.signal()
        assert await outcome(answer, waiting_for="it", timeout_s=10)


@pytest.mark.parametrize("end", ["idle", "close", "work"])
async def test_who_lingers_gives_the_thread_back_when_it_is_wanted(crossing: Crossing, end: str) -> None:
    with EventFd() as bell:
        answers = [await lingers(crossing, bell) for _ in range(4)]
        match end:
            case "idle":
                await crossing.bridge.idle(timeout_s=10)
            case "close":
                await crossing.bridge.close()
            case _:
                done = asyncio.Event()
                crossing.bridge.submit(lambda: crossing.bridge.post(done.set))
                await soon(done)
        assert [await outcome(each, waiting_for="it", timeout_s=10) for each in answers] == [False] * 4


async def test_nobody_lingers_once_it_is_closed(crossing: Crossing) -> None:
    await crossing.bridge.close()
    with EventFd() as bell:
        assert not await asyncio.to_thread(crossing.bridge.linger, [bell.fileno()], 60)
