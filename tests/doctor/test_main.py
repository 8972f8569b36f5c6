"""`appliance doctor` as a process, on this host, without any appliance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from appliance.doctor.finding import Level

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.host


def doctor(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "appliance", "doctor", *map(str, arguments)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


def test_it_says_what_it_found_and_its_status_says_whether_something_is_broken(tmp_path: Path) -> None:
    done = doctor("--data-dir", tmp_path / "none", "--output", "json")
    findings = json.loads(done.stdout)
    assert {"system", "QEMU", "appliance", "disk space"} <= {finding["what"] for finding in findings}
    assert all(finding["cost"] for finding in findings if finding["level"] != Level.OK)
    assert done.returncode == int(any(finding["level"] == Level.BROKEN for finding in findings))
    assert done.stderr == ""
    assert not (tmp_path / "none").exists(), "it has changed something"


def test_its_bundle_is_written_without_an_appliance_and_only_once(tmp_path: Path) -> None:
    path = tmp_path / "report.tar.gz"
    done = doctor("--data-dir", tmp_path / "none", "--bundle", path)
    assert "Look at it before you send it" in done.stderr
    with tarfile.open(path) as archive:
        assert "appliance-report/doctor.txt" in archive.getnames()
    again = doctor("--data-dir", tmp_path / "none", "--bundle", path)
    assert again.returncode == 1
    assert f"create {path}: File exists" in again.stderr


def test_a_newer_data_directory_is_broken(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("99\nappliance 9\n")
    done = doctor("--data-dir", tmp_path)
    assert done.returncode == 1
    assert "has format 99" in " ".join(done.stdout.split())


def test_its_help_is_found_from_both_sides() -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    argv = [sys.executable, "-m", "appliance"]
    helps = [
        subprocess.run([*argv, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        for words in (("help", "doctor"), ("doctor", "--help"))
    ]
    assert helps[0] == helps[1]
    assert "--bundle" in helps[0]
