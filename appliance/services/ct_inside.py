"""What can be done inside a running container: run programs, read and write files.

An engine whose containers can be entered fulfils `ContainerInside`; everything that comes out of one is untrusted data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from appliance.errors import Unsupported
from appliance.model.inside import ExecRequest, FileInfo, FileWrite
from appliance.services.ports.running_guest import RunningGuest

SHELL = "shell"
"""The console that is a shell of the container's root, without a login."""


class Execution(Protocol):
    """A program that runs in a container."""

    async def next(self) -> tuple[int, bytes] | None:
        """(1 or 2, bytes): standard output or error; None at the end. Raises `GuestFault` when it could not be started."""

    async def wait(self) -> int:
        """Its exit status, 128 and more for a signal. To be asked for after the end of its output."""


class Executions(Protocol):
    """Starts programs."""

    def run(self, request: ExecRequest) -> AbstractAsyncContextManager[Execution]:
        """A program, for as long as the context lasts. Raises `Conflict`, `TooManyRequests`, `GuestFault`."""


class Files(Protocol):
    """Files by the container's own paths, owners as it sees them."""

    def read(
        self, path: str, *, offset: int = 0, limit: int = 1 << 62
    ) -> AbstractAsyncContextManager[tuple[FileInfo, AsyncIterator[bytes]]]:
        """What is at `path`, and its bytes. Raises `NotFound`, `InvalidParameter`, `GuestFault`, `Conflict`."""

    async def write(self, path: str, content: AsyncIterator[bytes], how: FileWrite) -> FileInfo:
        """Replace a file, whole or not at all. Raises as `read`, and `NoSpace`."""


@runtime_checkable
class ContainerInside(Protocol):
    """The part of a running container that lets somebody in."""

    @property
    def executions(self) -> Executions: ...

    @property
    def files(self) -> Files: ...


def of(running: RunningGuest) -> ContainerInside:
    """Raises `Unsupported` where the engine lets nobody in."""
    if not isinstance(running, ContainerInside):
        raise Unsupported(f"ct {running.guest_id}: the engine that runs it lets nobody in")
    return running
