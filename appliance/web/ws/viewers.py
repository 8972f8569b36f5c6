"""Who looks at a guest's consoles and displays at this moment: each of them sees that they are not alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aiohttp import web

from appliance.events import ConsoleViewersChanged, EventBus
from appliance.model.guest import GuestId


class ConsoleViewers:
    """The users with an open console of each guest; one with two windows counts twice."""

    def __init__(self, events: EventBus) -> None:
        self._events = events
        self._present: dict[GuestId, list[str]] = {}

    def of(self, guest_id: int) -> Sequence[str]:
        """Their names, in the order they came."""
        return tuple(self._present.get(GuestId(guest_id), ()))

    @contextmanager
    def present(self, guest_id: GuestId | None, user: str) -> Iterator[None]:
        """`user` looks for the length of the block; None is the host's own console, which nobody is told of."""
        if guest_id is None:
            yield
            return
        names = self._present.setdefault(guest_id, [])
        names.append(user)
        self._events.publish(ConsoleViewersChanged(guest_id=guest_id))
        try:
            yield
        finally:
            names.remove(user)
            if not names:
                self._present.pop(guest_id, None)
            self._events.publish(ConsoleViewersChanged(guest_id=guest_id))


VIEWERS: web.AppKey[ConsoleViewers] = web.AppKey("viewers")
