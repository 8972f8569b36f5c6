"""The guest agent as the API offers it: which commands there are, what each needs, and how answers are shaped.

The agent is a program inside the guest: what it says is untrusted data, bounded by the engine (time and size) and only
passed on. An engine whose VMs have an agent channel fulfils `AgentChannel`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol, runtime_checkable

from appliance.errors import Conflict, GuestFault, NotFound, Unsupported
from appliance.services.ports.running_guest import RunningGuest

READ_LIMIT_BYTES = 16 << 20
READ_CHUNK_BYTES = 1 << 20
READS_LIMIT = 4 * READ_LIMIT_BYTES // READ_CHUNK_BYTES
"""An agent that answers a byte at a time must not keep a request busy for ever."""
ABSENT = "absent"
_NO_SUCH_FILE = ("No such file or directory", "The system cannot find the file specified")
"""How an agent says ENOENT: its errors are text only (qga/commands-posix.c, commands-win32.c)."""


@runtime_checkable
class AgentChannel(Protocol):
    """The part of a running VM that reaches its agent."""

    async def agent(self, command: str, **arguments: object) -> object:
        """Run `command` ("ping") and return its value. Raises `GuestFault` when the agent is not there or refuses."""


class Need(StrEnum):
    """What kind of thing a command does; the privileges follow from it."""

    AUDIT = "VM.GuestAgent.Audit"
    FILE_SYSTEMS = "VM.GuestAgent.FileSystemMgmt"


QUERIES = (
    "get-fsinfo", "get-host-name", "get-memory-block-info", "get-memory-blocks", "get-osinfo", "get-time",
    "get-timezone", "get-users", "get-vcpus", "info", "network-get-interfaces",
)  # fmt: skip
"""Commands that only tell something: GET."""

ACTIONS: Mapping[str, Sequence[Need]] = {
    "ping": (Need.AUDIT,),
    "fsfreeze-status": (Need.AUDIT, Need.FILE_SYSTEMS),
    "fsfreeze-freeze": (Need.FILE_SYSTEMS,),
    "fsfreeze-thaw": (Need.FILE_SYSTEMS,),
    "fstrim": (Need.FILE_SYSTEMS,),
}
"""Commands without arguments that do something, POST; one of the privileges is enough."""


async def ask(running: RunningGuest, command: str, arguments: Mapping[str, object] | None = None) -> object:
    """Run one command. Raises `GuestFault` (no agent, refused), `Unsupported` where the engine has no channel."""
    if not isinstance(running, AgentChannel):
        raise Unsupported(f"vm {running.guest_id}: the engine that runs it has no guest agent channel")
    return await running.agent(command, **(arguments or {}))


async def execute(running: RunningGuest, command: Sequence[str], *, input_data: str | None) -> object:
    """Start a program in the guest; returns {"pid": N}. `exec_status` tells how it ended."""
    arguments: dict[str, object] = {"path": command[0], "arg": list(command[1:]), "capture-output": True}
    if input_data is not None:
        arguments["input-data"] = base64.b64encode(input_data.encode()).decode()
    return await ask(running, "exec", arguments)


async def exec_status(running: RunningGuest, pid: int) -> dict[str, object]:
    """The state of a started program, its output decoded."""
    status = _object(running, await ask(running, "exec-status", {"pid": pid}))
    for name in ("out-data", "err-data"):
        if name in status:
            status[name] = _decoded(running, status[name]).decode(errors="replace")
    return status


async def set_password(running: RunningGuest, username: str, password: str, *, crypted: bool) -> object:
    """Set a user's password inside the guest."""
    encoded = base64.b64encode(password.encode()).decode()
    return await ask(running, "set-user-password", {"username": username, "password": encoded, "crypted": crypted})


async def read_file(
    running: RunningGuest, path: str, *, offset: int = 0, limit_bytes: int = READ_LIMIT_BYTES
) -> tuple[bytes, bool]:
    """`limit_bytes` of a file in the guest from `offset` on, and whether there is more. Raises `NotFound`."""
    handle = await _open(running, path, "rb")
    content = bytearray()
    try:
        if offset:
            await ask(running, "file-seek", {"handle": handle, "offset": offset, "whence": "set"})
        for _ in range(READS_LIMIT):
            count = min(READ_CHUNK_BYTES, limit_bytes - len(content))
            chunk = _object(running, await ask(running, "file-read", {"handle": handle, "count": count}))
            data = _decoded(running, chunk.get("buf-b64", ""))
            content += data
            if chunk.get("eof") or not data:
                return bytes(content[:limit_bytes]), False
            if len(content) >= limit_bytes:
                return bytes(content[:limit_bytes]), True
        raise GuestFault(f"vm {running.guest_id}: the guest agent gives {path!r} in too small pieces")
    finally:
        await ask(running, "file-close", {"handle": handle})


async def write_file(running: RunningGuest, path: str, content: bytes, *, expected: str = "") -> None:
    """Replace a file in the guest. `expected` is its SHA-256 before, "absent", or "" when it does not matter.

    Raises `Conflict` when it is not as expected. The agent cannot hold anybody off meanwhile: what is written inside
    between the look and the writing is lost.
    """
    if expected and await _digest(running, path) != expected:
        raise Conflict(f"vm {running.guest_id}: {path}: the file has been changed by somebody else")
    handle = await _open(running, path, "wb")
    try:
        done = 0
        while done < len(content):
            done += await _write(running, path, handle, content[done:])
        await ask(running, "file-flush", {"handle": handle})
    finally:
        await ask(running, "file-close", {"handle": handle})


async def _write(running: RunningGuest, path: str, handle: object, content: bytes) -> int:
    """How much the agent took: fwrite(3) in the guest stops where its disk is full. Raises `GuestFault` for nothing."""
    arguments = {"handle": handle, "buf-b64": base64.b64encode(content).decode()}
    count = _object(running, await ask(running, "file-write", arguments)).get("count")
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= len(content):
        said = f"the guest agent has written {count!r} of {len(content)} bytes"
        raise GuestFault(f"vm {running.guest_id}: {path}: {said}")
    return count


async def _open(running: RunningGuest, path: str, mode: str) -> object:
    try:
        return await ask(running, "file-open", {"path": path, "mode": mode})
    except GuestFault as error:
        if any(words in error.message for words in _NO_SUCH_FILE):
            raise NotFound(f"vm {running.guest_id}: {path}") from error
        raise


async def _digest(running: RunningGuest, path: str) -> str:
    """The file's SHA-256, "absent", or "" for one that is larger than what can be read at once."""
    try:
        content, more = await read_file(running, path)
    except NotFound:
        return ABSENT
    return "" if more else hashlib.sha256(content).hexdigest()


def _object(running: RunningGuest, answer: object) -> dict[str, object]:
    if not isinstance(answer, dict):
        raise GuestFault(f"vm {running.guest_id}: the guest agent's answer is not understood")
    return dict(answer)


def _decoded(running: RunningGuest, text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise GuestFault(f"vm {running.guest_id}: the guest agent's answer is not base64") from error
