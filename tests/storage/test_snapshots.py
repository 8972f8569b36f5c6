"""Snapshots of volumes: what each format can, and that a return gives back exactly what was there."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from appliance.errors import Conflict, InvalidParameter, NotFound, Unsupported
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, VolumeFormat, VolumeId
from appliance.storage.directory import DirectoryBackend
from tests.fakes.storage import MIB

GUEST = GuestId(100)


@pytest.fixture
async def backend(tmp_path: Path) -> DirectoryBackend:
    backend = DirectoryBackend("local", tmp_path)
    await backend.recover()
    return backend


async def disk(backend: DirectoryBackend, volume_format: VolumeFormat, size_bytes: int = 8 * MIB) -> VolumeId:
    return await backend.create(GUEST, format=volume_format, size_bytes=size_bytes, content=ContentType.IMAGES)


async def tree(backend: DirectoryBackend) -> VolumeId:
    return await backend.create(GUEST, format=VolumeFormat.SUBVOL, size_bytes=MIB, content=ContentType.ROOTDIR)


def qemu_io(path: Path, *commands: str) -> str:
    argv = ["qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), str(path)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout


async def test_a_qcow2_disk_returns_to_its_snapshot(backend: DirectoryBackend) -> None:
    volume = await disk(backend, VolumeFormat.QCOW2)
    path = (await backend.open(volume)).path
    qemu_io(path, "write -P 1 0 64k")
    await backend.snapshot(volume, "one")
    qemu_io(path, "write -P 2 0 64k")
    await backend.resize(volume, 16 * MIB)
    await backend.roll_back(volume, "one")
    assert "Pattern verification failed" not in qemu_io(path, "read -P 1 0 64k")
    assert (await backend.open(volume)).size_bytes == 8 * MIB
    await backend.delete_snapshot(volume, "one")
    await backend.delete_snapshot(volume, "one")
    assert await backend.snapshots(volume) == []
    with pytest.raises(NotFound):
        await backend.roll_back(volume, "one")


async def copied(backend: DirectoryBackend, volume: VolumeId, name: str, *, full: bool = True) -> Path:
    source = await backend.open_snapshot(volume, name)
    made = await backend.clone(source, GuestId(200), format=source.format, full=full, log=lambda line: None)
    return (await backend.open(made)).path


async def test_a_clone_of_a_qcow2_snapshot_holds_what_it_held_also_while_somebody_writes(
    backend: DirectoryBackend,
) -> None:
    volume = await disk(backend, VolumeFormat.QCOW2)
    path = (await backend.open(volume)).path
    qemu_io(path, "write -P 1 0 64k")
    await backend.snapshot(volume, "one")
    await backend.resize(volume, 16 * MIB)
    qemu_io(path, "write -P 2 0 64k")
    holder = await asyncio.create_subprocess_exec(
        *("qemu-io", "-f", "qcow2", str(path)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(b"write -P 3 0 64k\n")
    while b"wrote" not in await holder.stdout.readline():
        pass
    try:
        clone = await copied(backend, volume, "one")
    finally:
        await holder.communicate(b"quit\n")
    assert "Pattern verification failed" not in qemu_io(clone, "read -P 1 0 64k")
    assert "Pattern verification failed" not in qemu_io(path, "read -P 3 0 64k")
    assert "Pattern verification failed" not in qemu_io(clone, "read -P 0 8M 8M"), "it has grown since: zeros"
    assert await backend.snapshots(VolumeId("local", f"200/{clone.name}")) == []
    with pytest.raises(NotFound, match="snapshot 'two'"):
        await backend.open_snapshot(volume, "two")
    with pytest.raises(Unsupported, match="no linked clones, only full ones"):
        await copied(backend, volume, "one", full=False)


async def test_a_clone_of_a_raw_snapshot_or_a_directorys_holds_what_it_held(backend: DirectoryBackend) -> None:
    image, directory = await disk(backend, VolumeFormat.RAW), await tree(backend)
    path, place = (await backend.open(image)).path, (await backend.open(directory)).path
    path.write_bytes(b"before".ljust(8 * MIB, b"."))
    (place / "file").write_text("before")
    for volume in (image, directory):
        await backend.snapshot(volume, "one")
    path.write_bytes(b"after!".ljust(8 * MIB, b"."))
    (place / "file").write_text("after")
    assert (await copied(backend, image, "one")).read_bytes()[:6] == b"before"
    assert (await copied(backend, directory, "one") / "file").read_text() == "before"


async def test_a_snapshot_has_a_name_of_its_own(backend: DirectoryBackend) -> None:
    volume = await disk(backend, VolumeFormat.QCOW2)
    await backend.snapshot(volume, "one")
    with pytest.raises(Conflict):
        await backend.snapshot(volume, "one")
    for bad in ("", "1x", "a b", "../x", "x" * 41):
        with pytest.raises(InvalidParameter):
            await backend.snapshot(volume, bad)
    assert await backend.snapshots(volume) == ["one"]


async def test_a_large_raw_disk_has_none_where_nothing_can_be_shared(backend: DirectoryBackend) -> None:
    volume = await disk(backend, VolumeFormat.RAW, 65 * MIB)
    backend._snapshots._can_clone = False
    with pytest.raises(Unsupported, match="raw volumes"):
        await backend.snapshot(volume, "one")
    assert await backend.snapshots(volume) == []


async def test_a_small_raw_disk_is_copied(backend: DirectoryBackend) -> None:
    volume = await disk(backend, VolumeFormat.RAW)
    path = (await backend.open(volume)).path
    with path.open("r+b") as file:
        file.write(b"before")
    await backend.snapshot(volume, "one", in_use=True)
    with path.open("r+b") as file:
        file.write(b"after!")
    await backend.roll_back(volume, "one")
    assert path.read_bytes()[:6] == b"before"
    assert path.stat().st_size == 8 * MIB


async def test_a_directory_returns_with_owners_modes_and_links(backend: DirectoryBackend) -> None:
    volume = await tree(backend)
    path = (await backend.open(volume)).path
    path.chmod(0o711)
    (path / "kept").write_text("old")
    (path / "kept").chmod(0o4755)
    (path / "link").symlink_to("/etc/passwd")
    await backend.snapshot(volume, "one")
    (path / "kept").write_text("new")
    (path / "more").mkdir()
    await backend.roll_back(volume, "one")
    assert sorted(entry.name for entry in path.iterdir()) == ["kept", "link"]
    assert (path / "kept").read_text() == "old"
    assert (path / "kept").stat().st_mode & 0o7777 == 0o4755
    assert (path / "link").readlink() == Path("/etc/passwd")
    assert path.stat().st_mode & 0o777 == 0o711
    assert await backend.snapshots(volume) == ["one"]


async def test_a_directory_in_use_is_not_copied_in_full(backend: DirectoryBackend) -> None:
    volume = await tree(backend)
    backend._snapshots._can_clone = False
    with pytest.raises(Unsupported, match="shut the container down"):
        await backend.snapshot(volume, "one", in_use=True)
    await backend.snapshot(volume, "one")


async def test_snapshots_go_with_their_volume(backend: DirectoryBackend, tmp_path: Path) -> None:
    volume = await tree(backend)
    await backend.snapshot(volume, "one")
    await backend.delete(volume)
    assert not list((tmp_path / ".appliance/snapshots").rglob("one"))


async def test_the_start_removes_copies_nobody_finished(backend: DirectoryBackend, tmp_path: Path) -> None:
    volume = await tree(backend)
    await backend.snapshot(volume, "one")
    (tmp_path / f".appliance/snapshots/{volume.name}/.tmp-1234-two").mkdir()
    (tmp_path / ".appliance/snapshots/999/vm-999-disk-0.raw/x").mkdir(parents=True)
    assert len(await backend.recover()) == 2
    assert await backend.recover() == []
    assert await backend.snapshots(volume) == ["one"]


async def test_an_iso_image_has_no_snapshots(backend: DirectoryBackend, tmp_path: Path) -> None:
    (tmp_path / "template/iso/x.iso").write_bytes(b"x")
    with pytest.raises(Unsupported):
        await backend.snapshot(VolumeId("local", "iso/x.iso"), "one")
