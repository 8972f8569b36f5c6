"""Pages of what the host and the cluster have beside guests: resource mappings, the node's system, the datacenter's notes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from appliance.services.cluster_options import OPTIONS_KEY
from appliance.services.directory_mappings import DirectoryMapping
from appliance.state.store import Put
from tests.fakes.house import HOSTILE
from tests.web.conftest import Site


async def read(house: Site, path: str, *, user: str = "admin@pve", status: int = 200) -> str:
    async with house.client.get(path, headers=house.as_user(user)) as reply:
        assert reply.status == status, (path, reply.status)
        return await reply.text()


async def mapped(house: Site, name: str, paths: Mapping[str, str], description: str = "") -> DirectoryMapping:
    mappings = house.services.directory_mappings
    await mappings.create(name, description=description, paths=paths)
    return await mappings.get(name)


async def test_mappings_say_what_is_wrong_here_and_who_uses_them(house: Site, tmp_path: Path) -> None:
    shared = tmp_path.resolve() / "shared"
    shared.mkdir()
    await mapped(house, "shared", {"testnode": str(shared), "other": "/srv/elsewhere"}, HOSTILE)
    await mapped(house, "lost", {"testnode": "/srv/is/not/there"})
    house.world.extras.configs[100]["virtiofs0"] = "shared,cache=auto"
    html = await read(house, "/mappings")
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "No such file or directory" in html
    row = html[html.index('data-mapping="shared"') :]
    assert 'href="/guests/100"' in row
    assert "/srv/elsewhere" in row
    assert "shop (100)" in await read(house, "/dialogs/mapping/remove?id=shared")
    html = await read(house, "/dialogs/mapping?id=shared")
    assert 'data-api="PUT /cluster/mapping/dir/shared"' in html
    assert 'data-map-node="other" value="/srv/elsewhere"' in html
    assert 'data-api="POST /cluster/mapping/dir"' in await read(house, "/dialogs/mapping")
    await read(house, "/dialogs/mapping?id=none", status=404)


async def test_mappings_are_seen_and_changed_by_whom_they_are_for(house: Site) -> None:
    await mapped(house, "shared", {"testnode": "/srv/shared"})
    await mapped(house, "secret", {"testnode": "/srv/secret"})
    await read(house, "/mappings", user="bob@pve", status=403)
    house.world.access.grant("bob@pve", "/mapping/dir/shared", "Mapping.Use")
    html = await read(house, "/mappings", user="bob@pve")
    assert "/srv/shared" in html
    assert "/srv/secret" not in html
    assert "/dialogs/mapping" not in html
    await read(house, "/dialogs/mapping?id=shared", user="bob@pve", status=403)
    await read(house, "/dialogs/mapping/remove?id=none", user="bob@pve", status=403)


async def test_a_node_tells_its_time_resolver_and_certificates(house: Site) -> None:
    html = await read(house, "/node/system")
    assert "Time zone" in html
    assert "Search domain" in html
    assert "There are none: this server is reached without TLS" in html
    await read(house, "/node/system", user="bob@pve", status=403)


async def test_a_certificate_that_cannot_be_read_is_told(house: Site) -> None:
    pki = house.services.config.data_dir / "pki"
    await asyncio.to_thread(pki.mkdir, parents=True)
    await asyncio.to_thread((pki / "ca.pem").write_text, "no certificate")
    assert "is no certificate" in await read(house, "/node/system")


async def test_notes_of_the_datacenter_are_markdown_on_the_overview_and_never_markup(house: Site) -> None:
    html = await read(house, "/overview")
    assert "/dialogs/settings/description?next=overview" in html
    assert 'id="notes"' not in await read(house, "/overview", user="bob@pve")
    store = house.services.store
    await store.txn([], [Put(OPTIONS_KEY, msgspec.json.encode({"description": f"# On call\n**Ada** {HOSTILE}"}))])
    html = await read(house, "/overview")
    assert "<strong>Ada</strong>" in html
    assert "<script>alert" not in html
    assert 'data-next="/overview"' in await read(house, "/dialogs/settings/description?next=overview")
    assert 'data-next="/settings"' in await read(house, "/dialogs/settings/description?next=//evil.example")


async def test_notes_of_the_datacenter_are_read_with_sys_audit_only_as_the_api_has_it(house: Site) -> None:
    text = msgspec.json.encode({"description": "the safe is behind the picture"})
    await house.services.store.txn([], [Put(OPTIONS_KEY, text)])
    for privilege in ("VM.Audit", "Sys.Modify"):
        house.world.access.grant("bob@pve", "/", privilege)
        assert "picture" not in await read(house, "/overview", user="bob@pve")
        assert "picture" not in await read(house, "/dialogs/settings/description", user="bob@pve", status=403)
    house.world.access.grant("bob@pve", "/", "Sys.Audit")
    html = await read(house, "/overview", user="bob@pve")
    assert "picture" in html
    assert "/dialogs/settings/description" not in html
    house.world.access.grant("bob@pve", "/", "Sys.Audit", "Sys.Modify")
    assert "/dialogs/settings/description" in await read(house, "/overview", user="bob@pve")
    assert "picture" in await read(house, "/dialogs/settings/description", user="bob@pve")
