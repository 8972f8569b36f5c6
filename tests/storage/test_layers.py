"""Directory volumes that share an unpacked template: made at once, kept, returned to and removed without touching it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from appliance.ct import rootfs
from appliance.errors import Conflict, HostError, NotFound
from appliance.kernel import mount
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, OpenedVolume, VolumeFormat, VolumeId
from appliance.storage import overlays
from appliance.storage.directory import DirectoryBackend
from appliance.storage.trees import TreeKind

T = TypeVar("T")
pytestmark = pytest.mark.host
GUEST, OTHER = GuestId(101), GuestId(102)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "debian.tar.zst"
    path.write_bytes(b"an archive")
    return path


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[DirectoryBackend]:
    backend = DirectoryBackend("local", tmp_path / "local")
    await backend.recover()
    assert backend._trees is TreeKind.OVERLAY
    yield backend
    assert await asyncio.to_thread(mount.mounts_under, tmp_path) == []


async def fill(path: Path) -> None:
    def unpack() -> None:
        (path / "etc").mkdir()
        (path / "etc/hostname").write_text("template")
        path.chmod(0o711)

    await asyncio.to_thread(unpack)


async def make(backend: DirectoryBackend, archive: Path, guest_id: GuestId = GUEST) -> VolumeId:
    async with backend.layer(archive, fill) as base:
        return await backend.create(
            guest_id, format=VolumeFormat.SUBVOL, size_bytes=0, content=ContentType.ROOTDIR, base=base
        )


async def copied(
    backend: DirectoryBackend,
    source: OpenedVolume,
    guest_id: GuestId = OTHER,
    *,
    full: bool,
    log: Callable[[str], None] = lambda line: None,
) -> VolumeId:
    """A clone of a directory volume, or of what a snapshot keeps of one."""
    return await backend.clone(source, guest_id, format=VolumeFormat.SUBVOL, full=full, log=log)


@contextmanager
def mounted(volume: object, place: Path) -> Iterator[Path]:
    """What a container would see, ids as they are on the volume."""
    fd, _ = rootfs.open_detached(volume, about="test")  # type: ignore[arg-type]  # an OpenedVolume
    place.mkdir(exist_ok=True)
    mount.move_mount(fd, place)
    os.close(fd)
    try:
        yield place
    finally:
        mount.umount(place)


async def inside(backend: DirectoryBackend, volume: VolumeId, place: Path, act: Callable[[Path], T]) -> T:
    """`act` on what a container would see."""
    opened = await backend.open(volume)

    def run() -> T:
        with mounted(opened, place) as root:
            return act(root)

    return await asyncio.to_thread(run)


async def write(backend: DirectoryBackend, volume: VolumeId, place: Path, name: str, text: str) -> None:
    await inside(backend, volume, place, lambda root: (root / name).write_text(text))


async def read(backend: DirectoryBackend, volume: VolumeId, place: Path) -> dict[str, str]:
    return await inside(
        backend,
        volume,
        place,
        lambda root: {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()},
    )


async def kept(
    backend: DirectoryBackend, archive: Path, place: Path, name: str = "one", *, in_use: bool = False
) -> VolumeId:
    """A container's volume that had a file "first" in it when the snapshot `name` was made."""
    volume = await make(backend, archive)
    await write(backend, volume, place, "first", "1")
    await backend.snapshot(volume, name, in_use=in_use)
    return volume


async def test_an_archive_is_unpacked_once_and_never_written_to(
    backend: DirectoryBackend, archive: Path, tmp_path: Path
) -> None:
    volumes = await asyncio.gather(make(backend, archive), make(backend, archive, OTHER))
    await write(backend, volumes[0], tmp_path / "m", "etc/hostname", "one")
    assert await read(backend, volumes[0], tmp_path / "m") == {"etc/hostname": "one"}
    assert await read(backend, volumes[1], tmp_path / "m") == {"etc/hostname": "template"}
    (layer,) = (path for path in (tmp_path / "local/.appliance/layers").iterdir() if path.is_dir())
    assert (layer / "etc/hostname").read_text() == "template"
    mode = await inside(backend, volumes[0], tmp_path / "m", lambda root: root.stat().st_mode)
    assert mode & 0o777 == 0o711
    assert (await backend.info(volumes[1])).used_bytes < 64 << 10


async def test_a_changed_archive_is_another_layer(backend: DirectoryBackend, archive: Path, tmp_path: Path) -> None:
    await make(backend, archive)
    archive.write_bytes(b"a newer archive")
    await make(backend, archive, OTHER)
    assert len([path for path in (tmp_path / "local/.appliance/layers").iterdir() if path.is_dir()]) == 2


