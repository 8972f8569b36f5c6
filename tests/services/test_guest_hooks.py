"""Hook scripts: what is run, with which words, and what it may prevent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from appliance.errors import CommandFailed, HostError, NotFound
from appliance.model.guest import GuestId
from appliance.model.volume import OpenedVolume, VolumeFormat, VolumeId
from appliance.services import guest_hooks
from appliance.services.storage import StorageService

SCRIPT = "local:snippets/hook.sh"


class Snippets:
    """A storage with one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def open(self, volume_id: VolumeId) -> OpenedVolume:
        if not await asyncio.to_thread(self._path.exists):
            raise NotFound(f"volume {volume_id}")
        return OpenedVolume(volume_id=volume_id, path=self._path, format=VolumeFormat.RAW, size_bytes=0)


async def run(path: Path, phase: str, said: list[str], script: str = SCRIPT) -> None:
    await guest_hooks.run(cast(StorageService, Snippets(path)), script, GuestId(101), phase, said.append)


def write(path: Path, text: str, *, executable: bool = True) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755 if executable else 0o644)
    return path


async def test_it_is_called_with_id_and_phase_and_what_it_says_is_in_the_log(tmp_path: Path) -> None:
    said: list[str] = []
    await run(write(tmp_path / "hook.sh", "echo called with $*"), "post-start", said)
    assert said == ["post-start: called with 101 post-start"]


async def test_only_before_a_start_does_its_failure_matter(tmp_path: Path) -> None:
    said: list[str] = []
    path = write(tmp_path / "hook.sh", "echo no >&2; exit 3")
    with pytest.raises(CommandFailed, match="status 3: no"):
        await run(path, "pre-start", said)
    await run(path, "pre-stop", said)
    assert "status 3" in said[-1]


async def test_an_upload_is_not_a_script_until_the_hosts_root_has_made_it_one(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="not executable"):
        await run(write(tmp_path / "hook.sh", "exit 0", executable=False), "pre-start", [])


async def test_one_that_is_missing_is_named_and_none_is_fine(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"hook\.sh"):
        await run(tmp_path / "absent", "pre-start", [])
    await run(tmp_path / "absent", "pre-start", [], script="")
