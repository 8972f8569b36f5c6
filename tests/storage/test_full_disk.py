"""A full file system: each operation says so and leaves nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import HostError, NoSpace
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, OpenedVolume, VolumeFormat
from tests.fakes.storage import MIB, leftovers, ready_backend, stream

VM = GuestId(100)


def ignore(_: str) -> None:
    """A log nobody reads."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


@pytest.mark.host
async def test_a_full_disk_fails_each_operation_and_nothing_is_left(small: Path, tmp_path: Path) -> None:
    local = await ready_backend(small)
    big = tmp_path / "big.raw"
    big.write_bytes(b"x" * 8 * MIB)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x" * 8 * MIB)
    with pytest.raises(NoSpace):
        await local.receive(ContentType.ISO, "x.iso", stream(*[b"x" * MIB] * 8), checksum=None)
    for path, volume_format in ((big, VolumeFormat.RAW), (tree, VolumeFormat.SUBVOL)):
        source = OpenedVolume(volume_id=None, path=path, format=volume_format, size_bytes=8 * MIB)
        with pytest.raises(NoSpace):
            await local.clone(source, VM, format=volume_format, full=True, log=ignore)
    with pytest.raises(NoSpace):
        await local.clone(
            OpenedVolume(volume_id=None, path=big, format=VolumeFormat.RAW, size_bytes=8 * MIB),
            VM, format=VolumeFormat.QCOW2, full=True, log=ignore,
        )  # fmt: skip
    with pytest.raises(HostError):
        await local.create(VM, format=VolumeFormat.RAW, size_bytes=1 << 40, content=ContentType.ROOTDIR)
    assert leftovers(small) == []
    assert await local.list() == []


@pytest.mark.host
async def test_with_no_byte_left_records_fail_cleanly_and_deleting_still_works(small: Path) -> None:
    local = await ready_backend(small)
    disk = await local.create(VM, format=VolumeFormat.QCOW2, size_bytes=MIB, content=ContentType.IMAGES)
    filler = small / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:  # noqa: PT012  written until it fails
        while True:
            file.write(bytes(4096))
    with pytest.raises(NoSpace):
        await local.create(VM, format=VolumeFormat.QCOW2, size_bytes=MIB, content=ContentType.IMAGES)
    await local.delete(disk)
    assert leftovers(small) == ["filler"]


@pytest.mark.host
async def test_new_volumes_leave_the_last_of_the_space_to_what_is_there(small: Path) -> None:
    local = await ready_backend(small)
    with pytest.raises(NoSpace, match="kept for what is there"):
        await local.receive(ContentType.ISO, "x.iso", stream(*[bytes(4096)] * 1024), checksum=None)
    filler = small / "filler"
    filler.write_bytes(bytes(4 * MIB - (64 << 10)))
    with pytest.raises(NoSpace, match="kept for what is there"):
        await local.create(VM, format=VolumeFormat.RAW, size_bytes=MIB, content=ContentType.IMAGES)
    assert leftovers(small) == ["filler"]
    filler.unlink()
    await local.create(VM, format=VolumeFormat.RAW, size_bytes=MIB, content=ContentType.IMAGES)
