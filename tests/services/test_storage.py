"""The storage service: configurations, tasks, and templates, over real directories."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.errors import Conflict, InvalidParameter, NotFound, Unsupported
from appliance.events import EventBus, StorageContentChanged
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, VolumeFormat
from appliance.services.storage import StorageService
from appliance.services.storage_config import StorageDocument
from appliance.services.task_records import TaskInfo
from appliance.services.tasks import TaskService
from appliance.services.templates import TemplateService
from tests.fakes.storage import MIB, cut_stream, leftovers, stream, volume
from tests.fakes.store import FakeStore

USER = "admin@pve"


@dataclass(slots=True)
class Host:
    """A storage service and what is around it."""

    storage: StorageService
    tasks: TaskService
    store: FakeStore
    events: EventBus
    data_dir: Path

    async def ended(self, upid: str) -> TaskInfo:
        return await self.tasks.wait(upid, timeout_s=20)

    def again(self) -> StorageService:
        return StorageService(self.store, self.events, self.tasks, node="n1", data_dir=self.data_dir)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    store, events = FakeStore(), EventBus()
    data_dir = tmp_path / "data"
    tasks = TaskService(store, events, SystemClock(), directory=tmp_path / "tasks", node="n1")
    await tasks.start()
    storage = StorageService(store, events, tasks, node="n1", data_dir=data_dir)
    await storage.start()
    yield Host(storage, tasks, store, events, data_dir)
    await storage.close()
    await tasks.close()
    await store.close()


async def test_the_first_start_makes_local_and_later_ones_find_it(host: Host) -> None:
    assert [config.storage_id for config in host.storage.storages()] == ["local"]
    assert (host.data_dir / "storage/local/template/iso").is_dir()
    await host.storage.update_storage("local", {"content": (ContentType.ISO,)})
    again = host.again()
    await again.start()
    assert again.backend("local").content_types == {ContentType.ISO}
    await again.close()


async def test_a_second_storage_keeps_its_files_when_it_is_forgotten(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "second"
    config = await host.storage.create_storage("second", StorageDocument(path=str(path)))
    assert config.active
    disk = await host.storage.backend("second").create(
        GuestId(100), format=VolumeFormat.RAW, size_bytes=MIB, content=ContentType.IMAGES
    )
    with pytest.raises(Conflict, match="volumes of guests"):
        await host.storage.delete_storage("second")
    await host.storage.backend("second").delete(disk)
    await host.storage.delete_storage("second")
    assert path.is_dir()
    with pytest.raises(NotFound, match="does not exist"):
        host.storage.backend("second")


@pytest.mark.parametrize(
    ("document", "error"),
    [
        (StorageDocument(path="/etc/x"), InvalidParameter),
        (StorageDocument(path="/"), InvalidParameter),
        (StorageDocument(path="relative"), InvalidParameter),
        (StorageDocument(path="/srv/../etc"), InvalidParameter),
        (StorageDocument(path=""), InvalidParameter),
        (StorageDocument(type="nfs", path="/mnt/x"), Unsupported),
    ],
)
async def test_a_storage_in_a_bad_place_is_refused(
    host: Host, document: StorageDocument, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await host.storage.create_storage("second", document)
    assert len(host.storage.storages()) == 1


async def test_a_storage_may_not_overlap_the_appliances_data(host: Host) -> None:
    for path in (host.data_dir / "storage/local/import", host.data_dir, host.data_dir.parent):
        with pytest.raises(InvalidParameter, match="overlaps"):
            await host.storage.create_storage("second", StorageDocument(path=str(path)))


async def test_a_storage_that_cannot_be_used_is_marked_and_the_others_work(host: Host, tmp_path: Path) -> None:
    await host.storage.create_storage("mounted", StorageDocument(path=str(tmp_path / "m"), disable=True))
    await host.storage.update_storage("mounted", {"disable": False, "is_mountpoint": "yes"})
    assert not host.storage.storage("mounted").active
    again = host.again()
    await again.start()
    assert "nothing is mounted" in again.storage("mounted").problem
    with pytest.raises(Conflict, match="not active"):
        again.backend("mounted")
    assert [backend.storage_id for backend in again.backends()] == ["local"]
    await again.close()


async def test_a_restriction_takes_effect_on_an_active_storage(host: Host, tmp_path: Path) -> None:
    await host.storage.create_storage("second", StorageDocument(path=str(tmp_path / "second")))
    await host.storage.update_storage("second", {"nodes": ("elsewhere",)})
    with pytest.raises(Conflict, match="not for node"):
        host.storage.backend("second")
    await host.storage.update_storage("second", {"nodes": ()})
    assert host.storage.backend("second").storage_id == "second"


async def test_two_storages_made_at_once_cannot_share_a_directory(host: Host, tmp_path: Path) -> None:
    document = StorageDocument(path=str(tmp_path / "one"))
    made = await asyncio.gather(
        host.storage.create_storage("second", document), host.storage.create_storage("third", document),
        host.storage.create_storage("second", document), return_exceptions=True,
    )  # fmt: skip
    assert [type(each) for each in made[1:]] == [InvalidParameter, InvalidParameter]
    assert [config.storage_id for config in host.storage.storages()] == ["local", "second"]


async def test_a_stale_digest_is_refused(host: Host) -> None:
    digest = host.storage.storage("local").document.digest()
    await host.storage.update_storage("local", {"shared": True}, digest=digest)
    with pytest.raises(Conflict, match="digest"):
        await host.storage.update_storage("local", {"shared": False}, digest=digest)


async def test_an_upload_is_a_task_and_tells_the_event_bus(host: Host) -> None:
    digest = hashlib.sha256(b"abcdef").hexdigest()
    with host.events.subscribe() as subscription:
        upid = await host.storage.upload(
            "local", ContentType.ISO, "x.iso", stream(b"abc", b"def"), checksum=("sha256", digest), user=USER
        )
        while not isinstance(event := await subscription.next(), StorageContentChanged):
            continue
    assert event.storage == "local"
    assert (await host.ended(upid)).status == "OK"
    assert (await host.storage.open("local:iso/x.iso")).size_bytes == 6
    with pytest.raises(Conflict, match="already exists"):
        await host.storage.upload("local", ContentType.ISO, "x.iso", stream(b"abc"), checksum=None, user=USER)


async def test_an_upload_cut_half_way_fails_its_task_and_leaves_nothing(host: Host) -> None:
    chunks = cut_stream([b"abc"], InvalidParameter({"file": "cut off"}))
    upid = await host.storage.upload("local", ContentType.ISO, "x.iso", chunks, checksum=None, user=USER)
    assert "cut off" in ((await host.ended(upid)).status or "")
    assert leftovers(host.data_dir) == []


async def test_a_client_that_goes_away_cancels_its_upload(host: Host) -> None:
    arrived = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"abc"
        arrived.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(
        host.storage.upload("local", ContentType.ISO, "x.iso", endless(), checksum=None, user=USER)
    )
    await arrived.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    (info,) = await host.tasks.list()
    assert (await host.ended(info.upid)).status == "interrupted by user"
    assert leftovers(host.data_dir) == []


async def test_deleting_is_a_task_and_protected_volumes_are_refused_at_once(host: Host) -> None:
    await host.storage.upload("local", ContentType.ISO, "x.iso", stream(b"abc"), checksum=None, user=USER)
    iso = volume("iso/x.iso")
    await host.storage.backend("local").annotate(iso, protected=True)
    with pytest.raises(Conflict, match="protected"):
        await host.storage.delete_volume(iso, user=USER)
    await host.storage.backend("local").annotate(iso, protected=False)
    assert (await host.ended(await host.storage.delete_volume(iso, user=USER))).status == "OK"
    with pytest.raises(NotFound):
        await host.storage.delete_volume(iso, user=USER)


async def test_usage_is_known_from_the_start_and_of_a_new_storage_soon(host: Host, tmp_path: Path) -> None:
    assert host.storage.cached_usage("local") is not None
    await host.storage.create_storage("second", StorageDocument(path=str(tmp_path / "second")))
    assert host.storage.cached_usage("second") is None
    while (usage := host.storage.cached_usage("second")) is None:
        await asyncio.sleep(0.005)
    assert usage.total_bytes > 0


def fake_builder(directory: Path, *, error: Exception | None = None) -> object:
    built: list[str] = []

    async def build(recipe: str, kind: str, out_dir: Path, log: Callable[[str], None]) -> Path:
        built.append(f"{recipe} {kind}")
        log("building")
        if error is not None:
            raise error
        path = directory / "image"
        await asyncio.to_thread(path.write_bytes, b"image")
        return path

    build.built = built  # type: ignore[attr-defined]  # a list on a function, for one assertion
    return build


async def test_a_template_is_built_once_and_becomes_a_volume(host: Host, tmp_path: Path) -> None:
    builder = fake_builder(tmp_path)
    templates = TemplateService(host.storage, host.tasks, cache_dir=tmp_path, builder=builder)  # type: ignore[arg-type]  # a function with a list
    names = [template.file_name for template in templates.list()]
    assert names == ["debian-12-standard_12_amd64.tar.zst", "debian-12-cloud_12_amd64.qcow2"]
    for _ in range(2):
        upid = await templates.fetch("local", names[0], user=USER)
        assert (await host.ended(upid)).status == "OK"
    assert builder.built == ["debian-12 ct"]  # type: ignore[attr-defined]
    path = await host.storage.resolve_template(f"local:vztmpl/{names[0]}")
    assert path.read_bytes() == b"image"
    with pytest.raises(NotFound):
        await templates.fetch("local", "windows.tar.zst", user=USER)


async def test_only_a_container_template_is_one(host: Host) -> None:
    await host.storage.upload("local", ContentType.ISO, "x.iso", stream(b"abc"), checksum=None, user=USER)
    with pytest.raises(InvalidParameter, match="not a container template"):
        await host.storage.resolve_template("local:iso/x.iso")
    with pytest.raises(NotFound):
        await host.storage.resolve_template("local:vztmpl/none.tar.zst")