async def test_a_template_that_cannot_be_unpacked_leaves_nothing(
    backend: DirectoryBackend, archive: Path, tmp_path: Path
) -> None:
    async def refuse(path: Path) -> None:
        await asyncio.to_thread((path / "half").write_text, "x")
        raise HostError("damaged archive")

    with pytest.raises(HostError, match="damaged"):
        async with backend.layer(archive, refuse):
            raise AssertionError("there is no layer")
    assert list((tmp_path / "local/.appliance/layers").iterdir()) == []


async def test_a_layer_stays_for_its_volumes_and_its_archive(
    backend: DirectoryBackend, archive: Path, tmp_path: Path
) -> None:
    volume, other = await make(backend, archive), await make(backend, archive, OTHER)
    await backend.delete(other)
    archive.unlink()
    assert await backend.recover() == []
    assert await read(backend, volume, tmp_path / "m") == {"etc/hostname": "template"}
    await backend.delete(volume)
    assert list((tmp_path / "local/.appliance/layers").iterdir()) == []


@pytest.mark.parametrize("in_use", [False, True])
async def test_a_volume_returns_to_its_snapshot(
    backend: DirectoryBackend, archive: Path, tmp_path: Path, *, in_use: bool
) -> None:
    volume, place = await make(backend, archive), tmp_path / "m"
    await write(backend, volume, place, "kept", "old")
    await backend.snapshot(volume, "one", in_use=in_use)
    with pytest.raises(Conflict):
        await backend.snapshot(volume, "one")
    await write(backend, volume, place, "kept", "new")
    await write(backend, volume, place, "more", "more")
    await inside(backend, volume, place, lambda root: (root / "etc/hostname").unlink())
    await backend.snapshot(volume, "two")
    await backend.roll_back(volume, "one")
    assert await read(backend, volume, place) == {"etc/hostname": "template", "kept": "old"}
    await backend.roll_back(volume, "two")
    assert await read(backend, volume, place) == {"kept": "new", "more": "more"}
    await backend.delete_snapshot(volume, "one")
    await backend.delete_snapshot(volume, "two")
    assert await read(backend, volume, place) == {"kept": "new", "more": "more"}
    assert await backend.snapshots(volume) == []
    with pytest.raises(NotFound):
        await backend.roll_back(volume, "one")


async def test_layers_nothing_stands_on_go_with_the_snapshot(
    backend: DirectoryBackend, archive: Path, tmp_path: Path
) -> None:
    volume = await make(backend, archive)
    await write(backend, volume, tmp_path / "m", "big", "x" * 100_000)
    await backend.snapshot(volume, "one", in_use=True)
    path = (await backend.open(volume)).path
    assert len(list(path.iterdir())) == 3
    await backend.delete_snapshot(volume, "one")
    assert len(list(path.iterdir())) == 2
    (path / "l-left").mkdir()
    assert len(await backend.recover()) == 1


async def test_a_long_chain_is_not_made_longer(
    backend: DirectoryBackend, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlays, "CHAIN_LIMIT", 3)
    volume = await make(backend, archive)
    for number in range(5):
        await write(backend, volume, tmp_path / "m", f"file{number}", "x")
        await backend.snapshot(volume, f"s{number}")
    opened = await backend.open(volume)
    assert opened.layers is not None
    assert len(opened.layers.lowers) == 3
    await backend.roll_back(volume, "s1")
    assert set(await read(backend, volume, tmp_path / "m")) == {"etc/hostname", "file0", "file1"}


@pytest.mark.parametrize("in_use", [False, True])
async def test_a_clone_of_a_snapshot_shows_what_it_kept(
    backend: DirectoryBackend, archive: Path, tmp_path: Path, *, in_use: bool
) -> None:
    place = tmp_path / "m"
    volume = await kept(backend, archive, place, in_use=in_use)
    await write(backend, volume, place, "second", "2")
    await backend.snapshot(volume, "two")
    clone = await copied(backend, await backend.open_snapshot(volume, "one"), full=True)
    await write(backend, clone, place, "third", "3")
    await backend.delete_snapshot(volume, "one")
    await backend.delete(volume)
    assert await backend.recover() == []
    assert set(await read(backend, clone, place)) == {"etc/hostname", "first", "third"}
    assert await backend.snapshots(clone) == []


async def linked(backend: DirectoryBackend, volume: VolumeId, name: str, guest_id: GuestId = OTHER) -> VolumeId:
    return await copied(backend, await backend.open_snapshot(volume, name), guest_id, full=False)


