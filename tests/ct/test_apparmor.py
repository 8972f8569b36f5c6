"""The AppArmor profile of containers: Debian's parser takes it, and a host without AppArmor says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from appliance import command
from appliance.ct import apparmor


@pytest.mark.skipif(shutil.which(apparmor.PARSER) is None, reason="apparmor_parser is not installed")
async def test_the_parser_compiles_the_profile() -> None:
    argv = [apparmor.PARSER, "--skip-kernel-load", "--skip-cache", "--stdout"]
    done = await command.run(argv, timeout_s=60, stdin=apparmor.profile().encode())
    assert apparmor.NAME.encode() in done.stdout


async def test_a_host_without_apparmor_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apparmor, "_ENABLED", tmp_path / "absent")
    assert await apparmor.load() == ("", "this kernel has no AppArmor, or it is off")
    (tmp_path / "enabled").write_text("Y\n")
    monkeypatch.setattr(apparmor, "_ENABLED", tmp_path / "enabled")
    monkeypatch.setattr(apparmor, "PARSER", "no-such-parser")
    assert await apparmor.load() == ("", "no-such-parser is not installed")


def test_what_runs_programs_of_the_host_cannot_be_written() -> None:
    text = apparmor.profile()
    for name in ("core_pattern", "modprobe", "/proc/sysrq-trigger", "/sys/kernel/**", "fstype=debugfs"):
        assert name in text
