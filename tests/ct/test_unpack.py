"""Templates are hostile: what a template must not hold is refused, and nothing outside the volume is ever touched."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.ct import provision, unpack
from appliance.errors import InvalidParameter, NoSpace, NotFound
from appliance.model.guest import CtCredentials
from appliance.model.volume import OpenedVolume, VolumeFormat

Member = tuple[tarfile.TarInfo, bytes]
KEY = "ssh-ed25519 AAAA someone"


def entry(name: str, data: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def directory(name: str) -> Member:
    return entry(name, type=tarfile.DIRTYPE, mode=0o755)


def archive(path: Path, *members: Member, pack: Callable[[bytes], bytes] = lambda data: data) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(pack(buffer.getvalue()))
    return path


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout


GOOD = (
    directory("."),
    directory("./etc"),
    entry("./etc/shadow", b"daemon:*:1::::::\nroot:*:19000:0:99999:7:::\n", mode=0o640, gid=42),
    entry("./etc/machine-id", b"0123456789abcdef0123456789abcdef\n"),
    directory("./usr/bin"),
    entry("./usr/bin/tool", b"#!/bin/sh\n", mode=0o4755, uid=0, mtime=1_000_000_000),
    entry("./usr/bin/same", type=tarfile.LNKTYPE, linkname="./usr/bin/tool"),
    entry("./bin", type=tarfile.SYMTYPE, linkname="usr/bin"),
    entry("./usr/bin/vi", type=tarfile.SYMTYPE, linkname="/etc/alternatives/vi"),
    entry("./dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    entry("./home/user/file", b"mine", uid=1000, gid=1000),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.mkdir()
    return path


async def populate(root: Path, template: Path, credentials: CtCredentials | None = None) -> list[str]:
    volume = OpenedVolume(volume_id=None, path=root, format=VolumeFormat.SUBVOL, size_bytes=1 << 20)
    lines: list[str] = []
    await provision.populate(volume, template, credentials=credentials or CtCredentials(), log=lines.append)
    return lines


@pytest.mark.host
@pytest.mark.parametrize(
    "pack", [lambda data: data, gzip.compress, lzma.compress, zstd], ids=["tar", "gz", "xz", "zst"]
)
async def test_a_template_is_unpacked_with_owners_modes_and_links(
    tmp_path: Path, root: Path, pack: Callable[[bytes], bytes]
) -> None:
    lines = await populate(root, archive(tmp_path / "t.tar", *GOOD, pack=pack))
    tool = root / "usr/bin/tool"
    assert tool.stat().st_mode & 0o7777 == 0o4755
    assert tool.stat().st_mtime == 1_000_000_000
    assert tool.stat().st_ino == (root / "usr/bin/same").stat().st_ino
    assert (root / "bin").readlink() == Path("usr/bin")
    assert (root / "home/user/file").stat().st_uid == 1000
    assert (root / "etc/machine-id").read_bytes() == b""
    assert not (root / "dev/null").exists()
    assert "1 devices left out" in lines[-1]


@pytest.mark.host
async def test_credentials_are_written_for_root_only(tmp_path: Path, root: Path) -> None:
    secret = CtCredentials(password_hash="$6$salt$hash", ssh_keys=(KEY,))
    await populate(root, archive(tmp_path / "t.tar", *GOOD), secret)
    lines = (root / "etc/shadow").read_text().splitlines()
    assert lines == ["daemon:*:1::::::", "root:$6$salt$hash:19000:0:99999:7:::"]
    assert (root / "etc/shadow").stat().st_mode & 0o777 == 0o640
    assert (root / "root/.ssh/authorized_keys").read_text() == KEY + "\n"
    assert (root / "root/.ssh").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("credentials", [CtCredentials(password_hash="x\nevil::0"), CtCredentials(ssh_keys=("a\nb",))])
async def test_credentials_that_would_add_lines_are_refused(
    tmp_path: Path, root: Path, credentials: CtCredentials
) -> None:
    with pytest.raises(InvalidParameter):
        await populate(root, archive(tmp_path / "t.tar", *GOOD), credentials)


HOSTILE: dict[str, tuple[Member, ...]] = {
    "absolute name": (entry("/etc/cron.d/evil", b"x"),),
    "parent directory": (entry("etc/../../evil", b"x"),),
    "through an absolute link": (entry("x", type=tarfile.SYMTYPE, linkname="/"), entry("x/evil", b"x")),
    "through a relative link": (directory("a"), entry("x", type=tarfile.SYMTYPE, linkname="a"), entry("x/evil", b"x")),
    "link that climbs out": (entry("a/x", type=tarfile.SYMTYPE, linkname="../../../etc"),),
    "hard link out": (entry("x", type=tarfile.LNKTYPE, linkname="../../etc/passwd"),),
    "hard link to the host": (entry("x", type=tarfile.LNKTYPE, linkname="/etc/passwd"),),
    "hard link to nothing": (entry("x", type=tarfile.LNKTYPE, linkname="etc/passwd"),),
    "hard link through a link": (
        entry("x", type=tarfile.SYMTYPE, linkname="/etc"),
        entry("y", type=tarfile.LNKTYPE, linkname="x/passwd"),
    ),
    "device": (entry("evil", type=tarfile.BLKTYPE, devmajor=8, devminor=0),),
    "device beside dev": (entry("dev2/sda", type=tarfile.BLKTYPE, devmajor=8, devminor=0),),
    "foreign owner": (entry("x", b"x", uid=100_000),),
    "file over a directory": (directory("x"), entry("x", b"x")),
    "directory over a file": (entry("x", b"x"), directory("x")),
    "too deep": (entry("d/" * 200 + "x", b"x"),),
    "too large": (entry("x", b"x" * (2 << 20)),),
    "unknown type": (entry("x", type=b"9"),),
    "root is a file": (entry(".", b"x"),),
}


@pytest.mark.host
@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_template_is_refused_and_touches_nothing_outside(
    tmp_path: Path, root: Path, members: tuple[Member, ...]
) -> None:
    template = archive(tmp_path / "t.tar", *members)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, Path("/etc"), Path("/"))}
    with pytest.raises(InvalidParameter) as caught:
        await populate(root, template)
    assert "ostemplate" in caught.value.errors
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not list(root.rglob("evil"))


@pytest.mark.host
@pytest.mark.parametrize("kind", ["cut tar", "cut gz", "cut zst", "text", "empty"])
async def test_a_damaged_template_is_refused(tmp_path: Path, root: Path, kind: str) -> None:
    whole = archive(tmp_path / "t.tar", entry("x", os.urandom(200_000))).read_bytes()
    content = {
        "cut tar": whole[:100_000],
        "cut gz": gzip.compress(whole)[:100_000],
        "cut zst": zstd(whole)[:100_000],
        "text": b"this is no archive\n" * 100,
        "empty": b"",
    }[kind]
    (tmp_path / "t.tar").write_bytes(content)
    with pytest.raises(InvalidParameter, match="damaged archive"):
        await populate(root, tmp_path / "t.tar")


@pytest.mark.host
async def test_a_full_volume_is_no_space(tmp_path: Path) -> None:
    image = tmp_path / "small.raw"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-qF", image], check=True)
    template = archive(tmp_path / "t.tar", entry("x", os.urandom(8 << 20)))
    volume = OpenedVolume(volume_id=None, path=image, format=VolumeFormat.RAW, size_bytes=64 << 20)
    with pytest.raises(NoSpace):
        await provision.populate(volume, template, credentials=CtCredentials(), log=lambda line: None)


@pytest.mark.host
async def test_cancelling_ends_the_helper_and_the_mount(tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.touch()
    os.truncate(image, 64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    volume = OpenedVolume(volume_id=None, path=image, format=VolumeFormat.RAW, size_bytes=64 << 20)
    template = archive(tmp_path / "t.tar", entry("x", os.urandom(8 << 20)))
    task = asyncio.create_task(
        provision.populate(volume, template, credentials=CtCredentials(), log=lambda line: None), name="populate"
    )
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(attached, image):
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled(), "it was done before"
    assert not await asyncio.to_thread(attached, image)


def attached(image: Path) -> list[Path]:
    """The loop devices of an image; others come and go meanwhile."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if path.read_text().strip() == str(image):
                found.append(path)
    return found


async def test_a_missing_template_does_not_exist(tmp_path: Path, root: Path) -> None:
    with pytest.raises(NotFound, match=r"template none\.tar does not exist"):
        await populate(root, tmp_path / "none.tar")


@pytest.mark.parametrize(
    ("path", "target", "out"),
    [
        ("bin", "usr/bin", False),
        ("a/b/c", "../../x", False),
        ("a/b", "../../x", True),
        ("x", "..", True),
        ("x", "/anything", False),
        ("a/x", "b/../../..", True),
    ],
)
def test_a_link_climbs_out_when_it_passes_above_the_root(path: str, target: str, out: bool) -> None:
    assert unpack.climbs_out(path, target) is out


def test_a_password_is_set_in_its_line_or_added() -> None:
    assert provision.with_password("root:!:1:::::\nx:*\n", "H") == "root:H:1:::::\nx:*\n"
    assert provision.with_password("", "H").startswith("root:H:")
