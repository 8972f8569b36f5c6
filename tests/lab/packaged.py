"""A lab host on which the appliance comes as the Debian package: installed, driven by proxmoxer, looked at from outside.

Everything here blocks: hosts belong to no loop, so each call makes one of its own.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import uvloop
from proxmoxer import ProxmoxAPI

from tests.demo.terminal import Terminal
from tests.lab.host import LabHost
from tests.lab.package_build import Package

T = TypeVar("T")
DATA_DIR: Final = "/var/lib/appliance"
APT_TIMEOUT_S: Final = 400.0
COMMAND_TIMEOUT_S: Final = 120.0
TASK_LIMIT_S: Final = 240.0
READY_LIMIT_S: Final = 180.0
ADMIN: Final = "admin@pve"


class PackagedHost:
    """One host. `password` is known after `first_password`."""

    def __init__(self, host: LabHost) -> None:
        self.host = host
        self.password = ""

    def sh(self, script: str, *, timeout_s: float = COMMAND_TIMEOUT_S, check: bool = True) -> str:
        """Run a shell script in the host; its output."""
        return in_loop(self.host.shell(script, timeout_s=timeout_s, check=check))

    def status(self, script: str) -> int:
        """Run a shell script in the host; its exit status."""
        return in_loop(self.host.run(["sh", "-c", script], timeout_s=COMMAND_TIMEOUT_S, check=False)).returncode

    # --- the package --------------------------------------------------------------------------------------------------

    def put(self, path: Path, target: str) -> None:
        """Copy a file into a directory of the host."""
        in_loop(self.host.put(path, target))

    def apt(self, words: str) -> str:
        """apt-get, without questions; what it said. Raises `CommandFailed`."""
        script = f"export DEBIAN_FRONTEND=noninteractive; apt-get -qq --yes --no-install-recommends {words} 2>&1"
        return self.sh(script, timeout_s=APT_TIMEOUT_S)

    def install(self, package: Package, *, options: str = "") -> float:
        """`apt install ./FILE`; seconds it took. Raises `CommandFailed`."""
        self.put(package.path, "/root/packages")
        began = time.monotonic()
        self.apt(f"{options} install /root/packages/{package.path.name}")
        return time.monotonic() - began

    # --- the appliance ------------------------------------------------------------------------------------------------

    def wait_until_serving(self) -> None:
        """Until systemd has heard READY=1. Raises `AssertionError` with the journal."""
        deadline = time.monotonic() + READY_LIMIT_S
        while (state := self.sh("systemctl is-active appliance || true")) != "active":
            journal = self.sh("journalctl -u appliance -n 50 --no-pager", check=False)
            assert state in ("activating", "inactive", "reloading"), f"the service is {state}:\n{journal}"
            assert time.monotonic() < deadline, f"the service does not start:\n{journal}"
            time.sleep(1)

    def trust(self) -> None:
        """Fetch the appliance's certificate authority, which `api` then verifies by."""
        in_loop(self.host.get(f"{DATA_DIR}/pki/ca.pem", self.host.directory))

    def api(self, *, user: str = ADMIN) -> Any:
        """proxmoxer over verified TLS. Keeps no connection open."""
        api = ProxmoxAPI(
            "127.0.0.1", port=self.host.api_port, verify_ssl=str(self.host.directory / "ca.pem"),
            user=user, password=self.password, timeout=120,
        )  # fmt: skip
        api._store["session"].headers["Connection"] = "close"
        api._store["session"].close()
        return api

    def node(self, api: Any) -> Any:
        """proxmoxer's resource of the only node."""
        return api.nodes(self.host.name)

    def finish(self, api: Any, upid: str, *, limit_s: float = TASK_LIMIT_S) -> None:
        """Wait for a task. Raises `AssertionError` with its log unless it ended with OK or warnings."""
        node = self.node(api)
        deadline = time.monotonic() + limit_s
        while (status := node.tasks(upid).status.get(wait=20))["status"] != "stopped":
            assert time.monotonic() < deadline, f"{upid} still runs after {limit_s:g} s"
        if status["exitstatus"] != "OK" and not status["exitstatus"].startswith("WARNINGS"):
            lines = "\n".join(row["t"] for row in node.tasks(upid).log.get(limit=100))
            raise AssertionError(f"{upid}: {status['exitstatus']}\n{lines}")

    def finish_all(self, api: Any, upids: Sequence[str]) -> None:
        """Wait for several."""
        for upid in upids:
            self.finish(api, upid)

    def terminal(self, api: Any, path: str) -> Terminal:
        """A console of "qemu/100" or "lxc/101"."""
        ticket, _ = api.get_tokens()
        guest = self.node(api)(path)
        auth = {"Cookie": f"PVEAuthCookie={ticket}"}
        return Terminal(guest, node=self.host.name, path=path, port=self.host.api_port, auth=auth)

    def state(self, api: Any, path: str) -> dict[str, Any]:
        """status/current of "qemu/100"."""
        return dict(self.node(api)(path).status.current.get())

    def journal(self, *, lines: int = 200) -> str:
        """The newest of the appliance's."""
        return self.sh(f"journalctl -u appliance -n {lines} --no-pager -o cat")

    # --- from outside -------------------------------------------------------------------------------------------------

    def main_pid(self) -> int:
        """The service's."""
        return int(self.sh("systemctl show -p MainPID --value appliance"))

    def processes(self, pattern: str) -> list[str]:
        """ "PID STARTTIME" of processes whose command line matches: the same list means the same processes."""
        script = (
            f"for p in $(pgrep -f {pattern!r}); do [ -e /proc/$p/stat ] && "
            'echo "$p $(cut -d" " -f22 /proc/$p/stat)"; done | sort'
        )
        return [line for line in self.sh(script, check=False).splitlines() if line]


def guest_run(terminal: Terminal, number: int, command: str, *, timeout_s: float = 90) -> str:
    """One line of shell in a guest of /opt/guest's initial RAM disk (guest_console.py): its output."""
    terminal.type(f"{number} {command}\n")
    terminal.wait_for(rf"@{number} begin\r?\n", timeout_s=timeout_s)
    text = terminal.wait_for(rf"(?s)(.*?)\r?\n@{number} end \d+", timeout_s=timeout_s).decode(errors="replace")
    return re.sub(rf"\r?\n@{number} end \d+$", "", text).strip()


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run it in a loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
