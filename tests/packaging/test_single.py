"""The single file: unpacks itself once, whole or not at all, and keeps no version that nobody runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from appliance_build import single

SCRIPT = Path(__file__).resolve().parents[2] / "packaging/debian/single"


def build(directory: Path, words: str) -> Path:
    """A single file whose Python is a shell script that says `words` and its arguments."""
    tree = directory / f"tree-{words}"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/python3.11").write_text(f'#!/bin/sh\necho {words} "$@"\n')
    (tree / "bin/python3.11").chmod(0o755)
    (tree / "start.py").write_text("")
    target = directory / f"appliance-{words}"
    single.build(tree, SCRIPT, target, epoch_s=0)
    return target


def run(file: Path, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "APPLIANCE_CACHE": str(cache)}
    return subprocess.run([file, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_it_runs_and_the_second_start_unpacks_nothing(tmp_path: Path) -> None:
    file, cache = build(tmp_path, "one"), tmp_path / "cache"
    done = run(file, cache, "a b")
    assert done.stdout.split("start.py ")[1] == "a b\n"
    (home,) = cache.iterdir()
    before = home.stat()
    assert run(file, cache).returncode == 0
    assert (home.stat().st_ino, home.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_it_is_built_the_same_twice(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    assert build(tmp_path, "one").read_bytes() == build(tmp_path / "elsewhere", "one").read_bytes()


def test_another_version_removes_the_one_that_nobody_runs(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run(build(tmp_path, "one"), cache)
    assert run(build(tmp_path, "two"), cache).stdout.startswith("two")
    assert len(list(cache.iterdir())) == 1


def test_what_others_keep_beside_it_is_left_alone(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "mine").mkdir(parents=True)
    assert run(build(tmp_path, "one"), cache).returncode == 0
    assert (cache / "mine").is_dir()


def test_a_damaged_file_unpacks_nothing_and_says_so(tmp_path: Path) -> None:
    file, cache = build(tmp_path, "one"), tmp_path / "cache"
    file.write_bytes(file.read_bytes()[:-100])
    done = run(file, cache)
    assert done.returncode == 1
    assert f"cannot unpack into {cache}" in done.stderr
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(build(tmp_path, "one"), tmp_path / "file/cache")
    assert done.returncode == 1
    assert "APPLIANCE_CACHE" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to another")
def test_a_directory_of_somebody_else_is_not_run(tmp_path: Path) -> None:
    file, cache = build(tmp_path, "one"), tmp_path / "cache"
    run(file, cache)
    (home,) = cache.iterdir()
    os.chown(home, 65534, 65534)
    done = run(file, cache)
    assert done.returncode == 1
    assert "belongs to someone else" in done.stderr
