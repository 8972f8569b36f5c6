"""A directory of the host in guests of both engines, through the public API: mapped, shared, outliving the appliance."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from proxmoxer import ResourceException

from appliance.kernel import virtiofsd
from tests.e2e.test_native_engine import ECHO
from tests.harness import Appliance

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(240),
    pytest.mark.skipif(virtiofsd.find_program() is None, reason="virtiofsd is not installed"),
]

VM = 710


@pytest.fixture
def appliance() -> Iterator[Appliance]:
    with Appliance() as started:
        (started.home / "shared").mkdir()
        yield started
        api = started.api()
        started.finish(api, started.node(api).qemu(VM).delete())


def define(appliance: Appliance, **config: str) -> Any:
    """A VM of the boot sector that shares the directory."""
    api = appliance.api()
    node = appliance.node(api)
    row = f"node={appliance.node_name(api)},path={appliance.home}/shared"
    api.cluster.mapping.dir.post(id="home", map=row)
    wanted = {"memory": 64, "serial0": "socket", "vga": "none", "virtio0": "local:1,format=raw", "virtiofs0": "home"}
    appliance.finish(api, node.qemu.post(vmid=VM, **{**wanted, **config}))
    disk = next(appliance.data_dir.rglob(f"vm-{VM}-disk-0.raw"))
    with disk.open("r+b") as file:
        file.write(ECHO)
    return node.qemu(VM)


def daemons(appliance: Appliance) -> list[int]:
    """Every virtiofsd that serves the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = path.joinpath("cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(f"{appliance.home}/shared") in b"".join(words) and b"virtiofsd" in words[0]:
            found.append(int(path.name))
    return found


def gone(appliance: Appliance) -> bool:
    deadline = time.monotonic() + 20
    while daemons(appliance):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_native_guest_has_its_virtiofsd_until_it_stops(appliance: Appliance) -> None:
    guest = define(appliance, engine="native", cpu="host", numa="1")
    api = appliance.api()
    appliance.finish(api, guest.status.start.post())
    with appliance.terminal(api, f"qemu/{VM}") as console:
        console.wait_for("R", timeout_s=60)
    assert daemons(appliance)
    appliance.finish(api, guest.status.stop.post())
    assert gone(appliance)


def test_under_qemu_guest_and_virtiofsd_outlive_the_appliance(appliance: Appliance) -> None:
    guest = define(appliance)  # no engine is named: a share makes it QEMU's
    api = appliance.api()
    appliance.finish(api, guest.status.start.post())
    before = guest.status.current.get()["pid"]
    served = daemons(appliance)
    assert served
    assert before != (appliance.process.pid if appliance.process else 0)
    assert appliance.stop() == 0
    appliance.start()
    api = appliance.api()
    guest = appliance.node(api).qemu(VM)
    assert guest.status.current.get()["pid"] == before
    assert daemons(appliance) == served
    appliance.finish(api, guest.status.stop.post())
    assert gone(appliance)
    api.cluster.mapping.dir("home").delete()
    with pytest.raises(Exception, match="directory mapping 'home'"):
        appliance.finish(api, guest.status.start.post())
    with pytest.raises(ResourceException, match="belongs to the system"):
        api.cluster.mapping.dir.post(id="etc", map="node=a,path=/etc")
