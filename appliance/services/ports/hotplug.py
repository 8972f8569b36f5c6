"""The disks and NICs of a running VM that come and go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from appliance.model.guest import NicSpec, VmDisk
from appliance.model.volume import OpenedVolume


@runtime_checkable
class HotPlug(Protocol):
    """The part of a running VM whose disks and NICs come and go. All raise `HostError`, and `Conflict` when it has ended.

    A step that fails has changed nothing, but one thing: a guest that did not let go in time may do so later.
    """

    @property
    def attached(self) -> Mapping[str, VmDisk | NicSpec]:
        """The disks (with a volume) and NICs it has now, by slot, each as it was attached."""

    async def attach_disk(self, disk: VmDisk, volume: OpenedVolume) -> None:
        """Plug in a disk; the guest is told. Raises `Unsupported` where this machine cannot, `Conflict` when there is one
        in that slot already, or somebody else has its image."""

    async def detach_disk(self, slot: str) -> None:
        """Take it out: the guest is asked, and has let go of it when this returns. Raises `NotFound`, `Unsupported`,
        `TimedOut` when the guest does not let go."""

    async def attach_nic(self, nic: NicSpec, tap: str) -> None:
        """Plug in a NIC with the tap device `tap` as its cable. Raises as `attach_disk`."""

    async def detach_nic(self, slot: str) -> None:
        """As `detach_disk`; the tap is nobody's then."""

    async def set_link(self, slot: str, *, up: bool) -> None:
        """Tell the guest that the cable of a NIC was plugged in or pulled. Raises `NotFound`."""
