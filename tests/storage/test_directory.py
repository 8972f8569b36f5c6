"""The directory storage with the real qemu-img, mkfs and cp."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from pathlib import Path

import pytest

from appliance.errors import CommandFailed, Conflict, HostError, InvalidParameter, NotFound, TooLarge, Unsupported
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, OpenedVolume, VolumeFormat, VolumeId
from appliance.storage.directory import DirectoryBackend
from tests.fakes.storage import MIB, cut_stream, leftovers, qcow2_header, ready_backend, stream, volume

VM, CT = GuestId(100), GuestId(101)


def ignore(_: str) -> None:
    """A log nobody reads."""


@pytest.fixture
async def local(tmp_path: Path) -> DirectoryBackend:
    return await ready_backend(tmp_path / "local")


async def image(local: DirectoryBackend, *, format: VolumeFormat = VolumeFormat.QCOW2, mib: int = 8) -> VolumeId:
    return await local.create(VM, format=format, size_bytes=mib * MIB, content=ContentType.IMAGES)


async def rootdir(local: DirectoryBackend, *, format: VolumeFormat, mib: int = 16) -> VolumeId:
    return await local.create(CT, format=format, size_bytes=mib * MIB, content=ContentType.ROOTDIR)


async def test_disks_are_numbered_and_listed_by_guest_and_content(local: DirectoryBackend) -> None:
    first, second = await image(local), await image(local, format=VolumeFormat.RAW)
    root = await rootdir(local, format=VolumeFormat.SUBVOL)
    assert [str(first), str(second)] == ["local:100/vm-100-disk-0.qcow2", "local:100/vm-100-disk-1.raw"]
    assert str(root) == "local:101/subvol-101-disk-0.subvol"
    assert [info.volume_id for info in await local.list(ContentType.IMAGES)] == [first, second]
    assert [info.volume_id for info in await local.list(guest_id=CT)] == [root]
    sizes = {info.volume_id: info.size_bytes for info in await local.list()}
    assert sizes == {first: 8 * MIB, second: 8 * MIB, root: 16 * MIB}


async def test_parallel_creations_get_names_of_their_own(local: DirectoryBackend) -> None:
    made = await asyncio.gather(*(image(local, format=VolumeFormat.RAW) for _ in range(8)))
    assert len(set(made)) == 8


async def test_a_deleted_volume_leaves_nothing(local: DirectoryBackend) -> None:
    for volume_id in (await image(local), await rootdir(local, format=VolumeFormat.SUBVOL)):
        await local.delete(volume_id)
        with pytest.raises(NotFound, match="does not exist"):
            await local.delete(volume_id)
    assert leftovers(local.root) == []


async def test_a_linked_clone_keeps_its_parent_alive_and_moves_with_the_storage(
    local: DirectoryBackend, tmp_path: Path
) -> None:
    parent = await image(local)
    clone = await local.clone(await local.open(parent), GuestId(102), format=VolumeFormat.QCOW2, full=False, log=ignore)
    with pytest.raises(Conflict, match="linked clones stand on it"):
        await local.delete(parent)
    assert (await local.info(clone)).parent == parent
    moved = tmp_path / "moved"
    local.root.rename(moved)
    again = await ready_backend(moved)
    assert (await again.open(clone)).size_bytes == 8 * MIB
    await again.delete(clone)
    await again.delete(parent)
    assert leftovers(moved) == []


async def test_a_full_clone_is_independent_and_may_change_the_format(local: DirectoryBackend) -> None:
    parent = await image(local)
    clone = await local.clone(await local.open(parent), GuestId(102), format=VolumeFormat.RAW, full=True, log=ignore)
    await local.delete(parent)
    opened = await local.open(clone)
    assert (opened.format, opened.size_bytes) == (VolumeFormat.RAW, 8 * MIB)
    assert (await local.info(clone)).content is ContentType.IMAGES


async def test_a_directory_is_cloned_with_links_and_modes(local: DirectoryBackend) -> None:
    source = await local.open(await rootdir(local, format=VolumeFormat.SUBVOL))
    (source.path / "etc").mkdir(mode=0o700)
    (source.path / "etc/link").symlink_to("/nowhere")
    clone = await local.open(await local.clone(source, VM, format=VolumeFormat.SUBVOL, full=True, log=ignore))
    assert (clone.path / "etc/link").readlink() == Path("/nowhere")
    assert (clone.path / "etc").stat().st_mode & 0o777 == 0o700
    assert clone.size_bytes == source.size_bytes


async def test_clones_that_cannot_be_are_refused(local: DirectoryBackend) -> None:
    tree = await local.open(await rootdir(local, format=VolumeFormat.SUBVOL))
    disk = await local.open(await image(local))
    for source, wanted, full in (
        (tree, VolumeFormat.RAW, True),
        (disk, VolumeFormat.SUBVOL, True),
        (disk, VolumeFormat.RAW, False),
    ):
        with pytest.raises(Unsupported):
            await local.clone(source, GuestId(103), format=wanted, full=full, log=ignore)
    assert await local.list(guest_id=GuestId(103)) == []


@pytest.mark.parametrize("format", [VolumeFormat.QCOW2, VolumeFormat.RAW])
async def test_a_disk_grows_and_never_shrinks(local: DirectoryBackend, format: VolumeFormat) -> None:
    disk = await image(local, format=format)
    await local.resize(disk, 12 * MIB)
    assert (await local.open(disk)).size_bytes == 12 * MIB
    with pytest.raises(InvalidParameter, match="shrinking"):
        await local.resize(disk, 8 * MIB)


async def test_a_containers_raw_volume_is_a_file_system_that_grows(local: DirectoryBackend) -> None:
    root = await local.open(await rootdir(local, format=VolumeFormat.RAW))
    assert file_system_bytes(root) == 16 * MIB
    assert root.volume_id is not None
    await local.resize(root.volume_id, 40 * MIB)
    assert file_system_bytes(root) == 40 * MIB
    assert (await local.info(root.volume_id)).content is ContentType.ROOTDIR


@pytest.mark.host
async def test_a_file_system_in_use_is_left_to_its_engine_and_can_be_grown_later(local: DirectoryBackend) -> None:
    root = await local.open(await rootdir(local, format=VolumeFormat.RAW))
    assert root.volume_id is not None
    attach = ["losetup", "--find", "--show", str(root.path)]
    device = subprocess.run(attach, capture_output=True, text=True, check=True).stdout.strip()
    try:
        await local.resize(root.volume_id, 24 * MIB)
        assert (file_system_bytes(root), (await local.info(root.volume_id)).size_bytes) == (16 * MIB, 24 * MIB)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    await local.resize(root.volume_id, 24 * MIB)
    assert file_system_bytes(root) == 24 * MIB


def file_system_bytes(opened: OpenedVolume) -> int:
    text = subprocess.run(["dumpe2fs", "-h", opened.path], capture_output=True, text=True, check=True).stdout
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(fields["Block count"]) * int(fields["Block size"])


async def test_a_stream_appears_whole_with_the_right_checksum(local: DirectoryBackend) -> None:
    digest = hashlib.sha512(b"abcdef").hexdigest()
    made = await local.receive(ContentType.ISO, "x.iso", stream(b"abc", b"def"), checksum=("sha512", digest.upper()))
    assert str(made) == "local:iso/x.iso"
    opened = await local.open(made)
    assert (opened.path.read_bytes(), opened.read_only) == (b"abcdef", True)
    with pytest.raises(Conflict, match="already exists"):
        await local.receive(ContentType.ISO, "x.iso", stream(b"other"), checksum=None)
    assert opened.path.read_bytes() == b"abcdef"


async def test_a_bad_stream_leaves_nothing(local: DirectoryBackend) -> None:
    with pytest.raises(InvalidParameter, match="sha256 of the data"):
        await local.receive(ContentType.ISO, "x.iso", stream(b"abc"), checksum=("sha256", "0" * 64))
    with pytest.raises(InvalidParameter, match="not one of"):
        await local.receive(ContentType.ISO, "x.iso", stream(b"abc"), checksum=("crc32", "0"))
    with pytest.raises(ConnectionResetError):
        await local.receive(ContentType.ISO, "x.iso", cut_stream([b"a"], ConnectionResetError()), checksum=None)
    with pytest.raises(TooLarge):
        await local.receive(ContentType.ISO, "x.iso", stream(b"abc"), checksum=None, size_limit_bytes=2)
    with pytest.raises(InvalidParameter):
        await local.receive(ContentType.ISO, "../x.iso", stream(b"abc"), checksum=None)
    with pytest.raises(InvalidParameter):
        await local.receive(ContentType.IMAGES, "vm-100-disk-0.raw", stream(b"abc"), checksum=None)
    assert leftovers(local.root) == []


async def test_a_cancelled_stream_leaves_nothing(local: DirectoryBackend) -> None:
    arrived = asyncio.Event()

    async def slow() -> object:
        yield b"first"
        arrived.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(local.receive(ContentType.ISO, "x.iso", slow(), checksum=None))  # type: ignore[arg-type]  # a generator
    await arrived.wait()
    with pytest.raises(Conflict, match="under way"):
        await local.receive(ContentType.ISO, "x.iso", stream(b"abc"), checksum=None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leftovers(local.root) == []


async def test_a_protected_volume_stays(local: DirectoryBackend) -> None:
    disk = await image(local)
    await local.annotate(disk, notes="mine", protected=True)
    with pytest.raises(Conflict, match="protected"):
        await local.delete(disk)
    info = await local.info(disk)
    assert (info.notes, info.protected, info.content) == ("mine", True, ContentType.IMAGES)
    await local.annotate(disk, protected=False)
    await local.delete(disk)


@pytest.mark.parametrize(
    "data",
    [
        qcow2_header(backing=b"/etc/shadow", backing_format=b"raw"),
        qcow2_header(backing=b'json:{"driver":"nbd","host":"x"}', backing_format=b"raw"),
        qcow2_header(incompatible=4, data_file=b"/etc/shadow"),
        qcow2_header(crypt=1),
        qcow2_header(size=1 << 62),
        qcow2_header(size=8 << 40),  # its tables do not cover what it claims
        b"KDMV" + bytes(4096),
    ],
)
async def test_a_hostile_image_is_not_taken(local: DirectoryBackend, data: bytes) -> None:
    with pytest.raises(InvalidParameter, match=r"evil\.qcow2"):
        await local.receive(ContentType.IMPORT, "evil.qcow2", stream(data), checksum=None)
    assert leftovers(local.root) == []


async def test_another_format_named_raw_stays_raw_bytes(local: DirectoryBackend) -> None:
    data = qcow2_header(backing=b"/etc/shadow", backing_format=b"raw")
    source = await local.open(await local.receive(ContentType.IMPORT, "x.raw", stream(data), checksum=None))
    clone = await local.clone(source, VM, format=VolumeFormat.RAW, full=True, log=ignore)
    assert (await local.open(clone)).path.read_bytes() == data


async def test_an_image_that_turned_hostile_is_not_opened(local: DirectoryBackend) -> None:
    disk = await image(local)
    path = (await local.open(disk)).path
    for data in (
        qcow2_header(backing=b"../101/vm-101-disk-0.raw", backing_format=b"raw"),
        qcow2_header(data_file=b"/etc/shadow"),
    ):
        path.write_bytes(data)
        with pytest.raises(InvalidParameter, match="refused"):
            await local.open(disk)
        with pytest.raises(InvalidParameter, match="refused"):
            await local.resize(disk, 16 * MIB)


async def test_links_and_fifos_are_not_followed(local: DirectoryBackend, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    (local.root / "template/iso/link.iso").symlink_to(secret)
    subprocess.run(["mkfifo", local.root / "template/iso/pipe.iso"], check=True)
    assert await local.list() == []
    for name in ("iso/link.iso", "iso/pipe.iso"):
        with pytest.raises((InvalidParameter, HostError), match=name.rpartition("/")[2]):
            await local.open(volume(name))


async def test_a_sound_import_becomes_a_disk(local: DirectoryBackend) -> None:
    disk = await image(local)
    data = (await local.open(disk)).path.read_bytes()
    source = await local.open(await local.receive(ContentType.IMPORT, "good.qcow2", stream(data), checksum=None))
    clone = await local.clone(source, GuestId(104), format=VolumeFormat.QCOW2, full=True, log=ignore)
    info = await local.info(clone)
    assert (info.content, info.size_bytes, info.guest_id) == (ContentType.IMAGES, 8 * MIB, 104)


@pytest.mark.parametrize("damage", ["first-level table", "cut off"])
async def test_a_damaged_import_is_not_taken_and_never_copied(local: DirectoryBackend, damage: str) -> None:
    """QEMU reads zeros behind the end of a file: half an image would silently become an empty disk."""
    path = (await local.open(await image(local))).path
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", path], check=True, capture_output=True)
    data = bytearray(path.read_bytes())
    if damage == "cut off":
        del data[len(data) // 2 :]
    else:
        data[0x30000:0x40000] = b"\xff" * 0x10000  # of a fresh image
    with pytest.raises(InvalidParameter, match=r"bad\.qcow2"):
        await local.receive(ContentType.IMPORT, "bad.qcow2", stream(bytes(data)), checksum=None)
    assert leftovers(local.root / "import") == []


async def test_an_import_damaged_in_place_fails_with_a_clear_error_and_leaves_nothing(local: DirectoryBackend) -> None:
    path = (await local.open(await image(local))).path
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 4M", path], check=True, capture_output=True)
    sound = path.read_bytes()
    source = await local.receive(ContentType.IMPORT, "bad.qcow2", stream(sound), checksum=None)
    (local.root / "import/bad.qcow2").write_bytes(sound[:0x30000] + b"\xff" * 0x10000 + sound[0x40000:])
    with pytest.raises(CommandFailed, match="qemu-img"):
        await local.clone(await local.open(source), GuestId(104), format=VolumeFormat.RAW, full=True, log=ignore)
    assert await local.list(guest_id=GuestId(104)) == []


async def test_usage_is_of_the_file_system(local: DirectoryBackend) -> None:
    usage = await local.usage()
    assert 0 < usage.available_bytes <= usage.total_bytes


async def test_disks_are_out_of_reach_of_the_hosts_users(tmp_path: Path) -> None:
    (tmp_path / "old" / "images").mkdir(parents=True, mode=0o755)
    for root in (tmp_path / "old", tmp_path / "new"):
        await ready_backend(root)
        assert (root / "images").stat().st_mode & 0o777 == 0o700


async def test_strange_files_among_the_records_do_not_keep_the_storage_from_starting(tmp_path: Path) -> None:
    root = tmp_path / "local"
    await ready_backend(root)
    (root / ".appliance/records/strange.json").write_text("{")
    (root / ".appliance/growing/damaged.json").write_text("{")
    (root / ".appliance/growing/other.json").write_text('{"volume": "../etc", "size": 1}')
    await ready_backend(root)
    assert list((root / ".appliance/growing").iterdir()) == []


async def test_a_resize_and_a_note_do_not_overwrite_each_other(local: DirectoryBackend) -> None:
    root = await rootdir(local, format=VolumeFormat.SUBVOL)
    done = await asyncio.gather(
        local.resize(root, 32 * MIB), local.annotate(root, notes="kept"), return_exceptions=True
    )
    info = await local.info(root)
    assert (info.size_bytes == 32 * MIB) == (done[0] is None)
    assert (info.notes == "kept") == (done[1] is None)
    assert all(isinstance(each, Conflict) for each in done if each is not None)
