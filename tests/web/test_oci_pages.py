"""The pages of OCI images: what they say of images, who may do what, and that nothing of a stranger's image is markup."""

from __future__ import annotations

import asyncio
import re

from appliance.services.images import shared_bytes
from appliance.storage.oci.credentials import RegistryAccess, Transport
from tests.fakes.house import HOSTILE
from tests.fakes.images import MIB, FakeImages, describe, web_server
from tests.web.conftest import Site

IMAGE = "local:vztmpl/nginx_1.27.tar"
DIALOGS = [
    "/dialogs/oci/pull", f"/dialogs/oci/push?volume={IMAGE}", f"/dialogs/oci/details?volume={IMAGE}",
    f"/dialogs/oci/delete?volume={IMAGE}", "/dialogs/oci/collect", "/dialogs/oci/build", "/dialogs/oci/registry",
    "/dialogs/create-app", f"/dialogs/create-app?image={IMAGE}",
    "/dialogs/oci/registry?registry=registry.lan:5000", "/dialogs/oci/forget?registry=registry.lan:5000",
]  # fmt: skip


def images_of(house: Site) -> FakeImages:
    found = house.world.extras.images
    assert isinstance(found, FakeImages)
    return found


async def read(house: Site, path: str, *, user: str = "admin@pve", status: int = 200) -> str:
    async with house.client.get(path, headers=house.as_user(user), allow_redirects=False) as reply:
        assert reply.status == status, (path, reply.status)
        return await reply.text()


async def test_the_list_tells_what_an_image_takes_and_what_it_shares(house: Site) -> None:
    html = await read(house, "/oci")
    rows = dict(re.findall(r'<tr data-image="([^"]+)">(.*?)</tr>', html, re.DOTALL))
    assert set(rows) == {IMAGE, "local:vztmpl/redis_7.tar"}
    assert "9 MiB" in rows[IMAGE]  # "base" and "nginx", a megabyte a letter
    assert "4 MiB" in rows[IMAGE]  # "base" alone is shared
    assert "21 MiB together" in html  # 4 + 5 + 12


async def test_what_is_shared_counts_within_a_storage_and_an_image_with_itself_does_not_share(house: Site) -> None:
    images = images_of(house)
    lonely = images.add("lonely.tar", describe("lonely", ["own", "own"]))
    shared = shared_bytes(await images.list())
    assert shared[lonely] == 0
    assert [size // MIB for volume, size in shared.items() if volume != lonely] == [4, 4]


async def test_an_image_names_the_containers_made_of_it(house: Site) -> None:
    (nginx,) = [image for volume, image in images_of(house).known.items() if str(volume) == IMAGE]
    house.world.extras.configs[101] = {"hostname": "dns", "app-image": f"{nginx.name}@{nginx.digest}"}
    html = await read(house, "/oci")
    assert '<a href="/guests/101">101</a>' in html
    assert '<a href="/guests/101">101</a>' in await read(house, f"/dialogs/oci/delete?volume={IMAGE}")


async def test_who_may_not_see_a_storage_sees_none_of_its_images_and_nobody_a_password(house: Site) -> None:
    await asyncio.to_thread(
        images_of(house).registries.put,
        RegistryAccess(registry="registry.lan:5000", username="me", password="s3cret-word"),
    )
    html = await read(house, "/oci")
    assert "password set" in html
    for path in ("/oci", *DIALOGS):
        assert "s3cret-word" not in await read(house, path)
    assert "nginx" not in await read(house, "/oci", user="bob@pve")
    assert "Registries" not in await read(house, "/oci", user="bob@pve")
    await read(house, f"/dialogs/oci/details?volume={IMAGE}", user="bob@pve", status=403)
    house.world.access.grant("bob@pve", "/storage/local", "Datastore.Audit")
    html = await read(house, "/oci", user="bob@pve")
    assert "nginx" in html
    assert 'id="oci-pull"' not in html
    assert "Delete docker.io" not in html


async def test_what_is_no_image_is_refused_by_name(house: Site) -> None:
    await read(house, "/dialogs/oci/details?volume=local:vztmpl/other.tar", status=400)
    await read(house, "/dialogs/oci/push?volume=nonsense", status=400)
    await read(house, "/dialogs/oci/registry?registry=unknown.example", status=404)


async def test_nothing_a_strangers_image_says_becomes_markup(house: Site) -> None:
    images = images_of(house)
    await asyncio.to_thread(
        images.registries.put, RegistryAccess(registry="registry.lan:5000", transport=Transport.PLAIN)
    )
    images.add("evil.tar", describe(HOSTILE, ["base"], web_server(HOSTILE)))
    for path in ("/oci", *(each.replace("nginx_1.27", "evil") for each in DIALOGS)):
        html = await read(house, path)
        assert "<script>alert" not in html, path
        assert not re.search(r"<script(?![^>]*\ssrc=)|\sstyle=|\son[a-z]+=", html), path
    assert "&lt;script&gt;alert(1)" in await read(house, "/dialogs/oci/details?volume=local:vztmpl/evil.tar")
