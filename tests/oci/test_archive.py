"""Archives that stand for images, as strangers upload them; and what a collection leaves."""

from __future__ import annotations

import asyncio
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from appliance.errors import HostError, InvalidParameter, NotFound
from appliance.storage.oci import archive, blobs, manifest
from appliance.storage.oci.archive import Archive, Image
from appliance.storage.oci.credentials import RegistryAccess, RegistryBook, Transport
from appliance.storage.oci.manifest import Platform
from appliance.storage.oci.reference import Digest
from appliance.storage.oci.store import ImageStore
from tests.oci import images

MADE = images.image([images.layer(images.file("x", b"1"))], config={"Cmd": ["/x"]})


def write(path: Path, members: dict[str, bytes | tuple[bytes, str]]) -> Path:
    """A tar file; a pair is a link of that type to that target."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                info.type, info.linkname = data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def index(**changes: object) -> bytes:
    entry = {"mediaType": manifest.OCI_MANIFEST, "digest": MADE.digest, "size": len(MADE.document), **changes}
    return json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()


def blob(digest: str) -> str:
    return f"blobs/sha256/{digest[7:]}"


WHOLE: dict[str, bytes | tuple[bytes, str]] = {
    "oci-layout": b"{}",
    "index.json": index(),
    blob(MADE.digest): MADE.document,
    blob(images.sha256(MADE.config)): MADE.config,
}


def image_of(path: Path) -> Image:
    with Archive(path) as opened:
        assert opened.is_layout
        return opened.image(Platform())


def test_a_thin_archive_says_what_the_image_says(tmp_path: Path) -> None:
    image = image_of(write(tmp_path / "a.tar", WHOLE))
    (tmp_path / "b.tar").write_bytes(archive.write(image))
    again = image_of(tmp_path / "b.tar")
    assert (again.digest, again.config, again.manifest) == (image.digest, image.config, image.manifest)
    assert (tmp_path / "b.tar").stat().st_size < 20_000


def test_a_plain_template_is_no_image(tmp_path: Path) -> None:
    with Archive(write(tmp_path / "a.tar", {"etc/passwd": b""})) as opened:
        assert not opened.is_layout
    with pytest.raises(NotFound):
        Archive(tmp_path / "missing.tar")
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(InvalidParameter, match="not an OCI archive"):
        Archive(tmp_path / "b.tar")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"index.json": b"[]"}, "not a JSON object"),
        ({"index.json": b'{"schemaVersion": 2, "manifests": []}'}, "lists no image"),
        ({"index.json": b" " * (2 << 20)}, "larger than"),
        ({"index.json": (tarfile.SYMTYPE, "/etc/shadow")}, "index.json is missing"),
        ({"index.json": (tarfile.LNKTYPE, "oci-layout")}, "index.json is missing"),
        ({"index.json": index(digest="sha256:../../x")}, "is not a sha256"),
        ({blob(MADE.digest): b"{}"}, "has another digest"),
        ({blob(MADE.digest): (tarfile.SYMTYPE, "/etc/shadow")}, "is missing"),
        ({blob(images.sha256(MADE.config)): b"{}"}, "has another digest"),
    ],
)
def test_what_an_archive_lies_about_is_refused(
    tmp_path: Path, changes: dict[str, bytes | tuple[bytes, str]], why: str
) -> None:
    with pytest.raises(InvalidParameter, match=why):
        image_of(write(tmp_path / "a.tar", WHOLE | changes))


def test_an_archive_of_too_many_entries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="more than 4096 entries"):
        Archive(write(tmp_path / "a.tar", {f"blobs/sha256/{number}": b"" for number in range(5000)}))


def test_a_root_of_thousands_of_files_is_not_read_to_find_that_it_is_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tar", {f"srv/{number}": b"" for number in range(3000)})
    whole, read = archive._Bounded.read, 0

    def counted(file: archive._Bounded, size: int = -1, /) -> bytes:
        nonlocal read
        read += 1
        return whole(file, size)

    monkeypatch.setattr(archive._Bounded, "read", counted)
    with pytest.raises(InvalidParameter, match="not an OCI archive"):
        Archive(path)
    assert read < 100


def test_an_image_beside_which_other_files_lie_is_one(tmp_path: Path) -> None:
    others: dict[str, bytes | tuple[bytes, str]] = {f"notes/{number}": b"" for number in range(20)}
    assert image_of(write(tmp_path / "a.tar", others | WHOLE)).document == MADE.document


def test_a_header_that_claims_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 4 << 30
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT))
    os.truncate(path, (4 << 30) + 1024)  # a hole: it costs nothing to make
    with pytest.raises(InvalidParameter, match="not an OCI archive"):
        Archive(path)


def test_an_index_within_an_index_without_end_is_refused(tmp_path: Path) -> None:
    members: dict[str, bytes | tuple[bytes, str]] = {"oci-layout": b"{}"}
    document = MADE.document
    for _ in range(6):
        entry = {"mediaType": manifest.OCI_INDEX, "digest": images.sha256(document), "size": len(document),
                 "platform": {"os": "linux", "architecture": "amd64"}}  # fmt: skip
        members[blob(images.sha256(document))] = document
        document = json.dumps({"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": [entry]}).encode()
    with pytest.raises(InvalidParameter, match="indices within indices"):
        image_of(write(tmp_path / "a.tar", members | {"index.json": document}))


async def test_a_collection_takes_what_nobody_names_and_waits_for_who_uses_the_store(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    await asyncio.to_thread(store.prepare)
    kept, gone = [await asyncio.to_thread(store.blobs.add, data) for data in (b"kept", b"gone")]
    chain, other = Digest.of(b"chain"), Digest.of(b"other")
    for each in (chain, other):
        store.layers.tree(each).mkdir(parents=True)

    recent = await asyncio.to_thread(store.collect, blobs={kept}, layers={chain})
    assert (recent.blobs, recent.layers) == (0, 0)  # an interrupted pull finds what it has fetched

    order: list[str] = []

    async def collect() -> None:
        async with store.alone():
            order.append("alone")
            await asyncio.to_thread(store.collect, blobs={kept}, layers={chain}, older_than_s=0)

    async with store.using():
        task = asyncio.ensure_future(collect())
        await asyncio.sleep(0.05)
        async with store.using():  # who comes later does not wait for a collection that waits itself
            assert store.in_use
        order.append("used")
    await task
    assert order == ["used", "alone"]
    assert store.blobs.path(kept).exists()
    assert not store.blobs.path(gone).exists()
    assert store.layers.tree(chain).exists()
    assert not store.layers.tree(other).exists()


async def test_one_after_the_other_makes_a_blob_however_many_come(tmp_path: Path) -> None:
    store, digest = ImageStore(tmp_path), Digest.of(b"x")
    inside = most = 0

    async def make() -> None:
        nonlocal inside, most
        async with store.only_one(digest):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    async def late() -> None:
        await asyncio.sleep(0)
        await make()

    await asyncio.gather(make(), make(), late(), make(), late())
    assert most == 1
    assert not store._locks


def test_a_name_that_comes_after_anothers_sync_is_made_durable_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore(tmp_path)
    store.prepare()
    synced: list[Path] = []
    monkeypatch.setattr(blobs, "sync_directory", synced.append)
    late = store.blobs.writer(Digest.of(b"x"), 1)
    late.restart()
    store.blobs.add(b"other")
    store.blobs.sync()
    late.write(b"x")
    late.publish()
    late.close()
    store.blobs.sync()
    store.blobs.sync()
    assert synced == [store.directory / "blobs/sha256"] * 2


def test_what_a_crash_leaves_of_blobs_is_continued_for_a_day_and_then_removed(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    store.prepare()
    partial = store.directory / "partial" / f"sha256-{'0' * 64}"
    partial.write_bytes(b"half")
    assert store.prepare() == []
    os.utime(partial, (0, 0))
    assert store.prepare() == ["removed 1 remains of images"]


def test_credentials_are_in_a_file_of_their_own_that_nobody_else_reads(tmp_path: Path) -> None:
    book = RegistryBook(tmp_path / "book.json")
    assert book.get("quay.io") == RegistryAccess(registry="quay.io")
    book.put(RegistryAccess(registry="index.docker.io", username="me", password="hunter2"))
    assert stat.S_IMODE((tmp_path / "book.json").stat().st_mode) == 0o600
    assert book.get("docker.io").password == "hunter2"
    assert "hunter2" not in repr(book.all())
    book.put(RegistryAccess(registry="localhost:5000", username="a", password="b", transport=Transport.PLAIN))
    for bad in (
        {"registry": "r", "username": "a"},
        {"registry": "r", "username": "a:b", "password": "c"},
        {"registry": "r", "username": "a", "password": "c\r\nX: y"},
        {"registry": "r.example.com", "username": "a", "password": "c", "transport": Transport.PLAIN},
        {"registry": "r/../x"},
        {"registry": "r", "ca": "no certificate"},
    ):
        with pytest.raises(InvalidParameter):
            book.put(RegistryAccess(**bad))  # type: ignore[arg-type]  # fields by name
    book.remove("docker.io")
    with pytest.raises(NotFound):
        book.remove("docker.io")
    (tmp_path / "book.json").write_text("hunter2 {")
    with pytest.raises(HostError) as caught:
        book.all()
    assert "hunter2" not in str(caught.value)
