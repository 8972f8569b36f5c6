"""Layers: what they hide and show, and what a hostile one tries. As root, on this host's file system."""

from __future__ import annotations

import asyncio
import gzip
import os
import stat
import tarfile
from pathlib import Path

import pytest

from appliance.ct import image_layers
from appliance.errors import InvalidParameter, NoSpace
from appliance.storage.oci.layers import LayerStore
from appliance.storage.oci.reference import Digest
from tests.oci import images
from tests.oci.images import Entry, device, directory, file, link

OPAQUE = "trusted.overlay.opaque"


async def unpack(tmp_path: Path, *entries: Entry, lowers: list[Path] | None = None, kind: str = "") -> Path:
    return await unpack_stream(tmp_path, images.layer(*entries), lowers=lowers, kind=kind)


async def unpack_stream(
    tmp_path: Path, data: bytes, *, lowers: list[Path] | None = None, kind: str = "", diff_id: str = ""
) -> Path:
    target = tmp_path / f"layer-{len(list(tmp_path.iterdir()))}"
    target.mkdir()
    target.chmod(0o755)
    blob = tmp_path / f"{target.name}.blob"
    how = {"gz": "gzip", "zst": "zstd"}.get(kind, "")
    blob.write_bytes(await asyncio.to_thread(images.compress, data, how))
    await image_layers.unpack_into(
        target, blob, compression=kind, diff_id=diff_id or images.sha256(data), lowers=lowers or [], log=lambda _: None
    )
    return target


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return OPAQUE in os.listxattr(path) and os.getxattr(path, OPAQUE) == b"y"


@pytest.mark.parametrize("kind", ["", "gz", "zst"])
async def test_files_directories_links_and_owners_are_made(tmp_path: Path, kind: str) -> None:
    tree = await unpack(
        tmp_path,
        directory("./"),
        directory("tmp", 0o1777),
        file("tmp/a", b"hello", 0o4755, uid=1000),
        link("tmp/b", "tmp/a", tarfile.LNKTYPE),
        link("c", "/tmp/a"),
        kind=kind,
    )
    status = (tree / "tmp/a").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode), status.st_nlink) == (1000, 0o4755, 2)
    assert stat.S_IMODE((tree / "tmp").stat().st_mode) == 0o1777
    assert (tree / "c").readlink() == Path("/tmp/a")


async def test_whiteouts_and_opaque_directories_become_the_overlays(tmp_path: Path) -> None:
    tree = await unpack(
        tmp_path, file("etc/.wh.passwd"), directory("var/lib"), file("var/lib/.wh..wh..opq"), file("var/lib/new", b"x")
    )
    assert is_whiteout(tree / "etc/passwd")
    assert is_opaque(tree / "var/lib")
    assert not is_opaque(tree / "var")
    assert (tree / "var/lib/new").read_bytes() == b"x"


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_layers_own_whiteout_hides_nothing_of_it_whatever_the_order(tmp_path: Path, reverse: bool) -> None:
    hidden: list[Entry] = [file(".wh.file"), file(".wh.dir")]
    shown: list[Entry] = [file("file", b"new"), directory("dir", 0o711), file("dir/inner", b"new")]
    tree = await unpack(tmp_path, *(shown + hidden if reverse else hidden + shown))
    assert (tree / "file").read_bytes() == (tree / "dir/inner").read_bytes() == b"new"
    assert is_opaque(tree / "dir")
    assert stat.S_IMODE((tree / "dir").stat().st_mode) == 0o711


async def test_directories_a_layer_does_not_name_are_as_the_layers_below_have_them(tmp_path: Path) -> None:
    base = await unpack(tmp_path, directory("tmp", 0o1777), directory("srv", 0o750, uid=33), link("lib", "srv"))
    upper = await unpack(tmp_path, file("tmp/x"), file("srv/deep/y"), file("lib/z"), lowers=[base])
    assert stat.S_IMODE((upper / "tmp").stat().st_mode) == 0o1777
    assert ((upper / "srv").stat().st_uid, stat.S_IMODE((upper / "srv").stat().st_mode)) == (33, 0o750)
    assert stat.S_IMODE((upper / "srv/deep").stat().st_mode) == 0o755
    assert (upper / "lib").lstat().st_uid == 0  # a link below is not followed


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([file("../out")], "absolute names and .. are refused"),
        ([file("/etc/cron.d/x")], "absolute names and .. are refused"),
        ([link("l", "../../../../etc"), file("l/x")], "leads out"),
        ([link("l", "/etc"), file("l/cron.d/x", b"x")], "passes through l, which is not a directory"),
        ([link("l", "/"), directory("l")], "a directory where a file was"),
        ([link("h", "../../etc/shadow", tarfile.LNKTYPE)], "absolute names and .. are refused"),
        ([link("h", "/etc/shadow", tarfile.LNKTYPE)], "absolute names and .. are refused"),
        ([link("h", "etc/shadow", tarfile.LNKTYPE)], "which the archive has not made"),
        ([link("l", "/etc"), link("h", "l/shadow", tarfile.LNKTYPE)], "passes through l"),
        ([device("sda", 8, 0)], "devices are refused"),
        ([device("etc/passwd", 0, 0)], "devices are refused"),  # an overlay's whiteout, by the back door
        ([file("etc/.wh...")], "a whiteout of nothing"),
        ([file(".wh..")], "a whiteout of nothing"),
        ([file("a/.wh.")], "a whiteout of nothing"),
        ([link("l", "/etc"), file("l/.wh.passwd")], "passes through l"),
        ([link("l", "/etc"), file("l/.wh..wh..opq")], "passes through l"),
        ([link(".wh.x", "/etc/passwd")], "a whiteout that is no file"),
        ([file(".wh.a"), file("a/b")], "passes through a, which is not a directory"),
        ([file("x", uid=70_000)], "is outside 0…65535"),
        ([directory("/".join("d" * 200))], "levels deep"),
    ],
)  # fmt: skip
async def test_what_reaches_out_of_the_layer_is_refused(tmp_path: Path, entries: list[Entry], why: str) -> None:
    with pytest.raises(InvalidParameter, match=why.replace("…", ".")):
        await unpack(tmp_path, *entries)


