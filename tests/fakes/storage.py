"""A directory storage for tests, streams to feed it, and images made to deceive."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from appliance.model.volume import VolumeId
from appliance.storage.directory import DirectoryBackend

MIB = 1 << 20


async def ready_backend(root: Path) -> DirectoryBackend:
    """The storage `local` below `root`, started."""
    backend = DirectoryBackend("local", root)
    await backend.recover()
    return backend


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    """An upload that arrives whole."""
    for chunk in chunks:
        yield chunk


async def cut_stream(chunks: Iterable[bytes], error: Exception) -> AsyncIterator[bytes]:
    """An upload that ends with `error` half-way."""
    for chunk in chunks:
        yield chunk
    raise error


def leftovers(root: Path) -> list[str]:
    """Everything below `root` that is not a directory, relative, sorted: what an operation left."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())


def volume(name: str) -> VolumeId:
    """`local:NAME`."""
    return VolumeId("local", name)


def qcow2_header(
    *,
    size: int = MIB,
    backing: bytes = b"",
    backing_format: bytes = b"",
    crypt: int = 0,
    cluster_bits: int = 16,
    incompatible: int = 0,
    data_file: bytes = b"",
    version: int = 3,
) -> bytes:
    """The first cluster of a qcow2 image that claims what its arguments say."""
    extensions = b""
    for kind, text in ((0xE2792ACA, backing_format), (0x44415441, data_file)):
        if text:
            extensions += struct.pack(">II", kind, len(text)) + text + bytes(-len(text) % 8)
    extensions += bytes(8)
    name_at = 104 + len(extensions) if backing else 0
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        version,
        name_at,
        len(backing),
        cluster_bits,
        size,
        crypt,
        1,
        65536,
        131072,
        1,
        0,
        0,
    )
    head += struct.pack(">QQQII", incompatible, 0, 0, 4, 104)
    return (head + extensions + backing).ljust(4 * 65536, b"\0")
