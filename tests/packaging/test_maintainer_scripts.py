"""dpkg's scripts: read by every shell, and obedient to the data directory. Their whole life is tried by ./dev lab test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from appliance_build.deb import MAINTAINER_SCRIPTS, PLACES

DEBIAN = Path(__file__).resolve().parents[2] / "packaging/debian"


@pytest.mark.parametrize("name", [*MAINTAINER_SCRIPTS, "launcher", "single"])
def test_a_plain_shell_reads_it(name: str) -> None:
    subprocess.run(["dash", "-n", DEBIAN / name], check=True)
    assert name in ("launcher", "single") or "set -e" in (DEBIAN / name).read_text()


def test_every_file_has_a_place() -> None:
    elsewhere = {"control", "single", *MAINTAINER_SCRIPTS}
    assert {path.name for path in DEBIAN.iterdir()} == {*PLACES, *elsewhere}


def preinst(tmp_path: Path, verb: str, *, known: int = 2) -> subprocess.CompletedProcess[str]:
    script = (DEBIAN / "preinst").read_text().replace("@DATA_FORMAT@", str(known))
    script = script.replace("/var/lib/appliance", str(tmp_path)).replace("/run/systemd/system", str(tmp_path / "none"))
    return subprocess.run(["dash", "-c", script, "preinst", verb, "1.0"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", ["install", "upgrade"])
@pytest.mark.parametrize("content", ["3\nappliance 9.1\n", "10\n", "", "garbage\n", "-\n"])
def test_a_data_directory_of_a_newer_version_is_refused(tmp_path: Path, verb: str, content: str) -> None:
    (tmp_path / "format").write_text(content)
    done = preinst(tmp_path, verb)
    assert done.returncode == 1
    assert "nothing has changed" in done.stderr
    assert ("appliance 9.1" in done.stderr) == ("9.1" in content)


@pytest.mark.parametrize("content", ["1\nappliance 0.1\n", "2\nappliance 0.2\n", "2"])
def test_one_of_this_or_an_older_version_is_taken(tmp_path: Path, content: str) -> None:
    (tmp_path / "format").write_text(content)
    assert preinst(tmp_path, "upgrade").returncode == 0


def test_a_first_installation_finds_nothing(tmp_path: Path) -> None:
    assert preinst(tmp_path, "install").returncode == 0


def test_going_back_after_a_refusal_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("9\n")
    assert preinst(tmp_path, "abort-upgrade").returncode == 0
