"""The ends of a VM that others connect to: serial consoles, the display, the guest agent's port."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from appliance.errors import Conflict, GuestFault, HostError, NotFound, TimedOut
from appliance.guest_agent import ANSWER_LIMIT_BYTES, GuestAgent
from appliance.qemu.console import SerialConsole
from appliance.qemu.monitor import Monitor
from appliance.qemu.run_dir import RunDir, RunRecord

DISPLAY_TIMEOUT_S = 5.0


class Ports:
    """As the VM was started with, whatever its configuration says now. `name` ("vm 100") begins every message."""

    def __init__(self, record: RunRecord, paths: RunDir, monitor: Monitor, *, name: str, pid: int) -> None:
        self._record, self._paths, self._monitor = record, paths, monitor
        self._name, self._pid = name, pid
        self._agent = GuestAgent(self._connect_agent, name=name)
        self._consoles: dict[str, SerialConsole | None] = {}

    async def _connect_agent(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self._paths.agent), limit=ANSWER_LIMIT_BYTES)

    def console_names(self) -> Sequence[str]:
        """ "serial0" ..."""
        return [f"serial{number}" for number in self._record.serials]

    async def open_console(self, name: str) -> SerialConsole:
        """Attach. Raises `NotFound`, `Conflict` while another attachment is open, `HostError`."""
        if name not in self.console_names():
            raise NotFound(f"{self._name}: console {name}")
        if name in self._consoles:
            raise Conflict(f"{self._name}: console {name} is attached already")
        number = int(name.removeprefix("serial"))
        self._consoles[name] = None
        try:
            console = await SerialConsole.attach(
                f"{self._name}: {name}",
                self._paths.serial(number),
                self._paths.serial_log(number),
                pid=self._pid,
                accepted=lambda: self._has_client(f"chardev-{name}"),
                on_close=lambda: self._forget_console(name),
            )
        except BaseException:
            self._forget_console(name)
            raise
        self._consoles[name] = console
        return console

    async def close_consoles(self) -> None:
        """Close the attachments that are open."""
        for console in list(self._consoles.values()):
            if console is not None:
                await console.close()

    async def open_display(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new RFB connection. Raises `NotFound` without a display, `HostError`."""
        if not self._record.display:
            raise NotFound(f"{self._name}: display")
        try:
            async with asyncio.timeout(DISPLAY_TIMEOUT_S):
                return await asyncio.open_unix_connection(str(self._paths.vnc))
        except TimeoutError as error:
            raise TimedOut(f"{self._name}: display", DISPLAY_TIMEOUT_S) from error
        except OSError as error:
            raise HostError.from_os_error(error, f"{self._name}: connect {self._paths.vnc}") from error

    async def agent(
        self,
        command: str,
        arguments: Mapping[str, object],
        *,
        timeout_s: float | None = None,
        answers: bool = True,
    ) -> object:
        """Run a guest agent command ("guest-ping"). Raises `GuestFault` at once when nobody has opened the port."""
        if not self._record.agent:
            raise GuestFault(f"{self._name}: no QEMU guest agent configured")
        if not (await self._chardev("chardev-agent")).get("frontend-open"):
            raise GuestFault(f"{self._name}: QEMU guest agent is not running")
        return await self._agent.execute(command, arguments, timeout_s=timeout_s, answers=answers)

    async def _chardev(self, label: str) -> Mapping[str, object]:
        answer = await self._monitor.execute("query-chardev")
        rows = answer if isinstance(answer, list) else []
        return next((row for row in rows if row.get("label") == label), {})

    async def _has_client(self, label: str) -> bool:
        """Twice yes: once may still be about a client that has just left."""
        for _ in range(2):
            if str((await self._chardev(label)).get("filename", "disconnected:")).startswith("disconnected:"):
                return False
        return True

    def _forget_console(self, name: str) -> None:
        self._consoles.pop(name, None)
