"""Blobs by digest, below `DIRECTORY/blobs/ALGORITHM/HEX`. Blocking, but for the streams; any thread may enter.

A blob has its name only when it is whole, synced and its digest has been computed from the bytes on disk. What has
arrived of one lies in `DIRECTORY/partial/ALGORITHM-HEX` and is continued by the next pull, in this process or another;
`sweep` removes what nobody came back for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

from appliance.errors import HostError, InvalidParameter, NotFound
from appliance.files import sync_directory
from appliance.storage import headroom
from appliance.storage.oci.reference import Digest
from appliance.threads import to_the_end

PARTIAL_LIFE_S: Final = 24 * 3600.0
_CHUNK_BYTES: Final = 1 << 20
ALGORITHMS: Final = ("sha256", "sha512")


class BlobStore:
    """The blobs of one storage."""

    def __init__(self, directory: Path) -> None:
        self._blobs = directory / "blobs"
        self._partial = directory / "partial"
        self._changed: set[Path] = set()
        """Directories with names that are not durable yet."""

    def prepare(self) -> None:
        """Make the directories. Raises `OSError`."""
        for algorithm in ALGORITHMS:
            (self._blobs / algorithm).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._partial.mkdir(exist_ok=True, mode=0o700)

    def path(self, digest: Digest) -> Path:
        """Where it is, or would be."""
        return self._blobs / digest.algorithm / digest.hex

    def size(self, digest: Digest) -> int | None:
        """Bytes of a blob that is there; None when it is not."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, digest: Digest, limit_bytes: int) -> bytes:
        """A small blob, whole. Raises `NotFound`, `InvalidParameter` when it is larger."""
        try:
            with self.path(digest).open("rb") as file:
                data = file.read(limit_bytes + 1)
        except FileNotFoundError as error:
            raise NotFound(f"blob {digest}") from error
        except OSError as error:
            raise HostError.from_os_error(error, f"read blob {digest}") from error
        if len(data) > limit_bytes:
            raise InvalidParameter({"reference": f"blob {digest} is larger than {limit_bytes} bytes"})
        return data

    def add(self, data: bytes) -> Digest:
        """Store a small blob; its digest."""
        digest = Digest.of(data)
        if self.size(digest) != len(data):
            writer = self.writer(digest, len(data))
            try:
                writer.restart()
                writer.write(data)
                writer.publish()
            finally:
                writer.close()
        return digest

    def sync(self) -> None:
        """Make the names of what has been published durable: before something else names it. Raises `HostError`."""
        changed, self._changed = self._changed, set()
        try:
            for directory in changed:
                sync_directory(directory)
        except OSError as error:
            raise HostError.from_os_error(error, f"sync {self._blobs}") from error

    def writer(self, digest: Digest, size_bytes: int) -> BlobWriter:
        """For bytes that are to become a blob of this digest and size. One at a time for each digest."""
        path = self._partial / f"{digest.algorithm}-{digest.hex}"
        return BlobWriter(path, self.path(digest), digest, size_bytes, named=self._note)

    def _note(self, directory: Path) -> None:
        self._changed.add(directory)

    async def stream(self, digest: Digest) -> AsyncIterator[bytes]:
        """The bytes of a blob, in pieces. Raises `NotFound`, `HostError`."""
        try:
            file = await to_the_end(self.path(digest).open, "rb")
        except FileNotFoundError as error:
            raise NotFound(f"blob {digest}") from error
        except OSError as error:
            raise HostError.from_os_error(error, f"open blob {digest}") from error
        try:
            while chunk := await to_the_end(file.read, _CHUNK_BYTES):
                yield chunk
        finally:
            file.close()

    def all(self) -> Iterator[tuple[Digest, int]]:
        """Every blob and its size."""
        for algorithm in ALGORITHMS:
            with contextlib.suppress(FileNotFoundError), os.scandir(self._blobs / algorithm) as entries:
                for entry in entries:
                    with contextlib.suppress(ValueError, FileNotFoundError):
                        yield Digest.parse(f"{algorithm}:{entry.name}"), entry.stat().st_size

    def remove(self, digest: Digest) -> None:
        """Remove; not an error when absent. Raises `HostError`."""
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise HostError.from_os_error(error, f"remove blob {digest}") from error

    def sweep(self, *, older_than_s: float = PARTIAL_LIFE_S) -> int:
        """Remove beginnings nobody has continued for so long; how many. The clock is the file system's."""
        removed = 0
        with contextlib.suppress(FileNotFoundError):
            for path in list(self._partial.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > older_than_s:
                        path.unlink()
                        removed += 1
        return removed


class BlobWriter:
    """A blob on its way in. `resume` or `restart` first; `close` always. Blocking; one thread at a time.

    `received` counts the bytes that are there. Raises `HostError` (`NoSpace`), `InvalidParameter` for wrong content.
    """

    def __init__(
        self, partial: Path, final: Path, digest: Digest, size_bytes: int, *, named: Callable[[Path], None]
    ) -> None:
        self._named = named
        self._partial = partial
        self._final = final
        self._digest = digest
        self._size = size_bytes
        self._fd = -1
        self._hash = hashlib.new(digest.algorithm)
        self.received = 0

    def resume(self) -> int:
        """Continue after what an earlier attempt has left; how many bytes that is."""
        self._open(0)
        while chunk := os.pread(self._fd, _CHUNK_BYTES, self.received):
            self._hash.update(chunk)
            self.received += len(chunk)
        if self.received > self._size:
            self.restart()
        return self.received

    def restart(self) -> None:
        """Begin anew, whatever is there."""
        self.close()
        self._hash = hashlib.new(self._digest.algorithm)
        self.received = 0
        self._open(os.O_TRUNC)

    def write(self, chunk: bytes) -> None:
        """The next bytes."""
        if self.received + len(chunk) > self._size:
            self._discard()
            raise InvalidParameter({"reference": f"blob {self._digest}: longer than the {self._size} bytes promised"})
        try:
            headroom.require(self._fd, f"write blob {self._digest}")
            self._hash.update(chunk)
            view = memoryview(chunk)
            while view:
                written = os.pwrite(self._fd, view, self.received)
                self.received += written
                view = view[written:]
        except OSError as error:
            raise HostError.from_os_error(error, f"write blob {self._digest}") from error

    @property
    def complete(self) -> bool:
        """Whether as many bytes have come as were promised."""
        return self.received == self._size

    def publish(self) -> None:
        """Give it its name, which is durable after `BlobStore.sync`. Wrong content is removed."""
        if not self.complete:
            raise HostError(f"blob {self._digest}: {self.received} of {self._size} bytes have come")
        if self._hash.hexdigest() != self._digest.hex:
            self._discard()
            found = f"{self._digest.algorithm}:{self._hash.hexdigest()}"
            raise InvalidParameter({"reference": f"blob {self._digest}: the digest of what has come is {found}"})
        try:
            os.fsync(self._fd)
            self._partial.rename(self._final)
            self._named(self._final.parent)
        except OSError as error:
            raise HostError.from_os_error(error, f"publish blob {self._digest}") from error

    def close(self) -> None:
        """Let go of the file; what has come stays for the next attempt."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self, flags: int) -> None:
        try:
            self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
        except OSError as error:
            raise HostError.from_os_error(error, f"open {self._partial}") from error

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._partial.unlink()
