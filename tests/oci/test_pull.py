"""Pulling: what a registry sends is verified, bounded, resumed and shared."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from appliance.errors import (
    ApplianceError,
    HostError,
    InvalidParameter,
    PermissionDenied,
    TimedOut,
    Unsupported,
    UserError,
)
from appliance.storage.oci import manifest, transfer
from appliance.storage.oci.archive import Image
from appliance.storage.oci.manifest import Platform
from appliance.storage.oci.reference import Digest, Reference
from appliance.storage.oci.registry import RegistryClient
from appliance.storage.oci.store import ImageStore
from tests.oci import images
from tests.oci.conftest import client, progress
from tests.oci.registries import FakeRegistry, no_cancellation, serve

AMD64 = Platform()
BASE = images.layer(images.directory("etc"), images.file("etc/os-release", b"NAME=test\n"))
LARGE = images.layer(images.file("large", bytes(range(256)) * 12_000))


async def pull(fake: FakeRegistry, store: ImageStore, tag: str = "1", *, at: RegistryClient | None = None) -> Image:
    reference = Reference.parse(f"{fake.host}/team/app:{tag}")
    async with at or client(fake.host) as registry, store.using():
        return await transfer.pull(registry, store, reference, AMD64, progress())


def blobs(store: ImageStore) -> set[str]:
    return {f"sha256:{path.name}" for path in (store.directory / "blobs/sha256").iterdir()}


def partial(store: ImageStore) -> list[str]:
    return sorted(path.name for path in (store.directory / "partial").iterdir())


async def test_every_blob_of_an_image_is_stored_under_its_digest(fake: FakeRegistry, store: ImageStore) -> None:
    made = images.image([BASE, LARGE, images.layer()], compression=["gzip", "zstd", ""])
    fake.images["1"] = made
    image = await pull(fake, store)
    assert str(image.digest) == made.digest
    assert blobs(store) == set(made.blobs)
    assert all(store.blobs.path(Digest.parse(name)).read_bytes() == data for name, data in made.blobs.items())
    assert partial(store) == []


async def test_what_is_there_already_is_not_fetched_again(fake: FakeRegistry, store: ImageStore) -> None:
    fake.images["1"], fake.images["2"] = images.image([BASE]), images.image([BASE, LARGE])
    await pull(fake, store)
    fake.requests.clear()
    await pull(fake, store, "2")
    shared = next(iter(fake.images["1"].blobs))
    assert f"GET /v2/team/app/blobs/{shared}" not in fake.requests
    assert len(fake.requests) == 3  # manifest, configuration, the new layer


async def test_an_index_leads_to_the_image_of_the_platform(fake: FakeRegistry, store: ImageStore) -> None:
    made = images.image([BASE])
    fake.images["hidden"] = made

    def index(*architectures: str) -> bytes:
        entries = [
            {"mediaType": manifest.OCI_MANIFEST, "digest": made.digest, "size": len(made.document),
             "platform": {"os": "linux", "architecture": each}} for each in architectures
        ]  # fmt: skip
        return json.dumps({"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": entries}).encode()

    fake.images["1"] = images.TestImage(index("arm64", "amd64"), b"")
    assert str((await pull(fake, store)).digest) == made.digest
    fake.images["2"] = images.TestImage(index("arm64", "s390x"), b"")
    with pytest.raises(Unsupported, match=r"linux/amd64, only for linux/arm64, linux/s390x"):
        await pull(fake, store, "2")


async def test_a_cut_off_transfer_goes_on_where_it_was(fake: FakeRegistry, store: ImageStore) -> None:
    made = images.image([LARGE], compression=[""])
    fake.images["1"] = made
    large = images.sha256(LARGE)
    answers = 0

    async def cut(request: web.Request) -> web.StreamResponse:
        nonlocal answers
        answers += 1
        begin = int(request.headers.get("Range", "bytes=0-")[6:-1])
        if answers > 2:
            return FakeRegistry._blob(request, LARGE)
        status = 206 if begin else 200
        response = web.StreamResponse(status=status, headers={"Content-Range": f"bytes {begin}-/*"} if begin else {})
        await response.prepare(request)
        await response.write(LARGE[begin : begin + 100_000])
        await asyncio.sleep(0.1)  # a reset would overtake what is on its way
        assert request.transport is not None
        request.transport.abort()
        return response

    fake.instead[large] = cut
    await pull(fake, store)
    assert [each for each in fake.ranges if each] == ["bytes=100000-", "bytes=200000-"]
    assert store.blobs.path(Digest.parse(large)).read_bytes() == LARGE


async def test_what_an_earlier_pull_has_left_is_continued_and_verified(fake: FakeRegistry, store: ImageStore) -> None:
    made = images.image([LARGE], compression=[""])
    fake.images["1"] = made
    left = store.directory / "partial" / images.sha256(LARGE).replace(":", "-")
    left.write_bytes(LARGE[:1000])
    await pull(fake, store)
    assert "bytes=1000-" in fake.ranges
    store.blobs.path(Digest.parse(images.sha256(LARGE))).unlink()
    left.write_bytes(b"damaged")
    with pytest.raises(InvalidParameter, match="the digest of what has come"):
        await pull(fake, store)
    await pull(fake, store)  # the damaged beginning has gone


async def test_a_registry_without_ranges_begins_anew(fake: FakeRegistry, store: ImageStore) -> None:
    made = images.image([LARGE], compression=[""])
    fake.images["1"] = made
    (store.directory / "partial" / images.sha256(LARGE).replace(":", "-")).write_bytes(LARGE[:1000])

    async def whole(request: web.Request) -> web.StreamResponse:
        return web.Response(body=LARGE)

    fake.instead[images.sha256(LARGE)] = whole
    await pull(fake, store)
    assert store.blobs.path(Digest.parse(images.sha256(LARGE))).read_bytes() == LARGE


async def test_a_blob_of_another_digest_is_refused_and_nothing_of_it_stays(
    fake: FakeRegistry, store: ImageStore
) -> None:
    made = images.image([LARGE], compression=[""])
    fake.images["1"] = made

    async def wrong(request: web.Request) -> web.StreamResponse:
        return web.Response(body=LARGE[:-1] + b"!")

    fake.instead[images.sha256(LARGE)] = wrong
    with pytest.raises(InvalidParameter, match="the digest of what has come is sha256:"):
        await pull(fake, store)
    assert images.sha256(LARGE) not in blobs(store)
    assert partial(store) == []


async def test_a_body_without_end_is_cut_at_the_promised_size(fake: FakeRegistry, store: ImageStore) -> None:
    made = images.image([LARGE], compression=[""])
    fake.images["1"] = made
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        with no_cancellation():
            while sent < 200 << 20:
                await response.write(bytes(1 << 16))
                sent += 1 << 16
        return response

    fake.instead[images.sha256(LARGE)] = endless
    with pytest.raises(InvalidParameter, match="longer than the"):
        await pull(fake, store)
    assert sent < 64 << 20
    assert partial(store) == []


async def test_a_body_that_drips_is_given_up(fake: FakeRegistry, store: ImageStore) -> None:
    made = images.image([LARGE], compression=[""])
    fake.images["1"] = made

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with no_cancellation():
            for number in range(100):
                await response.write(LARGE[number : number + 1])
                await asyncio.sleep(0.05)
        return response

    fake.instead[images.sha256(LARGE)] = drip
    with pytest.raises(TimedOut, match="slower than"):
        await pull(fake, store)


async def test_a_manifest_that_drips_is_given_up(fake: FakeRegistry, store: ImageStore) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with no_cancellation():
            for _ in range(100):
                await response.write(b" " * 4096)
                await asyncio.sleep(0.05)
        return response

    fake.instead["/manifests/1"] = drip
    with pytest.raises(TimedOut, match="manifest"):
        await pull(fake, store)


async def test_a_huge_manifest_is_refused(fake: FakeRegistry, store: ImageStore) -> None:
    async def huge(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b" " * (manifest.MANIFEST_LIMIT_BYTES + 1))

    fake.instead["/manifests/1"] = huge
    with pytest.raises(UserError, match="larger than the limit of 4194304 bytes"):
        await pull(fake, store)


async def test_redirects_without_end_are_refused(fake: FakeRegistry, store: ImageStore) -> None:
    async def again(request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": f"{request.path}?n={len(fake.requests)}"})

    fake.instead["/manifests/1"] = again
    with pytest.raises(UserError, match="more than 3 redirects"):
        await pull(fake, store)
    assert len(fake.requests) == 4


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://x/", "http://user:secret@127.0.0.1/", "::::"])
async def test_a_redirect_to_anything_but_http_is_refused(fake: FakeRegistry, store: ImageStore, place: str) -> None:
    async def elsewhere(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": place})

    fake.instead["/manifests/1"] = elsewhere
    with pytest.raises(ApplianceError):
        await pull(fake, store)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b'{"schemaVersion": 1}',
        b'{"schemaVersion": 2, "layers": [{"digest": "sha256:../../etc", "size": 1}]}',
        b'{"schemaVersion": 2, "config": {"digest": "md5:00", "size": 1}, "layers": []}',
        b'{"schemaVersion": 2, "config": {"digest": "sha256:%s", "size": -1}, "layers": []}' % (b"0" * 64),
        b'{"schemaVersion": 2, "config": {"digest": "sha256:%s", "size": 99999999}, "layers": []}' % (b"0" * 64),
        b'{"schemaVersion": 2, "layers": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
async def test_a_manifest_that_cannot_be_is_refused(fake: FakeRegistry, store: ImageStore, document: bytes) -> None:
    fake.images["1"] = images.TestImage(document, b"")
    with pytest.raises(UserError):
        await pull(fake, store)
    assert blobs(store) == set()


async def test_a_configuration_that_does_not_fit_its_layers_is_refused(fake: FakeRegistry, store: ImageStore) -> None:
    one, two = images.image([BASE]), images.image([BASE, LARGE])
    document = json.loads(two.document)
    document["config"] = json.loads(one.document)["config"]
    fake.images["1"] = images.TestImage(json.dumps(document).encode(), one.config, one.blobs | two.blobs)
    with pytest.raises(InvalidParameter, match="1 diff ids for 2 layers"):
        await pull(fake, store)


async def test_a_pull_that_is_cancelled_leaves_what_the_next_continues(fake: FakeRegistry, store: ImageStore) -> None:
    made = images.image([LARGE], compression=[""])
    fake.images["1"] = made
    arrived, over = asyncio.Event(), asyncio.Event()

    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with no_cancellation():
            await response.write(LARGE[: 2 << 20])
            arrived.set()
            await over.wait()
        return response

    fake.instead[images.sha256(LARGE)] = stall
    task = asyncio.ensure_future(pull(fake, store))
    await arrived.wait()
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    over.set()
    fake.instead.clear()
    await pull(fake, store)
    assert any(each.startswith("bytes=") and each != "bytes=0-" for each in fake.ranges)


async def test_a_token_is_fetched_once_and_never_follows_a_redirect_elsewhere(
    fake: FakeRegistry, store: ImageStore
) -> None:
    fake.images["1"] = images.image([BASE, LARGE])
    other = FakeRegistry(images=fake.images)
    runner = await serve(other)
    plain = fake.handle

    async def token(request: web.Request) -> web.StreamResponse:
        assert request.query["scope"] == "repository:team/app:pull"
        assert request.query["service"] == "it, really"
        return web.json_response({"token": "abc"})

    async def guarded(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") == "Bearer abc":
            if "/blobs/" in request.path:
                return web.Response(status=307, headers={"Location": f"http://{other.host}{request.path}"})
            taken = fake.instead.pop("1")
            try:
                return await plain(request)
            finally:
                fake.instead["1"] = taken
        realm = f'Bearer realm="http://{fake.host}/token",service="it, really"'
        return web.Response(status=401, headers={"WWW-Authenticate": realm})

    fake.instead |= {"/token": token, "1": guarded}
    fake.instead |= dict.fromkeys(fake.images["1"].blobs, guarded)
    try:
        await pull(fake, store, at=client(fake.host, username="me", password="secret"))
    finally:
        await runner.cleanup()
    tokens = [a for r, a in zip(fake.requests, fake.authorizations, strict=True) if r.startswith("GET /token")]
    assert len(tokens) == 1
    assert tokens[0].startswith("Basic ")
    assert set(other.authorizations) == {""}


async def test_a_registry_that_wants_a_password_names_itself(fake: FakeRegistry, store: ImageStore) -> None:
    async def basic(request: web.Request) -> web.StreamResponse:
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    fake.instead["/manifests/1"] = basic
    with pytest.raises(PermissionDenied, match=r"127\.0\.0\.1:\d+: wants a user name and a password"):
        await pull(fake, store)
    with pytest.raises(PermissionDenied, match="answers 401"):
        await pull(fake, store, at=client(fake.host, username="me", password="wrong"))


@pytest.mark.parametrize("body", [b"[" * 100_000, b"{}", b'{"token": 5}', b'{"token": "a\\nb"}', b"\xff"])
async def test_a_token_that_is_none_is_refused(fake: FakeRegistry, store: ImageStore, body: bytes) -> None:
    async def token(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    async def guarded(request: web.Request) -> web.StreamResponse:
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{fake.host}/token"'})

    fake.instead |= {"/token": token, "/manifests/1": guarded}
    with pytest.raises(UserError, match="token"):
        await pull(fake, store)


async def test_an_unreachable_registry_is_a_clear_error(store: ImageStore) -> None:
    with pytest.raises(HostError, match=r"registry 127\.0\.0\.1:1: "):
        await pull(FakeRegistry(host="127.0.0.1:1"), store)
