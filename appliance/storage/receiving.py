"""Streams a file into place: it appears under its name only when it is whole, synced and its checksum matches."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, ParamSpec

from appliance.errors import HostError, InvalidParameter, TooLarge
from appliance.storage import headroom, inspection, tools
from appliance.threads import to_the_end

P = ParamSpec("P")

CHECKSUM_ALGORITHMS: Final = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")


async def write_stream(
    path: Path,
    chunks: AsyncIterator[bytes],
    *,
    checksum: tuple[str, str] | None,
    size_limit_bytes: int,
) -> int:
    """Write `chunks` to the new file `path` and sync it; returns its size.

    Raises `InvalidParameter` for a checksum of an unknown kind or another value, `TooLarge`, `HostError` (`NoSpace`),
    and whatever `chunks` raises. The caller removes the file after an error.
    """
    digest = new_digest(checksum[0]) if checksum is not None else None
    target = _Target(path, digest)
    size = 0
    try:
        await target.call(target.open)
        async for chunk in chunks:
            size += len(chunk)
            if size > size_limit_bytes:
                raise TooLarge(f"{path.name}: larger than the limit of {size_limit_bytes} bytes")
            await target.call(target.write, chunk)
        if digest is not None and checksum is not None:
            _compare(digest.hexdigest(), checksum)
        await target.call(target.sync)
    finally:
        target.close()
    return size


class _Target:
    """The file being written. No call outlives its await: a descriptor closed under a thread would be another file's."""

    def __init__(self, path: Path, digest: hashlib._Hash | None) -> None:
        self._path = path
        self._digest = digest
        self._fd = -1

    async def call(self, work: Callable[P, None], /, *arguments: P.args, **named: P.kwargs) -> None:
        """Run one of the methods below in a thread, to its end. Raises `HostError`."""
        try:
            await to_the_end(work, *arguments, **named)
        except OSError as error:
            raise HostError.from_os_error(error, f"write {self._path.name}") from error

    def open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

    def write(self, chunk: bytes) -> None:
        headroom.require(self._fd, f"write {self._path.name}")
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._fd, view) :]
        if self._digest is not None:
            self._digest.update(chunk)

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def new_digest(algorithm: str) -> hashlib._Hash:
    """A hash object. Raises `InvalidParameter` for an algorithm that is not offered."""
    if algorithm not in CHECKSUM_ALGORITHMS:
        raise InvalidParameter({"checksum-algorithm": f"'{algorithm}' is not one of {', '.join(CHECKSUM_ALGORITHMS)}"})
    return hashlib.new(algorithm, usedforsecurity=False)


def _compare(actual: str, checksum: tuple[str, str]) -> None:
    algorithm, wanted = checksum
    if not hmac.compare_digest(actual.encode(), wanted.strip().lower().encode()):
        raise InvalidParameter({"checksum": f"the {algorithm} of the data is {actual}, not the one given"})


async def judge_import(name: str, path: Path) -> None:
    """Raises `InvalidParameter` for a received image QEMU must not be shown, naming it."""
    if not name.endswith(".qcow2"):
        return  # raw bytes: the file's name decides, and nothing ever guesses another format
    measured = await asyncio.to_thread(inspection.measure, path, "qcow2")
    problem = measured.problem
    if measured.backing_file:
        problem = f"it refers to the backing file {measured.backing_file[:100]!r} (refused)"
    if not problem:
        try:
            await tools.inspect_qcow2(path)
        except HostError as error:
            raise InvalidParameter({"filename": f"{name}: not a sound qcow2 image: {error}"}) from error
    if problem:
        raise InvalidParameter({"filename": f"{name}: {problem}"})
