"""A guest that runs, of whatever kind: its state, its end, its consoles and figures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from appliance.model.guest import ExitReason, GuestId, GuestState, GuestStats
from appliance.services.ports.console import ConsoleSource


class RunningGuest(Protocol):
    """A guest that runs. Methods raise `GuestFault` or `HostError`; all are safe to call when it has just ended."""

    @property
    def guest_id(self) -> GuestId: ...

    @property
    def pid(self) -> int:
        """The host's process id of its monitor or init."""

    @property
    def started_at(self) -> float:
        """Epoch seconds, true also after `adopt`."""

    @property
    def state(self) -> GuestState:
        """RUNNING, PAUSED or STOPPED, as the engine last saw it."""

    async def wait(self) -> ExitReason:
        """Return when nothing of it runs any more; any number of waiters."""

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def shutdown(self) -> None:
        """Ask for an orderly shutdown (ACPI, SIGRTMIN+3 …) and return at once; `wait` tells when it is done."""

    async def stop(self) -> None:
        """End it by force, and return when it has ended and the engine has removed what it made for it."""

    async def reset(self) -> None:
        """Reset as by the button. Containers raise `Unsupported`."""

    def console_names(self) -> Sequence[str]:
        """ "serial0" … for VMs, "console" for containers."""

    async def open_console(self, name: str) -> ConsoleSource:
        """Attach. Raises `NotFound` for an unknown name."""

    async def open_display(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new RFB (VNC) connection, security type None. Raises `NotFound` where the guest has no display."""

    async def stats(self) -> GuestStats: ...

    async def resize_disk(self, slot: str, size_bytes: int) -> None:
        """Tell the running guest that the disk in `slot` has grown to `size_bytes` (done after the volume has)."""

    @property
    def state_engine(self) -> str:
        """The engine's name where `snapshot_disks` can keep the machine's memory in one of its images; "" where not."""

    async def snapshot_disks(self, name: str, slots: Sequence[str], *, state_slot: str | None = None) -> None:
        """Make the snapshot `name` inside the qcow2 images in `slots`, which are open here: all or none.

        With `state_slot` the machine's memory is kept in that slot's image, too. The caller has paused it. Raises
        `Unsupported`, `HostError`. Containers have no images.
        """

    async def drop_disk_snapshots(self, name: str, slots: Sequence[str]) -> None:
        """Remove the snapshot `name` from these images; not an error where there is none."""

    async def detach(self) -> None:
        """Let go of it without stopping it: the appliance is going down, the guest is not."""
