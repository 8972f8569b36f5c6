"""/storage and its volumes over HTTP, with the real storage and task services behind."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from appliance.clock import SystemClock
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, VolumeFormat, VolumeId
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskService
from appliance.services.templates import TemplateService
from appliance.web.api import aplinfo, storage, storage_content
from appliance.web.application import build_application
from tests.fakes.services import NODE, fake_services
from tests.fakes.storage import MIB, leftovers
from tests.web.conftest import Site

LOCAL = f"/api2/json/nodes/{NODE}/storage/local"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    services, world = fake_services(tmp_path)
    tasks = TaskService(world.store, world.events, SystemClock(), directory=tmp_path / "tasks", node=NODE)
    await tasks.start()
    storages = StorageService(world.store, world.events, tasks, node=NODE, data_dir=tmp_path / "data")
    await storages.start()
    services = dataclasses.replace(
        services, tasks=tasks, storage=storages, templates=TemplateService(storages, tasks, cache_dir=tmp_path)
    )
    app = build_application(services, resources=[storage.api, storage_content.api, aplinfo.api])
    async with TestClient(TestServer(app)) as client:
        yield Site(client, services, world)
    await storages.close()
    await tasks.close()


async def call(
    site: Site, verb: str, path: str, data: Mapping[str, str] | None = None, *, user: str = "admin@pve"
) -> tuple[int, Any, str]:
    """Status, data, and the reason phrase."""
    arguments: dict[str, Any] = {"params" if verb in ("GET", "DELETE") else "data": data or {}}
    async with site.client.request(verb, path, headers=site.as_user(user), **arguments) as reply:
        return reply.status, (await reply.json())["data"], reply.reason or ""


async def done(site: Site, upid: str) -> str:
    return (await site.services.tasks.wait(upid, timeout_s=20)).status or ""


def form(content: str, name: str, data: bytes, **fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData(quote_fields=False)
    for key, value in {"content": content, **fields}.items():
        form.add_field(key.replace("_", "-"), value)
    form.add_field("filename", io.BytesIO(data), filename=name, content_type="application/octet-stream")
    return form


async def upload(site: Site, form: aiohttp.FormData, *, user: str = "admin@pve") -> tuple[int, Any, str]:
    async with site.client.post(f"{LOCAL}/upload", data=form, headers=site.as_user(user)) as reply:
        return reply.status, (await reply.json())["data"], reply.reason or ""


async def test_an_upload_is_listed_read_annotated_and_deleted(site: Site) -> None:
    digest = hashlib.sha256(b"x" * 3 * MIB).hexdigest()
    status, upid, _ = await upload(
        site, form("iso", "x.iso", b"x" * 3 * MIB, checksum=digest, checksum_algorithm="sha256")
    )
    assert (status, await done(site, upid)) == (200, "OK")
    _, rows, _ = await call(site, "GET", f"{LOCAL}/content", {"content": "iso"})
    assert [(row["volid"], row["size"], row["format"]) for row in rows] == [("local:iso/x.iso", 3 * MIB, "iso")]
    path = f"{LOCAL}/content/local:iso/x.iso"
    assert (await call(site, "PUT", path, {"notes": "mine", "protected": "1"}))[0] == 200
    _, row, _ = await call(site, "GET", path)
    assert (row["notes"], row["protected"]) == ("mine", 1)
    status, _, reason = await call(site, "DELETE", path)
    assert (status, "protected" in reason) == (409, True)
    await call(site, "PUT", path, {"protected": "0"})
    status, data, _ = await call(site, "DELETE", path, {"delay": "10"})
    assert (status, data) == (200, None)
    status, _, reason = await call(site, "GET", path)
    assert (status, "does not exist" in reason) == (404, True)


@pytest.mark.parametrize(
    ("content", "name", "status"),
    [
        ("iso", "x.txt", 400),
        ("images", "x.raw", 400),
        ("vztmpl", "x.iso", 400),
        ("iso", "", 400),
        ("backup", "x.tar", 400),
    ],
)
async def test_a_bad_name_is_refused_before_anything_is_written(
    site: Site, content: str, name: str, status: int
) -> None:
    assert (await upload(site, form(content, name, b"abc")))[0] == status
    assert leftovers(site.services.storage.backend("local").root) == []


async def test_a_path_in_the_files_name_counts_for_nothing(site: Site) -> None:
    _, upid, _ = await upload(site, form("iso", "../../../etc/x.iso", b"abc"))
    assert await done(site, upid) == "OK"
    assert leftovers(site.services.storage.backend("local").root) == ["template/iso/x.iso"]


async def test_a_wrong_checksum_is_the_tasks_error(site: Site) -> None:
    _, upid, _ = await upload(site, form("iso", "x.iso", b"abc", checksum="00", checksum_algorithm="md5"))
    assert "checksum" in await done(site, upid)
    assert leftovers(site.services.storage.backend("local").root) == []


async def test_an_upload_cut_half_way_leaves_nothing(site: Site) -> None:
    head = (
        '--B\r\nContent-Disposition: form-data; name="content"\r\n\r\niso\r\n'
        '--B\r\nContent-Disposition: form-data; name="filename"; filename="x.iso"\r\n\r\n'
    )
    headers = {**site.as_user("admin@pve"), "Content-Type": "multipart/form-data; boundary=B"}
    async with site.client.post(f"{LOCAL}/upload", data=head.encode() + b"half a file", headers=headers) as reply:
        upid = (await reply.json())["data"]
    assert "cut off" in await done(site, upid)
    assert leftovers(site.services.storage.backend("local").root) == []


async def test_states_and_configurations_have_pves_fields(site: Site) -> None:
    _, (state,), _ = await call(site, "GET", f"/api2/json/nodes/{NODE}/storage", {"content": "images", "format": "1"})
    assert {"storage", "type", "content", "enabled", "active", "shared", "total", "used", "avail"} <= set(state)
    assert (state["active"], state["formats"]["default"]) == (1, "qcow2")
    _, status, _ = await call(site, "GET", f"{LOCAL}/status")
    assert status["total"] == state["total"] > 0
    _, (config,), _ = await call(site, "GET", "/api2/json/storage")
    assert (config["storage"], config["type"]) == ("local", "dir")


async def test_a_storage_is_added_changed_and_forgotten(site: Site, tmp_path: Path) -> None:
    data = {"storage": "second", "type": "dir", "path": str(tmp_path / "second"), "content": "iso,images"}
    assert (await call(site, "POST", "/api2/json/storage", data))[1] == {"storage": "second", "type": "dir"}
    status, _, reason = await call(site, "POST", "/api2/json/storage", {**data, "path": str(tmp_path / "third")})
    assert (status, "already exists" in reason) == (409, True)
    await call(site, "PUT", "/api2/json/storage/second", {"content": "iso", "disable": "1"})
    _, config, _ = await call(site, "GET", "/api2/json/storage/second")
    assert (config["content"], config["disable"]) == ("iso", 1)
    await call(site, "PUT", "/api2/json/storage/second", {"delete": "disable", "digest": config["digest"]})
    assert (await call(site, "DELETE", "/api2/json/storage/second"))[0] == 200
    assert (await call(site, "GET", "/api2/json/storage/second"))[0] == 404
    assert (await call(site, "POST", "/api2/json/storage", {**data, "type": "nfs"}))[0] == 501


async def test_disks_are_allocated_by_name(site: Site) -> None:
    data = {"filename": "vm-100-disk-3.qcow2", "vmid": "100", "size": "8M"}
    assert (await call(site, "POST", f"{LOCAL}/content", data))[1] == "local:100/vm-100-disk-3.qcow2"
    assert (await call(site, "POST", f"{LOCAL}/content", data))[0] == 409
    for changes in ({"filename": "vm-101-disk-0.raw"}, {"size": "x"}, {"filename": "../x.raw"}, {"size": "0"}):
        assert (await call(site, "POST", f"{LOCAL}/content", data | changes))[0] == 400


async def test_a_disk_of_a_guest_is_not_deleted_under_it(site: Site) -> None:
    disk = await site.services.storage.backend("local").create(
        GuestId(100), format=VolumeFormat.RAW, size_bytes=MIB, content=ContentType.IMAGES
    )
    site.world.guests.add(100)
    site.world.guests.named = frozenset({disk})
    status, _, reason = await call(site, "DELETE", f"{LOCAL}/content/{disk}")
    assert (status, "in use" in reason) == (409, True)


async def test_who_may_not_see_a_storage_sees_nothing(site: Site) -> None:
    assert (await call(site, "GET", "/api2/json/storage", user="eve@pve"))[1] == []
    assert (await call(site, "GET", f"/api2/json/nodes/{NODE}/storage", user="eve@pve"))[1] == []
    for path in ("/content", "/status", "/content/iso/x.iso"):
        assert (await call(site, "GET", LOCAL + path, user="eve@pve"))[0] == 403
    assert (await upload(site, form("iso", "x.iso", b"abc"), user="eve@pve"))[0] == 403
    site.world.access.grant("bob@pve", "/storage/local", "Datastore.Audit")
    await site.services.storage.backend("local").create(
        GuestId(100), format=VolumeFormat.RAW, size_bytes=MIB, content=ContentType.IMAGES
    )
    assert (await call(site, "GET", f"{LOCAL}/content", user="bob@pve"))[1] == []
    assert (await call(site, "DELETE", f"{LOCAL}/content/100/vm-100-disk-0.raw", user="bob@pve"))[0] == 404


async def test_who_may_only_upload_deletes_nothing(site: Site) -> None:
    site.world.access.grant("bob@pve", "/storage/local", "Datastore.Audit", "Datastore.AllocateTemplate")
    _, upid, _ = await upload(site, form("iso", "x.iso", b"abc"), user="bob@pve")
    assert await done(site, upid) == "OK"
    path = f"{LOCAL}/content/iso/x.iso"
    assert (await call(site, "DELETE", path, user="bob@pve"))[0] == 403
    site.world.access.grant("bob@pve", "/storage/local", "Datastore.Allocate")
    assert (await call(site, "DELETE", path, {"delay": "10"}, user="bob@pve"))[0] == 200


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y.iso", "x"])
async def test_only_http_urls_are_downloaded(site: Site, url: str) -> None:
    data = {"url": url, "content": "iso", "filename": "x.iso"}
    assert (await call(site, "POST", f"{LOCAL}/download-url", data))[0] == 400
    assert (await call(site, "GET", f"/api2/json/nodes/{NODE}/query-url-metadata", {"url": url}))[0] == 400


async def test_a_download_from_nowhere_is_the_tasks_error(site: Site) -> None:
    data = {"url": "http://127.0.0.1:1/x.iso", "content": "iso", "filename": "x.iso"}
    _, upid, _ = await call(site, "POST", f"{LOCAL}/download-url", data)
    assert "127.0.0.1" in await done(site, upid)
    assert leftovers(site.services.storage.backend("local").root) == []


async def test_templates_are_listed(site: Site) -> None:
    _, rows, _ = await call(site, "GET", f"/api2/json/nodes/{NODE}/aplinfo")
    assert {row["type"] for row in rows} == {"lxc", "qemu"}
    data = {"storage": "local", "template": "none.tar.zst"}
    assert (await call(site, "POST", f"/api2/json/nodes/{NODE}/aplinfo", data))[0] == 404


async def test_a_storage_whose_volumes_guests_name_is_not_forgotten_even_while_it_is_not_in_use(
    site: Site, tmp_path: Path
) -> None:
    second = {"storage": "second", "type": "dir", "path": str(tmp_path / "second")}
    assert (await call(site, "POST", "/api2/json/storage", second))[0] == 200
    assert (await call(site, "PUT", "/api2/json/storage/second", {"disable": "1"}))[0] == 200
    site.world.guests.named = frozenset({VolumeId.parse("second:100/vm-100-disk-0.qcow2")})
    status, _, reason = await call(site, "DELETE", "/api2/json/storage/second")
    assert (status, "vm-100-disk-0" in reason) == (409, True)
    site.world.guests.named = frozenset()
    assert (await call(site, "DELETE", "/api2/json/storage/second"))[0] == 200


async def test_rules_of_pruning_that_are_none_are_refused(site: Site) -> None:
    for rules in ("keep-last=many", "keep-everything=1", "keep-all=1,keep-last=2"):
        assert (await call(site, "PUT", "/api2/json/storage/local", {"prune-backups": rules}))[0] == 400
    assert (await call(site, "PUT", "/api2/json/storage/local", {"prune-backups": "keep-last=3"}))[0] == 200
