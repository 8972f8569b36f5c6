"""Copying a container's tree to another volume in passes, while it runs and once more when it stands: the ground for moving.

async with copying(source_fd, target_fd, …) as copy:
    await copy.again()      while it runs; as often as it pays
    (stop it)
    await copy.again()      what has changed since: short
    await copy.differences()   reads both whole, to prove it
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from appliance.ct import treesync
from appliance.errors import HostError, NoSpace, TimedOut
from appliance.tasks import to_its_end

PASS_LIMIT_S: Final = 24 * 3600.0
_FULL = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPass:
    """What one pass did."""

    entries: int
    files: int
    bytes: int
    removed: int
    seconds: float


class TreeCopy:
    """A helper process over two directories. Not concurrent."""

    def __init__(self, process: asyncio.subprocess.Process, about: str) -> None:
        self._process = process
        self._about = about

    async def again(self) -> CopyPass:
        """Make the target like the source is now. Raises `HostError` (`NoSpace`), `TimedOut`."""
        told = await self._ask("again")
        return CopyPass(**told)

    async def differences(self) -> int:
        """How many entries differ, by reading all of both. Raises `HostError`, `TimedOut`."""
        return int(await self._ask("verify"))

    async def _ask(self, word: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(PASS_LIMIT_S):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self._process.stdin.write(f"{word}\n".encode())
                    await self._process.stdin.drain()
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise TimedOut(f"{self._about}: copy", PASS_LIMIT_S) from error
        if line:
            return json.loads(line)
        assert self._process.stderr is not None
        said = (await self._process.stderr.read(1 << 16)).decode(errors="replace").strip().splitlines()
        text = f"{self._about}: {said[-1] if said else 'the copying helper ended'}"
        if await self._process.wait() == _FULL:
            raise NoSpace(text)
        raise HostError(text)


@asynccontextmanager
async def copying(
    source_fd: int, target_fd: int, *, id_base: int, id_count: int, about: str
) -> AsyncIterator[TreeCopy]:
    """Ids `id_base`… in the source are 0… in the target. The helper ends with this, whatever happens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", treesync.__file__, str(source_fd), str(target_fd), str(id_base), str(id_count),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        pass_fds=(source_fd, target_fd), start_new_session=True,
    )  # fmt: skip
    try:
        yield TreeCopy(process, about)
    finally:
        await to_its_end(_end(process), name="end of a copy")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        await process.communicate()