async def test_attributes_of_an_overlay_are_not_taken_from_a_layer(tmp_path: Path) -> None:
    names = ("trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque", "security.selinux")
    pax = {f"SCHILY.xattr.{name}": "y" for name in names} | {"SCHILY.xattr.user.kept": "z"}
    tree = await unpack(tmp_path, file("x", pax=pax))
    assert os.listxattr(tree / "x") == ["user.kept"]


async def test_a_layer_of_another_content_than_promised_is_refused(tmp_path: Path) -> None:
    data = images.layer(file("x"))
    with pytest.raises(InvalidParameter, match=f"has the digest {images.sha256(data)}, not"):
        await unpack_stream(tmp_path, data, diff_id=images.sha256(b"another"))
    with pytest.raises(InvalidParameter, match="has the digest"):  # what follows the end of the archive counts
        await unpack_stream(tmp_path, data + bytes(512), diff_id=images.sha256(data))


async def test_a_bomb_ends_at_a_multiple_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layers, "BOMB_FLOOR_BYTES", 1 << 20)
    with pytest.raises(InvalidParameter, match="over 1048576 bytes"):
        await unpack(tmp_path, file("zeros", bytes(64 << 20)), kind="zst")
    with pytest.raises(InvalidParameter, match="out of proportion to its size"):
        await unpack_stream(tmp_path, images.layer(file("x")) + bytes(64 << 20), kind="gz")


async def test_a_file_that_claims_to_be_sparse_does_not_fill_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_layers, "BOMB_FLOOR_BYTES", 1 << 20)
    info = tarfile.TarInfo("huge")
    info.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "huge", "GNU.sparse.realsize": str(1 << 40)
    }  # fmt: skip
    info.size = 512
    with pytest.raises(InvalidParameter, match=r"over \d+ bytes|damaged layer"):
        await unpack(tmp_path, (info, b"1\n0\n512\n".ljust(512, b"\0")))


async def test_a_layer_larger_than_what_is_left_is_a_lack_of_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_layers, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(NoSpace, match="the storage has left"):
        await unpack(tmp_path, file("x", bytes(4096)))


@pytest.mark.parametrize("data", [b"", b"not a tar" * 100, gzip.compress(b"x", mtime=0)])
async def test_garbage_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidParameter):
        await unpack_stream(tmp_path, data, kind="", diff_id=images.sha256(b"x"))


async def test_a_compressed_stream_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    data = images.layer(file("x", os.urandom(100_000)))
    blob, target = tmp_path / "blob", tmp_path / "t"
    target.mkdir()
    blob.write_bytes(gzip.compress(data)[:-50])
    with pytest.raises(InvalidParameter):
        await image_layers.unpack_into(
            target, blob, compression="gz", diff_id=images.sha256(data), lowers=[], log=lambda _: None
        )


async def test_layers_appear_together_and_whole_or_not_at_all(tmp_path: Path) -> None:
    store, chain = LayerStore(tmp_path), [Digest.of(b"one"), Digest.of(b"two")]
    await asyncio.to_thread(store.prepare)

    async def make(*, fails: bool) -> list[int]:
        made = []
        async with store.making(chain) as making:
            for number in range(2):
                tree = await asyncio.to_thread(making.begin, number)
                if tree is None:
                    continue
                made.append(number)
                below = making.below(number)
                assert [(each / "file").exists() for each in below] == [True] * number
                (tree / "file").touch()
                assert not store.tree(chain[number]).exists()
            if fails:
                raise InvalidParameter({"x": "broken"})
        return made

    with pytest.raises(InvalidParameter):
        await make(fails=True)
    assert list(store.directory.iterdir()) == []
    assert await make(fails=False) == [0, 1]
    assert await make(fails=False) == []
    assert all((store.tree(each) / "file").exists() for each in chain)
    (store.directory / ".tmp-left").mkdir()
    assert await asyncio.to_thread(store.prepare) == 1
    assert sorted(path.name for path in store.directory.iterdir()) == sorted(f"sha256-{each.hex}" for each in chain)
