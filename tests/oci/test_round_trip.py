"""Against Debian's docker-registry, with skopeo as the other client."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import PermissionDenied
from appliance.storage.oci import transfer
from appliance.storage.oci.archive import Image
from appliance.storage.oci.manifest import Platform
from appliance.storage.oci.reference import Digest, Reference
from appliance.storage.oci.store import ImageStore
from tests.oci import images, registries
from tests.oci.conftest import client, progress
from tests.oci.images import TestImage

LAYERS = [
    images.layer(images.directory("etc"), images.file("etc/os-release", b"NAME=test\n")),
    images.layer(images.file("large", bytes(range(256)) * 8_000)),
]
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


def fill(store: ImageStore, made: TestImage) -> Image:
    """An image of a stranger's making, in the store."""
    from appliance.storage.oci import manifest

    for data in made.blobs.values():
        store.blobs.add(data)
    parsed = manifest.parse_document(made.document, "test")
    assert isinstance(parsed, manifest.Manifest)
    return Image(
        name="test",
        digest=Digest.parse(made.digest),
        document=made.document,
        manifest=parsed,
        config_document=made.config,
        config=manifest.parse_config(made.config, parsed, "test"),
    )


async def push(store: ImageStore, image: Image, host: str, name: str, **login: str) -> None:
    async with client(host, **login) as registry:
        await transfer.push(registry, store, image, Reference.parse(f"{host}/{name}"), progress())


async def pull(store: ImageStore, host: str, name: str, **login: str) -> Image:
    async with client(host, **login) as registry:
        return await transfer.pull(registry, store, Reference.parse(f"{host}/{name}"), Platform(), progress())


def skopeo(*arguments: str) -> str:
    done = subprocess.run(["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_what_is_pushed_is_pulled_again_whole(store: ImageStore, tmp_path: Path, debian_registry: str) -> None:
    image = await asyncio.to_thread(fill, store, images.image(LAYERS, compression=["gzip", "zstd"]))
    await push(store, image, debian_registry, "round/trip:1")
    await push(store, image, debian_registry, "round/trip:2")  # every blob is there already
    other = ImageStore(tmp_path / "other")
    await asyncio.to_thread(other.prepare)
    pulled = await pull(other, debian_registry, "round/trip:2")
    assert (pulled.digest, pulled.document, pulled.config) == (image.digest, image.document, image.config)
    async with client(debian_registry) as registry:
        assert sorted(await registry.tags(Reference.parse(f"{debian_registry}/round/trip"))) == ["1", "2"]


@needs_skopeo
async def test_skopeo_pulls_what_we_push_and_pushes_what_we_pull(
    store: ImageStore, tmp_path: Path, debian_registry: str
) -> None:
    image = await asyncio.to_thread(fill, store, images.image(LAYERS))
    await push(store, image, debian_registry, "ours:1")
    place = f"docker://{debian_registry}/ours"
    await asyncio.to_thread(skopeo, "copy", "--src-tls-verify=false", f"{place}:1", f"oci:{tmp_path}/layout:1")
    index = json.loads((tmp_path / "layout/index.json").read_text())
    assert index["manifests"][0]["digest"] == str(image.digest)
    await asyncio.to_thread(skopeo, "copy", "--dest-tls-verify=false", f"oci:{tmp_path}/layout:1", f"{place}:2")
    other = ImageStore(tmp_path / "other")
    await asyncio.to_thread(other.prepare)
    assert (await pull(other, debian_registry, "ours:2")).digest == image.digest


@needs_skopeo
async def test_docker_schema_2_is_pulled(store: ImageStore, tmp_path: Path, debian_registry: str) -> None:
    image = await asyncio.to_thread(fill, store, images.image(LAYERS))
    await push(store, image, debian_registry, "schema:oci")
    place = f"docker://{debian_registry}/schema"
    options = ("--src-tls-verify=false", "--dest-tls-verify=false", "--format=v2s2")
    await asyncio.to_thread(skopeo, "copy", *options, f"{place}:oci", f"{place}:docker")
    pulled = await pull(store, debian_registry, "schema:docker")
    assert "docker" in pulled.manifest.media_type
    assert pulled.config.diff_ids == image.config.diff_ids


@pytest.fixture
def guarded_registry(tmp_path: Path) -> Iterator[str]:
    if not registries.installed():
        pytest.skip("docker-registry is not installed")
    # "secret", as htpasswd -nbB writes it
    hashed = "$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW"
    with registries.docker_registry(tmp_path, htpasswd=f"me:{hashed}\n") as host:
        yield host


async def test_basic_authentication_is_answered(store: ImageStore, guarded_registry: str) -> None:
    image = await asyncio.to_thread(fill, store, images.image(LAYERS))
    with pytest.raises(PermissionDenied):
        await push(store, image, guarded_registry, "app:1")
    await push(store, image, guarded_registry, "app:1", username="me", password="secret")
    with pytest.raises(PermissionDenied):
        await pull(store, guarded_registry, "app:1", username="me", password="wrong")
    assert (await pull(store, guarded_registry, "app:1", username="me", password="secret")).digest == image.digest
