"""A storage, and the volumes, snapshots and files in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, OpenedVolume, StorageUsage, VolumeFormat, VolumeId, VolumeInfo
from appliance.services.ports import LogLine


class VolumeBackend(Protocol):
    """One storage. Each operation is atomic, or cleaned up by `recover` at the next start.

    Raises `NotFound`, `Conflict`, `NoSpace`, `HostError`, `Unsupported`, always naming the volume.
    """

    @property
    def storage_id(self) -> str: ...

    @property
    def content_types(self) -> frozenset[ContentType]: ...

    async def recover(self) -> Sequence[str]:
        """Remove what interrupted operations left; returns one line for each thing removed."""

    async def create(
        self,
        guest_id: GuestId,
        *,
        format: VolumeFormat,
        size_bytes: int,
        content: ContentType,
        label: str = "disk",
        base: str = "",
        layers: Sequence[str] = (),
    ) -> VolumeId:
        """An empty volume `vm-ID-LABEL-N` (lowest free N) for a guest. `content` is IMAGES or ROOTDIR.

        ROOTDIR with RAW is an ext4 file system of that size; with SUBVOL a directory, which begins with what the layer
        `base` holds, or with what all `layers` show, the topmost first.
        """

    def layer(self, archive: Path, fill: Callable[[Path], Awaitable[None]]) -> AbstractAsyncContextManager[str]:
        """The layer of an archive for `create`, kept meanwhile; made by `fill` (into a directory) if it is not there yet.

        "" where directory volumes cannot share anything: they are filled one by one.
        """

    async def clone(
        self, source: OpenedVolume, guest_id: GuestId, *, format: VolumeFormat, full: bool, log: LogLine
    ) -> VolumeId:
        """A new volume for `guest_id` with the content of `source`; `full=False` makes a linked (copy-on-write) clone. What that
        stands on cannot be deleted before it. Raises `Unsupported` where there can be none."""

    async def resize(self, volume_id: VolumeId, size_bytes: int) -> None:
        """Grow; shrinking is refused (`InvalidParameter`). For ROOTDIR/RAW the file system grows too (offline)."""

    async def delete(self, volume_id: VolumeId) -> None: ...

    async def check_snapshot(self, volume_id: VolumeId, *, in_use: bool) -> None:
        """Raises `Unsupported` saying why there can be no snapshot of the volume. `in_use`: its guest runs (standing still
        while the snapshot is made); a qcow2 image must then be left to who has it open."""

    async def snapshot(self, volume_id: VolumeId, name: str, *, in_use: bool = False) -> None:
        """Keep the volume's present content as `name`. Raises `Conflict` when there is one, what `check_snapshot` does."""

    async def roll_back(self, volume_id: VolumeId, name: str) -> None:
        """Give the volume the content and size kept as `name`, which stays. May be repeated after an interruption."""

    async def check_snapshot_removal(self, volume_id: VolumeId, name: str) -> None:
        """Raises `Conflict` naming the linked clones that stand on it."""

    async def delete_snapshot(self, volume_id: VolumeId, name: str) -> None:
        """Forget it; not an error when there is none. Raises as `check_snapshot_removal`."""

    async def snapshots(self, volume_id: VolumeId) -> Sequence[str]:
        """The names of the volume's snapshots, sorted."""

    async def open_snapshot(self, volume_id: VolumeId, name: str) -> OpenedVolume:
        """What a snapshot holds, to be read only: `clone` copies it. Raises `NotFound`, `InvalidParameter`."""

    async def open(self, volume_id: VolumeId) -> OpenedVolume:
        """Check and describe the volume for an engine. A hostile image (external data file, backing file outside
        the storage or not written by us) raises `InvalidParameter`."""

    async def list(
        self, content: ContentType | None = None, guest_id: GuestId | None = None
    ) -> Sequence[VolumeInfo]: ...

    async def info(self, volume_id: VolumeId) -> VolumeInfo: ...

    async def usage(self) -> StorageUsage: ...

    async def receive(
        self, content: ContentType, name: str, chunks: AsyncIterator[bytes], *, checksum: tuple[str, str] | None
    ) -> VolumeId:
        """Store a stream as a file of `content` (iso, vztmpl, import, snippets). It appears only when whole and its
        (algorithm, hex digest) matches. Raises `Conflict` if the name exists, `InvalidParameter` on a mismatch."""
