"""A guest's console, as the ConsoleHub is attached to it."""

from __future__ import annotations

from typing import Protocol


class ConsoleSource(Protocol):
    """One attachment to a guest's console, held by the ConsoleHub for as long as the guest runs.

    Bytes are the terminal's, unchanged. Not reading is back-pressure that an engine may pass to the guest.
    """

    def history(self) -> bytes:
        """What the console said before this attachment (at most 64 KiB, the newest), from the engine's own log."""

    async def read(self) -> bytes:
        """The next bytes, at most 64 KiB; b"" when the console has ended."""

    async def write(self, data: bytes) -> None:
        """Type `data`. Raises `HostError` when the console is gone, `TimedOut` when the guest does not take it."""

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the terminal's size; ignored where the console has none."""

    async def close(self) -> None:
        """Give up the attachment; the guest goes on."""
