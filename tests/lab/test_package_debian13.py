"""The package's files on Debian 13, where nothing else is: no Python, no library but glibc, none of what it depends on."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab import debian_root, package_build
from tests.lab.debian_root import DebianRoot
from tests.lab.package_build import Package
from tests.lab.packaged import in_loop

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

VERSION_LIMIT_S = 0.3
LISTENS_LIMIT_S = 1.5
TRIES = 5
CLOCK = 'now() { read -r up _ </proc/uptime; echo "${up%.*}${up#*.}"; }'
"""Hundredths of a second, without starting a program."""


@pytest.fixture(scope="module")
def package() -> Package:
    return package_build.build()


@pytest.fixture(scope="module")
def root(package: Package) -> Iterator[DebianRoot]:
    with debian_root.unpacked(in_loop(debian_root.archive("trixie"))) as made:
        subprocess.run(["dpkg-deb", "--extract", package.path, made.path], check=True)
        shutil.copy(package.path, made.path / "root")
        assert package.alone is not None
        shutil.copy(package.alone, made.path / "root/appliance")
        yield made


def test_it_is_debian_13_without_python(root: DebianRoot) -> None:
    assert (root.path / "etc/debian_version").read_text().startswith("13")
    assert list(root.path.glob("usr/bin/python3*")) == []


def test_the_package_tells_its_version_at_once(root: DebianRoot, package: Package) -> None:
    said = root.sh(f"{CLOCK}; for i in $(seq {TRIES}); do a=$(now); appliance --version; echo $(($(now) - a)); done")
    lines = said.splitlines()
    assert lines[0] == f"appliance {package.version}"
    assert min(map(int, lines[1::2])) / 100 <= VERSION_LIMIT_S, lines


def test_it_listens_at_once(root: DebianRoot) -> None:
    serve = (
        "rm -f /tmp/log; timeout -s TERM 20 appliance serve --listen 127.0.0.1:8006 >/tmp/log 2>&1 & "
        "until grep -q 'listens on' /tmp/log 2>/dev/null; do kill -0 $!; sleep 0.1; done; kill $!; wait $! || true; cat /tmp/log"
    )
    took = []
    for _ in range(TRIES):
        log = root.sh(serve)
        took.append(float(re.findall(r"listens on https://127.0.0.1:8006 after ([\d.]+) s", log)[0]))
        assert "Traceback" not in log
    assert min(took) <= LISTENS_LIMIT_S, took


def test_the_doctor_names_all_that_is_missing_there(root: DebianRoot) -> None:
    said = root.sh("appliance doctor || echo status $?")
    for package in ("qemu-system-x86", "crun", "conmon", "libnftables1", "qemu-utils"):
        assert f"apt install {package}" in said, said
    assert "status 1" in said


def test_the_single_file_runs_as_it_is(root: DebianRoot, package: Package) -> None:
    lines = root.sh(
        f"{CLOCK}; for i in 1 2 3; do a=$(now); /root/appliance --version; echo $(($(now) - a)); done"
    ).splitlines()
    assert lines[0] == f"appliance {package.version}"
    assert min(map(int, lines[3::2])) / 100 <= VERSION_LIMIT_S, lines
    homes = root.sh("ls /var/cache/appliance; appliance help >/dev/null").split()
    assert len(homes) == 1


def test_dpkgs_scripts_may_run_twice_and_a_purge_leaves_no_file(root: DebianRoot, package: Package) -> None:
    """Without systemd, as in a container or while an image is built; the files were unpacked by hand before."""
    listing = "find / -xdev -path /proc -prune -o -path '/var/lib/dpkg/*' -prune -o -path '/var/log/*' -prune -o -print | sort"
    root.sh("rm -rf /usr/lib/appliance /var/lib/appliance /var/cache/appliance /usr/share/doc/appliance /etc/issue.d")
    root.sh("find / -xdev -name 'appliance*' -not -path '/proc/*' -not -path '/root/*' -exec rm -r {} + -prune")
    before = root.sh(listing)
    root.sh(
        f"dpkg --force-depends --install /root/{package.path.name}; appliance --version; systemctl --version 2>&1 || true;"
        "postinst=/var/lib/dpkg/info/appliance.postinst; $postinst configure 0; $postinst abort-remove; $postinst configure;"
        "dpkg --verify appliance; mkdir -p /var/lib/appliance; touch /var/lib/appliance/state.db"
    )
    assert root.sh("ls /etc/systemd/system/multi-user.target.wants").split() == [
        "appliance-guests.service",
        "appliance.service",
    ]
    root.sh(
        "dpkg --force-depends --remove appliance; test -e /var/lib/appliance/state.db; test -e /etc/default/appliance"
    )
    root.sh("dpkg --force-depends --purge appliance; ! test -e /var/lib/appliance")
    assert root.sh(listing) == before


def test_apt_finds_all_it_depends_on_there(root: DebianRoot, package: Package) -> None:
    plan = root.sh(f"apt-get --simulate --no-install-recommends install /root/{package.path.name}")
    chosen = set(re.findall(r"^Inst (\S+)", plan, re.M))
    assert {"appliance", "conmon", "qemu-system-x86", "dnsmasq-base"} <= chosen
    recommended = root.sh(f"apt-get --simulate --install-recommends install /root/{package.path.name}")
    assert {"lxcfs", "mmdebstrap"} <= set(re.findall(r"^Inst (\S+)", recommended, re.M))
