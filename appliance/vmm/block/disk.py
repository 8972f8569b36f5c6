"""From a guest's disk to its device: which data plane serves it, and opening that. Blocking.

raw      in Python; with `data_plane="offload"` by the storage daemon
qcow2    by the storage daemon
The daemon shows every guest the same serial number: a disk that is to have one is not served by it (`offload`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.errors import Unsupported
from appliance.model.guest import VmDisk
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.vmm.block import qsd
from appliance.vmm.block.backend import CACHE_MODES
from appliance.vmm.block.offload import SERIAL_PROBLEM
from appliance.vmm.block.qsd import QsdBlk, QsdImage, open_offloaded
from appliance.vmm.block.raw import RawImage
from appliance.vmm.device import DeviceContext
from appliance.vmm.vhost.backend import DataPlane
from appliance.vmm.virtio.blk import BlkOptions, FullDisk, VirtioBlk

MAX_QUEUES: Final = 4  # more than the pool has threads, or a daemon has, serve nobody

Disk = VirtioBlk | QsdBlk


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskOptions:
    """`run_dir`: a directory of the guest's that nobody else can enter, for sockets. `queues`: as many as vCPUs are
    useful."""

    run_dir: Path
    data_plane: DataPlane = DataPlane.AUTO
    queues: int = 1
    when_full: FullDisk = FullDisk.WAIT


def chosen_plane(volume_format: VolumeFormat, wanted: DataPlane, *, label: str) -> DataPlane:
    """Pure. Raises `Unsupported` for a format that cannot be had so."""
    match volume_format, wanted:
        case VolumeFormat.RAW, DataPlane.OFFLOAD:
            return DataPlane.OFFLOAD
        case VolumeFormat.RAW, _:
            return DataPlane.PYTHON
        case VolumeFormat.QCOW2, DataPlane.AUTO | DataPlane.OFFLOAD:
            return DataPlane.OFFLOAD
    raise Unsupported(f"{label}: {volume_format} images cannot be served by {wanted}")


def open_disk(context: DeviceContext, disk: VmDisk, volume: OpenedVolume, options: DiskOptions) -> Disk:
    """The device, named after its slot; what it holds is closed with it. Raises `Conflict` (another user has the image),
    `Unsupported`, `HostError`."""
    label = f"{context.label}: {disk.slot}"
    plane = chosen_plane(volume.format, options.data_plane, label=label)
    if plane is DataPlane.OFFLOAD and disk.serial:
        raise Unsupported(f"{label}: {SERIAL_PROBLEM}")
    cache = CACHE_MODES.get("writeback" if disk.cdrom else disk.cache)
    if cache is None:
        raise Unsupported(f"{label}: cache mode {disk.cache!r}")
    read_only = disk.cdrom or disk.read_only or volume.read_only
    queues = max(1, min(options.queues, MAX_QUEUES))
    if plane is DataPlane.OFFLOAD:
        image = QsdImage(
            path=volume.path,
            format=volume.format.value,
            cache=cache,
            aio=disk.host_io(direct=cache.direct, io_uring=qsd.has_io_uring()),
            read_only=read_only,
            discard=disk.discard,
            queues=queues,
        )
        return open_offloaded(disk.slot, context, image, socket_path=options.run_dir / f"{disk.slot}.sock")
    backend = RawImage(volume.path, cache, read_only=read_only, discard=disk.discard)
    if cache.direct and not backend.direct:
        context.note(f"{disk.slot}: no O_DIRECT for single sectors here, using the host's page cache")
    blk = BlkOptions(serial=disk.serial, queues=queues, writeback=cache.volatile, when_full=options.when_full)
    try:
        return VirtioBlk(disk.slot, context, backend=backend, options=blk)
    except BaseException:
        backend.close()
        raise
