"""Directory volumes hold what a container made of them: trees of any depth, that change while they are looked at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.errors import NotFound
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, VolumeFormat, VolumeId
from appliance.storage.directory import DirectoryBackend
from appliance.storage.trees import remove_tree, tree_bytes
from tests.fakes.storage import MIB, leftovers, ready_backend

CT = GuestId(101)
DEPTH = 5000  # far over RLIMIT_NOFILE and Python's recursion limit; the path is longer than PATH_MAX


def dig(path: Path, *, depth: int = DEPTH) -> None:
    """Make directories within directories below `path`, as a container can, a file beside each hundredth."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(depth):
        if level % 100 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


async def subvol(local: DirectoryBackend) -> tuple[VolumeId, Path]:
    made = await local.create(CT, format=VolumeFormat.SUBVOL, size_bytes=MIB, content=ContentType.ROOTDIR)
    return made, (await local.open(made)).path


async def test_a_bottomless_tree_can_be_described_and_deleted(tmp_path: Path) -> None:
    local = await ready_backend(tmp_path / "local")
    made, path = await subvol(local)
    dig(path)
    assert (await local.info(made)).used_bytes > 0
    await local.delete(made)
    with pytest.raises(NotFound):
        await local.info(made)
    assert leftovers(local.root) == []


async def test_a_bottomless_remain_does_not_keep_the_storage_from_starting(tmp_path: Path) -> None:
    local = await ready_backend(tmp_path / "local")
    _, path = await subvol(local)
    dig(path)
    path.rename(path.with_name(".tmp-0-gone"))
    await ready_backend(tmp_path / "local")
    assert leftovers(local.root) == []


def test_removal_and_counting_follow_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(bytes(MIB))
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "link").symlink_to(outside)
    (tree / "a" / "b" / "up").symlink_to("../..")
    assert tree_bytes(tree) < MIB
    remove_tree(tree)
    assert not tree.exists()
    assert (outside / "kept").stat().st_size == MIB


def test_a_directory_swapped_for_a_link_while_it_is_counted_is_not_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    (outside / "large").write_bytes(bytes(MIB))
    (tree / "sub").mkdir(parents=True)
    look = os.scandir

    def swap_then_look(place: int) -> object:
        entries = look(place)
        if (tree / "sub").is_dir() and not (tree / "sub").is_symlink():
            listed = list(entries)
            entries.close()
            (tree / "sub").rmdir()
            (tree / "sub").symlink_to(outside)
            again = look(place)
            again.close()
            return _Listed(listed)
        return entries

    monkeypatch.setattr(os, "scandir", swap_then_look)
    assert tree_bytes(tree) < MIB


class _Listed(list[os.DirEntry[str]]):
    """Entries read before the tree changed."""

    def __enter__(self) -> _Listed:
        return self

    def __exit__(self, *_: object) -> None:
        return None
