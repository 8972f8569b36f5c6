"""`LabHost`: a Debian machine with kvm_amd, cgroup v2 and everything else a bare-metal appliance host has.

    async with LabHost(image, number=1, switch=switch) as host:
        await host.run(["uname", "-r"], timeout_s=30)

It boots in 10 s to a minute. Its disk is an overlay that lives as long as the object: `power_off_hard` and `start` are a
power cut and what follows. Commands go over one ssh connection on our loopback; hosts see each other on `eth1`
(10.77.0.NUMBER) when they have a switch. A host reaches nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from appliance import command
from appliance.errors import HostError
from tests.harness import free_port
from tests.lab import emulator_program, recipe
from tests.lab.emulator import Emulator, Hardware
from tests.lab.image import ROOT, HostImage
from tests.lab.wire import Switch

BOOT_TIMEOUT_S: Final = 240.0
COPY_TIMEOUT_S: Final = 300.0
API_PORT: Final = 8006
READY_LINE: Final = b"lab: ready"
FIRST_PROCESSOR: Final = 0
"""Nothing but the kernel runs there. QEMU's emulation of the x87 (cpu_clear_ignne, also in 10.0) has every processor that
restores its registers write into flags of the first one, without a lock: that one then at times loses or gets back the
bits for SVM which it has just changed. A host whose guest ran there stood still for ever (global interrupts off, in its
idle loop), crashed (interrupts on, just after VMRUN), or had its guest crash."""
_POLL_S = 0.1
_SSH_OPTIONS = (
    "BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=60",
    "ServerAliveInterval=20", "ServerAliveCountMax=6", "IdentitiesOnly=yes",
)  # fmt: skip


class LabHost:
    """One host. As a context manager it is started, and at the end destroyed with its directory."""

    def __init__(
        self,
        image: HostImage,
        *,
        number: int = 1,
        switch: Switch | None = None,
        guest_disk: Path | None = None,
        memory_mib: int = 4096,
        cpus: int = 2,
    ) -> None:
        self.name = f"lab{number}"
        self.address = f"10.77.0.{number}"
        """On the wire; there only with a switch."""
        self.api_port = free_port()
        """Our loopback's port that leads to the host's port 8006."""
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.kernel_arguments: tuple[str, ...] = ()
        """More of them, from the next `start` on."""
        self.boot_s = 0.0
        """How long the last start took, to the first command."""
        self._ssh_port = free_port()
        self._image, self._switch, self._guest_disk = image, switch, guest_disk
        self._memory_mib, self._cpus, self._number = memory_mib, cpus, number
        self._emulator = Emulator(self.name, self.directory)
        self._key, self._control = self.directory / "key", self.directory / "ssh"
        self._master: subprocess.Popen[bytes] | None = None
        self._machine_id = uuid.uuid4().hex
        self._boots_seen = 0
        self._hold = image.hold()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.destroy()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.destroy()

    # --- power --------------------------------------------------------------------------------------------------------

    async def start(self, *, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Switch it on and wait until commands are obeyed. Raises `HostError` with the console's end."""
        began = time.monotonic()
        disk = self.directory / "disk.qcow2"
        if not disk.exists():
            await _tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", self._key)
            await _tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", self._image.disk, "-F", "raw", disk)
        port = self._switch.plug(self.name) if self._switch else None
        self._boots_seen = self._boots()
        hardware = self._hardware(await emulator_program.words(), disk)
        self._emulator.start(hardware, port.qemu_end.fileno() if port else None)
        if port:
            port.qemu_end.close()
        await self.booted(timeout_s=timeout_s)
        self.boot_s = time.monotonic() - began

    async def booted(self, *, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Wait for the next end of a boot (after `start`, or after the host has begun to restart itself) and connect."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._boots() <= self._boots_seen:
                    if not self._emulator.running:
                        raise HostError(f"{self.name}: QEMU ended: {self._emulator.log_tail()}")
                    await asyncio.sleep(_POLL_S)
                self._boots_seen += 1
                await self._connect()
        except TimeoutError as error:
            raise HostError(
                f"{self.name}: not up after {timeout_s:g} s; its console:\n{self.console_tail()}"
            ) from error

    async def power_off_hard(self) -> None:
        """Pull the plug. What the host's file systems had flushed stays on the disk."""
        await self._emulator.kill()
        if self._switch:
            self._switch.unplug(self.name)
        await self._disconnect()

    async def power_off(self, *, timeout_s: float = 120.0) -> None:
        """Let it shut down. Raises `TimeoutError`."""
        await self.run(["systemctl", "poweroff", "--no-block"], timeout_s=30)
        await self._emulator.ended(timeout_s=timeout_s)
        await self.power_off_hard()

    async def reset(self) -> None:
        """Press the reset button and wait for the boot."""
        await self._emulator.command("system_reset")
        await self._disconnect()
        await self.booted()

    async def pause(self) -> None:
        """Freeze it: no instruction runs, its network says nothing. The others see a host that hangs."""
        await self._emulator.command("stop")

    async def cont(self) -> None:
        """Let a frozen host go on."""
        await self._emulator.command("cont")

    @property
    def running(self) -> bool:
        """Whether it has power."""
        return self._emulator.running

    async def destroy(self) -> None:
        """End it and remove what it wrote."""
        await self.power_off_hard()
        self._hold.close()
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    # --- network ------------------------------------------------------------------------------------------------------

    def cut_network(self) -> None:
        """Silence its cable to the other hosts; commands still get through. `mend_network` ends it."""
        assert self._switch is not None, f"{self.name} has no cable"
        self._switch.cut(self.name)

    def mend_network(self) -> None:
        """Undo `cut_network`, and every partition it was part of."""
        assert self._switch is not None, f"{self.name} has no cable"
        self._switch.mend(self.name)

    # --- commands and files -------------------------------------------------------------------------------------------

    async def run(
        self, argv: Sequence[str], *, timeout_s: float, check: bool = True, stdin: bytes | None = None
    ) -> command.Completed:
        """Run a program in it as root. Raises `CommandFailed` (status 255: the connection), `TimedOut`.

        After a time-out the program may go on there.
        """
        return await command.run(self._ssh(shlex.join(argv)), timeout_s=timeout_s, check=check, stdin=stdin)

    async def shell(self, script: str, *, timeout_s: float, check: bool = True) -> str:
        """Run a shell script in it; its output."""
        return (await self.run(["sh", "-ec", script], timeout_s=timeout_s, check=check)).text

    @contextlib.asynccontextmanager
    async def dialogue(
        self, argv: Sequence[str], *, limit_s: float
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A program in it, and its standard input and output for as long as the context lasts.

        There it is ended after `limit_s`, whatever happens here. Its errors come with its output.
        """
        remote = f"exec timeout -k 5 {limit_s:g} {shlex.join(argv)} 2>&1"
        process = await asyncio.create_subprocess_exec(
            *self._ssh(remote), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout, process.stdin
        finally:
            process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def put(self, source: Path, target: str) -> None:
        """Copy a file or a directory's content; the host's directory `target` is made."""
        parent, name = (source, ".") if source.is_dir() else (source.parent, source.name)
        await self._pipe(shlex.join(["tar", "-C", str(parent), "-cf", "-", name]), self._ssh(_unpack(target)))

    async def put_source(self) -> None:
        """Copy the repository as it is here now, uncommitted changes too, but nothing git ignores."""
        staged = self.directory / "source"
        listing = shlex.join(["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"])
        pack = shlex.join(["tar", "-C", str(ROOT), "--ignore-failed-read", "--null", "-T", "-", "-cf", "-"])
        try:
            await self._pipe(f"{listing} | {pack}", ["sh", "-c", _unpack(str(staged))])
            if sys.version_info[:2] == recipe.PYTHON:  # compiling costs the host 20 s, us one
                compiler = [sys.executable, "-m", "compileall", "-q", str(staged / "appliance")]
                await command.run(compiler, timeout_s=COPY_TIMEOUT_S)
            await self.run(["rm", "-rf", recipe.SOURCE_DIR], timeout_s=COPY_TIMEOUT_S)
            await self.put(staged, recipe.SOURCE_DIR)
        finally:
            await asyncio.to_thread(shutil.rmtree, staged, ignore_errors=True)

    async def get(self, source: str, target: Path) -> None:
        """Copy a file or a directory of the host into our directory `target`."""
        parent, _, name = source.rpartition("/")
        pack = self._ssh(shlex.join(["tar", "-C", parent or "/", "-cf", "-", name]))
        await self._pipe(shlex.join(pack), ["tar", "-C", str(target), "--no-same-owner", "-xf", "-"])

    # --- evidence -----------------------------------------------------------------------------------------------------

    def console_tail(self, size: int = 6000) -> str:
        """The newest of the serial console."""
        return self._console()[-size:].decode(errors="replace")

    async def evidence(self) -> str:
        """What may explain a failure: console, QEMU's words, the journal where the host still answers."""
        journal = "(not running)"
        if self.running:
            journal = await self._journal()
        return (
            f"--- {self.name}: console\n{self.console_tail()}\n--- {self.name}: QEMU\n{self._emulator.log_tail()}\n"
            f"--- {self.name}: journal\n{journal}\n"
        )

    async def _journal(self) -> str:
        try:
            done = await self.run(["journalctl", "-b", "-n", "300", "--no-pager"], timeout_s=60, check=False)
        except HostError as error:
            return str(error)
        return done.text

    # --- parts --------------------------------------------------------------------------------------------------------

    def ssh_command(self, *remote: str) -> list[str]:
        """The arguments of an ssh that shares our connection: for whoever wants a terminal, or a pipe."""
        return self._ssh(*remote)

    def _hardware(self, program: Sequence[str], disk: Path) -> Hardware:
        key = self._key.with_suffix(".pub").read_text().split()[1]
        arguments = [
            "console=ttyS0", "root=/dev/vda", "rw", "quiet", "net.ifnames=0", "systemd.show_status=false",
            f"systemd.hostname={self.name}", f"systemd.machine_id={self._machine_id}", "panic=5", "mitigations=off",
            f"isolcpus={FIRST_PROCESSOR}", f"lab.key={key}",
        ]  # fmt: skip
        if self._switch:
            arguments.append(f"lab.address={self.address}/24")
        arguments += self.kernel_arguments
        return Hardware(
            program=program,
            memory_mib=self._memory_mib,
            cpus=self._cpus,
            kernel=self._image.kernel,
            initrd=self._image.initrd,
            kernel_arguments=" ".join(arguments),
            disk=disk,
            guest_disk=self._guest_disk,
            forwards=((self._ssh_port, 22), (self.api_port, API_PORT)),
            mac=f"52:54:00:77:00:{self._number:02x}",
        )

    def _console(self) -> bytes:
        try:
            return self._emulator.console.read_bytes()
        except FileNotFoundError:
            return b""

    def _boots(self) -> int:
        return self._console().count(READY_LINE)

    def _ssh(self, *remote: str) -> list[str]:
        options = [word for option in _SSH_OPTIONS for word in ("-o", option)]
        where = ["-S", str(self._control), "-i", str(self._key), "-p", str(self._ssh_port), "root@127.0.0.1"]
        return ["ssh", "-F", "none", *options, *where, *remote]

    async def _connect(self) -> None:
        """One connection that all commands share: each handshake would cost a second under emulation."""
        await self._disconnect()
        while True:
            argv = [*self._ssh()[:-1], "-M", "-N", self._ssh()[-1]]
            self._master = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while self._master.poll() is None:
                if self._control.exists():
                    return
                await asyncio.sleep(_POLL_S)
            await asyncio.sleep(_POLL_S)

    async def _disconnect(self) -> None:
        if self._master is not None:
            self._master.kill()
            await asyncio.to_thread(self._master.wait)
            self._master = None
        with contextlib.suppress(FileNotFoundError):
            self._control.unlink()

    async def _pipe(self, producer: str, consumer: Sequence[str]) -> None:
        script = f"set -o pipefail; {producer} | {shlex.join(consumer)}"
        await command.run(["bash", "-c", script], timeout_s=COPY_TIMEOUT_S)


def _unpack(target: str) -> str:
    quoted = shlex.quote(target)
    return f"mkdir -p {quoted} && tar -C {quoted} --no-same-owner -xf -"


async def _tool(*argv: str | Path) -> None:
    await command.run([str(word) for word in argv], timeout_s=60)
