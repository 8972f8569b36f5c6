"""Backups in pages: who sees and may do what, what an archive says stays text, and what is pushed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import HostError, InvalidParameter
from appliance.model.guest import GuestKind, GuestState
from appliance.services.storage_config import StorageDocument
from appliance.web.pages import backups
from appliance.web.pages.render import task_title
from tests.fakes.backups import Entry, FakeBackups
from tests.fakes.house import HOSTILE
from tests.web.conftest import Site

CT = "local:backup/vzdump-lxc-101-"


def archive(house: Site, kind: GuestKind = GuestKind.LXC, guest_id: int = 101, **changes: Any) -> str:
    made: FakeBackups = house.world.extras.backups
    return made.add(kind, guest_id, days=30, **changes)


async def read(
    house: Site,
    page: str,
    given: Mapping[str, str] | None = None,
    *,
    user: str = "admin@pve",
    status: int = 200,
    **query: str,
) -> str:
    async with house.client.get(
        page, params=query | dict(given or {}), headers=house.as_user(user), allow_redirects=False
    ) as reply:
        assert reply.status == status, (page, reply.status)
        return await reply.text()


async def test_a_guests_backups_of_every_storage_stand_newest_first(house: Site) -> None:
    house.world.extras.storage.documents["vault"] = StorageDocument(path="/srv/vault")
    made: FakeBackups = house.world.extras.backups
    made.add(GuestKind.LXC, 101, storage="vault", notes="in the vault", days=5)
    made.add(GuestKind.QEMU, 102, notes="of another")
    html = await read(house, "/guests/101/backups")
    found = re.findall(r'<tr data-volume="([^"]+)"', html)
    assert [volume.partition(":")[0] for volume in found] == ["local", "vault", "local"]
    assert "of another" not in html
    assert "In the vault".lower() in html
    assert 'data-backup="unprotect"' in html  # one of them is protected


async def test_a_storage_that_cannot_be_read_is_told_and_does_not_hide_the_others(house: Site) -> None:
    storage = house.world.extras.storage
    storage.documents["aside"] = StorageDocument(path="/srv/aside")
    content = storage.content

    async def failing(storage_id: str, *rest: object) -> object:
        if storage_id == "aside":
            raise HostError("the disk is gone")
        return await content(storage_id, *rest)

    storage.content = failing
    html = await read(house, "/guests/101/backups")
    assert "the disk is gone" in html
    assert CT in html


async def test_what_one_may_not_do_is_not_offered_and_not_shown(house: Site) -> None:
    access = house.world.access
    access.grant("bob@pve", "/vms/101", "VM.Audit")
    access.grant("bob@pve", "/storage/local", "Datastore.Audit")
    html = await read(house, "/guests/101/backups", user="bob@pve")
    assert CT in html
    assert "data-backup" not in html
    assert 'id="back-up"' not in html
    volume = archive(house)
    for path in ("restore", "replace", "config", "notes", "delete"):
        await read(house, f"/dialogs/backup/{path}", volume=volume, user="bob@pve", status=403)
    await read(house, "/backup-files", volume=volume, user="bob@pve", status=403)
    assert "You need VM.Backup on /vms/101" in await read(house, "/parts/backup-files", volume=volume, user="bob@pve")
    access.grant("bob@pve", "/vms/101", "VM.Audit", "VM.Backup")
    access.grant("bob@pve", "/storage/local", "Datastore.AllocateSpace")
    html = await read(house, "/guests/101/backups", user="bob@pve")
    assert set(re.findall(r'data-backup="(\w+)"', html)) == {
        "replace",
        "config",
        "delete",
    }  # notes are the storage's owner's
    assert 'id="back-up"' in html


async def test_backups_of_guests_one_may_not_see_are_not_in_the_storage(house: Site) -> None:
    access = house.world.access
    access.grant("bob@pve", "/storage/local", "Datastore.Audit")
    access.grant("bob@pve", "/vms/101", "VM.Audit")
    html = await read(house, "/storage/local", content="backup", user="bob@pve")
    assert CT in html
    assert "vzdump-qemu-100" not in html


async def test_dialogs_say_the_calls_they_make(house: Site) -> None:
    html = await read(house, "/dialogs/backup", vmid="101")
    assert 'data-api="POST /nodes/testnode/vzdump"' in html
    assert '<input type="hidden" name="vmid" value="101">' in html
    assert "{{guestname}}" in html
    html = await read(house, "/dialogs/backup", storage="local")
    assert 'name="exclude" value="100"' in html
    volume = archive(house)
    html = await read(house, "/dialogs/backup/restore", volume=volume)
    assert 'data-api="POST /nodes/testnode/lxc"' in html
    assert f'name="ostemplate" value="{volume}"' in html
    assert 'placeholder="dns"' in html  # what the archived configuration says
    html = await read(house, "/dialogs/backup/restore", volume=archive(house, GuestKind.QEMU, 100))
    assert 'data-api="POST /nodes/testnode/qemu"' in html
    assert 'name="archive"' in html


async def test_restoring_over_a_guest_says_what_is_lost_and_wants_its_name(
    house: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = SimpleNamespace(list=lambda kind, guest_id: [{"name": HOSTILE}, {"name": "current"}])
    monkeypatch.setattr(type(house.world.guests), "snapshots", kept)
    stopped = next(view for view in house.world.guests.list(GuestKind.LXC) if view.state is GuestState.STOPPED)
    volume = archive(house, guest_id=stopped.guest_id)
    html = await read(house, "/dialogs/backup/replace", volume=volume)
    assert 'data-api="POST /nodes/testnode/lxc"' in html
    assert {f'name="vmid" value="{stopped.guest_id}"', 'name="force" value="1"'} <= set(
        re.findall(r'name="\w+" value="\w+"', html)
    )
    assert f'data-must-equal="{stopped.name}"' in html
    lost, staying = html[html.index("These volumes are replaced") :].split("not in the backup and stay")
    assert "local:101/vm-101-disk-0.raw" in lost
    assert "local:101/vm-101-disk-1.raw" in staying
    assert "All its snapshots are lost" in lost
    assert "<script>alert" not in html
    assert "/dialogs/backup/replace?" in await read(house, "/dialogs/backup/restore", volume=volume)


async def test_a_guest_that_runs_is_protected_or_gone_is_not_offered_to_be_restored_over(house: Site) -> None:
    running = next(view for view in house.world.guests.list(GuestKind.LXC) if view.state is GuestState.RUNNING)
    html = await read(house, "/dialogs/backup/replace", volume=archive(house, guest_id=running.guest_id))
    assert "Shut it down first" in html
    assert "data-api" not in html
    stopped = next(view for view in house.world.guests.list(GuestKind.LXC) if view.state is GuestState.STOPPED)
    house.world.extras.configs[stopped.guest_id] = {"protection": "1"}
    html = await read(house, "/dialogs/backup/replace", volume=archive(house, guest_id=stopped.guest_id))
    assert "is protected" in html
    assert "data-api" not in html
    for gone in (archive(house, guest_id=999), archive(house, GuestKind.QEMU, int(stopped.guest_id))):
        await read(house, "/dialogs/backup/replace", volume=gone, status=404)
        assert "/dialogs/backup/replace" not in await read(house, "/dialogs/backup/restore", volume=gone)


async def test_a_protected_backup_is_refused_by_the_dialog_in_words(house: Site) -> None:
    html = await read(house, "/dialogs/backup/delete", volume=archive(house, protected=True))
    assert "This backup is protected" in html
    assert "data-api" not in html
    assert 'data-api="DELETE' in await read(house, "/dialogs/backup/delete", volume=archive(house, GuestKind.QEMU, 7))


async def test_an_archive_that_says_no_configuration_can_still_be_looked_at(house: Site) -> None:
    house.world.extras.backups.config = "no such text"
    await read(house, "/dialogs/backup/restore", volume=archive(house))


async def test_nothing_an_archive_or_its_notes_say_becomes_markup(house: Site) -> None:
    made: FakeBackups = house.world.extras.backups
    volume = archive(house, notes=HOSTILE)
    made.config = f"hostname: {HOSTILE}\ndescription: {HOSTILE}\ncipassword: $5$secret\n"
    made.entries += [Entry(f"{HOSTILE.replace('/', '')}", "d"), Entry("etc/" + HOSTILE.replace("/", ""))]
    pages = {
        "/guests/101/backups": "", "/storage/local": "", "/dialogs/backup/restore": volume, "/dialogs/backup/config": volume,
        "/dialogs/backup/notes": volume, "/dialogs/backup/delete": volume, "/backup-files": volume,
        "/parts/backup-files": volume, "/parts/prune": "",
    }  # fmt: skip
    for path, named in pages.items():
        query = {"volume": named} if named else {"_storage": "local", "_keep-last": "1"}
        html = await read(house, path, query)
        assert "<script>alert" not in html, path
        assert "&lt;script&gt;alert(1)" in html, path
        assert "$5$secret" not in html, path


async def test_a_directory_of_an_archive_leads_down_and_back_up_and_files_to_their_download(house: Site) -> None:
    volume = archive(house)
    html = await read(house, "/parts/backup-files", volume=volume)
    assert re.findall(r'dir="auto">([^<]+)</', html) == ["etc", "srv", "dev-null"]
    html = await read(house, "/parts/backup-files", volume=volume, path=backups.encode_path("etc"))
    (href,) = re.findall(r'href="(/api2[^"]+)" download="hostname"', html)
    async with house.client.get(href.replace("&amp;", "&"), headers=house.as_user()) as reply:
        assert (reply.status, await reply.read()) == (200, b"dns\n")
    page = await read(house, "/backup-files", volume=volume, path=backups.encode_path("etc/ssh"))
    steps = re.findall(r"<li><(?:a|span)[^>]*>([^<]+)<", page[page.index('aria-label="Path"') :])
    assert steps == [volume.rpartition("/")[2], "etc", "ssh"]
    assert "directory &#39;/etc/ssh&#39;" in await read(
        house, "/parts/backup-files", volume=volume, path=backups.encode_path("etc/ssh")
    )


async def test_a_large_directory_is_cut_and_can_be_searched(house: Site) -> None:
    made: FakeBackups = house.world.extras.backups
    volume = archive(house)
    made.entries = [Entry(f"file-{number:05}") for number in range(backups.FILES_SHOWN + 7)]
    html = await read(house, "/parts/backup-files", volume=volume)
    assert html.count("<tr>") == backups.FILES_SHOWN + 1
    assert f"{backups.FILES_SHOWN} of {backups.FILES_SHOWN + 7}" in html
    assert (await read(house, "/parts/backup-files", volume=volume, limit="1000")).count("<tr>") == len(
        made.entries
    ) + 1
    assert (await read(house, "/parts/backup-files", volume=volume, q="FILE-00042")).count("<tr>") == 2


@pytest.mark.parametrize("name", [b"plain", b"caf\xe9", "ü".encode(), b"a b+c&d=e"])
def test_a_path_of_any_bytes_is_the_same_again(name: bytes) -> None:
    path = "dir/" + name.decode("utf-8", "surrogateescape")
    assert backups.decode_path(backups.encode_path(path)) == path
    backups.shown(path).encode()


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(InvalidParameter):
        backups.decode_path("%%%")
    assert backups.decode_path("/") == backups.decode_path("") == ""


async def test_pruning_shows_what_would_go_before_it_goes(house: Site) -> None:
    html = await read(house, "/parts/prune", _storage="local")
    assert "all 3 backups stay" in html
    archive(house)
    html = await read(house, "/parts/prune", {"_storage": "local", "_keep-last": "1"})
    assert "1 of 4 backups are removed for good" in html  # of each guest one stays, and the protected one
    assert "is not one of" in await read(house, "/parts/prune", {"_storage": "local", "_keep-last": "many"})
    await read(house, "/dialogs/backup/prune", storage="nowhere", status=404)


async def test_what_is_no_backup_has_no_dialogs(house: Site) -> None:
    await read(house, "/dialogs/backup/config", volume="local:iso/debian-12.7.0-amd64-netinst.iso", status=400)
    await read(house, "/dialogs/backup/config", volume="local:backup/none.tar", status=404)
    await read(house, "/dialogs/backup/config", volume="../../etc/passwd", status=400)
    await read(house, "/dialogs/backup/config", volume="nowhere:backup/x.tar", status=404)
    await read(house, "/dialogs/backup", vmid="999", status=404)


def test_tasks_of_backups_are_said_in_words() -> None:
    def title(kind: str, object_id: str) -> str:
        task: Any = SimpleNamespace(type=kind, id=object_id)
        return task_title(task)

    assert title("vzdump", "100") == "Guest 100: Back up"
    assert title("vzdump", "") == "Back up several guests"
    assert title("vzrestore", "101") == "Container 101: Restore"
    assert title("qmrestore", "100") == "VM 100: Restore"
    assert title("move_volume", "101") == "Guest 101: Move volume"
