"""What the directories of containers occupy, counted now and then: their file systems do not tell, as images do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.model.guest import GuestKind
from appliance.model.volume import VolumeFormat
from appliance.services import guest_config
from appliance.services.guest_config import Existing
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.storage import StorageService

log = logging.getLogger(__name__)

ROUND_S: Final = 60.0
PAUSE_SHARE: Final = 20.0
"""Counting rests so many times as long as it took: it must not become the host's main work."""


class RootUsage:
    """Counts the root directories of running containers, one after the other, in rounds."""

    def __init__(self, guests: Callable[[], Iterable[GuestRuntime]], *, storage: StorageService, clock: Clock) -> None:
        self._guests = guests
        self._storage = storage
        self._clock = clock

    async def run(self) -> None:
        """For ever; ended by cancellation."""
        while True:
            for guest in list(self._guests()):
                if guest.kind is GuestKind.LXC and guest.running is not None:
                    await self.count(guest)
            await self._clock.sleep(ROUND_S)

    async def count(self, guest: GuestRuntime) -> None:
        """Measure one guest's root, where that is a directory."""
        try:
            disk = guest_config.parse_disk(GuestKind.LXC, "rootfs", guest.stored.record.config["rootfs"])
            volume = disk.volume
            if not isinstance(volume, Existing) or not volume.volume_id.name.endswith(f".{VolumeFormat.SUBVOL}"):
                guest.root_bytes = 0
                return
            began = self._clock.monotonic()
            info = await self._storage.backend(volume.volume_id.storage).info(volume.volume_id)
            guest.root_bytes = info.used_bytes
            await self._clock.sleep((self._clock.monotonic() - began) * PAUSE_SHARE)
        except (ApplianceError, KeyError) as error:
            log.debug("%s: its root is not measured: %s", guest.label, error)
            await asyncio.sleep(0)
