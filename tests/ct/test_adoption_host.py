"""The appliance dies or is closed while containers run: they go on and are found, and what was half made is removed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.ct import rootfs
from appliance.model.guest import GuestState
from tests.ct.conftest import SPEC, Host, each_runtime, is_alive, leftovers, shell

pytestmark = pytest.mark.host

STARTER = """
import asyncio, sys
from pathlib import Path
from appliance import command
from appliance.clock import SystemClock
from appliance.ct.engine import CtEngine
from appliance.model.guest import CtResources
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.tasks import TaskScope
from tests.ct.conftest import opening, shell

async def main():
    run_dir, root = Path(sys.argv[1]), Path(sys.argv[2])
    engine = CtEngine(run_dir, run_dir, TaskScope("starter"), SystemClock())
    await engine.probe()
    async def connect(namespace):
        if sys.argv[3] == "die in connect":
            print("dying", flush=True)
            await asyncio.sleep(1000)
    volume = OpenedVolume(volume_id=None, path=root, format=VolumeFormat.SUBVOL, size_bytes=0)
    spec = shell("seq 1 2000; echo up; read line; echo got $line; exec sleep 1000")
    guest = await engine.start(spec, CtResources(open=opening({"rootfs": volume}), connect=connect),
                               on_state=lambda state, reason: None, log=print)
    print(guest.pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def killed_starter(run_dir: Path, root: Path, how: str) -> str:
    """Start a container in another process, and kill that process with -9 once it has said something."""
    argv = [sys.executable, "-c", STARTER, str(run_dir), str(root), how]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        said = process.stdout.readline().decode().strip()
        process.kill()
    return said


async def test_a_container_survives_kill_9_of_the_appliance_and_its_console_goes_on(host: Host, run_dir: Path) -> None:
    pid = int(await asyncio.to_thread(killed_starter, run_dir, host.volume.path, "run"))
    assert list(await host.engine.running_ids()) == [101]
    guest = await host.engine.adopt(SPEC, on_state=host.on_state)
    assert guest is not None
    assert (guest.pid, guest.state) == (pid, GuestState.RUNNING)
    assert abs(guest.started_at - time.time()) < 30
    console = await guest.open_console("console")
    text = console.history()
    async with asyncio.timeout(30):
        while not text.endswith(b"up\r\n"):
            text += await console.read()
    assert text == b"".join(b"%d\r\n" % number for number in range(1, 2001)) + b"up\r\n"
    await console.write(b"hello\n")
    async with asyncio.timeout(30):
        answer = b""
        while b"got hello" not in answer:
            answer += await console.read()
    await console.close()
    await guest.stop()
    assert await leftovers(run_dir) == []


async def test_what_a_start_interrupted_by_kill_9_left_is_removed(host: Host, run_dir: Path) -> None:
    assert await asyncio.to_thread(killed_starter, run_dir, host.volume.path, "die in connect") == "dying"
    assert await leftovers(run_dir) != []
    guest = await host.engine.adopt(SPEC, on_state=host.on_state)
    if guest is not None:  # its record was there already: it is a created container that nobody will ever start
        await guest.stop()
    assert await leftovers(run_dir) == []


@each_runtime
async def test_a_detached_container_goes_on_and_is_found_paused_when_it_is(host: Host) -> None:
    guest = await host.start()
    await guest.pause()
    await host.engine.close()
    assert await is_alive(guest.pid)
    again = await host.engine.adopt(SPEC, on_state=host.on_state)
    assert again is not None
    assert again.state is GuestState.PAUSED
    await again.resume()
    assert (await again.execute(["/bin/echo", "alive"], timeout_s=10)).text == "alive"


async def test_closing_the_engine_finishes_the_removal_of_what_has_just_ended(host: Host, run_dir: Path) -> None:
    guest = await host.start(shell("exit 0"))
    while await is_alive(guest.pid):
        await asyncio.sleep(0.001)
    await host.engine.close()
    assert await leftovers(run_dir) == []


async def test_probing_removes_what_dead_containers_left(host: Host, run_dir: Path) -> None:
    def leave_a_mount() -> None:
        bundle = run_dir / "ct/300"
        bundle.mkdir()
        rootfs.attach(host.volume, bundle / "rootfs", about="ct 300", id_base=0, id_count=65_536, maps=rootfs.IdMaps())

    await asyncio.to_thread(leave_a_mount)
    await host.engine.probe()
    assert await leftovers(run_dir) == []
    assert (host.volume.path / "bin/busybox").exists()
