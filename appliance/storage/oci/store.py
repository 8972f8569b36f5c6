"""One storage's images: blobs, layers, who uses them just now, and what nobody needs. On the loop.

    an archive (volume) ──▶ manifest ──▶ blobs (configuration, layers as transferred)
    a container's root  ──▶ chain ids ──▶ layers (unpacked)      ◀── manifest, of an archive that is there

Nothing is counted: `collect` looks at the roots (archives, records of volumes) and removes what none of them reaches. An
operation that is making new roots holds the store open (`using`), and `collect` waits for it: what has been fetched and is
not named yet does not vanish under it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.storage.oci.blobs import BlobStore
from appliance.storage.oci.layers import LayerStore
from appliance.storage.oci.reference import Digest
from appliance.threads import to_the_end

DIRECTORY: Final = ".appliance/oci"
RECENT_S: Final = 3600.0
"""What is younger stays when nobody asked for a collection: an interrupted pull finds it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What was removed."""

    blobs: int = 0
    layers: int = 0
    freed_bytes: int = 0


class ImageStore:
    """See the module's docstring. `root` is the storage's directory."""

    def __init__(self, root: Path) -> None:
        self.directory = root / DIRECTORY
        self.blobs = BlobStore(self.directory)
        self.layers = LayerStore(self.directory)
        self._locks: dict[Digest, asyncio.Lock] = {}
        self._wanted: Counter[Digest] = Counter()
        self._users = 0
        self._changed = asyncio.Event()
        self._collecting = False

    def prepare(self) -> list[str]:
        """Make the directories and remove what a crash left; says what it did. Blocking. Raises `OSError`."""
        self.blobs.prepare()
        removed = self.layers.prepare() + self.blobs.sweep()
        return [f"removed {removed} remains of images"] if removed else []

    @asynccontextmanager
    async def using(self) -> AsyncIterator[None]:
        """Nothing is collected meanwhile. Waits for a collection that has begun, never for one that waits itself."""
        await self._once(lambda: not self._collecting)
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._tell()

    @property
    def in_use(self) -> bool:
        """Whether a collection would have to wait."""
        return self._users > 0 or self._collecting

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Once nobody uses the store; those who want to, wait until this is over."""
        await self._once(lambda: not self.in_use)
        self._collecting = True
        try:
            yield
        finally:
            self._collecting = False
            self._tell()

    async def _once(self, is_true: Callable[[], bool]) -> None:
        while not is_true():
            await self._changed.wait()

    def _tell(self) -> None:
        """Wake who waits; without an await, for a cancellation must not come in between."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    @asynccontextmanager
    async def only_one(self, digest: Digest) -> AsyncIterator[None]:
        """Keep others from making the same thing at the same time."""
        lock = self._locks.setdefault(digest, asyncio.Lock())
        self._wanted[digest] += 1  # who waits counts: a lock that is let go of and waited for is not forgotten
        try:
            async with lock:
                yield
        finally:
            self._wanted[digest] -= 1
            if not self._wanted[digest]:
                del self._wanted[digest], self._locks[digest]

    def collect(
        self, *, blobs: Collection[Digest], layers: Collection[Digest], older_than_s: float = RECENT_S
    ) -> Collected:
        """Remove all but what is named. Blocking; the caller is `alone`. Raises `HostError`."""
        count = freed = unpacked = 0
        for digest, size in list(self.blobs.all()):
            if digest not in blobs and _age(self.blobs.path(digest)) >= older_than_s:
                self.blobs.remove(digest)
                count, freed = count + 1, freed + size
        for chain_id in list(self.layers.all()):
            if chain_id not in layers and _age(self.layers.tree(chain_id).parent) >= older_than_s:
                freed += self.layers.used_bytes(chain_id)
                self.layers.remove(chain_id)
                unpacked += 1
        self.blobs.sweep(older_than_s=max(older_than_s, 0.0) or 0.0)
        return Collected(blobs=count, layers=unpacked, freed_bytes=freed)

    async def has_blob(self, digest: Digest, size_bytes: int) -> bool:
        """Whether a blob is there, whole."""
        return await to_the_end(self.blobs.size, digest) == size_bytes


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_ctime
    except FileNotFoundError:
        return 0.0
