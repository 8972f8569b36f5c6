"""The only crossing between the threads of a machine (vCPUs, block I/O) and the event loop.

    watch, unwatch   a descriptor (ioeventfd, tap, socket) whose readiness the loop tells a device
    post             run something on the loop soon
    later            run something on the loop after a while
    submit           run blocking work in the machine's thread pool
    linger           there, wait for a descriptor instead of on the loop: one thread to wake instead of two
    outcome          the loop waits for what a thread of the machine will have done

Whatever a callback raises ends this guest and no other: `GuestFault` as the guest's fault, anything else as ours, with
its traceback in the log. All may be called from any thread; after `close` nothing runs any more.
"""

from __future__ import annotations

import asyncio
import logging
import select
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from appliance.errors import GuestFault, TimedOut
from appliance.kernel.eventfd import EventFd
from appliance.threads import to_the_end

logger = logging.getLogger(__name__)

T = TypeVar("T")
Callback = Callable[[], None]
POOL_THREADS = 4


async def outcome(future: Future[T], *, waiting_for: str, timeout_s: float) -> T:
    """On the loop: what a thread's future comes to. Raises `TimedOut`, and then the future is cancelled."""
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await asyncio.wrap_future(future)
    except TimeoutError as error:
        if not limit.expired():
            raise  # the work's own
        raise TimedOut(waiting_for, timeout_s) from error


class Timer(Protocol):
    """What `later` returns."""

    def cancel(self) -> None:
        """It will not run, unless it is running now. Any thread; harmless when over."""


class Bridge(Protocol):
    """The crossing as devices see it; tests have one that does everything at once."""

    def watch(self, fd: int, callback: Callback) -> None:
        """Call `callback` on the loop whenever `fd` is readable. One callback for a descriptor."""

    def unwatch(self, fd: int) -> None:
        """No more; call it before the descriptor is closed. On the loop it takes effect at once, else soon."""

    def post(self, callback: Callback) -> None: ...

    def later(self, delay_s: float, callback: Callback) -> Timer: ...

    def submit(self, work: Callback) -> None:
        """The caller bounds how much it submits: a virtqueue's size does."""

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for a thread of the pool: who has had one for long gives it back."""

    def linger(self, fds: Iterable[int], timeout_s: float) -> bool:
        """Within submitted work: wait until one of `fds` is readable. False at the latest after `timeout_s`; at once when
        the thread is wanted otherwise: for other work, or for everything to become idle or close."""


class LoopBridge:
    """The bridge of one machine. `on_error` is called with what a callback raised, on whatever thread it was."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, label: str, on_error: Callable[[BaseException], None]
    ) -> None:
        self.label = label
        self._loop = loop
        self._thread = threading.get_ident()
        self._on_error = on_error
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()
        self._watched: set[int] = set()
        self._timers: set[_LoopTimer] = set()
        self._closed = False
        self._unfinished = 0  # under _pool_lock: submitted and not over
        self._idle: list[Future[None]] = []
        self._lingering = 0  # under _pool_lock
        self._wake: EventFd | None = None  # under _pool_lock: ends every `linger`

    def watch(self, fd: int, callback: Callback) -> None:
        self._on_loop(partial(self._watch, fd, callback))

    def unwatch(self, fd: int) -> None:
        self._on_loop(partial(self._unwatch, fd))

    def post(self, callback: Callback) -> None:
        if not self._closed:
            self._loop.call_soon_threadsafe(self._guard, callback)

    def later(self, delay_s: float, callback: Callback) -> Timer:
        timer = _LoopTimer(self, callback)
        self._on_loop(partial(timer.arm, self._loop, delay_s))
        return timer

    def submit(self, work: Callback) -> None:
        with self._pool_lock:
            if self._closed:
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix=f"io-{self.label.replace(' ', '-')}")
            self._unfinished += 1
            self._pool.submit(self._work, work)
            if self._unfinished > POOL_THREADS:
                self._end_lingering()

    @property
    def crowded(self) -> bool:
        return self._unfinished > POOL_THREADS

    def linger(self, fds: Iterable[int], timeout_s: float) -> bool:
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        with self._pool_lock:
            if self._closed or self._idle or self.crowded:
                return False
            self._lingering += 1
            wake = self._wake = self._wake or EventFd()
        poll.register(wake.fileno(), select.POLLIN)
        try:
            ready = poll.poll(1000 * timeout_s)
        finally:
            with self._pool_lock:
                self._lingering -= 1
                if not self._lingering:
                    wake.drain()
        return any(fd != wake.fileno() for fd, _ in ready)

    def _end_lingering(self) -> None:
        """The pool's lock is held."""
        if self._lingering and self._wake is not None:
            self._wake.signal()

    async def idle(self, *, timeout_s: float) -> None:
        """On the loop: return once nothing that was submitted is left. Raises `TimedOut`: a storage that does not answer."""
        over: Future[None] = Future()
        with self._pool_lock:
            if not self._unfinished:
                return
            self._idle.append(over)
            self._end_lingering()
        await outcome(over, waiting_for=f"{self.label}: I/O in flight", timeout_s=timeout_s)

    async def close(self) -> None:
        """On the loop: nothing is watched, timed or begun any more; waits for what runs in the pool."""
        with self._pool_lock:
            self._closed = True
            pool, self._pool = self._pool, None
            self._end_lingering()
        for fd in list(self._watched):
            self._unwatch(fd)
        for timer in list(self._timers):
            timer.drop()
        if pool is not None:
            await to_the_end(pool.shutdown, wait=True, cancel_futures=True)
        if self._wake is not None:
            self._wake.close()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _on_loop(self, ours: Callback) -> None:
        """Bookkeeping: at once on the loop, also when closed (it is over then), else soon."""
        if threading.get_ident() == self._thread:
            self._guard(ours, even_closed=True)
        else:
            self.post(ours)

    def _watch(self, fd: int, callback: Callback) -> None:
        if not self._closed:
            self._loop.add_reader(fd, self._guard, callback)
            self._watched.add(fd)

    def _unwatch(self, fd: int) -> None:
        if fd in self._watched:
            self._watched.discard(fd)
            self._loop.remove_reader(fd)

    def _work(self, work: Callback) -> None:
        try:
            self._guard(work)
        finally:
            with self._pool_lock:
                self._unfinished -= 1
                told, self._idle = ([], self._idle) if self._unfinished else (self._idle, [])
            for each in told:
                if each.set_running_or_notify_cancel():
                    each.set_result(None)

    def _guard(self, callback: Callback, *, even_closed: bool = False) -> None:
        """A supervisor (STYLE 8): what happens in one machine stays there."""
        if self._closed and not even_closed:
            return
        try:
            callback()
        except GuestFault as fault:
            self._on_error(fault)
        except Exception as error:
            logger.exception("%s: a device of ours failed", self.label)
            self._on_error(error)


class _LoopTimer:
    """`later`'s answer. Armed on the loop; cancelled from anywhere."""

    def __init__(self, bridge: LoopBridge, callback: Callback) -> None:
        self._bridge = bridge
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None
        self._cancelled = False

    def arm(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> None:
        if not self._cancelled and not self._bridge._closed:
            self._bridge._timers.add(self)
            self._handle = loop.call_later(delay_s, self._fire)

    def cancel(self) -> None:
        self._cancelled = True
        self._bridge._on_loop(self.drop)

    def drop(self) -> None:
        self._bridge._timers.discard(self)
        if self._handle is not None:
            self._handle.cancel()

    def _fire(self) -> None:
        self._bridge._timers.discard(self)
        if not self._cancelled:
            self._bridge._guard(self._callback)
