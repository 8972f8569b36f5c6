"""Tasks on the real store: kill -9 of the process, then a start that tells the truth about what ran."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from appliance.clock import SystemClock
from appliance.events import EventBus
from appliance.services.tasks import TaskHandle, TaskService
from appliance.state.sqlite import SqliteStore

PROCESS = """
import asyncio, sys
from pathlib import Path
import uvloop
from tests.services.test_tasks_kill import open_tasks

async def main() -> None:
    store, tasks = await open_tasks(Path(sys.argv[1]))
    async def quick(handle):
        handle.warn("careful")
    async def slow(handle):
        handle.log("begun")
        handle.progress(0.5)
        await asyncio.Event().wait()
    done = await tasks.run("vzstart", object_id="101", user="admin@pve", work=quick)
    await tasks.wait(done, timeout_s=10)
    running = await tasks.run("qmclone", object_id="100", user="admin@pve", work=slow)
    while not list(Path(sys.argv[1]).glob(f"tasks/*/{running}")):
        await asyncio.sleep(0.01)
    print(done, running, flush=True)
    await asyncio.Event().wait()

uvloop.run(main())
"""


async def open_tasks(directory: Path) -> tuple[SqliteStore, TaskService]:
    store = await SqliteStore.open(directory / "state.db", SystemClock())
    tasks = TaskService(store, EventBus(), SystemClock(), directory=directory / "tasks", node="pve1")
    await tasks.start()
    return store, tasks


async def nothing(_: TaskHandle) -> None:
    """Work that ends at once."""


async def test_after_kill_9_ended_tasks_are_as_they_were_and_running_ones_interrupted(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        done, running = process.stdout.readline().split()
        os.kill(process.pid, signal.SIGKILL)
    store, tasks = await open_tasks(tmp_path)
    assert [(info.upid, info.status) for info in await tasks.list()] == [
        (running, "interrupted: the appliance was restarted"),
        (done, "WARNINGS: 1"),
    ]
    assert (await tasks.read_log(done))[0] == ["WARN: careful", "TASK WARNINGS: 1"]
    assert (await tasks.read_log(running))[0] == ["begun", "TASK ERROR: interrupted: the appliance was restarted"]
    new = await tasks.run("vzstart", object_id="101", user="admin@pve", work=nothing)
    assert (await tasks.wait(new, timeout_s=10)).status == "OK"
    await tasks.close()
    await store.close()
