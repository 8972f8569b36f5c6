"""Manifests, indices and configurations of images: bounded, checked, typed. Pure.

Both families of media types are read: OCI's (image-spec 1.1: manifest.md, image-index.md, config.md) and Docker's schema
2, which differ in names only. Docker's schema 1 is refused. Everything here was written by a stranger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from appliance.errors import InvalidParameter, Unsupported
from appliance.model.application import HealthCheck
from appliance.storage.oci.reference import Digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPTED = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX)
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_COMPRESSION = {"": "", "+gzip": "gz", ".gzip": "gz", "+zstd": "zst", ".zstd": "zst"}

MANIFEST_LIMIT_BYTES = 4 << 20
"""What registries themselves accept (distribution-spec "Pushing Manifests")."""
CONFIG_LIMIT_BYTES = 4 << 20
LAYERS_LIMIT = 127
"""An overlay takes 128 lower directories by mount(2), and images are built to this limit."""
LAYER_LIMIT_BYTES = 64 << 30
_INDEX_LIMIT = 1000
_NAMES_LIMIT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a manifest says of a blob."""

    media_type: str
    digest: Digest
    size_bytes: int

    @property
    def compression(self) -> str:
        """Of a layer: "", "gz" or "zst". Raises `Unsupported` for what is no layer we can unpack."""
        for base in (_OCI_LAYER, _DOCKER_LAYER):
            if self.media_type.startswith(base) and self.media_type[len(base) :] in _COMPRESSION:
                return _COMPRESSION[self.media_type[len(base) :]]
        raise Unsupported(f"layer {self.digest}: media type {self.media_type[:100]!r} cannot be unpacked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Of an image in an index; `variant` "" where it does not matter."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image: its configuration and its layers, the lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def size_bytes(self) -> int:
        """Of all its blobs, as they are transferred."""
        return self.config.size_bytes + sum({each.digest: each.size_bytes for each in self.layers}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What an image says of its processes. `diff_ids` are the digests of its layers unpacked."""

    architecture: str
    os: str
    diff_ids: tuple[Digest, ...]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    working_directory: str = "/"
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    health: HealthCheck | None = None
    created: str = ""


def parse_document(data: bytes, about: str) -> Manifest | tuple[tuple[Platform, Descriptor], ...]:
    """A manifest, or the images of an index. Raises `InvalidParameter`, `Unsupported` naming `about`."""
    value = _object(data, about)
    media_type = str(value.get("mediaType", ""))
    if value.get("schemaVersion") == 1:
        raise Unsupported(f"{about}: Docker's schema 1 is not supported; push the image again with a current client")
    if value.get("schemaVersion") != 2:
        raise _refused(about, f"schema version {str(value.get('schemaVersion'))[:20]}")
    if media_type in (OCI_INDEX, DOCKER_INDEX) or (not media_type and "manifests" in value):
        return _index(value, about)
    if media_type not in (OCI_MANIFEST, DOCKER_MANIFEST, ""):
        raise Unsupported(f"{about}: media type {media_type[:100]!r} is not an image's")
    layers = _list(value, "layers", LAYERS_LIMIT, about)
    return Manifest(
        media_type=media_type or OCI_MANIFEST,
        config=_descriptor(value.get("config"), CONFIG_LIMIT_BYTES, about),
        layers=tuple(_descriptor(each, LAYER_LIMIT_BYTES, about) for each in layers),
    )


def choose(images: Sequence[tuple[Platform, Descriptor]], wanted: Platform, about: str) -> Descriptor:
    """The image for a platform. Raises `Unsupported` naming those there are."""
    fitting = [
        (platform, descriptor)
        for platform, descriptor in images
        if (platform.os, platform.architecture) == (wanted.os, wanted.architecture)
    ]
    exact = [each for each in fitting if each[0].variant == wanted.variant]
    if not fitting:
        known = sorted({str(platform) for platform, _ in images if platform.os != "unknown"})
        raise Unsupported(f"{about}: there is no image for {wanted}, only for {', '.join(known[:20]) or 'nothing'}")
    return (exact or fitting)[0][1]


def parse_config(data: bytes, manifest: Manifest, about: str) -> ImageConfig:
    """An image's configuration, which must have a diff id for each layer. Raises `InvalidParameter`."""
    value = _object(data, about)
    rootfs, inner = _inner(value, "rootfs", about), _inner(value, "config", about)
    try:
        diff_ids = tuple(Digest.parse(each) for each in _list(rootfs, "diff_ids", LAYERS_LIMIT, about))
    except ValueError as error:
        raise _refused(about, str(error)) from error
    if len(diff_ids) != len(manifest.layers):
        raise _refused(about, f"{len(diff_ids)} diff ids for {len(manifest.layers)} layers")
    return ImageConfig(
        architecture=_text(value, "architecture", about),
        os=_text(value, "os", about) or "linux",
        diff_ids=diff_ids,
        entrypoint=_words(inner, "Entrypoint", about),
        command=_words(inner, "Cmd", about),
        environment=dict(_pair(each) for each in _words(inner, "Env", about)),
        user=_text(inner, "User", about),
        working_directory=_text(inner, "WorkingDir", about) or "/",
        exposed_ports=tuple(sorted(_inner(inner, "ExposedPorts", about)))[:_NAMES_LIMIT],
        volumes=tuple(sorted(_inner(inner, "Volumes", about)))[:_NAMES_LIMIT],
        labels={str(k): str(v) for k, v in list(_inner(inner, "Labels", about).items())[:_NAMES_LIMIT]},
        stop_signal=_text(inner, "StopSignal", about),
        health=_health(_inner(inner, "Healthcheck", about), about),
        created=_text(value, "created", about),
    )


def chain_ids(diff_ids: Sequence[Digest]) -> tuple[Digest, ...]:
    """For each layer the digest of it and all below it (image-spec config.md, "Layer ChainID")."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)


def _index(value: Mapping[str, object], about: str) -> tuple[tuple[Platform, Descriptor], ...]:
    found = []
    for each in _list(value, "manifests", _INDEX_LIMIT, about):
        if not isinstance(each, dict):
            raise _refused(about, "an entry of the index is not an object")
        platform = each.get("platform") if isinstance(each.get("platform"), dict) else {}
        assert isinstance(platform, dict)
        named = Platform(
            os=str(platform.get("os", "linux"))[:40],
            architecture=str(platform.get("architecture", "unknown"))[:40],
            variant=str(platform.get("variant", ""))[:40],
        )
        found.append((named, _descriptor(each, MANIFEST_LIMIT_BYTES, about)))
    return tuple(found)


def _descriptor(value: object, limit_bytes: int, about: str) -> Descriptor:
    if not isinstance(value, dict):
        raise _refused(about, "a descriptor is not an object")
    size = value.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= limit_bytes:
        raise _refused(
            about, f"size {str(size)[:30]} of {str(value.get('digest'))[:80]} is not between 0 and {limit_bytes}"
        )
    try:
        digest = Digest.parse(value.get("digest"))
    except ValueError as error:
        raise _refused(about, str(error)) from error
    return Descriptor(media_type=str(value.get("mediaType", ""))[:200], digest=digest, size_bytes=size)


def _health(value: Mapping[str, object], about: str) -> HealthCheck | None:
    test = _words(value, "Test", about)
    match test[:1]:
        case ("CMD",):
            command = test[1:]
        case ("CMD-SHELL",) if len(test) > 1:
            command = ("/bin/sh", "-c", test[1])
        case _:  # absent, or NONE: inherited ones are off
            return None
    return HealthCheck(
        command=command,
        interval_s=_seconds(value.get("Interval"), 30.0),
        timeout_s=_seconds(value.get("Timeout"), 30.0),
        start_period_s=_seconds(value.get("StartPeriod"), 0.0),
        retries=_count(value.get("Retries"), 3),
    )


def _seconds(nanoseconds: object, default: float) -> float:
    if not isinstance(nanoseconds, int) or nanoseconds <= 0:
        return default
    return min(max(nanoseconds / 1e9, 0.001), 86400.0)


def _count(value: object, default: int) -> int:
    return min(value, 1000) if isinstance(value, int) and value > 0 else default


def _object(data: bytes, about: str) -> dict[str, object]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refused(about, "not JSON") from error
    if not isinstance(value, dict):
        raise _refused(about, "not a JSON object")
    return value


def _inner(value: Mapping[str, object], name: str, about: str) -> dict[str, object]:
    found = value.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _refused(about, f"{name} is not an object")
    return found


def _list(value: Mapping[str, object], name: str, limit: int, about: str) -> list[object]:
    found = value.get(name)
    if found is None:
        found = []
    if not isinstance(found, list):
        raise _refused(about, f"{name} is not a list")
    if len(found) > limit:
        raise _refused(about, f"{len(found)} {name}, more than {limit}")
    return found


def _words(value: Mapping[str, object], name: str, about: str) -> tuple[str, ...]:
    found = _list(value, name, _NAMES_LIMIT, about)
    if any(not isinstance(each, str) or "\0" in each for each in found):
        raise _refused(about, f"{name} holds something that is not text")
    return tuple(str(each) for each in found)


def _text(value: Mapping[str, object], name: str, about: str) -> str:
    found = value.get(name)
    if found is None:
        return ""
    if not isinstance(found, str) or "\0" in found or len(found) > 4096:
        raise _refused(about, f"{name} is not a text")
    return found


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _refused(about: str, why: str) -> InvalidParameter:
    return InvalidParameter({"reference": f"{about}: {why}"}, message="The image is refused.")
