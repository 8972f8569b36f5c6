"""Backups through the API: of guests that run and that do not, restored under another id, looked into; hostile ones refused."""

from __future__ import annotations

import base64
import io
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from proxmoxer import ResourceException

from tests.e2e.busybox import write_template
from tests.harness import Appliance, TaskFailed

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def appliance() -> Iterator[Appliance]:
    with Appliance() as appliance:
        yield appliance


@pytest.fixture(scope="module")
def api(appliance: Appliance) -> Any:
    return appliance.api()


@pytest.fixture(scope="module")
def template(appliance: Appliance, api: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return upload_template(appliance, api, tmp_path_factory.mktemp("template"))


def upload_template(appliance: Appliance, api: Any, directory: Path) -> str:
    path = write_template(directory / "busybox_1_amd64.tar.gz")
    return appliance.upload(api, path, "vztmpl", path.name)


def back_up(appliance: Appliance, api: Any, vmid: int, **options: Any) -> str:
    """The new backup's volume."""
    node = appliance.node(api)
    before = {row["volid"] for row in node.storage("local").content.get(content="backup")}
    time.sleep(1.1)  # names have seconds
    appliance.finish(api, node.vzdump.post(vmid=vmid, storage="local", **options))
    (made,) = {row["volid"] for row in node.storage("local").content.get(content="backup")} - before
    return str(made)


def say(appliance: Appliance, api: Any, vmid: int, command: str, expected: str) -> None:
    with appliance.terminal(api, f"lxc/{vmid}") as console:
        console.type(f"{command}\n")
        console.wait_for(expected, timeout_s=20)


def start_slow_to_read(
    appliance: Appliance, api: Any, vmid: int, directory: Path, *, rootfs: str, size_bytes: int
) -> None:
    """A container whose archive takes a while: /big is noise, /sum its checksum."""
    order = {"ostemplate": upload_template(appliance, api, directory), "rootfs": rootfs, "memory": 64, "start": 1}
    appliance.finish(api, appliance.node(api).lxc.post(vmid=vmid, **order))
    say(appliance, api, vmid, f"head -c {size_bytes} /dev/urandom >/big; md5sum /big >/sum; echo rea''dy", "ready")


@pytest.mark.parametrize("rootfs", ["local:0", "local:0.1"])
def test_a_container_is_backed_up_while_it_runs_and_restored_beside_it(
    appliance: Appliance, api: Any, template: str, rootfs: str
) -> None:
    node = appliance.node(api)
    appliance.finish(
        api,
        node.lxc.post(
            vmid=700, ostemplate=template, rootfs=rootfs, memory=64, hostname="saved", description="two\nlines",
            mp0="local:0.05,mp=/srv/data,backup=1", mp1="local:0.05,mp=/scratch",
        ),
    )  # fmt: skip
    container = node.lxc(700)
    appliance.finish(api, container.status.start.post())
    say(appliance, api, 700, "echo kept >/file; chown 7:8 /file; echo data >/srv/data/file; echo no >/scratch/file; "
        "mkdir -p /tmp; echo no >/tmp/file; sync; echo wri''tten", "written")  # fmt: skip
    volume = back_up(appliance, api, 700, mode="snapshot", compress="zstd", **{"notes-template": "{{guestname}}: mine"})
    assert container.status.current.get()["status"] == "running"
    assert container.status.current.get().get("lock") is None
    (row,) = [row for row in node.storage("local").content.get(content="backup") if row["volid"] == volume]
    assert (row["vmid"], row["notes"]) == (700, "saved: mine")
    file = appliance.data_dir / "storage/local/dump" / volume.rpartition("/")[2]
    assert file.stat().st_mode & 0o077 == 0
    assert "hostname: saved" in node.vzdump.extractconfig.get(volume=volume)

    appliance.finish(api, node.lxc.post(vmid=701, ostemplate=volume, restore=1, storage="local", hostname="again"))
    config = node.lxc(701).config.get()
    assert (config["hostname"], config["description"]) == ("again", "two\nlines")
    assert ("size" in config["rootfs"]) == (rootfs != "local:0")
    appliance.finish(api, node.lxc(701).status.start.post())
    say(appliance, api, 701, "echo $(cat /file)-$(stat -c %u:%g /file)-$(cat /srv/data/file)-$(ls /scratch /tmp | wc -l)",
        "kept-7:8-data-")  # fmt: skip
    say(appliance, api, 701, "ls /scratch/file /tmp/file /etc/vzdump 2>&1 | grep -c 'No such'", "3")

    listing = node.storage("local")("file-restore").list.get(volume=volume, filepath="/")
    assert {"file", "srv", "etc"} <= {entry["text"] for entry in listing}
    encoded = base64.b64encode(b"/srv/data").decode()
    below = node.storage("local")("file-restore").list.get(volume=volume, filepath=encoded)
    entry = next(entry for entry in below if entry["text"] == "file")
    assert (entry["text"], entry["type"], entry["leaf"], entry["size"]) == ("file", "f", 1, 5)
    path = f"/nodes/{appliance.node_name(api)}/storage/local/file-restore/download"
    assert appliance.fetch(api, path, volume=volume, filepath=entry["filepath"]) == b"data\n"
    for vmid in (700, 701):
        appliance.finish(api, node.lxc(vmid).status.stop.post())
        appliance.finish(api, node.lxc(vmid).delete())
    node.storage("local").content(volume).delete()


def test_modes_and_pruning(appliance: Appliance, api: Any, template: str) -> None:
    node = appliance.node(api)
    appliance.finish(api, node.lxc.post(vmid=702, ostemplate=template, rootfs="local:0", memory=64, start=1))
    pid = node.lxc(702).status.current.get()["pid"]
    first = back_up(appliance, api, 702, mode="suspend", compress="gzip", protected=1)
    assert node.lxc(702).status.current.get()["pid"] == pid
    back_up(appliance, api, 702, mode="stop")
    assert node.lxc(702).status.current.get()["status"] == "running"
    assert node.lxc(702).status.current.get()["pid"] != pid
    appliance.finish(api, node.lxc(702).status.stop.post())
    third = back_up(appliance, api, 702, **{"prune-backups": "keep-last=1"})
    left = [row["volid"] for row in node.storage("local").content.get(content="backup", vmid=702)]
    assert sorted(left) == sorted([first, third])
    marks = node.storage("local").prunebackups.get(**{"prune-backups": "keep-last=1", "vmid": 702})
    assert {row["volid"]: row["mark"] for row in marks} == {first: "protected", third: "keep"}
    appliance.finish(api, node.lxc(702).delete())


def test_a_vm_is_backed_up_and_restored(appliance: Appliance, api: Any) -> None:
    node = appliance.node(api)
    disks = {"scsi0": "local:0.01", "virtio1": "local:0.01", "serial0": "socket", "memory": 64, "boot": "order=scsi0"}
    appliance.finish(api, node.qemu.post(vmid=710, name="saved", **disks))
    image = next(appliance.data_dir.rglob("vm-710-disk-0.qcow2"))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", image], check=True, capture_output=True)
    appliance.finish(api, node.qemu(710).status.start.post())
    volume = back_up(appliance, api, 710, compress="zstd")
    assert node.qemu(710).status.current.get()["status"] == "running"
    assert [row["name"] for row in node.qemu(710).snapshot.get()] == ["current"]
    file = appliance.data_dir / "storage/local/dump" / volume.rpartition("/")[2]
    assert file.stat().st_mode & 0o077 == 0
    appliance.finish(api, node.qemu.post(vmid=711, archive=volume, unique=1))
    config = node.qemu(711).config.get()
    assert config["scsi0"].startswith("local:711/vm-711-disk-")
    assert config["name"] == "saved"
    assert config["smbios1"] != node.qemu(710).config.get()["smbios1"]
    copy = appliance.data_dir / "storage/local/images" / config["scsi0"].partition(":")[2].partition(",")[0]
    read = ["qemu-io", "-f", "qcow2", "-c", "read -P 7 0 64k", str(copy)]
    assert b"failed" not in subprocess.run(read, check=True, capture_output=True).stdout
    appliance.finish(api, node.qemu(711).status.start.post())
    for vmid in (710, 711):
        appliance.finish(api, node.qemu(vmid).status.stop.post())
        appliance.finish(api, node.qemu(vmid).delete())


def image_bytes(path: Path, pattern: int) -> bool:
    """Whether the image begins with 64 KiB of this byte."""
    read = ["qemu-io", "-f", "qcow2", "-c", f"read -P {pattern} 0 64k", str(path)]
    return b"failed" not in subprocess.run(read, check=True, capture_output=True).stdout


def test_a_vm_is_restored_over_itself_and_its_snapshots_and_old_disk_go(appliance: Appliance, api: Any) -> None:
    node = appliance.node(api)
    vm = node.qemu(715)
    images = appliance.data_dir / "storage/local/images/715"
    appliance.finish(
        api, node.qemu.post(vmid=715, name="saved", scsi0="local:0.01", scsi1="local:0.01,backup=0", memory=64)
    )
    write = ["qemu-io", "-f", "qcow2", "-c"]
    subprocess.run([*write, "write -P 7 0 64k", images / "vm-715-disk-0.qcow2"], check=True, capture_output=True)
    volume = back_up(appliance, api, 715)
    subprocess.run([*write, "write -P 9 0 64k", images / "vm-715-disk-0.qcow2"], check=True, capture_output=True)
    subprocess.run([*write, "write -P 5 0 64k", images / "vm-715-disk-1.qcow2"], check=True, capture_output=True)
    appliance.finish(api, vm.snapshot.post(snapname="one"))
    vm.config.put(name="changed", memory=128)
    with pytest.raises(ResourceException) as refused:
        node.qemu.post(vmid=715, archive=volume)
    assert "already exists" in str(refused.value)
    appliance.finish(api, node.qemu.post(vmid=715, archive=volume, force=1))
    config = vm.config.get()
    assert (config["name"], config["memory"], config["unused0"]) == ("saved", "64", "local:715/vm-715-disk-1.qcow2")
    assert [row["name"] for row in vm.snapshot.get()] == ["current"]
    (new,) = set(images.iterdir()) - {images / "vm-715-disk-1.qcow2"}
    assert config["scsi0"].startswith(f"local:715/{new.name},")
    assert image_bytes(new, 7)
    assert image_bytes(images / "vm-715-disk-1.qcow2", 5), "what the backup does not have is kept"
    kept = subprocess.run(
        ["qemu-img", "snapshot", "-l", images / "vm-715-disk-1.qcow2"], check=True, capture_output=True
    )
    assert b"one" not in kept.stdout
    appliance.finish(api, vm.status.start.post())
    with pytest.raises(ResourceException) as refused:
        node.qemu.post(vmid=715, archive=volume, force=1)
    assert "running" in str(refused.value)
    appliance.finish(api, vm.status.stop.post())
    appliance.finish(api, vm.delete())
    assert not list(images.glob("*"))


@pytest.mark.parametrize("rootfs", ["local:0", "local:0.1"])
def test_a_container_is_restored_over_itself_and_a_damaged_backup_changes_nothing(
    appliance: Appliance, api: Any, template: str, rootfs: str
) -> None:
    node = appliance.node(api)
    container = node.lxc(716)
    appliance.finish(
        api, node.lxc.post(vmid=716, ostemplate=template, rootfs=rootfs, memory=64, hostname="saved", start=1)
    )
    say(appliance, api, 716, "echo first >/file; sync; echo wri''tten", "written")
    volume = back_up(appliance, api, 716, compress="zstd")
    say(appliance, api, 716, "echo second >/file; sync; echo aga''in", "again")
    appliance.finish(api, container.status.stop.post())
    before = container.config.get()
    old = set((appliance.data_dir / "storage/local/images/716").iterdir())
    damaged = place(appliance, "vzdump-lxc-716-2026_01_01-00_00_00.tar",
                    {"etc/vzdump/pct.conf": f"hostname: evil\nunprivileged: 1\nrootfs: {before['rootfs']}\n".encode(),
                     "fine": b"x", "../../escaped": b"x"})  # fmt: skip
    with pytest.raises(TaskFailed, match="refused"):
        appliance.finish(api, node.lxc.post(vmid=716, ostemplate=damaged, restore=1, force=1))
    assert container.config.get() == before
    assert set((appliance.data_dir / "storage/local/images/716").iterdir()) == old
    appliance.finish(api, container.status.start.post())
    say(appliance, api, 716, "cat /file", "second")
    appliance.finish(api, container.status.stop.post())
    appliance.finish(api, node.lxc.post(vmid=716, ostemplate=volume, restore=1, force=1, start=1))
    assert container.config.get()["hostname"] == "saved"
    assert not set((appliance.data_dir / "storage/local/images/716").iterdir()) & old
    say(appliance, api, 716, "cat /file", "first")
    appliance.finish(api, container.status.stop.post())
    appliance.finish(api, container.delete())


def test_a_running_container_moves_to_another_storage(
    appliance: Appliance, api: Any, template: str, tmp_path: Path
) -> None:
    node = appliance.node(api)
    api.storage.post(storage="other", type="dir", path=str(tmp_path / "other"), content="rootdir,images")
    for vmid, rootfs in ((740, "local:0"), (741, "local:0.1")):
        appliance.finish(api, node.lxc.post(vmid=vmid, ostemplate=template, rootfs=rootfs, memory=64, start=1))
        say(appliance, api, vmid, "head -c 5000000 /dev/urandom >/big; md5sum /big >/sum; echo rea''dy", "ready")
        container = node.lxc(vmid)
        pid = container.status.current.get()["pid"]
        appliance.finish(api, container.move_volume.post(volume="rootfs", storage="other", delete=1))
        status = container.status.current.get()
        assert status["status"] == "running"
        assert status["pid"] != pid
        assert container.config.get()["rootfs"].startswith(f"other:{vmid}/")
        say(appliance, api, vmid, "md5sum -c /sum", "big: OK")
        assert not list((appliance.data_dir / "storage/local/images").glob(f"{vmid}/*"))
        appliance.finish(api, container.status.stop.post())
    appliance.finish(api, node.lxc.post(vmid=742, ostemplate=template, rootfs="local:0", memory=64))
    appliance.finish(api, node.lxc(742).clone.post(newid=743, full=1, storage="other"))
    appliance.finish(api, node.lxc(743).status.start.post())
    say(appliance, api, 743, "echo al''ive", "alive")
    appliance.finish(api, node.lxc(743).status.stop.post())
    for vmid in (740, 741, 742, 743):
        appliance.finish(api, node.lxc(vmid).delete())
    api.storage("other").delete()


def test_a_storage_that_fills_up_keeps_no_half_archive(
    appliance: Appliance, api: Any, template: str, tmp_path: Path
) -> None:
    node = appliance.node(api)
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", tiny], check=True)
    try:
        api.storage.post(storage="tiny", type="dir", path=str(tiny), content="backup")
        appliance.finish(api, node.lxc.post(vmid=750, ostemplate=template, rootfs="local:0", memory=64, start=1))
        say(appliance, api, 750, "head -c 30000000 /dev/urandom >/big; echo rea''dy", "ready")
        with pytest.raises(TaskFailed, match="no space left"):
            appliance.finish(api, node.vzdump.post(vmid=750, storage="tiny", compress="zstd"))
        assert list((tiny / "dump").iterdir()) == []
        assert node.lxc(750).status.current.get().get("lock") is None
        assert [row["name"] for row in node.lxc(750).snapshot.get()] == ["current"]
        appliance.finish(api, node.lxc(750).status.stop.post())
        appliance.finish(api, node.lxc(750).delete())
        api.storage("tiny").delete()
    finally:
        subprocess.run(["umount", tiny], check=True)


def test_a_backup_is_for_who_may_back_its_guest_up(appliance: Appliance, api: Any, template: str) -> None:
    node = appliance.node(api)
    appliance.finish(api, node.lxc.post(vmid=760, ostemplate=template, rootfs="local:0", memory=64))
    volume = back_up(appliance, api, 760)
    api.access.users.post(userid="eve@pve", password="a-long-password")
    api.access.acl.put(path="/storage/local", roles="PVEDatastoreUser", users="eve@pve")
    eve = appliance.log_in(user="eve@pve", password="a-long-password")
    hers = eve.nodes(appliance.node_name(api))
    files = hers.storage("local")("file-restore").list
    attempts: list[Callable[[], Any]] = [
        lambda: hers.vzdump.post(vmid=760, storage="local"),
        lambda: hers.vzdump.extractconfig.get(volume=volume),
        lambda: files.get(volume=volume, filepath="/"),
        lambda: hers.storage("local").prunebackups.delete(**{"prune-backups": "keep-last=1"}),
        lambda: hers.lxc.post(vmid=761, ostemplate=volume, restore=1),
    ]
    for attempt in attempts:
        with pytest.raises(ResourceException) as refused:
            attempt()
        assert refused.value.status_code == 403
    assert volume not in [row["volid"] for row in hers.storage("local").content.get(content="backup")]
    api.access.acl.put(path="/vms/760", roles="PVEVMAdmin", users="eve@pve")
    assert "etc" in [row["text"] for row in files.get(volume=volume, filepath="/")]
    assert volume in [row["volid"] for row in hers.storage("local").content.get(content="backup")]
    with pytest.raises(ResourceException) as refused:  # its configuration may ask for what she must not have
        hers.lxc.post(vmid=761, ostemplate=volume, restore=1)
    assert refused.value.status_code == 403
    appliance.finish(api, node.lxc(760).delete())
    api.access.users("eve@pve").delete()


def place(appliance: Appliance, name: str, members: dict[str, bytes], link: tuple[str, str] | None = None) -> str:
    """An archive of somebody else's making in the storage."""
    path = appliance.data_dir / "storage/local/dump" / name
    with tarfile.open(path, "w") as tar:
        if link:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(info)
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return f"local:backup/{name}"


def test_hostile_archives_are_refused_and_leave_nothing(appliance: Appliance, api: Any) -> None:
    node = appliance.node(api)
    conf = b"hostname: evil\nrootfs: local:9/x.raw,size=100M\n"
    secret = appliance.home / "secret"
    secret.write_text("the host's")
    climbing = place(appliance, "vzdump-lxc-900-2026_01_01-00_00_00.tar",
                     {"etc/vzdump/pct.conf": conf, "../../escaped": b"x"})  # fmt: skip
    linked = place(appliance, "vzdump-lxc-900-2026_01_01-00_00_01.tar",
                   {"etc/vzdump/pct.conf": conf, "out/escaped": b"x"}, link=("out", "/tmp"))  # fmt: skip
    for volume in (climbing, linked):
        with pytest.raises(TaskFailed, match=r"refused|passes through"):
            appliance.finish(api, node.lxc.post(vmid=720, ostemplate=volume, restore=1))
    bad = place(appliance, "vzdump-lxc-900-2026_01_01-00_00_02.tar", {"etc/vzdump/pct.conf": b"rootfs: /etc\nxx: 1\n"})
    with pytest.raises(Exception, match=r"rootfs|paths"):
        node.lxc.post(vmid=720, ostemplate=bad, restore=1)
    backed = Path(appliance.home) / "evil.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", backed], check=True)
    vm = place(appliance, "vzdump-qemu-900-2026_01_01-00_00_03.tar",
               {"qemu-server.conf": b"scsi0: local:900/vm-900-disk-0.qcow2,size=1M\n",
                "disk-scsi0.qcow2": backed.read_bytes()})  # fmt: skip
    with pytest.raises(TaskFailed, match="backing file"):
        appliance.finish(api, node.qemu.post(vmid=720, archive=vm))
    missing = place(appliance, "vzdump-qemu-900-2026_01_01-00_00_04.tar",
                    {"qemu-server.conf": b"scsi0: local:900/vm-900-disk-0.qcow2,size=1M\n"})  # fmt: skip
    with pytest.raises(TaskFailed, match="does not exist"):
        appliance.finish(api, node.qemu.post(vmid=720, archive=missing))
    assert 720 not in [row["vmid"] for row in (*node.lxc.get(), *node.qemu.get())]
    assert list((appliance.data_dir / "storage/local/images").glob("720/*")) == []
    assert not list((appliance.data_dir / "storage/local/dump").glob(".tmp-*"))


