"""One QEMU process that is a lab host: its arguments, its life, its control socket (QMP).

The process is ours alone: it is ended by the handle we hold, never by name, and the kernel ends it when we die
(setpriv --pdeathsig). No object here belongs to an event loop.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from appliance.errors import HostError
from tests.lab.recipe import GUEST_DISK_SERIAL

QMP_TIMEOUT_S: Final = 30.0
END_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a host is made of. `program` begins QEMU's command line; `forwards` are pairs (our loopback's port, its port).

    `cpus` are those that its processes run on: there is one more, host.FIRST_PROCESSOR says why.
    """

    program: Sequence[str]
    memory_mib: int
    cpus: int
    kernel: Path
    initrd: Path
    kernel_arguments: str
    disk: Path
    guest_disk: Path | None
    forwards: Sequence[tuple[int, int]]
    mac: str


class Emulator:
    """At most one process at a time; `start` after it has ended starts another on the same disk."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.console = directory / "console.log"
        self._log = directory / "qemu.log"
        self._qmp = directory / "qmp"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self, hardware: Hardware, wire_fd: int | None) -> None:
        """Start QEMU. To be called from a thread that outlives it: the kernel watches the thread that forked."""
        assert not self.running
        self._qmp.unlink(missing_ok=True)
        argv = ["setpriv", "--pdeathsig", "KILL", *self._argv(hardware, wire_fd)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                pass_fds=() if wire_fd is None else (wire_fd,),
            )  # fmt: skip

    async def kill(self) -> None:
        """SIGKILL, and reap it: for the host a power cut. Nothing when it has ended."""
        if self._process is not None:
            self._process.kill()
            await self.ended(timeout_s=END_TIMEOUT_S)

    async def ended(self, *, timeout_s: float) -> None:
        """Wait for the process's end. Raises `TimeoutError`."""
        process = self._process
        if process is None:
            return
        async with asyncio.timeout(timeout_s):
            while process.poll() is None:
                await asyncio.sleep(0.02)

    async def command(self, name: str, **arguments: Any) -> Any:
        """One QMP command; returns what it returned. Raises `HostError` when QEMU refuses or is not there."""
        try:
            async with asyncio.timeout(QMP_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(str(self._qmp))
                try:
                    await reader.readline()
                    for request in ({"execute": "qmp_capabilities"}, {"execute": name, "arguments": arguments}):
                        writer.write(json.dumps(request).encode() + b"\n")
                        answer = await _answer(reader)
                    return answer
                finally:
                    writer.close()
                    await writer.wait_closed()
        except (OSError, ValueError) as error:
            raise HostError(f"lab host {self.name}: QMP {name}: {error}") from error

    def log_tail(self) -> str:
        """What QEMU itself said."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    def _argv(self, hardware: Hardware, wire_fd: int | None) -> list[str]:
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{ours}-:{theirs}" for ours, theirs in hardware.forwards)
        argv = [
            *hardware.program, "-name", f"lab-{self.name}", "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(hardware.cpus + 1),
            "-m", str(hardware.memory_mib), "-kernel", str(hardware.kernel), "-initrd", str(hardware.initrd),
            "-append", hardware.kernel_arguments,
            "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
            "-qmp", f"unix:{self._qmp},server=on,wait=off",
            # unsafe: the host's flushes reach this machine's page cache, which outlives QEMU
            "-drive", f"file={hardware.disk},format=qcow2,if=virtio,cache=unsafe,discard=unmap",
            "-netdev", f"user,id=control,restrict=on{forwards}",
            "-device", "virtio-net-pci,netdev=control,addr=8",
        ]  # fmt: skip
        if wire_fd is not None:
            argv += ["-netdev", f"dgram,id=wire,local.type=fd,local.str={wire_fd}"]
            argv += ["-device", f"virtio-net-pci,netdev=wire,mac={hardware.mac},addr=9"]
        if hardware.guest_disk is not None:
            # raw: the bytes of the file, not of the disk it describes
            argv += ["-drive", f"file={hardware.guest_disk},format=raw,if=none,id=guest,readonly=on"]
            argv += ["-device", f"virtio-blk-pci,drive=guest,serial={GUEST_DISK_SERIAL},addr=10"]
        return argv


async def _answer(reader: asyncio.StreamReader) -> Any:
    """The next answer, events passed over."""
    while line := await reader.readline():
        message = json.loads(line)
        if "return" in message:
            return message["return"]
        if "error" in message:
            raise ValueError(message["error"]["desc"])
    raise ConnectionResetError("closed")
