"""Run as a process by `test_restart`: start a network, plug a VM and a container, say so, wait to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from appliance.clock import SystemClock
from appliance.model.guest import GuestId, NicSpec
from appliance.network.backend import NetworkBackend
from appliance.tasks import TaskScope


async def main(netns: str, run_dir: str, pid: str) -> None:
    backend = NetworkBackend(Path(run_dir), TaskScope("killed"), SystemClock(), instance="t1", netns=netns)
    await backend.start()
    container = NicSpec(slot="net0", model="veth", mac="BC:24:11:00:00:0A", bridge="vmbr0", name="eth0")
    machine = NicSpec(slot="net0", model="virtio", mac="BC:24:11:00:00:0B", bridge="vmbr0")
    await backend.plug_ct(GuestId(101), container, Path(f"/proc/{pid}/ns/net"))
    await backend.plug_vm(GuestId(102), machine)
    print("plugged", flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
