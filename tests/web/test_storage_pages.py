"""The list of storages and their dialogs: who may change them, and what keeps one from being forgotten."""

from __future__ import annotations

from appliance.model.volume import ContentType, VolumeId
from appliance.services.storage_config import StorageDocument
from tests.fakes.house import HOSTILE
from tests.web.conftest import Site


async def part(house: Site, path: str, *, user: str = "admin@pve") -> str:
    headers = {**house.as_user(user), "HX-Request": "true"}
    async with house.client.get(path, headers=headers) as reply:
        assert reply.status == 200
        return await reply.text()


async def test_a_storage_in_use_says_so_and_offers_no_removal(house: Site) -> None:
    storage = house.world.extras.storage
    storage.documents["vault"] = StorageDocument(path="/srv/vault")
    html = await part(house, "/dialogs/storage/vault/remove")
    assert 'data-api="DELETE /storage/vault"' in html
    assert "/srv/vault" in html
    storage.add("backup/vzdump-lxc-101-2025_01_01-00_00_00.tar", ContentType.BACKUP, 1, guest_id=101, storage="vault")
    assert "Backups: 1" in await part(house, "/dialogs/storage/vault/remove")  # stays, and keeps nobody from removing
    storage.add("100/vm-100-disk-7.raw", ContentType.IMAGES, 1, guest_id=100, storage="vault")
    html = await part(house, "/dialogs/storage/vault/remove")
    assert "vault is in use" in html
    assert "data-api" not in html
    storage.remove(VolumeId("vault", "100/vm-100-disk-7.raw"))
    house.world.guests.named = frozenset({VolumeId("vault", "100/vm-100-disk-9.raw")})
    assert "Guests name 1 volumes" in await part(house, "/dialogs/storage/vault/remove")


async def test_a_disabled_storage_is_in_the_list_and_can_be_edited_and_forgotten(house: Site) -> None:
    house.world.extras.storage.documents["vault"] = StorageDocument(
        path="/srv/vault", disable=True, nodes=("testnode",)
    )
    html = await part(house, "/storage")
    assert '<tr data-storage="vault">' in html
    assert "Disabled" in html
    html = await part(house, "/dialogs/storage/vault/edit")
    assert 'name="disable" value="0" data-off="1">' in html
    assert 'value="testnode"' in html
    assert 'data-api="DELETE' in await part(house, "/dialogs/storage/vault/remove")


async def test_what_was_stored_as_rules_and_is_none_does_not_keep_one_from_editing(house: Site) -> None:
    house.world.extras.storage.documents["vault"] = StorageDocument(path="/srv/vault", prune_backups=HOSTILE)
    html = await part(house, "/dialogs/storage/vault/edit")
    assert 'data-api="PUT /storage/vault"' in html
    assert "<script>alert" not in html


async def test_only_who_may_change_storages_is_offered_to(house: Site) -> None:
    house.world.access.grant("bob@pve", "/storage/local", "Datastore.Audit")
    html = await part(house, "/storage", user="bob@pve")
    assert '<tr data-storage="local">' in html
    assert "/dialogs/storage/local" not in html
    assert "add-storage" not in html
    for path in ("/dialogs/add-storage", "/dialogs/storage/local/edit"):
        assert "You need Datastore.Allocate" in await part(house, path, user="bob@pve")
    assert "You may see no storage" in await part(house, "/storage", user="eve@pve")
