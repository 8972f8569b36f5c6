"""An engine: what starts guests of one kind, and finds those that run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from appliance.model.guest import Capabilities, GuestId, GuestState
from appliance.services.ports import LogLine
from appliance.services.ports.running_guest import RunningGuest

SpecT = TypeVar("SpecT", contravariant=True)
ResourcesT = TypeVar("ResourcesT", contravariant=True)

StateCallback = Callable[[GuestState, str], None]
"""Told on the loop of each change of a running guest the engine notices by itself (paused, running, stopped, why)."""


class GuestEngine(Protocol[SpecT, ResourcesT]):
    """Starts and finds guests of one kind."""

    @property
    def name(self) -> str: ...

    async def probe(self) -> Capabilities: ...

    def refuse(self, spec: SpecT) -> Sequence[str]:
        """Why this host's engine cannot run `spec`; empty when it can. Needs `probe` before."""

    async def start(self, spec: SpecT, resources: ResourcesT, *, on_state: StateCallback, log: LogLine) -> RunningGuest:
        """Start it; returns once it executes. After an error nothing of it is left. Raises `HostError`, `Unsupported`."""

    async def adopt(self, spec: SpecT, *, on_state: StateCallback) -> RunningGuest | None:
        """Find what still runs of this guest after a restart of the appliance; None, and remains removed, if nothing."""

    async def running_ids(self) -> Sequence[GuestId]:
        """Every guest of this engine that really runs on this host, known to the store or not."""

    async def close(self) -> None:
        """Give up everything but the guests."""
