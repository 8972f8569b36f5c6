"""What application containers have said, kept beyond their end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from appliance.model.guest import GuestId


class LogPiece(Protocol):
    """A piece of what an application container said; `whole` when a line ends with it."""

    @property
    def time(self) -> str: ...

    @property
    def stream(self) -> str: ...

    @property
    def text(self) -> bytes: ...

    @property
    def whole(self) -> bool: ...


class LogSource(Protocol):
    """A reader of a container's log."""

    async def read(self) -> Sequence[LogPiece]:
        """What has come since; empty when nothing has. Raises `HostError`."""

    async def close(self) -> None: ...


class LogStore(Protocol):
    """The logs of application containers, kept beyond their end. Raises `HostError`."""

    def reader(self, guest_id: GuestId, tail: int | None) -> LogSource:
        """From `tail` lines before the end, or from as far back as is kept."""

    async def rotate(self, guest_id: GuestId) -> None:
        """Set a running container's log aside when it is large enough."""

    async def remove(self, guest_id: GuestId) -> None:
        """Remove a container's logs; not an error when there are none."""

    async def sweep(self, known: Collection[GuestId]) -> None:
        """Remove the logs of all but these."""
