"""Disk images that lie: none makes QEMU open a file of the host, none is taken for another format.

The host's secret is a file with a known text, which no volume and no process of a guest may ever hold.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bad_input.client import Client
from tests.fakes.storage import qcow2_header as image
from tests.harness import Appliance, TaskFailed

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

SECRET = b"the host's own secret\n"
MIB = 1 << 20


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("host") / "secret"
    path.write_bytes(SECRET.ljust(MIB, b"s"))
    return path


def upload(appliance: Appliance, api: Any, client: Client, name: str, data: bytes, content: str = "import") -> str:
    """The volume id. Raises `TaskFailed` when it is refused."""
    form, files = {"content": content}, {"filename": (name, data)}
    reply = client.call("POST", "/nodes/{node}/storage/local/upload", data=form, files=files)
    assert reply.status == 200, reply.text
    appliance.finish(api, reply.body["data"])
    return f"local:{content}/{name}"


def remove(appliance: Appliance, client: Client, api: Any, volid: str) -> None:
    appliance.finish(api, client.call("DELETE", f"/nodes/{{node}}/storage/local/content/{volid}").body["data"])


def volumes(client: Client) -> list[str]:
    return [row["volid"] for row in client.call("GET", "/nodes/{node}/storage/local/content").body["data"]]


@pytest.mark.parametrize(
    ("claims", "word"),
    [
        ({"backing": b"/etc/shadow", "backing_format": b"raw"}, "backing file"),
        ({"backing": b"/etc/shadow"}, "backing file"),
        ({"backing": b'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}'}, "backing file"),
        ({"backing": b"nbd://127.0.0.1:1/x", "backing_format": b"raw"}, "backing file"),
        ({"backing": b"../../../../../etc/shadow", "backing_format": b"raw"}, "backing file"),
        ({"data_file": b"/etc/shadow", "incompatible": 4}, "external file"),
        ({"data_file": b"/etc/shadow"}, "external file"),
        ({"incompatible": 4}, "external file"),
        ({"crypt": 1}, "encrypted"),
        ({"crypt": 2}, "encrypted"),
        ({"size": 1 << 62}, "absurd"),
        ({"size": 0}, "absurd"),
        ({"incompatible": 2}, "corrupt"),
        ({"incompatible": 1 << 40}, "features"),
        ({"version": 9}, "version"),
        ({"cluster_bits": 40}, "cluster"),
    ],
)
def test_a_hostile_qcow2_is_refused_when_it_is_uploaded(
    appliance: Appliance, api: Any, client: Client, claims: dict[str, Any], word: str
) -> None:
    with pytest.raises(TaskFailed, match=word) as caught:
        upload(appliance, api, client, "bad.qcow2", image(**claims))
    assert "bad.qcow2" in str(caught.value)
    assert volumes(client) == []


def test_bytes_that_are_no_image_are_refused(appliance: Appliance, api: Any, client: Client) -> None:
    for data in (b"", b"QFI\xfb", b"MZ" * 5000, image()[:70], image()[:110]):
        with pytest.raises(TaskFailed, match=r"bad\.qcow2"):
            upload(appliance, api, client, "bad.qcow2", data)
    assert volumes(client) == []


def sound_image(path: Path) -> bytearray:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", path], check=True, capture_output=True)
    return bytearray(path.read_bytes())


def test_an_image_with_damaged_tables_or_cut_off_is_refused(
    appliance: Appliance, api: Any, client: Client, tmp_path: Path
) -> None:
    sound = sound_image(tmp_path / "sound.qcow2")
    first_level = int.from_bytes(sound[40:48], "big")
    for table in (b"\x80" + b"\xff" * 7, (1 << 63 | 1 << 50).to_bytes(8, "big"), None):
        data = sound[: len(sound) // 2] if table is None else bytearray(sound)
        if table is not None:
            data[first_level : first_level + 8] = table
        with pytest.raises(TaskFailed, match=r"damaged\.qcow2.*not a sound"):
            upload(appliance, api, client, "damaged.qcow2", bytes(data))
    assert volumes(client) == []


def test_an_image_damaged_in_place_fails_the_import_and_the_guest_is_gone(
    appliance: Appliance, api: Any, client: Client, tmp_path: Path
) -> None:
    sound = sound_image(tmp_path / "sound.qcow2")
    source = upload(appliance, api, client, "damaged.qcow2", bytes(sound))
    first_level = int.from_bytes(sound[40:48], "big")
    sound[first_level : first_level + 8] = b"\x80" + b"\xff" * 7
    (appliance.data_dir / "storage/local/import/damaged.qcow2").write_bytes(sound)
    upid = appliance.node(api).qemu.post(vmid=100, memory=32, scsi0=f"local:0,import-from={source}")
    with pytest.raises(TaskFailed, match=r"importing local:import/damaged\.qcow2"):
        appliance.finish(api, upid)
    assert api.cluster.resources.get(type="vm") == []
    assert volumes(client) == [source]
    remove(appliance, client, api, source)


def test_an_image_changed_behind_our_back_is_judged_again(
    appliance: Appliance, api: Any, client: Client, secret: Path
) -> None:
    """Also after the upload an image is never shown to QEMU unseen: at import, at start, at clone and at resize."""
    node = appliance.node(api)
    sound = appliance.data_dir / "storage/local/import/sound.qcow2"
    hostile = image(backing=bytes(secret), backing_format=b"raw")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", sound, "1M"], check=True)
    appliance.finish(
        api, node.qemu.post(vmid=100, memory=32, scsi0="local:0,import-from=local:import/sound.qcow2,format=qcow2")
    )
    disk = appliance.data_dir / "storage/local/images/100/vm-100-disk-0.qcow2"
    for path in (sound, disk):
        path.write_bytes(hostile)
    tries: tuple[Callable[[], Any], ...] = (
        lambda: node.qemu.post(vmid=101, memory=32, scsi0="local:0,import-from=local:import/sound.qcow2"),
        lambda: node.qemu(100).status.start.post(),
        lambda: node.qemu(100).clone.post(newid=102, full=1),
        lambda: node.qemu(100).resize.put(disk="scsi0", size="+1M"),
    )
    for attempt in tries:
        with pytest.raises(TaskFailed, match=r"backing file.*refused"):
            appliance.finish(api, attempt())
    assert [row["vmid"] for row in api.cluster.resources.get(type="vm")] == [100]
    assert node.qemu(100).status.current.get()["status"] == "stopped"
    appliance.finish(api, node.qemu(100).delete())
    remove(appliance, client, api, "local:import/sound.qcow2")
    assert volumes(client) == []


@pytest.mark.parametrize("ending", ["raw", "img"])
def test_raw_bytes_that_look_like_qcow2_stay_raw(
    appliance: Appliance, api: Any, client: Client, secret: Path, ending: str
) -> None:
    """A guest may write any header on its own raw disk: import, start and clone must see bytes, not a backing file."""
    data = image(backing=bytes(secret), backing_format=b"raw").ljust(MIB, b"\0")
    node = appliance.node(api)
    source = upload(appliance, api, client, f"confused.{ending}", data)
    disk = f"local:0,import-from={source}"
    appliance.finish(api, node.qemu.post(vmid=100, memory=32, scsi0=f"{disk},format=raw", scsi1=f"{disk},format=qcow2"))
    appliance.finish(api, node.qemu(100).status.start.post())
    try:
        pid = node.qemu(100).status.current.get()["pid"]
        opened = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert str(secret) not in opened
        assert any("vm-100-disk" in name for name in opened)
        assert int(node.qemu(100).status.current.get()["maxdisk"]) == MIB
    finally:
        appliance.finish(api, node.qemu(100).status.stop.post())
    appliance.finish(api, node.qemu(100).clone.post(newid=101, full=1))
    images = appliance.data_dir / "storage/local/images"
    for guest in (100, 101):
        for disk_file in (images / str(guest)).iterdir():
            assert SECRET not in disk_file.read_bytes()
        raw = next((images / str(guest)).glob("*.raw"))
        assert raw.read_bytes() == data
    inner = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", "read -v 0 4", next((images / "101").glob("*.qcow2"))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "51 46 49 fb" in inner.stdout, "the bytes of the header are the disk's content"
    for guest in (100, 101):
        appliance.finish(api, node.qemu(guest).delete())
    remove(appliance, client, api, source)


def test_an_iso_that_looks_like_qcow2_is_raw_and_read_only(
    appliance: Appliance, api: Any, client: Client, secret: Path
) -> None:
    node = appliance.node(api)
    source = upload(
        appliance, api, client, "confused.iso", image(backing=bytes(secret), backing_format=b"raw"), content="iso"
    )
    appliance.finish(api, node.qemu.post(vmid=100, memory=32, ide2=f"{source},media=cdrom"))
    appliance.finish(api, node.qemu(100).status.start.post())
    try:
        pid = node.qemu(100).status.current.get()["pid"]
        assert str(secret) not in [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    finally:
        appliance.finish(api, node.qemu(100).status.stop.post())
    appliance.finish(api, node.qemu(100).delete())
    remove(appliance, client, api, source)


def test_links_in_the_storage_are_not_followed(appliance: Appliance, api: Any, client: Client, secret: Path) -> None:
    """Whoever may write into the storage's directory (a share, a restored backup) gets no file of the host read."""
    node = appliance.node(api)
    iso = appliance.data_dir / "storage/local/template/iso"
    (iso / "link.iso").symlink_to(secret)
    os.mkfifo(iso / "fifo.iso")
    try:
        assert volumes(client) == []
        for name in ("link.iso", "fifo.iso"):
            with pytest.raises(Exception, match=name):
                appliance.finish(
                    api, node.qemu.post(vmid=100, memory=32, ide2=f"local:iso/{name},media=cdrom", start=1)
                )
            assert api.cluster.resources.get(type="vm") == []
    finally:
        (iso / "link.iso").unlink()
        (iso / "fifo.iso").unlink()