@pytest.mark.parametrize("in_use", [False, True])
async def test_a_linked_clone_of_a_snapshot_shows_what_it_kept_whatever_becomes_of_the_volume(
    backend: DirectoryBackend, archive: Path, tmp_path: Path, *, in_use: bool
) -> None:
    place = tmp_path / "m"
    volume = await kept(backend, archive, place, "zero")
    await write(backend, volume, place, "first", "2")
    await backend.snapshot(volume, "one", in_use=in_use)
    clone = await linked(backend, volume, "one")
    seen = {"etc/hostname": "template", "first": "2"}
    await write(backend, volume, place, "first", "3")
    await backend.snapshot(volume, "two")
    await backend.roll_back(volume, "zero")
    await backend.delete_snapshot(volume, "two")
    await backend.delete_snapshot(volume, "zero")
    assert await backend.recover() == []
    assert await read(backend, clone, place) == seen
    await write(backend, clone, place, "mine", "x")
    assert await read(backend, volume, place) == {"etc/hostname": "template", "first": "1"}
    assert await read(backend, clone, place) == seen | {"mine": "x"}


async def test_a_snapshot_and_its_volume_stay_while_a_linked_clone_stands_on_them(
    backend: DirectoryBackend, archive: Path, tmp_path: Path
) -> None:
    place = tmp_path / "m"
    volume = await kept(backend, archive, place)
    clone = await linked(backend, volume, "one")
    for refused in (backend.check_snapshot_removal, backend.delete_snapshot):
        with pytest.raises(Conflict, match=f"linked clones stand on snapshot 'one': {clone}"):
            await refused(volume, "one")
    with pytest.raises(Conflict, match=f"linked clones stand on it: {clone.name}"):
        await backend.delete(volume)
    await backend.snapshot(clone, "of-the-clone")
    third = await linked(backend, clone, "of-the-clone", GuestId(103))
    with pytest.raises(Conflict, match="linked clones"):
        await backend.delete(clone)
    await backend.delete(third)
    await backend.delete(clone)
    await backend.delete_snapshot(volume, "one")
    await backend.delete(volume)
    assert await backend.recover() == []


async def test_what_a_later_snapshot_keeps_as_well_is_enough_for_a_linked_clone(
    backend: DirectoryBackend, archive: Path, tmp_path: Path
) -> None:
    place = tmp_path / "m"
    volume = await kept(backend, archive, place)
    clone = await linked(backend, volume, "one")
    await backend.snapshot(volume, "two")
    await backend.delete_snapshot(volume, "one")
    with pytest.raises(Conflict, match="linked clones stand on snapshot 'two'"):
        await backend.delete_snapshot(volume, "two")
    assert await read(backend, clone, place) == {"etc/hostname": "template", "first": "1"}


async def test_a_snapshot_of_a_template_goes_although_linked_clones_stand_on_the_template(
    backend: DirectoryBackend, archive: Path, tmp_path: Path
) -> None:
    place = tmp_path / "m"
    template = await kept(backend, archive, place)
    clone = await copied(backend, await backend.open(template), full=False)
    await backend.delete_snapshot(template, "one")
    assert await read(backend, clone, place) == {"etc/hostname": "template", "first": "1"}


async def test_a_snapshot_is_not_removed_while_a_clone_of_it_is_made(
    backend: DirectoryBackend, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await make(backend, archive)
    await backend.snapshot(volume, "one")
    removals: list[BaseException | None] = []

    def remove(line: str) -> None:
        removal = asyncio.ensure_future(backend.delete_snapshot(volume, "one"))
        removal.add_done_callback(lambda done: removals.append(done.exception()))

    clone = await copied(backend, await backend.open_snapshot(volume, "one"), full=False, log=remove)
    assert isinstance(removals[0], Conflict)
    await backend.delete(clone)


@pytest.mark.parametrize("full", [False, True])
async def test_a_clone_is_a_volume_of_its_own(
    backend: DirectoryBackend, archive: Path, tmp_path: Path, *, full: bool
) -> None:
    place = tmp_path / "m"
    volume = await kept(backend, archive, place)
    await write(backend, volume, place, "second", "2")
    clone = await copied(backend, await backend.open(volume), full=full)
    await write(backend, clone, place, "third", "3")
    seen = await read(backend, clone, place)
    assert set(seen) == {"etc/hostname", "first", "second", "third"}
    assert "third" not in await read(backend, volume, place)
    if full:
        await backend.delete(volume)
        assert await read(backend, clone, place) == seen
    else:
        with pytest.raises(Conflict, match="linked clones"):
            await backend.delete(volume)
        again = await copied(backend, await backend.open(clone), GuestId(103), full=True)
        await backend.delete(clone)
        await backend.delete(volume)
        assert await read(backend, again, place) == seen
