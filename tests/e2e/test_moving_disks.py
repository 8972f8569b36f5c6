"""A disk of a VM that runs moves to another storage, through the API and with a real QEMU."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Appliance, TaskFailed

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]

VM = 100
MIB = 1 << 20
SIZE = 32 * MIB
SLOW_KIB_S = 1024
LIMIT_S = 60


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Appliance, bytes]]:
    """An appliance with a second storage, and a VM that runs on a disk of random bytes, which are told."""
    content = os.urandom(SIZE)
    with Appliance() as appliance:
        api = appliance.api()
        node = appliance.node(api)
        api.storage.post(storage="other", type="dir", path=str(tmp_path / "other"), content="images")
        appliance.finish(
            api,
            node.qemu.post(
                vmid=VM, memory=32, serial0="socket", vga="serial0", scsihw="virtio-scsi-single", engine="qemu",
                scsi0=f"local:{SIZE / (1 << 30)},format=raw,iothread=1",
            ),
        )  # fmt: skip
        (disk,) = appliance.data_dir.rglob(f"vm-{VM}-disk-0.raw")
        disk.write_bytes(content)
        appliance.finish(api, node.qemu(VM).status.start.post())
        yield appliance, content


def vm(appliance: Appliance) -> Any:
    return appliance.node(appliance.api()).qemu(VM)


def stored(appliance: Appliance, storage: str) -> list[str]:
    api = appliance.api()
    return [row["volid"] for row in appliance.node(api).storage(storage).content.get(content="images")]


def raw(path: Path, tmp_path: Path) -> bytes:
    out = tmp_path / "content"
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", path, out], check=True, timeout=60)
    return out.read_bytes()


def test_a_disk_moves_and_its_guest_goes_on(running: tuple[Appliance, bytes], tmp_path: Path) -> None:
    appliance, content = running
    pid = vm(appliance).status.current.get()["pid"]
    appliance.finish(
        appliance.api(), vm(appliance).move_disk.post(disk="scsi0", storage="other", format="qcow2", delete=1)
    )
    assert vm(appliance).config.get()["scsi0"].startswith(f"other:{VM}/vm-{VM}-disk-0.qcow2,")
    assert (stored(appliance, "local"), stored(appliance, "other")) == ([], [f"other:{VM}/vm-{VM}-disk-0.qcow2"])
    status = vm(appliance).status.current.get()
    assert (status["status"], status["pid"]) == ("running", pid)
    assert raw(tmp_path / f"other/images/{VM}/vm-{VM}-disk-0.qcow2", tmp_path) == content
    appliance.finish(appliance.api(), vm(appliance).status.stop.post())
    appliance.finish(appliance.api(), vm(appliance).status.start.post())


def test_a_killed_appliance_leaves_the_old_disk_and_removes_the_half_copied_one(
    running: tuple[Appliance, bytes], tmp_path: Path
) -> None:
    appliance, content = running
    pid = vm(appliance).status.current.get()["pid"]
    upid = vm(appliance).move_disk.post(disk="scsi0", storage="other", bwlimit=SLOW_KIB_S)
    tasks = appliance.node(appliance.api()).tasks
    deadline = time.monotonic() + LIMIT_S
    while not tasks(upid).status.get().get("progress"):
        assert time.monotonic() < deadline
    appliance.kill()
    appliance.start()
    assert vm(appliance).config.get()["scsi0"].startswith(f"local:{VM}/vm-{VM}-disk-0.raw,")
    assert stored(appliance, "other") == []
    assert vm(appliance).status.current.get()["pid"] == pid
    appliance.finish(appliance.api(), vm(appliance).move_disk.post(disk="scsi0", storage="other", delete=1))
    assert raw(tmp_path / f"other/images/{VM}/vm-{VM}-disk-0.raw", tmp_path) == content


def test_a_cancelled_move_and_one_to_a_full_storage_leave_the_old_disk(
    running: tuple[Appliance, bytes], tmp_path: Path
) -> None:
    appliance, _ = running
    api = appliance.api()
    upid = vm(appliance).move_disk.post(disk="scsi0", storage="other", bwlimit=SLOW_KIB_S)
    appliance.node(api).tasks(upid).delete()
    with pytest.raises(TaskFailed):
        appliance.finish(api, upid)
    assert stored(appliance, "other") == []
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", tiny], check=True)
    try:
        api.storage.post(storage="tiny", type="dir", path=str(tiny), content="images")
        with pytest.raises(TaskFailed, match="space"):
            appliance.finish(api, vm(appliance).move_disk.post(disk="scsi0", storage="tiny"))
        assert stored(appliance, "tiny") == []
        assert vm(appliance).config.get()["scsi0"].startswith(f"local:{VM}/")
        assert vm(appliance).status.current.get()["qmpstatus"] == "running"
        api.storage("tiny").delete()
    finally:
        subprocess.run(["umount", tiny], check=True)
