"""The disks of a running VM that move to other images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from appliance.model.volume import OpenedVolume


class DiskMirror(Protocol):
    """A disk of a running VM on its way to another image, which the guest does not notice."""

    async def in_step(self, report: Callable[[float], None]) -> None:
        """Wait until both images hold the same, and will: every write goes to both from now on. `report` is told how much is
        done, 0 to 1. Raises `HostError`, `NoSpace`."""

    async def switch(self) -> bool:
        """Use the new image from now on; False when it cannot be known whether it does: both go on holding the same then,
        until `settle_mirrors`. Raises `HostError` when it still uses the old one."""


@runtime_checkable
class DiskMover(Protocol):
    """The part of a running VM whose disks move to other images."""

    def mirroring(
        self, slot: str, volume: OpenedVolume, *, bytes_per_s: int = 0
    ) -> AbstractAsyncContextManager[DiskMirror]:
        """Begin with a new image of the same size. Left before `switch` has succeeded, the disk is where it was, and the image
        nobody's. `bytes_per_s` 0 is no limit. Raises `NotFound`, `Unsupported`, `HostError`."""

    async def settle_mirrors(self, keep: Mapping[str, str]) -> Mapping[str, str]:
        """End what an earlier appliance left unfinished: switch the slots in `keep`, each to the volume named, give up all
        others. Returns by slot the path of the image each disk uses now. Raises `HostError`."""
