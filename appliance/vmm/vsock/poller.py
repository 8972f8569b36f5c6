"""Many sockets behind one descriptor that the loop watches: an epoll instance, itself readable when any has news.

The bridge tells of readable descriptors only; here a socket's owner hears of room to write as well, and the work of one
call is bounded whatever number of sockets is ready. The device's lock is held around every call.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

from appliance.vmm.loopbridge import Bridge

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
HANGUP, PEER_DONE, ERROR = select.EPOLLHUP, select.EPOLLRDHUP, select.EPOLLERR
MAX_EVENTS: Final = 32

Ready = Callable[[int], None]


class Poller:
    """`ready` is called on the loop while something has news and `watch` is in force; it shall call `dispatch`."""

    def __init__(self, bridge: Bridge, ready: Callable[[], None]) -> None:
        self._bridge = bridge
        self._ready = ready
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._callbacks: dict[int, Ready] = {}
        self._events: dict[int, int] = {}
        self._watched = False

    def watch(self, *, wanted: bool) -> None:
        """Whether the loop shall look at all."""
        if wanted == self._watched:
            return
        self._watched = wanted
        if wanted:
            self._bridge.watch(self._epoll.fileno(), self._ready)
        else:
            self._bridge.unwatch(self._epoll.fileno())

    def add(self, fd: int, events: int, callback: Ready) -> None:
        """Call `callback` with what is so of `events`, HANGUP or ERROR. Raises `OSError`, having changed nothing."""
        self._epoll.register(fd, events)
        self._callbacks[fd], self._events[fd] = callback, events

    def change(self, fd: int, events: int) -> None:
        """Other events from now on. With none, hang-ups are not told either: they would not cease."""
        if self._events.get(fd) == events:
            return
        if not events:
            self._epoll.unregister(fd)
        elif not self._events[fd]:
            self._epoll.register(fd, events)
        else:
            self._epoll.modify(fd, events)
        self._events[fd] = events

    def remove(self, fd: int) -> None:
        """Before the descriptor is closed."""
        del self._callbacks[fd]
        if self._events.pop(fd):
            self._epoll.unregister(fd)

    def dispatch(self) -> None:
        """Tell those that have news, `MAX_EVENTS` at most."""
        for fd, events in self._epoll.poll(0, MAX_EVENTS):
            callback = self._callbacks.get(fd)
            if callback is not None:  # removed by one that was told before
                callback(events)

    def close(self) -> None:
        """Harmless when done twice."""
        if not self._epoll.closed:
            self.watch(wanted=False)
            self._epoll.close()
