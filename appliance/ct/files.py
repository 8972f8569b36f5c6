"""Files of a running container, read and written through `inside.py`. On the loop.

The helper gets two descriptors, of the container's user namespace and of its root directory, taken from its init while it
is known to be that process. Content is streamed; nothing of it is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.ct import inside
from appliance.ct.program import STDERR, STDOUT, Program
from appliance.errors import ApplianceError, Conflict, GuestFault, InvalidParameter, NoSpace, NotFound, TimedOut
from appliance.model.inside import FileInfo, FileWrite
from appliance.threads import to_the_end

_HELPER = (sys.executable, "-I", "-S", str(Path(inside.__file__)))
_USER_FD, _ROOT_FD = 3, 4
_HEAD_LIMIT_BYTES = 8 << 20
_ERROR_LIMIT_BYTES = 64 << 10
STALL_LIMIT_S = 60.0
"""How long a file system of the container (FUSE) may keep us waiting for one piece."""

IsAlive = Callable[[], bool]


class Files:
    """The files of the container whose init is `pid`; `is_alive` tells whether that is still so."""

    def __init__(self, pid: int, *, label: str, privileged: bool, is_alive: IsAlive) -> None:
        self._pid = pid
        self._label = label
        self._privileged = privileged
        self._is_alive = is_alive

    @asynccontextmanager
    async def read(
        self, path: str, *, offset: int = 0, limit: int = 1 << 62
    ) -> AsyncIterator[tuple[FileInfo, AsyncIterator[bytes]]]:
        """What is at `path`, and its bytes from `offset` on. Raises `NotFound`, `InvalidParameter`, `GuestFault`."""
        async with self._helper("read", path, str(offset), str(limit), write=False) as program:
            head, rest = await self._head(program, path)

            async def content() -> AsyncIterator[bytes]:
                if rest:
                    yield rest
                while item := await self._next(program, path):
                    if item[0] == STDOUT:
                        yield item[1]
                if await program.wait() != 0:
                    raise GuestFault(f"{self._label}: {path}: reading it failed half-way")

            yield head, content()

    async def write(self, path: str, content: AsyncIterator[bytes], how: FileWrite) -> FileInfo:
        """Replace the file at `path`, whole or not at all. Raises as `read`, `Conflict` when it is not as expected,
        `NoSpace`."""
        words = (str(-1 if each is None else each) for each in (how.mode, how.uid, how.gid))
        arguments = (*words, str(int(how.parents)), how.expected)
        async with self._helper("write", path, *arguments, write=True) as program:
            async for data in content:
                if not await program.write(data):
                    break
            program.close_stdin()
            head, _ = await self._head(program, path)
            await program.wait()
            return head

    # --- inside -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _helper(self, operation: str, path: str, *rest: str, write: bool) -> AsyncIterator[Program]:
        if "\0" in path or len(path) > 4096:
            raise InvalidParameter({"path": "not a path"})
        held = contextlib.ExitStack()
        try:
            user_fd, root_fd = await to_the_end(self._descriptors, held)
            fds = {_ROOT_FD: root_fd} | ({} if user_fd is None else {_USER_FD: user_fd})
            user = str(-1 if user_fd is None else _USER_FD)
            argv = [*_HELPER, user, str(_ROOT_FD), operation, path, *rest]
            program = await Program.start(argv, write=write, pass_fds=fds)
        finally:
            held.close()
        try:
            yield program
        finally:
            await program.end()

    def _descriptors(self, held: contextlib.ExitStack) -> tuple[int | None, int]:
        try:
            root = os.open(f"/proc/{self._pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, root)
            user = None
            if not self._privileged:
                user = os.open(f"/proc/{self._pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
                held.callback(os.close, user)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise Conflict(f"{self._label}: not running") from error
        if not self._is_alive():  # another process may have its number by now
            raise Conflict(f"{self._label}: not running")
        return user, root

    async def _next(self, program: Program, path: str) -> tuple[int, bytes] | None:
        try:
            async with asyncio.timeout(STALL_LIMIT_S):
                return await program.next()
        except TimeoutError as error:
            raise TimedOut(f"{self._label}: {path}", STALL_LIMIT_S) from error

    async def _head(self, program: Program, path: str) -> tuple[FileInfo, bytes]:
        """The first line as a value, and what came after it. Raises what the helper refused."""
        said, complaint = b"", b""
        while item := await self._next(program, path):
            number, data = item
            if number == STDERR:
                complaint = (complaint + data)[:_ERROR_LIMIT_BYTES]
                continue
            said += data
            line, newline, rest = said.partition(b"\n")
            if newline:
                return FileInfo.decode(line), rest
            if len(said) > _HEAD_LIMIT_BYTES:
                break
        await program.wait()
        raise self._refusal(complaint, path)

    def _refusal(self, complaint: bytes, path: str) -> ApplianceError:
        where = f"{self._label}: {path}"
        try:
            answer = json.loads(complaint.strip().splitlines()[-1])
            number, message = int(answer["errno"]), str(answer["message"])
        except (ValueError, KeyError, IndexError, TypeError):
            return GuestFault(f"{where}: the helper failed: {complaint[-300:].decode(errors='replace').strip()}")
        match number:
            case 0:
                return Conflict(f"{where}: {message}")
            case errno.ENOENT:
                return NotFound(where)
            case errno.ENOSPC | errno.EDQUOT:
                return NoSpace(f"{where}: {message}")
            case errno.EINVAL | errno.EISDIR | errno.ENOTDIR | errno.ELOOP | errno.ENAMETOOLONG:
                return InvalidParameter({"path": f"{path}: {message}"})
            case _:
                return GuestFault(f"{where}: {message}")