def test_a_killed_appliance_leaves_no_half_archive_and_no_snapshot(tmp_path: Path) -> None:
    with Appliance() as appliance:
        api = appliance.api()
        start_slow_to_read(appliance, api, 730, tmp_path, rootfs="local:0", size_bytes=200_000_000)
        node = appliance.node(api)
        dump = appliance.data_dir / "storage/local/dump"
        node.vzdump.post(vmid=730, storage="local", compress="gzip")
        while not list(dump.iterdir()):
            time.sleep(0.05)
        appliance.kill()
        appliance.start()
        assert list(dump.iterdir()) == []
        api = appliance.api()
        node = appliance.node(api)
        assert [row["name"] for row in node.lxc(730).snapshot.get()] == ["current"]
        status = node.lxc(730).status.current.get()
        assert (status["status"], status.get("lock")) == ("running", None)
        volume = next((appliance.data_dir / "storage/local/images/730").iterdir())
        assert len(list(volume.iterdir())) == 2
        appliance.finish(api, node.lxc(730).status.stop.post())
        appliance.finish(api, node.lxc(730).delete())


def test_a_kill_while_a_guest_is_restored_over_leaves_the_old_one(tmp_path: Path) -> None:
    with Appliance() as appliance:
        api = appliance.api()
        start_slow_to_read(appliance, api, 731, tmp_path, rootfs="local:1", size_bytes=300_000_000)
        node = appliance.node(api)
        volume = back_up(appliance, api, 731, mode="suspend", compress="zstd")
        appliance.finish(api, node.lxc(731).status.stop.post())
        before = node.lxc(731).config.get()
        images = appliance.data_dir / "storage/local/images/731"
        old = set(images.iterdir())
        upid = node.lxc.post(vmid=731, ostemplate=volume, restore=1, force=1)
        while not {each for each in set(images.iterdir()) - old if not each.name.startswith(".tmp-")}:
            time.sleep(0.02)
        assert node.tasks(upid).status.get()["status"] == "running"
        appliance.kill()
        appliance.start()
        api = appliance.api()
        node = appliance.node(api)
        assert set(images.iterdir()) == old
        assert node.lxc(731).config.get() == before
        appliance.finish(api, node.lxc(731).status.start.post())
        say(appliance, api, 731, "md5sum -c /sum", "big: OK")
        appliance.finish(api, node.lxc(731).status.stop.post())
        appliance.finish(api, node.lxc.post(vmid=731, ostemplate=volume, restore=1, force=1))
        appliance.finish(api, node.lxc(731).delete())
