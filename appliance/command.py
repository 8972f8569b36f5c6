"""Run helper programs (qemu-img, nft, runc …) from the loop: bounded in time and output, never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import CommandFailed, TimedOut

OUTPUT_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Completed:
    """What a helper program said."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as text, without the last newline."""
        return self.stdout.decode(errors="replace").rstrip("\n")


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
    on_output: Callable[[bytes], None] | None = None,
) -> Completed:
    """Run `argv` in its own session and wait for it.

    `env` adds to the environment (LC_ALL=C is always set). On cancellation or time-out the whole process group is
    killed and reaped before the exception goes on. Output over `OUTPUT_LIMIT_BYTES` a stream is an error; `on_output` gets
    it as it comes. However it ends, our ends of the pipes are closed, even where a process that left the group still
    holds the others.

    Raises `CommandFailed` (non-zero status when `check`; status 127 when the program is not installed), `TimedOut`.
    """
    environment = {**os.environ, "LC_ALL": "C", **(env or {})}
    loop = asyncio.get_running_loop()
    spawning = asyncio.ensure_future(
        loop.subprocess_exec(
            lambda: _Protocol(loop),
            *argv,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env=environment,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    )
    transport, protocol = await _spawned(spawning, argv)
    process = asyncio.subprocess.Process(transport, protocol, loop)
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await _communicate(process, stdin, argv, on_output)
    except TimeoutError as error:
        raise TimedOut(" ".join(argv[:3]), timeout_s) from error
    finally:
        await _finish(transport, protocol)
    assert process.returncode is not None
    if check and process.returncode != 0:
        raise CommandFailed(argv, process.returncode, (stderr or stdout).decode(errors="replace"))
    return Completed(tuple(argv), process.returncode, stdout, stderr)


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Also tells when the process has been reaped, and when its pipes are closed, too."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=1 << 16, loop=loop)
        self.exited: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.closed.done():  # uvloop calls this twice when `close` meets the end of the last pipe
            self.closed.set_result(None)


_Child = tuple[asyncio.SubprocessTransport, _Protocol]


async def _spawned(spawning: asyncio.Future[_Child], argv: Sequence[str]) -> _Child:
    """Wait for the start of a process, and end it when we are cancelled meanwhile."""
    try:
        return await asyncio.shield(spawning)
    except FileNotFoundError as error:
        raise CommandFailed(argv, 127, f"{error.filename or argv[0]}: not installed or not found") from error
    except asyncio.CancelledError:  # the process is there already, or will be in a moment
        await asyncio.wait((spawning,))
        if spawning.exception() is None:
            await _finish(*spawning.result())
        raise


async def _finish(transport: asyncio.SubprocessTransport, protocol: _Protocol) -> None:
    """Kill what still runs, reap it, close the pipes; returns when all of it is done."""
    try:
        if transport.get_returncode() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(transport.get_pid(), signal.SIGKILL)
            await asyncio.shield(protocol.exited)
    finally:
        transport.close()
    await asyncio.shield(protocol.closed)


async def _communicate(
    process: asyncio.subprocess.Process,
    stdin: bytes | None,
    argv: Sequence[str],
    on_output: Callable[[bytes], None] | None,
) -> tuple[bytes, bytes]:
    assert process.stdout is not None
    assert process.stderr is not None

    async def feed() -> None:
        if process.stdin is None or stdin is None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(stdin)
            await process.stdin.drain()
        process.stdin.close()

    async def collect(stream: asyncio.StreamReader) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while chunk := await stream.read(1 << 16):
            size += len(chunk)
            if size > OUTPUT_LIMIT_BYTES:
                raise CommandFailed(argv, -1, f"more than {OUTPUT_LIMIT_BYTES} bytes of output")
            chunks.append(chunk)
            if on_output is not None:
                on_output(chunk)
        return b"".join(chunks)

    _, stdout, stderr = await asyncio.gather(feed(), collect(process.stdout), collect(process.stderr))
    await process.wait()
    return stdout, stderr
