"""The trees of files that containers stand on: filling, packing and copying them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from appliance.model.guest import CtCredentials, CtTree, GuestId
from appliance.model.volume import OpenedVolume
from appliance.services.ports import LogLine
from appliance.services.ports.archives import ArchiveReader


class CopyPass(Protocol):
    """Figures of one pass of a `TreeCopy`."""

    @property
    def files(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def seconds(self) -> float: ...


class TreeCopy(Protocol):
    """A copy of a tree in passes."""

    async def again(self) -> CopyPass:
        """Make the target like the source is now; only what has changed since the last pass is read. Raises `HostError`."""

    async def differences(self) -> int:
        """How many entries differ, by reading all of both."""


class CtProvisioner(ArchiveReader, Protocol):
    """The part of the container engine that writes into a new root file system. `spec` is a `CtSpec`."""

    async def populate(
        self, root: OpenedVolume, template: Path, *, id_base: int, credentials: CtCredentials, log: LogLine
    ) -> None:
        """Unpack `template` (tar, any compression) into the empty volume and set root's credentials.

        Refuses archives with absolute names, `..`, links that lead out, or devices. Raises `UserError`, `HostError`;
        the volume's content is undefined after an error (the caller deletes it).
        """

    async def unpack(self, root: OpenedVolume, template: Path, *, log: LogLine) -> None:
        """The first half of `populate`: into a layer that many containers will stand on."""

    async def personalise(self, root: OpenedVolume, *, credentials: CtCredentials) -> None:
        """The second half: root's credentials, and nothing of another machine's identity."""

    async def pack(
        self,
        guest_id: GuestId,
        trees: Sequence[CtTree],
        target: Path,
        *,
        config: str,
        exclude: Sequence[str],
        compress: str,
        log: LogLine,
    ) -> None:
        """Write an archive of `trees`, with `config` in it, to the empty file `target`. `compress`: "zstd", "gzip" or "".

        Raises `Conflict` when a tree of the running container is asked for and it does not run, `HostError`, `NoSpace`.
        """

    def copying(self, guest_id: GuestId, source: CtTree, target: OpenedVolume) -> AbstractAsyncContextManager[TreeCopy]:
        """Copy a container's tree to the volume `target`, which nobody uses; owners become the container's own ids.

        The tree of a running container stays readable until this ends, also when the container has ended meanwhile.
        """

    async def unpack_backup(
        self, root: OpenedVolume, archive: Path, *, below: str, exclude: Sequence[str], log: LogLine
    ) -> None:
        """Unpack what lies under `below` in an archive into the empty volume. Refuses what `populate` refuses."""


class LayerUnpacker(Protocol):
    """The part of the container engine that unpacks layers of images."""

    async def unpack_layer(
        self, target: Path, blob: Path, *, compression: str, diff_id: str, lowers: Sequence[Path], log: LogLine
    ) -> None:
        """Unpack `blob` ("", "gz" or "zst") into the empty directory `target`, over the trees `lowers`, nearest first.

        Refuses what `CtProvisioner.populate` refuses, another content than `diff_id`, and bombs. Raises `InvalidParameter`,
        `NoSpace`, `HostError`; the caller removes the directory then.
        """

    async def copy_layers(self, volume: OpenedVolume, lowers: Sequence[Path], *, path: str = "/") -> bool:
        """Copy what the trees `lowers`, the nearest first, show as an overlay at `path` into the empty `volume`; False when
        there is no directory.

        Raises `NoSpace`, `HostError`; the volume's content is undefined then.
        """
