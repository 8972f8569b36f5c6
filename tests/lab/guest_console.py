"""Talk with the initial RAM disk of /opt/guest over its console: the tests' end of the protocol.

    guest → us    "@guest ready 6.1.0-…-amd64"
    us → guest    "7 cat /proc/cpuinfo"             a number, a space, one line of shell
    guest → us    "@7 begin", the output, a newline, "@7 end 0" (the exit status)

Kernel messages may come in between; a guest that stops answering is a time-out. The kernel command line chooses:
`guest.console=hvc0` (default: the last `console=`), `guest.load=no` (load no drivers; `load-drivers` does it later),
`guest.root=/dev/vda3` (load the drivers, then be that system's initial RAM disk and say nothing).
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final

BOOT_TIMEOUT_S: Final = 180.0
COMMAND_TIMEOUT_S: Final = 60.0
_HISTORY_LIMIT_BYTES = 1 << 20
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command in the guest printed, and its exit status."""

    status: int
    text: str


class GuestConsole:
    """A guest's console as a pair of streams. `history` holds all it said, up to a megabyte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, after: int = 0) -> None:
        """`after`: commands that others gave it before, whose answers may be told again."""
        self._reader, self._writer = reader, writer
        self.history = b""
        self._seen = 0
        self._number = after

    async def ready(self, *, timeout_s: float = BOOT_TIMEOUT_S) -> str:
        """Wait for the guest's greeting; its kernel's release. Raises `TimeoutError` with what it said instead."""
        return (await self.expect(rb"@guest ready (\S+)\r?\n", timeout_s=timeout_s))[1].decode()

    async def run(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> Answer:
        """Run one line of shell in the guest. Raises `TimeoutError`, `ConnectionError` when the console closed."""
        assert "\n" not in command
        self._number += 1
        number = str(self._number).encode()
        self._writer.write(number + b" " + command.encode() + b"\n")
        await self._writer.drain()
        pattern = rb"@%b begin\r?\n(.*?)\r?\n@%b end (\d+)\r?\n" % (number, number)
        found = await self.expect(pattern, timeout_s=timeout_s)
        return Answer(int(found[2]), found[1].decode(errors="replace").replace("\r\n", "\n").rstrip("\n"))

    async def expect(self, pattern: bytes, *, timeout_s: float) -> re.Match[bytes]:
        """Wait until `pattern` has been said since the last one that was waited for; "." matches newlines."""
        compiled = re.compile(pattern, re.S)
        try:
            async with asyncio.timeout(timeout_s):
                while (found := compiled.search(self.history, self._seen)) is None:
                    await self._read()
        except TimeoutError as error:
            raise TimeoutError(f"guest did not say {pattern!r} in {timeout_s:g} s, but:\n{self.tail()}") from error
        self._seen = found.end()
        return found

    def tail(self, size: int = 3000) -> str:
        """The newest of what it said."""
        return self.history[-size:].decode(errors="replace")

    async def _read(self) -> None:
        data = await self._reader.read(_READ_BYTES)
        if not data:
            raise ConnectionResetError(f"the guest's console closed; its last words:\n{self.tail()}")
        self.history += data
        if (excess := len(self.history) - _HISTORY_LIMIT_BYTES) > 0:
            self.history = self.history[excess:]
            self._seen = max(0, self._seen - excess)
