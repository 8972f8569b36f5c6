"""An appliance to be killed: starts the boot-sector VM below argv[1], waits for its greeting, says so, and hangs.

With "launch" as argv[2] it is killed by itself between the launch and the first instruction of the guest.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop

from appliance.clock import SystemClock
from appliance.model.guest import VmResources
from appliance.qemu.engine import QemuEngine
from appliance.qemu.vm import RunningVm
from appliance.tasks import TaskScope
from tests.qemu.boot_sector import write_disk
from tests.qemu.host import boot_spec, greeted, opened, read_until


async def main(directory: Path, moment: str) -> None:
    engine = QemuEngine(directory / "run", TaskScope("victim"), SystemClock())
    await engine.probe()
    resources = VmResources(disks={"virtio0": opened(write_disk(directory / "disk.raw"))})
    if moment == "launch":
        RunningVm.begin = _die  # type: ignore[method-assign]  # dies in place of the engine's step 7
    vm = await engine.start(boot_spec(), resources, on_state=lambda *_: None, log=print)
    console = await greeted(vm)
    await console.write(b"EARLY")
    await read_until(console, b"EARLY")
    print(f"pid {vm.pid}", flush=True)
    await asyncio.sleep(3600)


async def _die(self: RunningVm, *, links_down: object, state: object = None) -> None:
    print(f"pid {self.pid}", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), sys.argv[2]))
