"""`./dev lab test | vmm | self | up | ssh | down`: see docs/lab.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from appliance.errors import ApplianceError
from tests.images import build_images
from tests.lab import image
from tests.lab.host import LabHost
from tests.lab.wire import Switch

STATE: Final = image.DIRECTORY / "up.json"
"""Who keeps hosts up, and how they are reached; there for as long as they are."""
DOWN_TIMEOUT_S: Final = 60.0
_HERE = Path(__file__).parent
_SUITES: Final = {
    "test": ("test_package*.py", "end to end: the package on a bare host"),
    "vmm": ("test_vmm*.py", "the native machine"),
    "self": ("test_[!pv]*.py", "what the lab promises to tests"),
}
"""Verb: the files of its tests, and what they try. Each has a budget of its own: docs/lab.md."""
_OPTIONS: Final = {"test": ("-n", "2", "--dist", "loadfile")}
"""The emulated host's life takes longest, and waits a lot: what needs no emulation is tried meanwhile."""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="./dev lab", description="Debian hosts under emulation, to prove things on.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, (_, summary) in _SUITES.items():
        verbs.add_parser(verb, help=f"run tests of {summary}; further arguments go to pytest", add_help=False)
    up = verbs.add_parser("up", help="start hosts and keep them until Ctrl-C or `down`")
    up.add_argument("count", type=int, nargs="?", default=1, choices=range(1, 5))
    ssh = verbs.add_parser("ssh", help="a shell, or a command, in a host that is up")
    ssh.add_argument("host", nargs="?", default="lab1")
    ssh.add_argument("command", nargs=argparse.REMAINDER)
    verbs.add_parser("down", help="end what `up` keeps")
    options, rest = parser.parse_known_args(arguments)
    match options.verb:
        case verb if verb in _SUITES:
            files = map(str, sorted(_HERE.glob(_SUITES[verb][0])))
            return _pytest([*files, "--durations=20", *_OPTIONS.get(verb, ()), *rest])
        case "up":
            return asyncio.run(_up(options.count))
        case "ssh":
            return _ssh(options.host, options.command)
        case _:
            return _down()


def _pytest(arguments: Sequence[str]) -> int:
    argv = [str(Path(sys.executable).parent / "pytest"), "-m", "lab", *arguments]
    return subprocess.run(argv, cwd=image.ROOT, check=False).returncode


async def _up(count: int) -> int:
    if _read_state():
        print("hosts are up already: ./dev lab down", file=sys.stderr)
        return 1
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        built = await image.build(_say)
        guest_disk = (await build_images(_say))[0]
        async with AsyncExitStack() as stack:
            switch = Switch()
            stack.callback(switch.close)
            hosts = [LabHost(built, number=n, switch=switch, guest_disk=guest_disk) for n in range(1, count + 1)]
            for host in hosts:
                stack.push_async_callback(host.destroy)
            starting = asyncio.ensure_future(_start(hosts))
            stopped = asyncio.ensure_future(stop.wait())
            await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                _write_state(hosts)
                stack.callback(STATE.unlink, missing_ok=True)
                _say("up; ./dev lab ssh [HOST], ./dev lab down, or Ctrl-C here")
            else:
                starting.cancel()
                await asyncio.wait((starting,))
            await stopped
    except ApplianceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def _start(hosts: Sequence[LabHost]) -> None:
    async with asyncio.TaskGroup() as group:
        for host in hosts:
            group.create_task(_start_one(host), name=f"start-{host.name}")


async def _start_one(host: LabHost) -> None:
    await host.start()
    await host.put_source()
    _say(f"{host.name}: up in {host.boot_s:.0f} s, {host.address}, its port 8006 is 127.0.0.1:{host.api_port}")


def _ssh(name: str, remote: Sequence[str]) -> int:
    state = _read_state()
    argv = state.get("hosts", {}).get(name)
    if argv is not None:
        os.execvp(argv[0], [*argv, *remote])
    print(f"{name} is not up; there are: {', '.join(state.get('hosts', {})) or 'none'}", file=sys.stderr)
    return 1


def _down() -> int:
    state = _read_state()
    if not state:
        print("no hosts are up", file=sys.stderr)
        return 1
    watch = os.pidfd_open(state["pid"])
    try:
        if _start_time(state["pid"]) == state["start_time"]:  # the descriptor is of that very process
            signal.pidfd_send_signal(watch, signal.SIGTERM)
            return 0 if _has_ended(watch) else 1
    finally:
        os.close(watch)
    return 0


def _has_ended(watch: int) -> bool:
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    return bool(poll.poll(DOWN_TIMEOUT_S * 1000))


def _read_state() -> dict[str, Any]:
    """What the running `up` wrote; empty when there is none, or when its process has ended."""
    try:
        state: dict[str, Any] = json.loads(STATE.read_text())
    except FileNotFoundError:
        return {}
    return state if _start_time(state["pid"]) == state["start_time"] else {}


def _write_state(hosts: Sequence[LabHost]) -> None:
    pid = os.getpid()
    reach = {host.name: host.ssh_command() for host in hosts}
    STATE.write_text(json.dumps({"pid": pid, "start_time": _start_time(pid), "hosts": reach}))


def _start_time(pid: int) -> str:
    """proc(5), stat field 22: with the number it names a process for good."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return ""


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
