"""Names of images: `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, and digests. Pure.

The grammar is the one registries share (distribution-spec "Endpoints", `<name>` and `<reference>`). A first part counts
as a host when it has a dot or a port, or is "localhost", as every client of registries takes it; anything else is on
Docker Hub, whose API lives on another host and whose one-part names are below "library".
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

from appliance.errors import InvalidParameter

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
TEXT_LIMIT = 512
_API_HOSTS = {DEFAULT_REGISTRY: "registry-1.docker.io"}
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?")
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class Digest:
    """`ALGORITHM:HEX`. Construct through `parse`: what has passed it is safe as a file's name."""

    text: str

    @staticmethod
    def parse(text: object) -> Digest:
        """Raises `ValueError`, for an algorithm that nobody here can verify, too."""
        if not isinstance(text, str) or not _DIGEST.fullmatch(text):
            raise ValueError(f"{str(text)[:80]!r} is not a sha256 or sha512 digest")
        return Digest(text)

    @staticmethod
    def of(data: bytes) -> Digest:
        """The sha256 digest of `data`."""
        return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")

    @property
    def algorithm(self) -> str:
        return self.text.partition(":")[0]

    @property
    def hex(self) -> str:
        return self.text.partition(":")[2]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A complete name. `tag` is "" where the digest alone says which image."""

    registry: str
    repository: str
    tag: str = DEFAULT_TAG
    digest: Digest | None = None

    @staticmethod
    def parse(text: str, *, name: str = "reference") -> Reference:
        """Raises `InvalidParameter` naming the parameter `name`."""
        try:
            return _parse(text)
        except ValueError as error:
            raise InvalidParameter({name: f"'{text[:100]}' does not name an image: {error}"}) from error

    @property
    def api_host(self) -> str:
        """Where the registry's API answers."""
        return _API_HOSTS.get(self.registry, self.registry)

    @property
    def version(self) -> str:
        """What to ask the registry for: the digest where there is one, else the tag."""
        return str(self.digest) if self.digest is not None else self.tag

    @property
    def file_stem(self) -> str:
        """`alpine_3.19`: PVE's name of the volume an image is stored as."""
        tail = self.tag or (self.digest.hex[:12] if self.digest else DEFAULT_TAG)
        return f"{self.repository.rpartition('/')[2]}_{tail}"

    def at(self, digest: Digest) -> Reference:
        """The same, fixed to one content."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def check_registry(text: str) -> str:
    """A registry's host, with or without port. Raises `ValueError`."""
    if len(text) > 255 or not _HOST.fullmatch(text):
        raise ValueError("not a host name with an optional port")
    return text


def _parse(text: str) -> Reference:
    if len(text) > TEXT_LIMIT:
        raise ValueError(f"longer than {TEXT_LIMIT} characters")
    name, at, digest_text = text.partition("@")
    digest = Digest.parse(digest_text) if at else None
    head, slash, rest = name.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        registry = check_registry(head)
    else:
        registry, rest = DEFAULT_REGISTRY, name
    path, colon, tag = rest.rpartition(":")
    if not colon:
        path, tag = rest, "" if digest else DEFAULT_TAG
    elif not _TAG.fullmatch(tag):
        raise ValueError(f"'{tag[:40]}' is not a tag")
    if len(path) > 255 or not _REPOSITORY.fullmatch(path):
        raise ValueError(f"'{path[:40]}' is not a repository's path (lower case, no empty parts)")
    if registry in (DEFAULT_REGISTRY, "index.docker.io"):
        registry = DEFAULT_REGISTRY
        path = path if "/" in path else f"library/{path}"
    return Reference(registry=registry, repository=path, tag=tag, digest=digest)
