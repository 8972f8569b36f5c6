"""A Debian system with systemd, as a container of the appliance: where the package is installed as a service in seconds.

No guest runs in it: what the package does to files, units and the process is tried here, on each release; what it does to
guests, in a lab host (package_life.py).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from proxmoxer import ProxmoxAPI

from tests.harness import ROOT, Appliance
from tests.lab.package_build import Package

PACKAGES: Final = ("netbase", "systemd", "systemd-sysv", "dbus", "iproute2", "procps", "passwd")
RUN_TIMEOUT_S: Final = 200.0
SERVING_LIMIT_S: Final = 120.0
VMID: Final = 900
_TEMPLATE = "system.tar"


class DebianSystem:
    """The container. `sh` runs as its root."""

    def __init__(self, outer: Appliance) -> None:
        self._outer = outer
        self.password = ""

    def sh(self, script: str, *, check: bool = True) -> str:
        """A shell script's output, errors included. Raises `AssertionError` when it fails."""
        done = self._command("exec", str(VMID), "--", "sh", "-ec", f"exec 2>&1; export LC_ALL=C.UTF-8; {script}")
        assert done.returncode == 0 or not check, f"{script}\nstatus {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def put(self, path: Path) -> None:
        """Copy a file into /root."""
        done = self._command("push", str(VMID), str(path), f"/root/{path.name}")
        assert done.returncode == 0, done.stderr

    def dpkg(self, words: str, *, check: bool = True) -> str:
        """dpkg without what the package depends on."""
        return self.sh(f"DEBIAN_FRONTEND=noninteractive dpkg --force-depends {words}", check=check)

    def install(self, package: Package, *, check: bool = True) -> str:
        """Install a version over whatever is there; what dpkg said."""
        self.put(package.path)
        return self.dpkg(f"--force-downgrade --install /root/{package.path.name}", check=check)

    def unit(self, name: str = "appliance") -> str:
        """ "active enabled", in systemd's words."""
        return self.sh(f"echo $(systemctl is-active {name}) $(systemctl is-enabled {name} 2>/dev/null)")

    def main_pid(self) -> int:
        """The service's."""
        return int(self.sh("systemctl show -p MainPID --value appliance"))

    def address(self) -> str:
        """The container's own on the outer appliance's bridge."""
        rows = json.loads(self.sh("ip -json -4 address show dev eth0"))
        return str(rows[0]["addr_info"][0]["local"])

    def api(self, scratch: Path) -> Any:
        """proxmoxer, from the host around, at the container's address, over TLS verified by the inner appliance's authority."""
        ca = scratch / "ca.pem"
        ca.write_text(self.sh("cat /var/lib/appliance/pki/ca.pem") + "\n")
        api = ProxmoxAPI(
            self.address(), port=8006, verify_ssl=str(ca), user="admin@pve", password=self.password, timeout=60
        )
        api._store["session"].headers["Connection"] = "close"
        api._store["session"].close()
        return api

    def outer_log(self) -> str:
        """The newest of the outer appliance's."""
        return self._outer.log_tail()

    def files(self) -> set[str]:
        """All files but those that the system writes for itself."""
        left_out = (
            "/proc",
            "/sys",
            "/run",
            "/dev",
            "/var/log",
            "/var/lib/dpkg",
            "/var/lib/systemd",
            "/tmp",
            "/var/tmp",
            "/root",
        )
        pruned = " -o ".join(f"-path {path} -prune" for path in left_out)
        return set(self.sh(f"find / -xdev {pruned} -o -print").splitlines())

    def _command(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "appliance", "--data-dir", str(self._outer.data_dir), "ct", verb, *words]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)


@contextlib.contextmanager
def started(archive: Path) -> Iterator[DebianSystem]:
    """The system of `archive` (debian_root.py), booted, for as long as the context lasts."""
    with Appliance() as outer:
        api = outer.api()
        node = outer.node(api)
        template = outer.upload(api, archive, "vztmpl", _TEMPLATE)
        outer.finish(
            api,
            node.lxc.post(
                vmid=VMID, hostname="inner", ostemplate=template, rootfs="local:4", memory=1024, cores=2, unprivileged=0,
                features="nesting=1", net0=f"name=eth0,bridge={outer.bridge},ip=dhcp",
            ),
        )  # fmt: skip
        outer.finish(api, node.lxc(VMID).status.start.post())
        system = DebianSystem(outer)
        system.sh("systemctl is-system-running --wait || true")
        system.sh("rm -f /etc/dpkg/dpkg.cfg.d/*")  # mmdebstrap's: dpkg leaves out documentation
        _wait_for_address(system)
        try:
            yield system
        finally:
            outer.finish(api, node.lxc(VMID).status.stop.post())
            outer.finish(api, node.lxc(VMID).delete())


def _wait_for_address(system: DebianSystem) -> None:
    deadline = time.monotonic() + SERVING_LIMIT_S
    while not system.sh("ip -4 -brief address show dev eth0 scope global"):
        if time.monotonic() > deadline:
            seen = system.sh(
                "networkctl status eth0; journalctl -n 60 --no-pager; ip address; cat /etc/systemd/network/*",
                check=False,
            )
            raise AssertionError(f"the container has no address:\n{seen}\n{system.outer_log()}")
        time.sleep(0.5)
