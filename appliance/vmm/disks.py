"""Which program moves a disk's data: ours, straight between a raw image and guest memory, in the machine's pool."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from appliance.errors import HostError, Unsupported
from appliance.model.guest import VmDisk
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.threads import to_the_end
from appliance.vmm.block.backend import CACHE_MODES, BlockStatistics
from appliance.vmm.block.raw import RawImage
from appliance.vmm.device import DeviceContext
from appliance.vmm.virtio.blk import BlkOptions, VirtioBlk
from appliance.vmm.virtio.device import VirtioDevice

QUEUES_LIMIT = 4


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a machine, whoever serves it."""

    device: VirtioDevice
    blk: VirtioBlk

    @property
    def data_plane(self) -> str:
        """ "python"."""
        return self.blk.data_plane

    @property
    def statistics(self) -> BlockStatistics:
        return self.blk.statistics

    async def resize(self, size_bytes: int) -> None:
        """The volume has grown: tell the guest. Raises `HostError`, `Unsupported` to shrink it."""
        await to_the_end(self.blk.resize, size_bytes)


async def make_disk(disk: VmDisk, volume: OpenedVolume, context: DeviceContext, *, plane: str, queues: int) -> Disk:
    """Open `volume` for `disk`. Raises `Unsupported`, `Conflict` when another program has it, `HostError`."""
    about = f"{context.label}: {disk.slot}"
    if volume.format is not VolumeFormat.RAW:
        raise Unsupported(f"{about}: the native machine opens raw images, not {volume.format.value}")
    if plane == "offload":
        raise Unsupported(f"{about}: no offload for raw images")
    cache = CACHE_MODES[disk.cache or "none"]
    made: list[RawImage] = []

    def open_image() -> None:
        made.append(
            RawImage(
                volume.path, cache, read_only=disk.read_only or disk.cdrom or volume.read_only, discard=disk.discard
            )
        )

    try:
        await to_the_end(open_image)
    except asyncio.CancelledError:
        for image in made:
            image.close()
        raise
    except OSError as error:
        raise HostError.from_os_error(error, about) from error
    options = BlkOptions(serial=disk.serial, queues=min(queues, QUEUES_LIMIT), writeback=cache.volatile)
    device = VirtioBlk(f"virtio-blk-{disk.slot}", context, backend=made[0], options=options)
    return Disk(device, device)
