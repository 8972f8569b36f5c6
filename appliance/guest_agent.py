"""The QEMU guest agent, spoken to over its virtio-serial port (qga/qapi-schema.json in QEMU), whichever engine has it.

What answers is a program inside the guest, so it is hostile: one request at a time, each answer bounded in time and
size and checked for shape. `guest-sync-delimited` comes first and throws away what an earlier, timed-out call left.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import msgspec

from appliance.errors import GuestFault

TIMEOUT_S = 10.0
TIMEOUTS_S: Mapping[str, float] = MappingProxyType(
    {"guest-fsfreeze-freeze": 600.0, "guest-fsfreeze-thaw": 60.0, "guest-fstrim": 600.0, "guest-ping": 3.0}
)
"""Of commands that may take longer than others, for they wait for the guest's disks, and of the one that is to tell soon."""
ANSWER_LIMIT_BYTES = 4 << 20
STALE_ANSWERS_LIMIT = 100
_SENTINEL = b"\xff"

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Readers are limited to `ANSWER_LIMIT_BYTES` a line. Raises `OSError` when nothing is there."""


class GuestAgent:
    """The agent of one VM. `connect` opens the host's side of the port; `name` ("vm 100") begins every message."""

    def __init__(self, connect: Connect, *, name: str) -> None:
        self._connect = connect
        self._name = name
        self._one_at_a_time = asyncio.Lock()
        self._sync_ids = itertools.count(1)

    async def execute(
        self, command: str, arguments: Mapping[str, object], *, timeout_s: float | None = None, answers: bool = True
    ) -> object:
        """Run `command` ("guest-ping") and return its value. `answers=False` for the commands that succeed silently. By
        default each command has a time-out of its own.

        Raises `GuestFault` when the agent is not running, answers nonsense, or refuses.
        """
        try:
            async with asyncio.timeout(timeout_s or TIMEOUTS_S.get(command, TIMEOUT_S)), self._one_at_a_time:
                reader, writer = await self._connect()
                try:
                    return await self._talk(reader, writer, command, arguments, answers=answers)
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (TimeoutError, OSError, EOFError) as error:
            raise GuestFault(f"{self._name}: QEMU guest agent is not running") from error
        except asyncio.LimitOverrunError as error:
            limit = f"{ANSWER_LIMIT_BYTES >> 20} MiB"
            raise GuestFault(f"{self._name}: the guest agent's answer is longer than {limit}") from error
        except ValueError as error:
            raise GuestFault(f"{self._name}: the guest agent's answer is not understood") from error

    async def _talk(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        command: str,
        arguments: Mapping[str, object],
        *,
        answers: bool,
    ) -> object:
        sync_id = next(self._sync_ids)
        writer.write(_SENTINEL + _request("guest-sync-delimited", {"id": sync_id}))
        await writer.drain()
        for _ in range(STALE_ANSWERS_LIMIT):
            await reader.readuntil(_SENTINEL)
            if _answer(await reader.readuntil(b"\n")).get("return") == sync_id:
                break
        else:  # without a bound it could hold the loop for as long as it has something to say
            raise ValueError("no answer to the synchronisation")
        writer.write(_request(command, arguments))
        await writer.drain()
        if not answers:
            return {}
        answer = _answer(await reader.readuntil(b"\n"))
        if "return" in answer:
            return answer["return"]
        error = answer.get("error")
        text = str(error.get("desc", ""))[:500] if isinstance(error, dict) else "no reason given"
        raise GuestFault(f"{self._name}: guest agent: {command}: {text}")


def _request(command: str, arguments: Mapping[str, object]) -> bytes:
    return json.dumps({"execute": command, "arguments": dict(arguments)}).encode() + b"\n"


def _answer(line: bytes) -> dict[str, object]:
    """Raises `ValueError` for what is no JSON object, `EOFError` at the end."""
    if not line:
        raise EOFError
    try:
        value = msgspec.json.decode(line)  # no NaN, no lone surrogates: nothing we could not pass on
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
