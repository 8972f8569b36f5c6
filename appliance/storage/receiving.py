"""Streams a file into place: it appears under its name only when it is whole, synced and its checksum matches."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from appliance.errors import HostError, InvalidParameter, TooLarge

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
    fd = await _in_thread(
        path, os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
    )
    size = 0
    try:
        async for chunk in chunks:
            size += len(chunk)
            if size > size_limit_bytes:
                raise TooLarge(f"{path.name}: larger than the limit of {size_limit_bytes} bytes")
            await _in_thread(path, _write_all, fd, chunk, digest)
        if digest is not None and checksum is not None:
            _compare(digest.hexdigest(), checksum)
        await _in_thread(path, os.fsync, fd)
    finally:
        os.close(fd)
    return size


def new_digest(algorithm: str) -> hashlib._Hash:
    """A hash object. Raises `InvalidParameter` for an algorithm that is not offered."""
    if algorithm not in CHECKSUM_ALGORITHMS:
        raise InvalidParameter({"checksum-algorithm": f"'{algorithm}' is not one of {', '.join(CHECKSUM_ALGORITHMS)}"})
    return hashlib.new(algorithm, usedforsecurity=False)


def _compare(actual: str, checksum: tuple[str, str]) -> None:
    algorithm, wanted = checksum
    if not hmac.compare_digest(actual.encode(), wanted.strip().lower().encode()):
        raise InvalidParameter({"checksum": f"the {algorithm} of the data is {actual}, not the one given"})


def _write_all(fd: int, chunk: bytes, digest: hashlib._Hash | None) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]
    if digest is not None:
        digest.update(chunk)


async def _in_thread(path: Path, function: object, *arguments: object) -> int:
    assert callable(function)
    try:
        result = await asyncio.to_thread(function, *arguments)
    except OSError as error:
        raise HostError.from_os_error(error, f"write {path.name}") from error
    return result if isinstance(result, int) else 0
