"""The part of the container engine that works on volumes: fulfils ports.CtProvisioner. On the loop.

Templates and backups are unpacked, trees packed and copied, by helper processes that see nothing but what they work on. The
trees of a container that runs are read where it has them mounted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

from appliance.ct import archive as archives
from appliance.ct import copying, provision, records
from appliance.errors import Conflict
from appliance.model.guest import CtCredentials, CtTree, GuestId
from appliance.model.volume import OpenedVolume


class Provisioner:
    """See the module's docstring. `bundle_of` tells where a running container is mounted; None when it does not run."""

    def __init__(self, bundle_of: Callable[[GuestId], Path | None]) -> None:
        self._bundle_of = bundle_of

    async def populate(
        self,
        root: OpenedVolume,
        template: Path,
        *,
        id_base: int,
        credentials: CtCredentials,
        log: provision.LogLine,
    ) -> None:
        """See ports.CtProvisioner. `id_base` does not matter to the content: ids on volumes are the container's own."""
        await provision.populate(root, template, credentials=credentials, log=log)

    async def unpack(self, root: OpenedVolume, template: Path, *, log: provision.LogLine) -> None:
        """See ports.CtProvisioner."""
        await provision.unpack_into(root, template, log=log)

    async def personalise(self, root: OpenedVolume, *, credentials: CtCredentials) -> None:
        """See ports.CtProvisioner."""
        await provision.personalise(root, credentials)

    async def pack(
        self,
        guest_id: GuestId,
        trees: Sequence[CtTree],
        target: Path,
        *,
        config: str,
        exclude: Sequence[str],
        compress: str,
        log: provision.LogLine,
    ) -> None:
        """See ports.CtProvisioner."""
        async with contextlib.AsyncExitStack() as held:
            packed = [await self._tree(guest_id, tree, held) for tree in trees]
            await archives.write(target, packed, config=config, exclude=exclude, compress=compress, log=log)

    async def _tree(self, guest_id: GuestId, tree: CtTree, held: contextlib.AsyncExitStack) -> archives.PackedTree:
        if tree.volume is not None:
            about = f"ct {guest_id}: {tree.slot}"
            fd = await held.enter_async_context(provision.opened(tree.volume, about))
            return archives.PackedTree(fd=fd, prefix=tree.prefix, id_base=0, id_count=provision.ID_LIMIT)
        bundle = self._bundle_of(guest_id)
        record = await asyncio.to_thread(records.load, bundle) if bundle is not None else None
        if record is None or bundle is None:
            raise Conflict(f"ct {guest_id}: not running")
        place = bundle / tree.slot
        fd = await asyncio.to_thread(os.open, place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, fd)
        return archives.PackedTree(fd=fd, prefix=tree.prefix, id_base=record.id_base, id_count=record.id_count)

    @contextlib.asynccontextmanager
    async def copying(
        self, guest_id: GuestId, source: CtTree, target: OpenedVolume
    ) -> AsyncGenerator[copying.TreeCopy, None]:
        """See ports.CtProvisioner."""
        about = f"ct {guest_id}: {source.slot}"
        async with contextlib.AsyncExitStack() as held:
            tree = await self._tree(guest_id, source, held)
            fd = await held.enter_async_context(provision.opened(target, about))
            ids = {"id_base": tree.id_base, "id_count": tree.id_count}
            async with copying.copying(tree.fd, fd, about=about, **ids) as copy:
                yield copy

    async def unpack_backup(
        self, root: OpenedVolume, archive: Path, *, below: str, exclude: Sequence[str], log: provision.LogLine
    ) -> None:
        """See ports.CtProvisioner."""
        await provision.unpack_into(root, archive, log=log, below=below, exclude=exclude, backup=True)

    async def read_archived(self, archive: Path, name: str) -> bytes:
        """See ports.CtProvisioner."""
        return await archives.read_member(archive, name)

    async def archived_files(self, archive: Path) -> Sequence[archives.Member]:
        """See ports.ArchiveReader."""
        return await archives.members(archive)

    def stream_archived(self, archive: Path, name: str) -> AsyncGenerator[bytes, None]:
        """See ports.ArchiveReader."""
        return archives.stream_member(archive, name)
