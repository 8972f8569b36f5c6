"""The file system of the data directory is full: each change says so, reading goes on, and space makes all work again."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bad_input.client import Client, Reply
from tests.e2e.bad_input.conftest import files_of, proxmoxer_of
from tests.harness import Appliance, TaskFailed

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

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


def is_done(appliance: Appliance, api: Any, reply: Reply) -> bool:
    """Whether the change happened; if not, it must say that the disk is full."""
    if reply.status != 200:
        assert reply.status == 507, reply.text
        assert "full" in reply.text or "o space" in reply.text
        return False
    if str(reply.body["data"]).startswith("UPID:"):
        try:
            appliance.finish(api, reply.body["data"])
        except TaskFailed as failure:
            if re.search("full|[Nn]o space", str(failure)):
                return False
            raise
    return True


def test_on_a_full_disk_each_change_happens_or_fails_clearly_and_nothing_is_lost(small: Path, tmp_path: Path) -> None:
    appliance = Appliance(small)
    appliance.log_path = tmp_path / "appliance.log"
    with appliance:
        client, api = Client(appliance), proxmoxer_of(appliance)
        node = api.nodes(client.node)
        appliance.finish(api, node.qemu.post(vmid=100, memory=32, description="kept", scsi0="local:0.001"))
        content, config = node.storage("local").content.get(), node.qemu(100).config.get()
        users = {user["userid"] for user in api.access.users.get()}
        iso = {"filename": ("x.iso", b"x" * (4 << 20))}
        for number in range(10):
            fill(small / "filler")
            for reply in (
                client.call("POST", VM, data={"vmid": "101", "memory": "32", "scsi0": "local:0.01"}),
                client.call("POST", VM + "/100/clone", data={"newid": "102", "full": "1"}),
                client.call("POST", UPLOAD, data={"content": "iso"}, files=iso),
            ):
                assert not is_done(appliance, api, reply), "new volumes leave the last of the space alone"
            description, user = f"{number}" + "x" * 8000, f"new{number}@pve"
            if is_done(appliance, api, client.call("PUT", VM + "/100/config", data={"description": description})):
                config["description"] = description
            if is_done(appliance, api, client.call("POST", "/access/users", data={"userid": user})):
                users.add(user)
        assert Client(appliance).call("GET", VM + "/100/status/current").status == 200, "one can log in and look"

        def nothing_is_lost() -> None:
            now = node.qemu(100).config.get()
            assert {**now, "digest": ""} == {**config, "digest": ""}
            assert node.storage("local").content.get() == content
            assert {user["userid"] for user in api.access.users.get()} == users
            assert [row["vmid"] for row in api.cluster.resources.get(type="vm")] == [100]
            assert files_of(appliance) == []

        nothing_is_lost()
        appliance.kill()
        (small / "filler").unlink()
        appliance.start()
        client, api = Client(appliance), proxmoxer_of(appliance)
        node = api.nodes(client.node)
        nothing_is_lost()
        appliance.finish(api, node.qemu.post(vmid=101, memory=32, scsi0="local:0.001"))
        for vmid in (101, 100):
            appliance.finish(api, node.qemu(vmid).delete())
        assert "Traceback" not in appliance.log_path.read_text()
        api._store["session"].close()
    assert appliance.lasting_traces() == []


def test_on_a_full_disk_guests_are_stopped_and_volumes_deleted_and_that_makes_room(
    small: Path, tmp_path: Path, busybox_template: Path
) -> None:
    appliance = Appliance(small)
    appliance.log_path = tmp_path / "appliance.log"
    with appliance:
        api = appliance.api()
        node = appliance.node(api)
        template = appliance.upload(api, busybox_template, "vztmpl", "busybox.tar.gz")
        (tmp_path / "spare.iso").write_bytes(bytes(8 << 20))
        spare = appliance.upload(api, tmp_path / "spare.iso", "iso", "spare.iso")
        parameters = {"ostemplate": template, "rootfs": "local:0.02", "memory": 32}
        for vmid in (100, 101):
            appliance.finish(api, node.lxc.post(vmid=vmid, **parameters, start=1))
        for vmid, command in ((100, "stop"), (101, "shutdown")):
            fill(small / "filler")
            appliance.finish(api, node.lxc(vmid).status(command).post())
            fill(small / "filler")
            assert node.lxc(vmid).status.current.get()["status"] == "stopped"
        fill(small / "filler")
        appliance.finish(api, node.lxc(101).delete())
        fill(small / "filler")
        assert len(node.storage("local").content.get(content="rootdir")) == 1
        upid = node.storage("local").content(spare).delete()
        appliance.finish(api, upid)
        assert [row["volid"] for row in node.storage("local").content.get(content="iso")] == []
        assert node.tasks(upid).log.get()[-1]["t"] == "TASK OK"

        appliance.finish(api, node.lxc(100).status.start.post())
        appliance.finish(api, node.lxc(100).status.stop.post())
        appliance.finish(api, node.lxc.post(vmid=102, **parameters))
        for vmid in (100, 102):
            appliance.finish(api, node.lxc(vmid).delete())
        assert "Traceback" not in appliance.log_path.read_text()
    assert appliance.lasting_traces() == []


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
    assert appliance.lasting_traces() == []
