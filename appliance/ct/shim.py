"""The per-container shim, conmon: it calls the runtime's `create`, then holds the terminal, the log and the exit code.

It is a daemon of its own (not our child), so a container outlives the appliance. It ends when the container's init has
ended and the terminal is drained, after writing the exit code. Interface: conmon(8), and its sync pipe: one JSON line
{"data": PID} or {"data": -1, "message": TEXT}.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from appliance.ct import config_pipe, logfile, process, records
from appliance.ct.config_pipe import ConfigPipe
from appliance.ct.outcome import outcome
from appliance.ct.runtime import OciRuntime
from appliance.errors import HostError, TimedOut
from appliance.kernel.pidfd import ProcessIdentity, identify, send_signal_if, shares_pid_namespace
from appliance.tasks import TaskScope, to_its_end
from appliance.threads import to_the_end
from appliance.waiting import readable

PROGRAM = "conmon"
_SYNC_FD, _GO_FD = 3, 4
_GO = b"\n"
CREATE_LIMIT_S = 60.0
_LINE_LIMIT_BYTES = 256 << 10
_MESSAGE_LIMIT = 600
KILL_LIMIT_S = 5.0
_POLL_S = 0.005


async def create(
    runtime: OciRuntime,
    container: str,
    bundle: Path,
    *,
    prepare: Callable[[], Awaitable[bytes]],
    scope: TaskScope,
    terminal: bool = True,
    log: Path | None = None,
) -> int:
    """Start a shim that creates the container in `bundle` as soon as `prepare` is done; returns the pid of its init.

    `prepare` gives the bundle's config.json, which is written here. The shim starts meanwhile and waits on its start pipe;
    where the runtime `takes_pipe`, it starts too and waits for its configuration (`config_pipe`): that hides the
    milliseconds they take to come up. `bundle` is there already. `log` is where its output goes, by default into the
    bundle. The container's init exists at the end and waits for the runtime's `start`. Raises `HostError` with the
    runtime's message, `TimedOut`, or what `prepare` raised; the caller removes what may be left.
    """
    pipe = ConfigPipe(bundle) if runtime.takes_pipe else None
    answer, sync_end = os.pipe()
    os.set_blocking(answer, False)
    go_read, go_write = os.pipe()
    os.set_blocking(go_write, False)  # takes one byte
    if pipe is not None:
        os.write(go_write, _GO)
    launching = scope.start(
        outcome(
            lambda: process.run(
                _argv(runtime, container, bundle, terminal=terminal, log=log),
                timeout_s=CREATE_LIMIT_S,
                environment={
                    "_OCI_SYNCPIPE": str(_SYNC_FD),
                    "_OCI_STARTPIPE": str(_GO_FD),
                    "TMPDIR": str(bundle),  # its terminal socket is made there
                },
                pass_fds={_SYNC_FD: sync_end, _GO_FD: go_read},
            )
        ),
        name=f"shim of {container}",
    )
    try:
        config = await prepare()
        if pipe is not None:
            pipe.write(config)
        else:
            await to_the_end(records.save, bundle, config_pipe.NAME, config)
            os.write(go_write, _GO)
        failure = await launching
        os.close(sync_end)
        sync_end = -1
        if failure is not None:
            raise failure
        async with asyncio.timeout(CREATE_LIMIT_S):
            line = await _line(answer)
    except TimeoutError as error:
        raise TimedOut(f"container {container}: create", CREATE_LIMIT_S) from error
    finally:
        try:
            launching.cancel()  # before the start pipe closes: its end would let the shim go on
            await to_its_end(asyncio.wait((launching,)), name=f"end of the shim of {container}")
        finally:
            for fd in (answer, sync_end, go_read, go_write):
                if fd >= 0:
                    os.close(fd)
            if pipe is not None:
                await to_the_end(pipe.close)
    pid = _created_pid(container, line)
    if pipe is not None:
        await to_the_end(records.save, bundle, config_pipe.NAME, config)
    return pid


async def _line(fd: int) -> bytes:
    """What a pipe says up to its end, a newline, or a limit that no answer reaches."""
    said = b""
    while b"\n" not in said and len(said) < _LINE_LIMIT_BYTES:
        await readable(fd)
        chunk = os.read(fd, _LINE_LIMIT_BYTES)
        if not chunk:
            break
        said += chunk
    return said


def _argv(runtime: OciRuntime, container: str, bundle: Path, *, terminal: bool, log: Path | None) -> list[str]:
    log_limit = logfile.LOG_LIMIT_BYTES if log is None else logfile.KEPT_LOG_LIMIT_BYTES
    return [
        *("env", f"--chdir={bundle}"),  # conmon leaves a file "oom" in its working directory
        *(PROGRAM, "--api-version", "1", "--cid", container, "--cuuid", container, "--name", container),
        *("--runtime", str(runtime.program), "--runtime-arg", f"--root={runtime.state_dir}"),
        *("--bundle", str(bundle), "--full-attach", "--no-sync-log"),
        *(("--terminal",) if terminal else ()),
        *("--container-pidfile", str(bundle / "init.pid"), "--conmon-pidfile", str(bundle / "shim.pid")),
        *("--log-path", f"k8s-file:{log or bundle / 'console.log'}", "--log-size-max", str(log_limit)),
        *("--exit-dir", str(bundle), "--persist-dir", str(bundle), "--log-level", "error"),
    ]


def _created_pid(container: str, line: bytes) -> int:
    if not line:
        raise HostError(f"container {container}: the shim ended without an answer")
    try:
        answer = json.loads(line)
        pid, message = int(answer["data"]), str(answer.get("message", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise HostError(f"container {container}: the shim answered {line[:100]!r}") from error
    if pid <= 0:
        raise HostError(f"container {container}: create: {message.strip()[-_MESSAGE_LIMIT:] or 'no message'}")
    return pid


def identities(container: str, pid: int, bundle: Path) -> tuple[ProcessIdentity, ProcessIdentity]:
    """(init, shim) of a container just created. Blocking. Raises `HostError` when one has ended."""
    init, shim = identify(pid), identify(_read_pid(bundle / "shim.pid"))
    if init is None or shim is None:
        raise HostError(f"container {container}: ended while it was being created")
    return init, shim


def exit_code(bundle: Path, container: str) -> int | None:
    """What the shim wrote when the container ended: 0-127 its status, 128+N killed by signal N; None if nothing."""
    try:
        return int((bundle / container).read_text())
    except (OSError, ValueError):
        return None


def kill_leftover(bundle: Path) -> None:
    """Kill the shim of `bundle` and the runtime it may just be running, and wait until they are gone. Blocking.

    After an orderly end the pid file names a process that is gone: nothing to do. Without that certainty (a start that
    was cut off, perhaps before the pid file) every process with the bundle in its arguments goes. Raises `TimedOut`.
    """
    pid = _read_pid(bundle / "shim.pid")
    if not bundle.exists() or (pid > 0 and not _names(pid, bundle)):
        return
    deadline = time.monotonic() + KILL_LIMIT_S
    while pids := [int(entry.name) for entry in Path("/proc").glob("[1-9]*") if _names(int(entry.name), bundle)]:
        for each in pids:
            send_signal_if(each, signal.SIGKILL, partial(_names, each, bundle))
        if time.monotonic() > deadline:
            raise TimedOut(f"{bundle}: processes {pids} to die", KILL_LIMIT_S)
        time.sleep(_POLL_S)


def _names(pid: int, bundle: Path) -> bool:
    """Whether the process lives and has `bundle` as one of its arguments (a zombie has none).

    A container's process can have any arguments, and would be in the way for as long as it is made anew: not meant.
    """
    try:
        named = os.fsencode(bundle) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return named and shares_pid_namespace(pid)


def installed() -> bool:
    """Whether the shim's program is on PATH."""
    return shutil.which(PROGRAM) is not None


def _read_pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return -1
