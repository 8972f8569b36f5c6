"""The file system of the data directory is full: each change says so, reading goes on, and space makes all work again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.bad_input.client import Client, Reply
from tests.e2e.bad_input.conftest import files_of, proxmoxer_of
from tests.harness import Appliance, TaskFailed

pytestmark = [pytest.mark.host, pytest.mark.timeout(60), pytest.mark.xdist_group("full disk")]

VM = "/nodes/{node}/qemu"
UPLOAD = "/nodes/{node}/storage/local/upload"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 48 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


def fill(path: Path) -> None:
    with pytest.raises(OSError, match="No space"), path.open("ab", buffering=0) as file:  # noqa: PT012  until it fails
        while True:
            file.write(bytes(4096))


def test_a_full_disk_fails_each_change_clearly_and_loses_nothing(small: Path, tmp_path: Path) -> None:
    appliance = Appliance(small)
    appliance.log_path = tmp_path / "appliance.log"
    with appliance:
        client, api = Client(appliance), proxmoxer_of(appliance)
        node = api.nodes(client.node)
        appliance.finish(api, node.qemu.post(vmid=100, memory=32, description="kept", scsi0="local:0.001"))
        before = (node.qemu(100).config.get(), node.storage("local").content.get())
        fill(small / "filler")

        def fails(reply: Reply) -> None:
            if reply.status == 200:
                with pytest.raises(TaskFailed, match=r"full|[Nn]o space"):
                    appliance.finish(api, reply.body["data"])
            else:
                assert reply.status == 507, reply.text
                assert "full" in reply.text or "o space" in reply.text

        for _ in range(2):
            fails(client.call("POST", VM, data={"vmid": "101", "memory": "32", "scsi0": "local:0.01"}))
            fails(client.call("POST", UPLOAD, data={"content": "iso"}, files={"filename": ("x.iso", b"x" * (4 << 20))}))
            fails(client.call("POST", VM + "/100/clone", data={"newid": "102", "full": "1"}))
            fails(client.call("PUT", VM + "/100/config", data={"description": "x" * 8000, "tags": "a"}))
            fails(client.call("POST", "/access/users", data={"userid": "new@pve", "password": "correct horse"}))
            fails(client.call("POST", VM + "/100/status/start"))
            fill(small / "filler")
        assert Client(appliance).call("GET", VM + "/100/status/current").status == 200, "one can log in and look"
        assert (node.qemu(100).config.get(), node.storage("local").content.get()) == before
        assert [row["vmid"] for row in api.cluster.resources.get(type="vm")] == [100]
        assert files_of(appliance) == []

        appliance.kill()
        (small / "filler").unlink()
        appliance.start()
        client, api = Client(appliance), proxmoxer_of(appliance)
        node = api.nodes(client.node)
        assert (node.qemu(100).config.get(), node.storage("local").content.get()) == before
        assert [user["userid"] for user in api.access.users.get()].count("new@pve") == 0
        appliance.finish(api, node.qemu.post(vmid=101, memory=32, scsi0="local:0.001"))
        for vmid in (101, 100):
            appliance.finish(api, node.qemu(vmid).delete())
        assert "Traceback" not in appliance.log_path.read_text()
        api._store["session"].close()
    assert appliance.traces() == []


def test_an_appliance_that_has_lost_its_space_starts_and_stops(small: Path, tmp_path: Path) -> None:
    """Also a start on a full disk either works or says which file could not be written."""
    appliance = Appliance(small)
    appliance.log_path = tmp_path / "appliance.log"
    appliance.start()
    assert appliance.stop() == 0
    fill(small / "filler")
    (small / "password").unlink(missing_ok=True)
    with (small / "filler").open("ab") as file:
        file.truncate(file.tell() - 8192)  # for the harness's own password file
    try:
        appliance.start()
    except RuntimeError:
        assert appliance.process is not None
        assert appliance.process.returncode == 1
        assert "cannot start" in appliance.log_tail()
        assert "o space" in appliance.log_tail() or "full" in appliance.log_tail()
    else:
        assert Client(appliance).call("GET", "/version").status == 200
        assert appliance.stop() == 0
    assert "Traceback" not in appliance.log_tail(100_000)
    (small / "filler").unlink()
    with appliance:
        assert Client(appliance).call("GET", "/version").status == 200
    assert appliance.traces() == []
