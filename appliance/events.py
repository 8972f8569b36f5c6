"""The event bus: facts that have happened, told to whoever watches (open pages, metrics, tests).

Publishing never waits and never fails. A subscriber has a bounded queue; one that falls behind gets a single `Lagged`
in place of what it missed and must read the present state again. Events carry identifiers and new values, not objects.
All of it runs on the loop thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from appliance.model.guest import GuestId, GuestKind, GuestState


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class Lagged(Event):
    """The subscriber missed events: read the present state again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestStateChanged(Event):
    """A guest's run state changed; `reason` is one line for people ("guest powered off")."""

    guest_id: GuestId
    kind: GuestKind
    old: GuestState
    new: GuestState
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestConfigChanged(Event):
    """A guest's configuration was written."""

    guest_id: GuestId
    kind: GuestKind


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestListChanged(Event):
    """A guest was created or deleted."""

    guest_id: GuestId
    kind: GuestKind
    exists: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestStatsSampled(Event):
    """New figures for running guests are in `services.guests`; sent once per sampling round, not per guest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatsSampled(Event):
    """New figures of the node are in `services.node`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSampled(Event):
    """A new step of figures over time is in `services.metrics`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStarted(Event):
    """A PVE task began."""

    upid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProgressed(Event):
    """A PVE task wrote log lines or moved on."""

    upid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFinished(Event):
    """A PVE task ended with `status` ("OK", "WARNINGS: n" or the error's text)."""

    upid: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageContentChanged(Event):
    """A volume was added to or removed from a storage."""

    storage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessChanged(Event):
    """Users, groups, roles, tokens or ACLs were written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionsChanged(Event):
    """Settings of the whole cluster were written, its notes among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleViewersChanged(Event):
    """Somebody began or ceased to look at a guest's console or display."""

    guest_id: GuestId


class Subscription:
    """One subscriber's bounded queue. Iterate it asynchronously; made by `EventBus.subscribe` only."""

    def __init__(self, limit: int) -> None:
        self._events: deque[Event] = deque()
        self._limit = limit
        self._ready = asyncio.Event()

    def _offer(self, event: Event) -> None:
        if len(self._events) >= self._limit:
            self._events.clear()
            event = Lagged()
        self._events.append(event)
        self._ready.set()

    async def next(self) -> Event:
        """Wait for the next event."""
        while not self._events:
            self._ready.clear()
            await self._ready.wait()
        return self._events.popleft()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            yield await self.next()


class EventBus:
    """Fan-out of events to the subscriptions alive now."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self.published = 0
        """How many events there have been: unchanged means that what was computed from their subjects still holds."""

    def publish(self, event: Event) -> None:
        """Offer `event` to every subscription; never waits."""
        self.published += 1
        for subscription in self._subscriptions:
            subscription._offer(event)

    @contextmanager
    def subscribe(self, *, limit: int = 1024) -> Iterator[Subscription]:
        """A subscription that lives as long as the `with` block and sees everything published after it began."""
        subscription = Subscription(limit)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
