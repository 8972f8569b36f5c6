"""A runtime started early waits for its configuration, gets all of it, and leaves nothing when there is none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.ct.config_pipe import ConfigPipe
from appliance.errors import HostError
from appliance.model.guest import CtMount
from tests.ct.conftest import SPEC, Host

LARGE = json.dumps({"filler": "x" * 300_000}).encode()


@pytest.mark.parametrize("config", [b"{}", LARGE])
async def test_a_reader_gets_what_is_written_later(tmp_path: Path, config: bytes) -> None:
    pipe = ConfigPipe(tmp_path)
    reader = await asyncio.create_subprocess_exec(
        "head", "-c", str(len(config)), tmp_path / "config.json", stdout=subprocess.PIPE
    )
    pipe.write(config)
    async with asyncio.timeout(10):
        assert (await reader.communicate())[0] == config
    await asyncio.to_thread(pipe.close)


async def test_a_reader_without_a_writer_gives_up(tmp_path: Path) -> None:
    pipe = ConfigPipe(tmp_path)
    reader = await asyncio.create_subprocess_shell(
        f"exec 3<{tmp_path}/config.json; echo open; cat <&3", stdout=subprocess.PIPE
    )
    assert reader.stdout is not None
    async with asyncio.timeout(10):
        assert await reader.stdout.readline() == b"open\n"
        await asyncio.to_thread(pipe.close)
        await asyncio.to_thread(pipe.close)
        assert await reader.stdout.read() == b""
        assert await reader.wait() == 0


def test_a_reader_that_comes_too_late_finds_no_pipe_to_wait_at(tmp_path: Path) -> None:
    pipe = ConfigPipe(tmp_path)
    with (tmp_path / "config.json").open("rb") as reader:
        pipe.close()
        assert reader.read() == b""
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_no_pipe_can_hold_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with (
        contextlib.closing(ConfigPipe(tmp_path)) as pipe,
        pytest.raises(HostError, match=r"config\.json: 3000000000 bytes"),
    ):
        pipe.write(bytes(3_000_000_000))


def test_a_file_that_is_there_already_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(HostError, match=r"config\.json"):
        ConfigPipe(tmp_path)


@pytest.mark.host
async def test_a_running_container_has_its_configuration_as_a_file(host: Host) -> None:
    guest = await host.start()
    path = host.engine._places.bundle(SPEC.guest_id) / "config.json"
    assert stat.S_ISREG((await asyncio.to_thread(path.stat)).st_mode)
    assert json.loads(await asyncio.to_thread(path.read_text))["hostname"] == SPEC.hostname
    await guest.stop()


@pytest.mark.host
async def test_a_start_whose_preparation_fails_leaves_no_waiting_runtime(host: Host) -> None:
    absent = CtMount(slot="mp0", volume="local:absent", path="/mnt")
    with pytest.raises(HostError, match="mp0: volume local:absent was not opened"):
        await host.start(replace(SPEC, mounts=(absent,)))
    bundle = host.engine._places.bundle(SPEC.guest_id)
    assert not await asyncio.to_thread(bundle.exists)
    assert not await asyncio.to_thread(_naming, bundle)
    await (await host.start()).stop()


def _naming(bundle: Path) -> list[str]:
    """The arguments of all processes that name it."""
    found = []
    for path in Path("/proc").glob("[1-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text())
    return [arguments for arguments in found if str(bundle) in arguments]
