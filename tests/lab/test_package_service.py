"""The package as a service of systemd, on Debian 12 and 13: what it does to files, units and the process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab import debian_root, debian_system, package_build
from tests.lab.debian_system import DebianSystem
from tests.lab.package_build import Package
from tests.lab.packaged import in_loop

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

WATCHDOG_S = 6
KEPT = "APPLIANCE_OPTIONS='--log-format plain'"


@dataclass(slots=True)
class Host:
    """One release, the package on it, and what was there before."""

    system: DebianSystem
    package: Package
    later: Package
    before: set[str] = field(default_factory=set)
    users: str = ""
    said: str = ""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Package]:
    package = package_build.build()
    return package, package_build.later(package, tmp_path_factory.mktemp("later"))


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def host(request: pytest.FixtureRequest, packages: tuple[Package, Package]) -> Iterator[Host]:
    """The package is installed on it; the tests follow the service through its life, in the order of the file."""
    archive = in_loop(debian_root.archive(request.param, debian_system.PACKAGES))
    with debian_system.started(archive) as system:
        found = Host(system, *packages)
        found.before, found.users = system.files(), system.sh("cat /etc/passwd")
        found.said = system.install(found.package)
        yield found


def test_it_is_installed_started_and_enabled(host: Host) -> None:
    system = host.system
    assert system.sh("ls /usr/bin/python3* 2>/dev/null || true") == ""
    assert [system.unit(name) for name in ("appliance", "appliance-guests")] == ["active enabled"] * 2, host.said
    assert system.sh("appliance --version") == f"appliance {host.package.version}"
    assert system.sh("dpkg --verify appliance || true") == ""
    assert system.sh("stat -c '%a %U' /var/lib/appliance /var/lib/appliance/admin-password") == "700 root\n600 root"
    assert f"https://{system.address()}:8006/" in system.sh("script --quiet --command 'agetty --show-issue' /dev/null")


def test_the_first_login_is_at_the_address_of_the_banner_over_verified_tls(host: Host, tmp_path: Path) -> None:
    host.system.password = host.system.sh("cat /var/lib/appliance/admin-password")
    api = host.system.api(tmp_path)
    assert [row["node"] for row in api.nodes.get()] == ["inner"]
    api.pools.post(poolid="kept")


def test_an_upgrade_keeps_state_and_settings(host: Host, tmp_path: Path) -> None:
    system = host.system
    system.sh(f'echo "{KEPT}" >/etc/default/appliance')
    pid = system.main_pid()
    system.install(host.later)
    assert system.unit() == "active enabled"
    assert system.main_pid() != pid
    assert system.sh("appliance --version") == f"appliance {host.later.version}"
    assert system.sh("cat /etc/default/appliance") == KEPT
    assert [row["poolid"] for row in system.api(tmp_path).pools.get()] == ["kept"]


def test_an_older_version_is_refused_over_newer_data_and_the_newer_one_goes_on(host: Host) -> None:
    system = host.system
    pid = system.main_pid()
    format_line = system.sh("cat /var/lib/appliance/format")
    system.sh("printf '99\\nappliance 9.9\\n' >/var/lib/appliance/format")
    assert "says format '99', written by appliance 9.9" in system.install(host.package, check=False)
    assert (
        system.sh("dpkg-query -W -f '${Status} ${Version}' appliance") == f"install ok installed {host.later.version}"
    )
    assert system.main_pid() == pid
    system.sh("mkdir /root/newer; cp /var/lib/appliance/format /root/newer")
    refused = system.sh("appliance serve --data-dir /root/newer --listen 127.0.0.1:9 || echo status $?")
    assert "written by appliance 9.9 (format 99)" in refused
    assert refused.endswith("status 1")
    assert system.sh("ls -A /root/newer; ls -d /run/appliance*") == "format\nlock\n/run/appliance"
    system.sh(f"printf '%s\\n' '{format_line}' >/var/lib/appliance/format")


def test_an_older_version_of_the_same_format_may_come_back(host: Host) -> None:
    host.system.install(host.package)
    assert host.system.unit() == "active enabled"
    assert host.system.sh("appliance --version") == f"appliance {host.package.version}"


def test_a_service_that_was_disabled_stays_away_over_an_upgrade(host: Host) -> None:
    system = host.system
    system.sh("systemctl disable --now appliance")
    system.install(host.later)
    assert system.unit() == "inactive disabled"
    system.sh("systemctl enable --now appliance")
    assert system.unit() == "active enabled"


def test_a_wrong_option_is_named_and_not_tried_again(host: Host) -> None:
    system = host.system
    system.sh("echo APPLIANCE_OPTIONS=--nonsense >/etc/default/appliance; systemctl restart appliance || true; sleep 3")
    assert system.unit().startswith("failed")
    assert system.sh("systemctl show -p NRestarts --value appliance") == "0"
    assert "unrecognized arguments: --nonsense" in system.sh("journalctl -u appliance -n 20 --no-pager -o cat")
    system.sh(f'echo "{KEPT}" >/etc/default/appliance; systemctl reset-failed appliance; systemctl restart appliance')


def test_a_loop_that_hangs_is_ended_by_systemd_and_the_service_comes_back(host: Host) -> None:
    system = host.system
    directory = "/run/systemd/system/appliance.service.d"
    system.sh(
        f"mkdir -p {directory}; printf '[Service]\\nWatchdogSec={WATCHDOG_S}s\\n' >{directory}/short.conf;"
        "systemctl daemon-reload; systemctl restart appliance"
    )
    pid = system.main_pid()
    time.sleep(2 * WATCHDOG_S)
    assert system.main_pid() == pid, "one that is well was ended"
    system.sh(f"kill -STOP {pid}")
    deadline = time.monotonic() + 90
    while system.main_pid() in (pid, 0) or system.unit() != "active enabled":
        assert time.monotonic() < deadline, system.sh("systemctl status appliance || true")
        time.sleep(1)
    assert "Watchdog timeout" in system.sh("journalctl -u appliance --no-pager -o cat --grep 'Watchdog timeout'")
    system.sh(f"rm -r {directory}; systemctl daemon-reload")


def test_a_removal_keeps_data_and_settings_and_a_purge_nothing(host: Host) -> None:
    system = host.system
    system.dpkg("--remove appliance")
    assert system.unit().split()[0] == "inactive"
    left = system.files() - host.before
    wanted = "/etc/systemd/system/multi-user.target.wants"  # Debian keeps who was enabled until a purge
    assert {path for path in left if not path.startswith("/var/lib/appliance")} == {
        "/etc/default/appliance", "/etc/issue.d", "/etc/issue.d/appliance.issue",
        f"{wanted}/appliance.service", f"{wanted}/appliance-guests.service",
    }  # fmt: skip
    assert "/var/lib/appliance/state.db" in left
    system.dpkg("--purge appliance")
    assert system.files() - host.before == set()
    assert system.sh("cat /etc/passwd") == host.users
    assert system.sh("ls -d /run/appliance* 2>/dev/null || true") == ""
    assert system.sh("systemctl list-unit-files 'appliance*' --no-legend || true") == ""
    assert system.sh("systemctl --failed --no-legend --plain") == ""
    assert system.sh("ip -o link show | wc -l") == "2", "lo and eth0"
