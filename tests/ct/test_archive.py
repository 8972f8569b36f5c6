"""A container's tree through an archive and back: nothing lost that matters, nothing read or written outside."""

from __future__ import annotations

import asyncio
import io
import os
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from appliance.ct import archive, pack, provision
from appliance.errors import HostError, InvalidParameter, NotFound
from appliance.model.volume import OpenedVolume, VolumeFormat

pytestmark = pytest.mark.host
MIB = 1 << 20


def volume(path: Path) -> OpenedVolume:
    path.mkdir(exist_ok=True)
    return OpenedVolume(volume_id=None, path=path, format=VolumeFormat.SUBVOL, size_bytes=0)


def furnish(root: Path) -> None:
    """What a container's root may hold."""
    (root / "etc").mkdir(parents=True)
    (root / "etc/plain").write_text("text")
    os.chown(root / "etc/plain", 33, 44)
    (root / "etc/plain").chmod(0o4750)
    os.link(root / "etc/plain", root / "etc/linked")
    (root / "link").symlink_to("/etc/shadow")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", 0o20600, os.makedev(1, 3))
    with (root / "sparse").open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(20 * MIB)
        file.write(b"middle")
    (root / "empty").touch()
    (root / "holes").touch()
    os.truncate(root / "holes", MIB)
    os.setxattr(root / "etc/plain", "user.binary", b"\xff\x00\xfe")
    entries = ((1, 6, -1), (2, 6, 7), (4, 4, -1), (0x10, 6, -1), (0x20, 4, -1))  # acl(5): user 7 may write
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(root / "empty", "system.posix_acl_access", acl)
    os.utime(root / "etc", ns=(1_000_000_007, 1_600_000_000_123_456_789))
    (root / "srv/data").mkdir(parents=True)
    (root / "näme\udcff").write_text("odd name", errors="surrogateescape")


