"""Directory volumes on btrfs: subvolumes, made and kept at once, limited in size. On a file system in a file."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.kernel import btrfs, loop, mount
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, VolumeFormat, VolumeId
from appliance.storage.directory import DirectoryBackend
from appliance.storage.trees import TreeKind

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif("btrfs" not in Path("/proc/filesystems").read_text(), reason="this kernel has no btrfs"),
    pytest.mark.skipif(shutil.which("mkfs.btrfs") is None, reason="btrfs-progs is not installed"),
]
MIB = 1 << 20
GUEST = GuestId(101)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("btrfs")
    image, root = directory / "image", directory / "root"
    with image.open("wb") as file:
        file.truncate(256 * MIB)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, timeout=60)
    root.mkdir()
    block, device = loop.attach_file(image)
    fd = mount.new_mount("btrfs", str(device), {})
    mount.move_mount(fd, root)
    os.close(fd)
    os.close(block)
    yield root
    mount.umount(root)


@pytest.fixture
async def backend(storage: Path, request: pytest.FixtureRequest) -> DirectoryBackend:
    root = storage / request.node.name
    await asyncio.to_thread(root.mkdir)
    backend = DirectoryBackend("local", root)
    await backend.recover()
    assert backend._trees is TreeKind.BTRFS
    return backend


async def tree(backend: DirectoryBackend, size_bytes: int = 0, base: str = "") -> tuple[VolumeId, Path]:
    volume = await backend.create(
        GUEST, format=VolumeFormat.SUBVOL, size_bytes=size_bytes, content=ContentType.ROOTDIR, base=base
    )
    return volume, (await backend.open(volume)).path


async def test_a_volume_is_a_snapshot_of_its_template(backend: DirectoryBackend, tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(b"x")

    async def fill(path: Path) -> None:
        await asyncio.to_thread((path / "file").write_text, "template")

    async with backend.layer(archive, fill) as base:
        _, path = await tree(backend, base=base)
        _, other = await tree(backend, base=base)
    assert await asyncio.to_thread(btrfs.is_subvolume, path)
    (path / "file").write_text("changed")
    assert (other / "file").read_text() == "template"
    archive.unlink()
    assert len(await backend.recover()) == 1  # volumes do not stand on the layer: it goes with its archive
    assert (other / "file").read_text() == "template"


async def test_it_returns_to_a_snapshot_made_while_in_use(backend: DirectoryBackend) -> None:
    volume, path = await tree(backend)
    (path / "file").write_text("old")
    await backend.snapshot(volume, "one", in_use=True)
    (path / "file").write_text("new")
    await backend.roll_back(volume, "one")
    assert (path / "file").read_text() == "old"
    assert await asyncio.to_thread(btrfs.is_subvolume, path)
    await backend.delete_snapshot(volume, "one")
    await backend.delete(volume)
    assert not path.exists()
    assert await backend.recover() == []


async def test_a_clone_shares_blocks_and_nothing_else(backend: DirectoryBackend) -> None:
    volume, path = await tree(backend)
    (path / "file").write_text("old")
    source = await backend.open(volume)
    clone = await backend.clone(source, GuestId(102), format=VolumeFormat.SUBVOL, full=False, log=lambda line: None)
    await backend.delete(volume)
    copy = (await backend.open(clone)).path
    assert await asyncio.to_thread(btrfs.is_subvolume, copy)
    assert (copy / "file").read_text() == "old"


async def test_a_linked_clone_of_a_snapshot_stands_on_nothing(backend: DirectoryBackend) -> None:
    volume, path = await tree(backend)
    (path / "file").write_text("old")
    await backend.snapshot(volume, "one", in_use=True)
    (path / "file").write_text("new")
    disk = await backend.create(GUEST, format=VolumeFormat.RAW, size_bytes=65 * MIB, content=ContentType.ROOTDIR)
    await backend.snapshot(disk, "one")
    clones = [
        await backend.clone(
            await backend.open_snapshot(each, "one"), GuestId(102), format=kind, full=False, log=lambda line: None
        )
        for each, kind in ((volume, VolumeFormat.SUBVOL), (disk, VolumeFormat.RAW))
    ]
    for each in (volume, disk):
        await backend.delete_snapshot(each, "one")
        await backend.delete(each)
    copy = (await backend.open(clones[0])).path
    assert await asyncio.to_thread(btrfs.is_subvolume, copy)
    assert (copy / "file").read_text() == "old"
    assert (await backend.open(clones[1])).size_bytes == 65 * MIB


async def test_its_size_is_a_limit(backend: DirectoryBackend) -> None:
    volume, path = await tree(backend, 16 * MIB)
    with pytest.raises(OSError, match="quota") as caught:
        fill(path / "big", 32 * MIB)
    assert caught.value.errno == errno.EDQUOT
    (path / "big").unlink()
    await backend.resize(volume, 64 * MIB)
    assert (await backend.info(volume)).size_bytes == 64 * MIB
    fill(path / "big", 32 * MIB)


async def test_a_tree_with_subvolumes_of_its_own_goes_whole(backend: DirectoryBackend) -> None:
    volume, path = await tree(backend)
    await asyncio.to_thread(btrfs.create, path / "nested")
    (path / "nested/file").write_text("x")
    await backend.delete(volume)
    assert not path.exists()


async def test_a_large_raw_disk_has_snapshots_here(backend: DirectoryBackend) -> None:
    disk = await backend.create(GUEST, format=VolumeFormat.RAW, size_bytes=65 * MIB, content=ContentType.IMAGES)
    path = (await backend.open(disk)).path
    fill(path, 4096)
    await backend.snapshot(disk, "one")
    path.write_bytes(b"short")
    await backend.roll_back(disk, "one")
    assert path.stat().st_size == 65 * MIB


def fill(path: Path, size_bytes: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for _ in range(max(1, size_bytes // MIB)):
            os.write(fd, os.urandom(min(MIB, size_bytes)))
            os.fsync(fd)
    finally:
        os.close(fd)
