"""The appliance as a service of a lab host, driven from here by proxmoxer over verified TLS."""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

from proxmoxer import ProxmoxAPI

from tests.lab.host import API_PORT, LabHost

START_TIMEOUT_S: Final = 120.0
TASK_LIMIT_S: Final = 300.0
UNIT: Final = "appliance.service"
DATA_DIR: Final = "/var/lib/appliance"
_PASSWORD_FILE = "/root/admin-password"
_UNIT_FILE = f"""\
[Service]
Type=notify
KillMode=process
Delegate=yes
TimeoutStartSec={START_TIMEOUT_S:g}
ExecStart=appliance serve --data-dir {DATA_DIR} --listen 0.0.0.0:{API_PORT} --admin-password-file {_PASSWORD_FILE}
"""  # a file: a unit of systemd-run stays loaded, and cannot be made again, as long as guests and dnsmasq live in it


class LabAppliance:
    """At most one in a host. The host holds the repository already (`LabHost.put_source`)."""

    def __init__(self, host: LabHost) -> None:
        self.host = host
        self.password = secrets.token_urlsafe(12)
        self.start_s = 0.0
        """How long the last start took, to READY=1."""

    async def start(self) -> None:
        """Start the service and wait until it is ready. Raises `CommandFailed` with the unit's words."""
        began = time.monotonic()
        write = f"umask 077; echo {self.password} >{_PASSWORD_FILE}"
        unit = f"cat >/run/systemd/system/{UNIT} <<'UNIT'\n{_UNIT_FILE}UNIT\nsystemctl daemon-reload"
        show = f"{{ journalctl -u {UNIT} -n 60 --no-pager >&2; exit 1; }}"
        await self.host.shell(f"{write}\n{unit}\nsystemctl start {UNIT} || {show}", timeout_s=START_TIMEOUT_S + 30)
        await self.host.get(f"{DATA_DIR}/pki/ca.pem", self.host.directory)
        self.start_s = time.monotonic() - began

    async def stop(self) -> None:
        """SIGTERM, and wait; guests that run go on."""
        await self.host.run(["systemctl", "stop", UNIT], timeout_s=90)

    def api(self, *, timeout_s: int = 120) -> Any:
        """proxmoxer, logged in as admin@pve. Blocks; keeps no connection open."""
        api = ProxmoxAPI(
            "127.0.0.1", port=self.host.api_port, verify_ssl=str(self.host.directory / "ca.pem"),
            user="admin@pve", password=self.password, timeout=timeout_s,
        )  # fmt: skip
        api._store["session"].headers["Connection"] = "close"
        api._store["session"].close()
        return api

    def finish(self, api: Any, upid: str, *, limit_s: float = TASK_LIMIT_S) -> None:
        """Wait for a task. Raises `AssertionError` with its log unless it ended with OK or warnings."""
        node = api.nodes(self.host.name)
        deadline = time.monotonic() + limit_s
        while (status := node.tasks(upid).status.get(wait=20))["status"] != "stopped":
            assert time.monotonic() < deadline, f"{upid} still runs after {limit_s:g} s"
        if status["exitstatus"] != "OK" and not status["exitstatus"].startswith("WARNINGS"):
            lines = "\n".join(row["t"] for row in node.tasks(upid).log.get(limit=100))
            raise AssertionError(f"{upid}: {status['exitstatus']}\n{lines}")
