"""The appliance as users run it: its own process, driven over HTTPS and websockets by clients nobody here wrote.

Used by the demo, the end-to-end tests and the benchmarks. Every instance has its own data directory, port and bridge.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from proxmoxer import ProxmoxAPI

from appliance.config import default_run_dir
from appliance.services.first_start import PASSWORD_FILE_NAME
from tests.demo.leftovers import traces_of
from tests.demo.terminal import Terminal

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 90.0
STOP_LIMIT_S = 60.0
TASK_LIMIT_S = 300.0
SETTLE_LIMIT_S = 30.0


class TaskFailed(Exception):
    """A task ended with another status than OK; the text holds its log."""


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Appliance:
    """One appliance process. As a context manager it is started, and at the end stopped and its directories removed.

    With `makes_password` nobody tells it one: it makes its own at its first start, as after an installation.
    """

    def __init__(
        self,
        home: Path | None = None,
        *,
        port: int | None = None,
        bridge: str | None = None,
        password: str | None = None,
        makes_password: bool = False,
    ) -> None:
        self._own_home = home is None
        self.home = home or Path(tempfile.mkdtemp(prefix="appliance-"))
        self.port = port or free_port()
        self.bridge = bridge or f"ab{secrets.token_hex(3)}"
        self.password = password or secrets.token_urlsafe(12)
        self.makes_password = makes_password
        self.data_dir = self.home / "data"
        self.run_dir = default_run_dir(self.data_dir)
        self.log_path = self.home / "appliance.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.listen_s = 0.0

    def start(self, *extra: str) -> None:
        """Start it and wait for systemd's READY=1; raises `RuntimeError` with its log when it ends instead."""
        password_file = self.home / "password"
        password_file.touch(0o600)
        password_file.write_text(self.password + "\n")
        notify = self.home / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self.log_path.open("ab") as log:
            ready.bind(str(notify))
            ready.settimeout(0.5)
            began = time.monotonic()
            argv = [sys.executable, "-m", "appliance", "serve", "--data-dir", str(self.data_dir)]
            argv += ["--listen", f"127.0.0.1:{self.port}", "--bridge", self.bridge]
            if not self.makes_password:
                argv += ["--admin-password-file", str(password_file)]
            argv += extra
            self.process = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "NOTIFY_SOCKET": str(notify)},
            )  # fmt: skip
            while True:
                try:
                    if b"READY=1" in ready.recv(4096):
                        break
                except TimeoutError:
                    pass
                if self.process.poll() is not None or time.monotonic() - began > START_LIMIT_S:
                    self.kill()
                    raise RuntimeError(f"the appliance did not start:\n{self.log_tail()}")
            self.listen_s = time.monotonic() - began
        made = self.data_dir / PASSWORD_FILE_NAME
        if self.makes_password and made.exists():
            self.password = made.read_text().strip()

    def stop(self) -> int:
        """SIGTERM, and its exit status. Guests that run go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return -int(signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def traces(self) -> list[str]:
        """What of this appliance is on the host now, one line each: processes, mounts, links, tables …"""
        return traces_of(
            str(self.data_dir), str(self.run_dir), self.run_dir.name.removeprefix("appliance-"), self.bridge
        )

    def lasting_traces(self, *words: str) -> list[str]:
        """`traces` that do not go by themselves; of these the lines with one of `words`, if any are given.

        Processes that were told to end and what the kernel takes down when it has time get `SETTLE_LIMIT_S`.
        """
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while True:
            left = [line for line in self.traces() if not words or any(word in line for word in words)]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.1)

    def log_tail(self, size: int = 4000) -> str:
        """The newest of its log."""
        return self.log_path.read_text(errors="replace")[-size:]

    def __enter__(self) -> Appliance:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process is not None:
                if self.process.poll() is not None:
                    self.start()  # it has crashed: only an appliance can take its guests away
                self._stop_all_guests()
                self.stop()
        finally:
            if self._own_home:
                shutil.rmtree(self.home, ignore_errors=True)
            shutil.rmtree(self.run_dir, ignore_errors=True)

    # --- as a client --------------------------------------------------------------------------------------------------

    def api(self, *, timeout_s: int = 60) -> Any:
        """proxmoxer, logged in as admin@pve."""
        return self.log_in(user="admin@pve", password=self.password, timeout=timeout_s)

    def log_in(self, **credentials: Any) -> Any:
        """proxmoxer over verified TLS. It keeps no connection open: a test's leak check would see it."""
        ca = str(self.data_dir / "pki" / "ca.pem")
        api = ProxmoxAPI("127.0.0.1", port=self.port, verify_ssl=ca, **credentials)
        api._store["session"].headers["Connection"] = "close"
        api._store["session"].close()
        return api

    def node(self, api: Any) -> Any:
        """proxmoxer's resource of the only node."""
        return api.nodes(self.node_name(api))

    def node_name(self, api: Any) -> str:
        return str(api.nodes.get()[0]["node"])

    def finish(self, api: Any, upid: str, *, limit_s: float = TASK_LIMIT_S) -> str:
        """Wait for a task and return its exit status; raises `TaskFailed` with its log unless OK or with warnings."""
        node = self.node(api)
        deadline = time.monotonic() + limit_s
        while (status := node.tasks(upid).status.get(wait=20))["status"] != "stopped":
            if time.monotonic() > deadline:
                raise TaskFailed(f"{upid} still runs after {limit_s:g} s")
        if status["exitstatus"] != "OK" and not status["exitstatus"].startswith("WARNINGS"):
            lines = "\n".join(row["t"] for row in node.tasks(upid).log.get(limit=100))
            raise TaskFailed(f"{upid}: {status['exitstatus']}\n{lines}")
        return str(status["exitstatus"])

    def terminal(self, api: Any, path: str) -> Terminal:
        """A console of "qemu/100" or "lxc/101"."""
        node = self.node_name(api)
        guest = api.nodes(node)(path)
        ticket, _ = api.get_tokens()
        headers = {"Cookie": f"PVEAuthCookie={ticket}"}
        return Terminal(guest, node=node, path=path, port=self.port, auth=headers)

    def upload(self, api: Any, path: Path, content: str, filename: str) -> str:
        """Upload a file to storage `local`; its volume id. proxmoxer sends the file's own name: hence the link."""
        link = self.home / filename
        link.symlink_to(path.resolve())
        try:
            with link.open("rb") as file:
                upid = self.node(api).storage("local").upload.post(content=content, filename=file)
        finally:
            link.unlink()
        self.finish(api, upid)
        return f"local:{content}/{filename}"

    def fetch(self, api: Any, path: str, **query: str) -> bytes:
        """The bytes a method of the API answers with."""
        ticket, _ = api.get_tokens()
        url = f"https://127.0.0.1:{self.port}/api2/json{path}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, headers={"Cookie": f"PVEAuthCookie={ticket}"})
        context = ssl.create_default_context(cafile=str(self.data_dir / "pki" / "ca.pem"))
        with urllib.request.urlopen(request, context=context, timeout=60) as reply:
            return bytes(reply.read())

    def _stop_all_guests(self) -> None:
        """After a failure: end what may still run, so that nothing is left on the host."""
        try:
            api = self.api()
            for row in api.cluster.resources.get(type="vm"):
                if row["status"] != "stopped":
                    self.finish(api, api.nodes(row["node"])(row["id"]).status.stop.post(), limit_s=60)
        except Exception as error:  # noqa: BLE001  the first failure is the one to report
            sys.stderr.write(f"while stopping guests: {error}\n")
