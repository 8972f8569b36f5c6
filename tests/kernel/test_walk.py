"""Trees are walked whatever they hold, and never left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.kernel.walk import subdirectories, walk


def test_each_directory_is_entered_once_and_left_after_what_is_below(tmp_path: Path) -> None:
    for name in ("a/b", "a/c", "d"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/file").touch()
    (tmp_path / "link").symlink_to("a")
    entered: list[str] = []
    left: list[str] = []

    def enter(fd: int) -> list[str]:
        entered.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path))
        return sorted(subdirectories(fd))

    walk(tmp_path, enter, lambda _fd, name: left.append(name))
    assert sorted(entered) == [".", "a", "a/b", "a/c", "d"]
    assert left == ["d", "c", "b", "a"]


def test_a_directory_moved_out_of_the_tree_does_not_take_the_walk_with_it(tmp_path: Path) -> None:
    (tmp_path / "tree/a/b").mkdir(parents=True)
    (tmp_path / "outside/kept").mkdir(parents=True)

    def enter(fd: int) -> list[str]:
        names = subdirectories(fd)
        if not names:
            (tmp_path / "tree/a/b").rename(tmp_path / "outside/b")
        return names

    with pytest.raises(OSError, match="moved away"):
        walk(tmp_path / "tree", enter, lambda fd, name: os.rmdir(name, dir_fd=fd))
    assert (tmp_path / "outside/kept").is_dir()


def test_what_vanishes_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    walk(tmp_path, lambda fd: [*subdirectories(fd), "gone"])