def look(root: Path) -> dict[str, object]:
    """What must be the same."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        told: list[object] = [status.st_mode, status.st_uid, status.st_gid, status.st_nlink if path.is_file() else 0]
        if path.is_symlink():
            told.append(path.readlink())
        elif path.is_file():
            told += [path.read_bytes(), sorted((name, os.getxattr(path, name)) for name in os.listxattr(path))]
        found[str(path.relative_to(root))] = told
    return found


def unzipped(path: Path) -> bytes:
    return subprocess.run(["zstd", "-dcq", path], check=True, capture_output=True, timeout=60).stdout


async def write(root: Path, target: Path, *, id_base: int = 0, exclude: tuple[str, ...] = ()) -> list[str]:
    lines: list[str] = []
    async with provision.opened(volume(root), "test") as fd:
        tree = archive.PackedTree(fd=fd, prefix="", id_base=id_base, id_count=65_536)
        await archive.write(
            target, [tree], config="hostname: web\n", exclude=exclude, compress="zstd", log=lines.append
        )
    return lines


async def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    await asyncio.to_thread(furnish, tmp_path / "root")
    lines = await write(tmp_path / "root", tmp_path / "x.tar.zst")
    assert "1 left out" in lines[0]  # the device
    assert (tmp_path / "x.tar.zst").stat().st_size < MIB
    target = volume(tmp_path / "back")
    await provision.unpack_into(target, tmp_path / "x.tar.zst", log=lines.append, exclude=["etc/vzdump"])
    before, after = await asyncio.to_thread(look, tmp_path / "root"), await asyncio.to_thread(look, target.path)
    del before["device"]
    assert after == before
    assert (target.path / "sparse").stat().st_blocks * 512 < MIB
    assert (target.path / "etc").stat().st_mtime_ns // 1000 == 1_600_000_000_123_456


async def test_gnu_tar_understands_it(tmp_path: Path) -> None:
    await asyncio.to_thread(furnish, tmp_path / "root")
    await write(tmp_path / "root", tmp_path / "x.tar.zst")
    (tmp_path / "gnu").mkdir()
    argv: list[str | Path] = [
        "tar",
        "--zstd",
        "-xpf",
        tmp_path / "x.tar.zst",
        "-C",
        tmp_path / "gnu",
        "--numeric-owner",
        "--xattrs",
    ]
    await asyncio.to_thread(lambda: subprocess.run(argv, check=True, timeout=60))
    assert (tmp_path / "gnu/sparse").read_bytes() == (tmp_path / "root/sparse").read_bytes()
    assert (tmp_path / "gnu/etc/plain").stat().st_uid == 33
    assert (tmp_path / "gnu/etc/vzdump/pct.conf").read_text() == "hostname: web\n"


async def test_owners_are_the_containers_own(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    for name, owner in (("root", 100_000), ("daemon", 100_033), ("stranger", 5)):
        (tmp_path / "root" / name).touch()
        os.chown(tmp_path / "root" / name, owner, owner)
    await write(tmp_path / "root", tmp_path / "x.tar.zst", id_base=100_000)
    raw = await asyncio.to_thread(unzipped, tmp_path / "x.tar.zst")
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        owners = {member.name: member.uid for member in tar}
    assert (owners["root"], owners["daemon"], owners["stranger"]) == (0, 33, pack.NOBODY)


async def test_what_is_excluded_and_what_belongs_elsewhere_is_left_out(tmp_path: Path) -> None:
    await asyncio.to_thread(furnish, tmp_path / "root")
    (tmp_path / "root/srv/data/file").write_text("on another volume")
    await write(tmp_path / "root", tmp_path / "x.tar.zst", exclude=("etc",))
    lines: list[str] = []
    whole, part = volume(tmp_path / "whole"), volume(tmp_path / "part")
    await provision.unpack_into(whole, tmp_path / "x.tar.zst", log=lines.append, exclude=["srv/data", "etc/vzdump"])
    assert not (whole.path / "etc").exists()
    assert not (whole.path / "srv/data").exists()
    await provision.unpack_into(part, tmp_path / "x.tar.zst", log=lines.append, below="srv/data")
    assert [path.name for path in part.path.iterdir()] == ["file"]


async def test_a_single_file_is_listed_and_read(tmp_path: Path) -> None:
    await asyncio.to_thread(furnish, tmp_path / "root")
    await write(tmp_path / "root", tmp_path / "x.tar.zst")
    listed = {member.path: member for member in await archive.members(tmp_path / "x.tar.zst")}
    assert (listed["etc"].kind, listed["link"].kind, listed["sparse"].size) == ("d", "l", 64 * MIB)
    assert await archive.read_member(tmp_path / "x.tar.zst", archive.CONFIG_NAME) == b"hostname: web\n"
    with pytest.raises(NotFound):
        await archive.read_member(tmp_path / "x.tar.zst", "etc/never")
    with pytest.raises(InvalidParameter, match="regular"):
        await archive.read_member(tmp_path / "x.tar.zst", "etc")
    with pytest.raises(InvalidParameter, match="over"):
        await archive.read_member(tmp_path / "x.tar.zst", "sparse")


async def test_a_damaged_archive_is_refused_everywhere(tmp_path: Path) -> None:
    await asyncio.to_thread(furnish, tmp_path / "root")
    await write(tmp_path / "root", tmp_path / "x.tar.zst")
    whole = (tmp_path / "x.tar.zst").read_bytes()
    (tmp_path / "x.tar.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidParameter):
        await archive.members(tmp_path / "x.tar.zst")
    with pytest.raises(InvalidParameter):
        await provision.unpack_into(volume(tmp_path / "back"), tmp_path / "x.tar.zst", log=lambda line: None)


async def test_links_the_container_makes_meanwhile_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the host's")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/escape").symlink_to(tmp_path / "secret")
    (tmp_path / "root/up").symlink_to("../..")
    await write(tmp_path / "root", tmp_path / "x.tar.zst")
    raw = await asyncio.to_thread(unzipped, tmp_path / "x.tar.zst")
    assert b"the host's" not in raw


async def test_a_full_disk_and_a_cancellation_leave_no_process(tmp_path: Path) -> None:
    await asyncio.to_thread(furnish, tmp_path / "root")
    with pytest.raises((HostError, OSError)):
        await write(tmp_path / "root", Path("/dev/full-of-nothing/x.tar.zst"))
    (tmp_path / "root/big").write_bytes(os.urandom(160 * MIB))
    packing = asyncio.ensure_future(write(tmp_path / "root", tmp_path / "y.tar.zst"))
    await asyncio.sleep(0.1)
    packing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await packing
