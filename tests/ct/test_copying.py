"""A tree made like another in passes: after the last one nothing differs, whatever was done to it between and meanwhile."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.ct.copying import TreeCopy, copying
from appliance.errors import HostError
from tests.ct.test_archive import furnish

pytestmark = pytest.mark.host


@asynccontextmanager
async def copy_of(source: Path, target: Path, *, id_base: int = 0) -> AsyncIterator[TreeCopy]:
    target.mkdir(exist_ok=True)
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source, target)]
    try:
        async with copying(*fds, id_base=id_base, id_count=65_536, about="test") as copy:
            yield copy
    finally:
        for fd in fds:
            os.close(fd)


async def test_one_pass_makes_everything_the_same(tmp_path: Path) -> None:
    await asyncio.to_thread(furnish, tmp_path / "one")
    async with copy_of(tmp_path / "one", tmp_path / "two") as copy:
        first = await copy.again()
        assert await copy.differences() == 0
    assert first.files >= 5
    assert (tmp_path / "two/etc/plain").stat().st_nlink == 2
    assert (tmp_path / "two/sparse").stat().st_blocks * 512 < 1 << 20
    assert (tmp_path / "two/etc").stat().st_mtime_ns == (tmp_path / "one/etc").stat().st_mtime_ns


async def test_a_later_pass_copies_only_what_has_changed(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    for number in range(200):
        (one / str(number)).write_text("x" * 5000)
    await asyncio.sleep(1.3)  # older than a tick, so that the first pass may trust what it saw
    async with copy_of(one, tmp_path / "two") as copy:
        assert (await copy.again()).files == 200
        (one / "7").write_text("y" * 5000)
        (one / "new").write_text("z")
        (one / "9").unlink()
        (one / "11").chmod(0o4711)
        (one / "13").rename(one / "renamed")
        second = await copy.again()
        assert (second.files, second.removed) == (4, 2)
        assert await copy.differences() == 0


async def test_a_change_that_hides_its_time_is_seen(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "file").write_text("old")
    await asyncio.sleep(1.3)
    async with copy_of(one, tmp_path / "two") as copy:
        await copy.again()
        before = (one / "file").stat()
        (one / "file").write_text("new")
        os.utime(one / "file", ns=(before.st_atime_ns, before.st_mtime_ns))
        await copy.again()
        assert (tmp_path / "two/file").read_text() == "new"


async def test_kinds_may_change_into_each_other(tmp_path: Path) -> None:
    one = tmp_path / "one"
    (one / "a/deep/er").mkdir(parents=True)
    (one / "b").write_text("file")
    (one / "c").symlink_to("b")
    async with copy_of(one, tmp_path / "two") as copy:
        await copy.again()
        shutil.rmtree(one / "a")
        (one / "a").symlink_to("/etc")
        (one / "b").unlink()
        (one / "b").mkdir()
        (one / "b/inside").write_text("x")
        (one / "c").unlink()
        os.mkfifo(one / "c")
        await copy.again()
        assert await copy.differences() == 0
    assert (tmp_path / "two/a").readlink() == Path("/etc")


async def test_a_tree_in_use_is_whole_after_the_last_pass(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    stop = threading.Event()

    def disturb() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path = one / str(number % 50)
            if path.is_dir():
                shutil.rmtree(path)
            elif number % 7 == 0:
                path.unlink(missing_ok=True)
                path.mkdir()
                (path / "file").write_text(str(number))
            else:
                path.write_text(str(number) * 1000)

    writer = threading.Thread(target=disturb)
    writer.start()
    try:
        async with copy_of(one, tmp_path / "two") as copy:
            for _ in range(4):
                await copy.again()
            stop.set()
            await asyncio.to_thread(writer.join)
            last = await copy.again()
            assert await copy.differences() == 0
            assert last.seconds < 5
    finally:
        stop.set()
        await asyncio.to_thread(writer.join)


async def test_a_deep_tree_is_copied_or_refused_by_name(tmp_path: Path) -> None:
    async def deep(levels: int, name: str) -> Path:
        root = tmp_path / name
        root.mkdir()
        at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(levels):
            os.mkdir("d", dir_fd=at)
            below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        os.close(at)
        return root

    async with copy_of(await deep(390, "one"), tmp_path / "two") as copy:
        assert (await copy.again()).entries == 390
        assert await copy.differences() == 0
    async with copy_of(await deep(500, "three"), tmp_path / "four") as copy:
        with pytest.raises(HostError, match="deeper"):
            await copy.again()


async def test_owners_are_mapped(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    for name, owner in (("root", 100_000), ("stranger", 3)):
        (one / name).touch()
        os.chown(one / name, owner, owner)
    async with copy_of(one, tmp_path / "two", id_base=100_000) as copy:
        await copy.again()
        assert await copy.differences() == 0
    assert [(tmp_path / "two" / name).stat().st_uid for name in ("root", "stranger")] == [0, 65_534]


async def test_a_target_that_is_full_says_so(tmp_path: Path) -> None:
    one, small = tmp_path / "one", tmp_path / "small"
    one.mkdir()
    small.mkdir()
    (one / "big").write_bytes(os.urandom(4 << 20))
    mounted: list[str | Path] = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", small]
    await asyncio.to_thread(lambda: subprocess.run(mounted, check=True))
    try:
        async with copy_of(one, small) as copy:
            with pytest.raises(HostError, match="space"):
                await copy.again()
    finally:
        await asyncio.to_thread(lambda: subprocess.run(["umount", small], check=True))
