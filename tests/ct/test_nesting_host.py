"""Containers inside containers: an OCI runtime does in a nested container what it does on a host, and reaches no further."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace

import pytest

from appliance.ct.running import RunningCt
from appliance.model.inside import ExecRequest
from appliance.model.volume import OpenedVolume
from tests.ct.conftest import APPLETS, BUSYBOX, SPEC, Host

pytestmark = pytest.mark.host
RUNTIME = shutil.which("runc") or ""

SCRIPT = "id -u; cat /proc/sys/kernel/hostname; ps -o pid,args; mount -t tmpfs none /tmp && echo own mount"
CONFIG = {
    "ociVersion": "1.0.2",
    "hostname": "inner",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["/bin/sh", "-c", SCRIPT],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": {kind: ["CAP_SYS_ADMIN", "CAP_CHOWN"] for kind in ("bounding", "effective", "permitted")},
    },
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    ],
    "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network", "user")],
              "uidMappings": [{"containerID": 0, "hostID": 0, "size": 1000}],
              "gidMappings": [{"containerID": 0, "hostID": 0, "size": 1000}],
              "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"]},
}  # fmt: skip


def with_runtime(volume: OpenedVolume) -> None:
    """The runtime, the libraries it is linked to, and a bundle for it."""
    needed = subprocess.run(["ldd", RUNTIME], capture_output=True, text=True, check=False).stdout
    libraries = [word for word in needed.split() if word.startswith("/")]
    for path in (RUNTIME, *libraries):
        target = volume.path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    root = volume.path / "bundle/rootfs"
    for name in ("bin", "proc", "dev", "tmp", "sys"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (volume.path / "bundle/config.json").write_text(json.dumps(CONFIG))


async def run_inner(guest: RunningCt) -> tuple[int, str]:
    said = b""
    request = ExecRequest(argv=(RUNTIME, "--root", "/run/inner", "run", "--bundle", "/bundle", "inner"))
    async with guest.executions.run(request) as execution:
        while item := await execution.next():
            said += item[1]
        return await execution.wait(), said.decode()


@pytest.mark.parametrize("features", [("nesting",), ("nesting", "keyctl", "fuse")])
async def test_a_runtime_runs_a_container_of_its_own_inside_a_nested_one(host: Host, features: tuple[str, ...]) -> None:
    with_runtime(host.volume)
    guest = await host.start(replace(SPEC, features=frozenset(features), pids=200, memory_mib=256))
    status, said = await run_inner(guest)
    assert status == 0, said
    lines = said.split("\n")
    assert lines[:2] == ["0", "inner"]
    assert "own mount" in lines
    assert not any("sleep 1000" in line for line in lines), "the outer container's processes are not in sight"
    await guest.stop()


async def test_without_nesting_the_inner_runtime_is_refused(host: Host) -> None:
    with_runtime(host.volume)
    guest = await host.start(replace(SPEC, pids=200, memory_mib=256))
    status, said = await run_inner(guest)
    assert status != 0
    assert "operation not permitted" in said.lower()
    await guest.stop()
