"""Backups of containers: packed by a helper process through a compressor into a file, unpacked again, looked into.

The helpers (`pack.py`, `unpack.py`) run confined to the trees they are given. Everything here is on the loop; a
cancellation kills the helpers, and what they have written is the caller's to remove.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance import command
from appliance.ct import pack, unpack
from appliance.errors import CommandFailed, HostError, InvalidParameter, NoSpace, NotFound, TimedOut
from appliance.tasks import to_its_end
from appliance.threads import to_the_end

LIMIT_S: Final = 24 * 3600.0
LIST_LIMIT_S: Final = 600.0
CONFIG_NAME: Final = "etc/vzdump/pct.conf"
COMPRESSORS: Final[Mapping[str, Sequence[str]]] = {
    "zstd": ("zstd", "-q", "-c", "-T1"),
    "gzip": ("gzip", "-c"),
    "": ("cat",),
}
_HELPER = (sys.executable, "-I", "-S")
LogLine = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTree:
    """A tree by its descriptor, where its content belongs, and the ids outside that are 0… inside."""

    fd: int
    prefix: str
    id_base: int
    id_count: int


async def write(
    target: Path, trees: Sequence[PackedTree], *, config: str, exclude: Sequence[str], compress: str, log: LogLine
) -> None:
    """Pack `trees` into the empty file `target`. Raises `HostError` (`NoSpace`), `TimedOut`."""
    asked = {
        "trees": [
            {"fd": tree.fd, "prefix": tree.prefix, "id_base": tree.id_base, "id_count": tree.id_count} for tree in trees
        ],
        "first": [[CONFIG_NAME, config]],
        "exclude": list(exclude),
    }
    reader, writer = os.pipe()
    try:
        with target.open("wb") as file:
            compressor = await asyncio.create_subprocess_exec(
                *COMPRESSORS[compress],
                stdin=reader,
                stdout=file,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
    except BaseException:
        os.close(reader)
        os.close(writer)
        raise
    os.close(reader)
    try:
        packer = await asyncio.create_subprocess_exec(
            *_HELPER, pack.__file__, stdin=asyncio.subprocess.PIPE, stdout=writer, stderr=asyncio.subprocess.PIPE,
            pass_fds=[tree.fd for tree in trees], start_new_session=True,
        )  # fmt: skip
    except BaseException:
        await _end(compressor)
        raise
    finally:
        os.close(writer)
    try:
        async with asyncio.timeout(LIMIT_S):
            (_, told), (_, complaint) = await asyncio.gather(
                packer.communicate(json.dumps(asked).encode()), compressor.communicate()
            )
    except TimeoutError as error:
        raise TimedOut(f"pack {target.name}", LIMIT_S) from error
    finally:
        await _end(packer)
        await _end(compressor)
    if compressor.returncode:
        raise _failure(target.name, COMPRESSORS[compress][0], compressor.returncode, complaint)
    if packer.returncode:
        raise _failure(target.name, "pack", packer.returncode or 1, told)
    log(told.decode(errors="replace").strip().splitlines()[-1])


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        await to_its_end(process.communicate(), name="end of a helper")  # closes our ends of its pipes


def _failure(name: str, program: str, status: int, said: bytes) -> HostError:
    text = said.decode(errors="replace").strip().splitlines()
    if any("No space left" in line or "quota exceeded" in line for line in text):
        return NoSpace(f"backup {name}: no space left on the storage")
    return CommandFailed([program], status, "\n".join(text))


async def read_member(archive: Path, name: str, *, limit_bytes: int = 1 << 20) -> bytes:
    """A small file of an archive. Raises `NotFound`, `InvalidParameter` for a damaged archive or a larger file."""
    chunks: list[bytes] = []
    size = 0
    async with contextlib.aclosing(stream_member(archive, name)) as stream:
        async for chunk in stream:
            size += len(chunk)
            if size > limit_bytes:
                raise InvalidParameter({"archive": f"{archive.name}: {name} is over {limit_bytes} bytes"})
            chunks.append(chunk)
    return b"".join(chunks)


async def stream_member(archive: Path, name: str) -> AsyncGenerator[bytes, None]:
    """A regular file of an archive, in pieces. Raises `NotFound`, `InvalidParameter`, `HostError`."""
    process = await asyncio.create_subprocess_exec(
        *_HELPER, unpack.__file__, "--show", str(archive), name, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        while chunk := await process.stdout.read(1 << 18):
            yield chunk
        said = await process.stderr.read(1 << 16)
        status = await process.wait()
    finally:
        await _end(process)
    if status:
        lines = said.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"status {status}"
        if reason.endswith("not in the archive"):
            raise NotFound(f"'{name}' in {archive.name}")
        if status == unpack.REFUSED:
            raise InvalidParameter({"archive": f"{archive.name}: {reason}"})
        raise HostError(f"{archive.name}: {reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An entry of an archive. `kind`: d, f, l, h, b, c, p or v. Times in epoch seconds."""

    path: str
    kind: str
    size: int
    mtime: int


async def members(archive: Path) -> list[Member]:
    """All entries. Raises `InvalidParameter` for a damaged archive, `HostError`."""
    argv = [*_HELPER, str(unpack.__file__), "--list", str(archive)]
    done = await command.run(argv, timeout_s=LIST_LIMIT_S, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise InvalidParameter({"archive": f"{archive.name}: {lines[-1] if lines else done.returncode}"})

    def parse() -> list[Member]:
        rows = (json.loads(line) for line in done.stdout.splitlines())
        return [Member(path=row[0], kind=row[1], size=row[2], mtime=row[3]) for row in rows]

    return await to_the_end(parse)
