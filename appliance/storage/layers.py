"""Unpacked templates, each once on a storage: what containers made from it stand on, and never write to.

    .appliance/layers/KEY/        the tree; a subvolume on btrfs
    .appliance/layers/KEY.json    {"source": the archive, "size", "mtime_ns", "inode"}: of which file it was made

A layer appears by rename when it is whole. It stays for as long as a volume stands on it, or its archive is what it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from appliance.errors import HostError
from appliance.files import sync_directory, write_atomic
from appliance.kernel import btrfs
from appliance.storage import headroom, naming, tools
from appliance.storage.records import HIDDEN_DIRECTORY, Records
from appliance.storage.trees import remove_any
from appliance.threads import to_the_end

LAYERS: Final = f"{HIDDEN_DIRECTORY}/layers"
Fill = Callable[[Path], Awaitable[None]]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The archive a layer was made of: the same file, unchanged."""

    source: str
    size: int
    mtime_ns: int
    inode: int

    @staticmethod
    def of(archive: Path) -> Source:
        """Blocks. Raises `OSError`."""
        status = archive.stat()
        return Source(source=str(archive), size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)

    @property
    def key(self) -> str:
        """The layer's name."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]


class LayerStore:
    """The layers of one storage. On the loop."""

    def __init__(self, storage_id: str, root: Path, records: Records, before_effect: Callable[[str], None]) -> None:
        self._id = storage_id
        self._root = root
        self._records = records
        self._before_effect = before_effect
        self._locks: dict[str, asyncio.Lock] = {}
        self._held: Counter[str] = Counter()

    @asynccontextmanager
    async def of(self, archive: Path, fill: Fill, *, subvolume: bool) -> AsyncIterator[str]:
        """The layer of `archive`, relative to the storage; made by `fill` when it is not there. It stays meanwhile.

        Raises what `fill` raises, `NoSpace`, `HostError`; nothing is left then.
        """
        try:
            source = await asyncio.to_thread(Source.of, archive)
        except OSError as error:
            raise HostError.from_os_error(error, f"open {archive}") from error
        key = source.key
        self._held[key] += 1
        try:
            async with self._locks.setdefault(key, asyncio.Lock()):
                if not await asyncio.to_thread((self._root / LAYERS / key).is_dir):
                    await self._make(source, fill, subvolume=subvolume)
            yield f"{LAYERS}/{key}"
        finally:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
                self._locks.pop(key, None)

    async def _make(self, source: Source, fill: Fill, *, subvolume: bool) -> None:
        place = self._root / LAYERS
        temporary = place / f"{naming.TEMPORARY_PREFIX}{secrets.token_hex(4)}-{source.key}"
        try:
            await asyncio.to_thread(headroom.require, self._root, f"storage {self._id}: unpack {source.source}")
            self._before_effect("unpack")
            if subvolume:
                await to_the_end(btrfs.create, temporary)
            else:
                await to_the_end(temporary.mkdir, 0o755)
            await fill(temporary)
            await tools.sync(temporary)
            self._before_effect("tell its source")
            await to_the_end(write_atomic, place / f"{source.key}.json", msgspec.json.encode(source))
            self._before_effect("publish the layer")
            await to_the_end(_publish, temporary, place / source.key)
        except OSError as error:
            raise HostError.from_os_error(error, f"storage {self._id}: layer of {source.source}") from error
        finally:
            await to_the_end(remove_any, temporary)

    async def collect(self) -> list[str]:
        """Remove layers nobody needs any more; one line for each."""
        return list(await to_the_end(lambda: list(sweep(self._root, self._records, frozenset(self._held)))))


def sweep(root: Path, records: Records, held: frozenset[str] = frozenset()) -> Iterator[str]:
    """Remove unfinished layers, and those that no volume stands on and whose archive is gone or another. Blocks."""
    place = root / LAYERS
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    needed = set(held)
    known = list(records.readable())
    all_known = len(known) == len(list(records.names()))  # a damaged record may be of a volume that needs one
    for _, record in known:
        needed.update(Path(layer).name for layers in (record.layers, *record.kept.values()) for layer in layers)
    for path in sorted(place.iterdir()):
        if path.name.startswith(naming.TEMPORARY_PREFIX) and not any(path.name.endswith(key) for key in held):
            remove_any(path)
            yield f"removed the remains {path.name}"
        elif path.is_dir() and all_known and path.name not in needed and not _is_current(path):
            with suppress(OSError):
                path.with_name(f"{path.name}.json").unlink()
            remove_any(path)
            yield f"removed the unpacked template {path.name}"
        elif path.suffix == ".json" and path.stem not in held and not (place / path.stem).is_dir():
            path.unlink(missing_ok=True)


def _is_current(layer: Path) -> bool:
    try:
        told = msgspec.json.decode(layer.with_name(f"{layer.name}.json").read_bytes(), type=Source)
        return Source.of(Path(told.source)) == told
    except (OSError, msgspec.MsgspecError):
        return False


def _publish(temporary: Path, final: Path) -> None:
    os.rename(temporary, final)  # noqa: PTH104  a subvolume, too
    sync_directory(final.parent)
