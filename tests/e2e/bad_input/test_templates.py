"""Container templates that want out: a clear task error that names the template, and no half-made container."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bad_input import archives
from tests.e2e.bad_input.client import Client
from tests.e2e.busybox import write_template
from tests.harness import Appliance, TaskFailed

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

CT = 100
SECRET = "the host's own secret"
NAMES = sorted(archives.hostile(Path("/x")))


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("host") / "secret"
    path.write_text(SECRET)
    yield path
    assert path.read_text() == SECRET
    assert sorted(path.parent.iterdir()) == [path]


@pytest.fixture
def template(appliance: Appliance) -> Iterator[Path]:
    """Where the template to try is put; gone after the test."""
    path = appliance.data_dir / "storage/local/template/cache/bad.tar.gz"
    yield path
    path.unlink(missing_ok=True)


def create(appliance: Appliance, api: Any, name: str = "bad.tar.gz", rootfs: str = "local:0.05") -> str:
    upid = appliance.node(api).lxc.post(
        vmid=CT, ostemplate=f"local:vztmpl/{name}", rootfs=rootfs, memory=32, hostname="bad"
    )
    return appliance.finish(api, upid, limit_s=40)


def nothing_is_left(appliance: Appliance, api: Any, client: Client) -> None:
    assert api.cluster.resources.get(type="vm") == []
    assert str(api.cluster.nextid.get(vmid=CT)) == str(CT)
    rows = client.call("GET", "/nodes/{node}/storage/local/content").body["data"]
    assert [row["volid"] for row in rows if row["content"] != "vztmpl"] == []
    images = appliance.data_dir / "storage/local/images"
    assert not images.exists() or list(images.iterdir()) == []
    assert appliance.lasting_traces("mount: ", "loop device: ", "cgroup: ", "unpack") == []


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_template_is_refused_by_name(
    appliance: Appliance, api: Any, client: Client, template: Path, secret: Path, name: str
) -> None:
    make, word = archives.hostile(secret)[name]
    template.write_bytes(make())
    with pytest.raises(TaskFailed, match=word) as caught:
        create(appliance, api)
    assert "bad.tar.gz" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not (appliance.data_dir / "evil").exists()
    nothing_is_left(appliance, api, client)


def test_a_truncated_template_is_damaged(
    appliance: Appliance, api: Any, client: Client, template: Path, tmp_path: Path
) -> None:
    template.write_bytes(archives.truncated(tmp_path))
    with pytest.raises(TaskFailed, match=r"bad\.tar\.gz: damaged archive"):
        create(appliance, api)
    nothing_is_left(appliance, api, client)


def test_a_bomb_in_a_header_fills_no_memory(appliance: Appliance, api: Any, client: Client, template: Path) -> None:
    bomb = template.with_name("bad.tar.zst")
    bomb.write_bytes(archives.header_bomb(1200 << 20))
    assert bomb.stat().st_size < 1 << 20
    try:
        with pytest.raises(TaskFailed, match=r"bad\.tar\.zst: damaged archive"):
            create(appliance, api, "bad.tar.zst")
    finally:
        bomb.unlink()
    nothing_is_left(appliance, api, client)


def test_content_that_does_not_fit_its_volume_names_the_volume(
    appliance: Appliance, api: Any, client: Client, template: Path
) -> None:
    """Within the byte limit, but a file system needs space of its own."""
    template.write_bytes(archives.many_files(50, 1 << 20))
    with pytest.raises(TaskFailed, match=r"volume .*[Nn]o space left"):
        create(appliance, api)
    nothing_is_left(appliance, api, client)


def test_what_is_written_into_a_new_root_follows_none_of_its_links_out(
    appliance: Appliance, api: Any, client: Client, template: Path, secret: Path
) -> None:
    """Links to absolute names mean the container's root, also when the appliance writes into it afterwards."""
    template.write_bytes(
        archives.archive(
            archives.entry("etc/shadow", kind=b"2", link=str(secret)),
            archives.entry("etc/fstab", kind=b"2", link=str(secret)),
            archives.entry("etc/machine-id", kind=b"2", link=str(secret)),
            archives.entry("etc/hostname", kind=b"2", link=str(secret)),
            archives.entry("etc/resolv.conf", kind=b"2", link=str(secret)),
            archives.entry("etc/hosts", kind=b"2", link=str(secret.parent)),
            archives.entry("root/.ssh", kind=b"2", link=str(secret.parent)),
            archives.entry("dev/sda", kind=b"4", devmajor=8, devminor=0),
        )
    )
    node = appliance.node(api)
    upid = node.lxc.post(
        vmid=CT,
        ostemplate="local:vztmpl/bad.tar.gz",
        rootfs="local:0.05",
        memory=32,
        password="correct horse",
        **{"ssh-public-keys": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJmDkKJ2sYUPPqTC2WtdMq3KNVzCuvHgiZ1v3E0rUZ4X a@b"},
    )
    with pytest.raises(TaskFailed, match=r"volume local:100/.*/root/\.ssh"):
        appliance.finish(api, upid)
    assert secret.read_text() == SECRET
    nothing_is_left(appliance, api, client)


def test_a_creation_that_is_cancelled_leaves_nothing(
    appliance: Appliance, api: Any, client: Client, template: Path
) -> None:
    template.write_bytes(archives.many_files(150, 1 << 20))
    node = appliance.node(api)
    upid = node.lxc.post(vmid=CT, ostemplate="local:vztmpl/bad.tar.gz", rootfs="local:1", memory=32)
    deadline = time.monotonic() + 20
    while not any("extracting" in row["t"] for row in node.tasks(upid).log.get(limit=50)):
        assert time.monotonic() < deadline
        assert node.tasks(upid).status.get()["status"] == "running"
    node.tasks(upid).delete()
    with pytest.raises(TaskFailed):
        appliance.finish(api, upid)
    nothing_is_left(appliance, api, client)


def test_a_good_template_still_works_after_all_that(
    appliance: Appliance, api: Any, client: Client, template: Path
) -> None:
    write_template(template)
    create(appliance, api)
    appliance.finish(api, appliance.node(api).lxc(CT).delete())
    nothing_is_left(appliance, api, client)
